# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""TRL's RLOO trainer as a source of samples: what it draws and scores on the way to its own advantages, handed out."""

import copy
import math
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from accelerate.utils import gather, gather_object, is_peft_model
from datasets import IterableDataset
from transformers import GenerationConfig
from trl import RLOOTrainer
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from .config import FDPGConfig
from .proposal import Proposal
from .samples import Samples
from .state import FDPGState, context_key
from .targets import Target


@dataclass
class _Watched:
    """Values that the parent computes for a batch and does not return."""

    scores: list[tuple] = field(default_factory=list)  # per forward pass: model, log-probabilities, arguments
    rewards: torch.Tensor | None = None
    completions: list = field(default_factory=list)


class SamplingTrainer(RLOOTrainer):
    """
    The parent's batches with the log-probabilities of their samples under the proposal that drew them, the initial
    model and the policy, which it computes and does not return.
    """

    args: FDPGConfig
    proposal: Proposal | None = None  # samples, if there is one; else the policy does
    target_state: FDPGState
    _watched: _Watched | None = None

    # The target

    def log_scores(self, rewards: torch.Tensor) -> torch.Tensor:
        """
        `s = log P - log a` of samples.

        Args:
            rewards (`torch.Tensor` of shape `(n, K)`): What the `K` reward functions gave; NaN for None.

        Returns:
            `torch.Tensor` of shape `(n,)`: `-inf` where the target is 0, NaN for samples without a score.

        Raises:
            ValueError: A value does not fit the target.
        """
        return self._target.log_scores(rewards, self.target_state.coefficients)

    @property
    def _target(self) -> Target:
        return Target(self.args, self.reward_func_names, self.reward_weights)

    def _ensure_target(self) -> None:
        """Fit `lambda` to samples of the initial model, unless that was done or resumed."""
        if self.args.target == "distributional" and self.target_state.coefficients is None:
            self.target_state.coefficients = self._target.fit(self._sample_for_moments())

    def _sample_for_moments(self) -> Samples:
        batch = self.args.generation_batch_size
        rounds = math.ceil(self.args.moment_samples / batch)
        wanted = rounds * batch // self.num_generations
        if isinstance(self.train_dataset, IterableDataset):
            rows = list(islice(self.train_dataset, wanted))
        else:
            order = torch.randperm(len(self.train_dataset), generator=torch.Generator().manual_seed(self.args.seed))
            rows = [self.train_dataset[i] for i in order[:wanted].tolist()]
        drawn = [rows[g % len(rows)] for g in range(wanted) for _ in range(self.num_generations)]
        local, rank = batch // self.accelerator.num_processes, self.accelerator.process_index
        parts = []
        with self._unnoticed(training=True):
            for start in range(0, len(drawn), batch):
                parts.append(self._sample(drawn[start + rank * local : start + (rank + 1) * local])[1])
        tensors = {name: torch.cat([getattr(p, name) for p in parts]) for name in ("log_q", "log_ref", "rewards")}
        keys = [key for part in parts for key in part.keys]
        return Samples(**tensors, log_pi=tensors["log_q"], keys=keys, known_log_z=None, completions=[])

    # Samples of the parent

    def _frozen_copy(self) -> Any:
        """A copy of the policy as it is, prepared for scoring and sampling."""
        model = copy.deepcopy(self.accelerator.unwrap_model(self.model))
        vars(model).pop("forward", None)  # the fused head of the original would call the original
        model.requires_grad_(False).eval()
        without_dropout(model)
        add_fused_lm_head(model, temperature=self.temperature)
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(model, self.accelerator)
        if self.is_fsdp_enabled:
            return prepare_fsdp(model, self.accelerator)
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    @contextmanager
    def _unnoticed(self, training: bool) -> Generator[None]:
        """Sample without a trace in metrics and counters, in the mode of training or evaluation."""
        was_training, metrics, seen = self.model.training, self._metrics, self.state.num_input_tokens_seen
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self.model.train(training)
        try:
            yield
        finally:
            self.model.train(was_training)
            self._metrics, self.state.num_input_tokens_seen = metrics, seen

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        result = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if self._watched is not None:
            self._watched.scores.append((model, result[0], args, kwargs))
        return result

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._watched is not None:
            self._watched.rewards, self._watched.completions = rewards, completions
        return rewards

    def _parent_samples(self, inputs: list[dict[str, Any]]) -> tuple[dict[str, Any], _Watched]:
        """A batch of the parent's, drawn from the proposal, and the rewards and log-probabilities behind it."""
        self._watched = watched = _Watched()
        try:
            with self.proposal.sampling(self) if self.proposal else nullcontext(), self._own_law():
                sampler = self.model
                out = super()._generate_and_score_completions(inputs)
        finally:
            self._watched = None
        # With an adapter both are `sampler`, the second time as the initial model.
        models = [model for model, *_ in watched.scores]
        if models != [sampler, sampler if self.ref_model is None else self.ref_model] or watched.rewards is None:
            raise RuntimeError(
                "f-DPG reads the scores of RLOOTrainer, which must score samples with the model that drew them and "
                f"then with the initial model. This TRL scored {len(models)} times, in another way. Use a version "
                "that the documentation names."
            )
        return out, watched

    def _sample(self, inputs: list[dict[str, Any]]) -> tuple[dict[str, Any], Samples]:
        """A batch as the parent samples and scores it, and the samples of all processes."""
        out, watched = self._parent_samples(inputs)
        (_, per_token_q, args, kwargs), (_, per_token_ref, *_) = watched.scores
        mask = out["completion_mask"]
        out["old_logps"], out["ref_logps"] = sequence_sum(per_token_q, mask), sequence_sum(per_token_ref, mask)
        log_pi = out["old_logps"]
        if self.proposal is not None:
            with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
                per_token, *_ = super()._get_per_token_logps_and_entropies(self.model, *args, **kwargs)
            log_pi = sequence_sum(per_token, mask)
        logps = gather(torch.stack([out["old_logps"], out["ref_logps"], log_pi], 1)).cpu().double()
        fixed = self.args.z_estimator == "fixed"
        keys = ["" if self.args.z_scope == "global" else context_key(row) for row in inputs]
        known = [self._known_log_z(row) for row in inputs] if fixed else []
        samples = Samples(
            *logps.unbind(1),
            rewards=torch.as_tensor(watched.rewards).cpu().double(),
            keys=gather_object(keys),
            known_log_z=torch.tensor(gather_object(known), dtype=torch.float64) if fixed else None,
            completions=watched.completions,
        )
        return out, samples

    def _known_log_z(self, row: dict[str, Any]) -> float:
        if self.args.z_value is not None:
            return math.log(self.args.z_value)
        if row.get("log_z") is None:
            raise ValueError("`z_estimator='fixed'` needs `z_value`, or a column `log_z` of numbers in the dataset.")
        return float(row["log_z"])

    @contextmanager
    def _own_law(self) -> Generator[None]:
        """Let the model's generation config, where TRL sets nothing (`min_p`, say), not bend what is sampled."""
        model = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if is_peft_model(model) else model
        config = model.generation_config
        model.generation_config = GenerationConfig()
        try:
            yield
        finally:
            model.generation_config = config

    # Samples of the target

    def quasi_rejection_sample(
        self, row: str | list | dict[str, Any], beta: float, *, num_samples: int = 1, max_draws: int = 1000
    ) -> Iterator[dict[str, Any]]:
        """
        Draw samples that are nearer to the target than the policy is. Draws of the policy (with
        `proposal="adaptive"`, of the proposal) are accepted with probability `min(1, P / (beta q))`.
        [`qrs_estimates`][alignext.functional.target_estimates.qrs_estimates] tells what a `beta` gives and costs.

        Args:
            row (`str` or `list` or `dict`): A prompt, or a row of the dataset with the columns that rewards need.
            beta (`float`): Bound of `P / q`, on the scale of `Z`: the larger, the nearer to the target, and the rarer.
            num_samples (`int`, *optional*, defaults to 1): Stop after as many.
            max_draws (`int`, *optional*, defaults to 1000): Stop after as many draws, whatever was accepted.

        Yields:
            `dict`: `completion`, its `log_weight` `log P - log q`, and `draws`, the number of draws so far.

        Raises:
            ValueError: `beta` is not positive.
        """
        if not beta > 0:
            raise ValueError(f"`beta` is {beta}, but it must be positive.")
        row = row if isinstance(row, dict) else {"prompt": row}
        generator = torch.Generator().manual_seed(self.args.seed)
        size = self.args.per_device_eval_batch_size
        size = math.ceil(size / self.num_generations_eval) * self.num_generations_eval  # whole groups, for the parent
        self._ensure_target()
        draws, accepted = 0, 0
        while draws < max_draws and accepted < num_samples:
            with self._unnoticed(training=False):
                samples = self._sample([row] * size)[1]
            log_w = (samples.log_ref + self.log_scores(samples.rewards) - samples.log_q).nan_to_num(nan=-math.inf)
            chance = (log_w - math.log(beta)).clamp(max=0.0).exp()
            drawn = torch.rand(len(chance), generator=generator, dtype=chance.dtype)
            completions = gather_object(samples.completions)
            for i in range(len(chance)):
                draws += 1
                if drawn[i] < chance[i]:
                    accepted += 1
                    yield {"completion": completions[i], "log_weight": log_w[i].item(), "draws": draws}
                if draws == max_draws or accepted == num_samples:
                    return


def without_dropout(model: torch.nn.Module) -> None:
    """Turn dropout off everywhere, also where a module keeps its rate as a number, as attention does."""
    disable_dropout_in_model(model)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def sequence_sum(per_token: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of sequences, in float64 where there is such: small differences of large sums matter."""
    wide = torch.float32 if per_token.device.type == "mps" else torch.float64
    return (per_token.to(wide) * mask).sum(1)
