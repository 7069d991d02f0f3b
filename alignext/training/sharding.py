# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""FSDP2 for the denoiser of a pipeline: what a trainer needs for it, and what it refuses at the door."""

from typing import Any

import torch
from accelerate import init_empty_weights
from trl.models import prepare_fsdp

from alignext.diffusion.denoiser import DenoiserModule


def shard(trainer: Any) -> None:
    """
    Make a [`~alignext.training.diffusion.DiffusionTrainer`] ready for weights that processes share, where they do.
    Processes gather a block's weights together, so that each must call the denoiser as often as the others.

    Args:
        trainer (`DiffusionTrainer`): Its accelerator is there, and nothing is wrapped yet.

    Raises:
        NotImplementedError: For DeepSpeed's ZeRO-3, FSDP of version 1, and a trainer whose number of calls depends on
            its data.
        ValueError: For settings that need the weights in one piece.
    """
    name, args = type(trainer).__name__, trainer.args
    fsdp = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
    if getattr(args.deepspeed_plugin, "zero_stage", 0) == 3:
        raise NotImplementedError(f"{name} does not shard parameters by ZeRO-3. Use DDP.")
    if fsdp is None:
        return
    if not trainer._same_calls:
        raise NotImplementedError(
            f"{name} does not shard parameters (FSDP): its processes may call the denoiser more or less often, and "
            "would wait for each other. Use DDP."
        )
    if fsdp.fsdp_version != 2:
        raise NotImplementedError(f"{name} shards parameters by FSDP2, received `fsdp_version` {fsdp.fsdp_version}.")
    if "FULL" not in str(fsdp.state_dict_type):
        raise ValueError(
            f"`fsdp_state_dict_type` must be FULL_STATE_DICT, received {fsdp.state_dict_type}: pipelines do not load "
            "shards."
        )
    for setting, taken in (("ema_decay", None), ("buckets", False), ("save_full_pipeline", False)):
        value = getattr(args, setting, taken)
        if value != taken:
            raise ValueError(f"`{setting}` must be {taken} where weights are sharded (FSDP), received {value}.")
    module: DenoiserModule = trainer.model
    # Calls are recorded with the weights in one piece, where the encoders are.
    module.denoiser.to(trainer.accelerator.device)
    module.most = lambda count: _most(count, trainer.accelerator)
    if trainer.ref_denoiser is not None:
        trainer.ref_denoiser.most = module.most
        trainer.ref_denoiser = prepare_fsdp(trainer.ref_denoiser, trainer.accelerator)


def _most(count: int, accelerator: Any) -> int:
    """The largest count of all processes."""
    return int(accelerator.gather(torch.tensor([count], device=accelerator.device)).max())


def in_one_piece(denoiser: Any, state: dict[str, torch.Tensor]) -> Any:
    """
    A denoiser like a sharded one, with weights that were gathered from all processes.

    Args:
        denoiser (`ModelMixin`): A model of diffusers.
        state (`dict[str, torch.Tensor]`): Of the [`~alignext.diffusion.denoiser.DenoiserModule`] around it.
    """
    with init_empty_weights():
        whole = type(denoiser).from_config(denoiser.config)
    whole.load_state_dict(without_prefix(state), assign=True)
    return whole


def without_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The denoiser's own names of the weights of the module around it."""
    return {name.removeprefix("denoiser."): weight for name, weight in state.items()}
