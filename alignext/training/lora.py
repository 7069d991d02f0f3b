# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""A LoRA beside the frozen weights of a denoiser, and a random start beside a reference."""

import copy
import warnings
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.utils import logging


logger = logging.get_logger(__name__)

ADAPTER = "default"
_LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
_JOINT_LORA_TARGETS = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


def add_lora(denoiser: Any, config: LoraConfig) -> None:
    """
    Put a LoRA into a denoiser and make it the only thing that is trained. Adapters that are active already stay so,
    and stay frozen.

    Raises:
        ValueError: if the config is not one diffusers can save as a LoRA file, or the name is taken.
    """
    if not isinstance(config, LoraConfig):
        raise ValueError(f"`peft_config` is a {type(config).__name__}, but diffusers saves and loads LoRA only.")
    if not hasattr(denoiser, "add_adapter"):
        raise NotImplementedError(
            f"diffusers has no LoRA for {type(denoiser).__name__}. Train all weights: leave `peft_config` out."
        )
    if config.modules_to_save:
        raise ValueError(f"`modules_to_save` is {config.modules_to_save}, which a LoRA file of diffusers cannot hold.")
    if config.bias != "none":
        raise ValueError(
            f"`bias` is {config.bias!r}, but a LoRA file of diffusers holds no biases of the model. Use 'none'."
        )
    if str(config.init_lora_weights).startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise ValueError(
            f"`init_lora_weights` is {config.init_lora_weights!r}, which moves the model's own weights: without them "
            "the file is no model, and with the LoRA off they are no reference. Use True or 'gaussian'."
        )
    if ADAPTER in getattr(denoiser, "peft_config", {}):
        raise ValueError(
            f"`model` has an adapter named {ADAPTER!r} already. Fuse or unload it, or load it under another name."
        )
    config = copy.deepcopy(config)
    if config.target_modules is None:
        joint = any(name.endswith("add_q_proj") for name, _ in denoiser.named_modules())
        config.target_modules = _LORA_TARGETS + (_JOINT_LORA_TARGETS if joint else [])
    if config.lora_dropout:
        logger.warning(
            f"`lora_dropout` is {config.lora_dropout}; 0 is used, or the policy would not start at the reference."
        )
        config.lora_dropout = 0.0
    config.task_type = None  # that of a language model would ask for its methods
    active = {m: m.active_adapters for m in denoiser.modules() if isinstance(m, BaseTunerLayer)}
    with warnings.catch_warnings():  # that there is another adapter is known
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
        denoiser.add_adapter(config, adapter_name=ADAPTER)
    for name, parameter in denoiser.named_parameters():
        parameter.requires_grad_(f".{ADAPTER}." in name)
    for module in denoiser.modules():
        if isinstance(module, BaseTunerLayer):
            module._active_adapter = [*active.get(module, []), ADAPTER]


@torch.no_grad()
def jitter(denoiser: torch.nn.Module, std: float, seed: int) -> None:
    """
    Move what is trained off its starting point: normal noise of `std` in the second matrix of a LoRA, which is zero at
    first, or noise relative to each weight. The same for the same seed on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in denoiser.named_parameters():
        if not parameter.requires_grad or (".lora_" in name and ".lora_B." not in name):
            continue
        noise = torch.randn(parameter.shape, generator=generator).to(parameter) * std
        # Not in place: a constructor that fails later gives back what there was.
        parameter.data = parameter + (noise if ".lora_B." in name else noise * parameter)
