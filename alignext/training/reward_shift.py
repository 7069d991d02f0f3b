# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The state of the reward shift, which travels in `trainer_state.json`."""

from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from alignext.functional.bco import class_mean_shift, pooled_mean_shift, reward_sums, update_sums
from alignext.functional.diffusion_kto import divergence


class RewardShift(TrainerCallback, ExportableState):
    """
    Keeps the sums that the shift is made of. A callback, because the trainer writes the state of callbacks into every
    checkpoint, with or without the optimizer.
    """

    def __init__(self) -> None:
        self.stats = [0.0, 0.0, 0.0, 0.0]  # as from `reward_sums`, of all processes
        self.window: torch.Tensor | None = None  # the same, of this process since the last optimizer step

    def state(self) -> dict:
        return {"args": {}, "attributes": {"stats": list(self.stats)}}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        # A resumed trainer reads the saved state here, whatever `restore_callback_states_from_checkpoint` says. A
        # checkpoint of another trainer has none, and saving would then miss the key.
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self.stats, self.window = list(saved["attributes"]["stats"]), None

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        if getattr(args, "sync_ref_model", False) and state.global_step % args.ref_model_sync_steps == 0:
            # The reference comes nearer to the policy, and all rewards with it, to first order by this factor.
            self.stats[:2] = [(1 - args.ref_model_mixup_alpha) * total for total in self.stats[:2]]

    def value(self, args: Any) -> float:
        """The shift as it stands."""
        if args.reward_shift == "none":
            return 0.0
        stats = torch.tensor(self.stats, dtype=torch.float64)
        if args.reward_shift == "divergence":
            return divergence(pooled_mean_shift(stats))
        return class_mean_shift(stats) if args.reward_shift == "ema" else pooled_mean_shift(stats)

    def step(self, rewards: torch.Tensor, labels: torch.Tensor, args: Any, accelerator: Accelerator) -> float:
        """The shift for a training micro-batch, which is taken into account."""
        if args.reward_shift == "none":
            return 0.0
        sums = reward_sums(rewards, labels)
        if args.reward_shift == "running_mean":
            self._commit(sums, 1.0, accelerator)
            return self.value(args)
        shift = self.value(args)
        self.window = sums if self.window is None else self.window + sums
        if accelerator.sync_gradients:  # the last micro-batch before the optimizer steps
            self._commit(self.window, args.reward_shift_decay, accelerator)
            self.window = None
        return shift

    def _commit(self, sums: torch.Tensor, decay: float, accelerator: Accelerator) -> None:
        sums = accelerator.reduce(sums, "sum").cpu()
        self.stats = update_sums(torch.tensor(self.stats, dtype=sums.dtype), sums, decay).tolist()
