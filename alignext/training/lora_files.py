# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""A trained LoRA as a file: in the format of diffusers, or beside it in that of kohya's scripts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from safetensors.torch import save_file

from alignext.files import replacing


FORMATS = ("diffusers", "kohya")
KOHYA_FILE = "pytorch_lora_weights_kohya.safetensors"


def check_format(name: str, denoiser_name: str) -> None:
    """
    Raises:
        ValueError: The format is unknown, or diffusers has no converter to it for this kind of denoiser.
    """
    if name not in FORMATS:
        raise ValueError(f"`save_format` must be 'diffusers' or 'kohya', received {name!r}.")
    if name == "kohya" and denoiser_name != "unet":
        raise ValueError(
            f"`save_format='kohya'` needs a converter of diffusers, which has one for a `unet` and none for a "
            f"`{denoiser_name}`. Leave it at 'diffusers': ComfyUI reads that for transformers."
        )


def save_kohya(folder: Path, layers: Mapping[str, torch.Tensor], config: Any) -> None:
    """
    Write a LoRA of a UNet with the keys that kohya's scripts and WebUIs read, `lora_unet_...lora_down.weight`.

    Args:
        folder (`Path`): Where the file goes.
        layers (`Mapping[str, torch.Tensor]`): As of peft's `get_peft_model_state_dict`.
        config (`LoraConfig`): Its rank and alpha.
    """
    state = convert_state_dict_to_kohya({f"unet.{name}": value for name, value in layers.items()})
    for name in state:
        if name.endswith(".alpha"):  # the converter takes the rank
            state[name] = torch.tensor(float(config.lora_alpha))
    with replacing(folder / KOHYA_FILE) as part:
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, part)
