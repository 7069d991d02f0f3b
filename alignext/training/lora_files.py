# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""A trained LoRA as a file: in the format of diffusers, or beside it in that of kohya's scripts."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from safetensors.torch import save_file

from alignext.files import replacing


FORMATS = ("diffusers", "kohya")
KOHYA_FILE = "pytorch_lora_weights_kohya.safetensors"


def check_format(name: str, denoiser_name: str, config: Any = None) -> None:
    """
    Args:
        name (`str`): `save_format` of the settings.
        denoiser_name (`str`): `"unet"` or `"transformer"`.
        config (`LoraConfig`, *optional*): Of what is trained.

    Raises:
        ValueError: The format is unknown, or diffusers has no converter to it for this kind of denoiser or adapter.
    """
    if name not in FORMATS:
        raise ValueError(f"`save_format` must be 'diffusers' or 'kohya', received {name!r}.")
    if name == "kohya" and denoiser_name != "unet":
        raise ValueError(
            f"`save_format='kohya'` needs a converter of diffusers, which has one for a `unet` and none for a "
            f"`{denoiser_name}`. Leave it at 'diffusers': ComfyUI reads that for transformers."
        )
    if name == "kohya" and getattr(config, "use_dora", False):
        raise ValueError(
            "`save_format='kohya'` and `use_dora` are both set, but diffusers does not read DoRA from such a file. "
            "Leave `save_format` at 'diffusers'."
        )


def save_kohya(folder: Path, layers: Mapping[str, torch.Tensor], scaling: Mapping[str, float]) -> None:
    """
    Write a LoRA of a UNet with the keys that kohya's scripts and WebUIs read, `lora_unet_...lora_down.weight`.

    Args:
        folder (`Path`): Where the file goes.
        layers (`Mapping[str, torch.Tensor]`): As of peft's `get_peft_model_state_dict`.
        scaling (`Mapping[str, float]`):
            The factor of each adapted module by its name, whatever rule (`use_rslora`) or pattern of the config it
            comes from. Readers of the file take `alpha / rank` for it.
    """
    state = convert_state_dict_to_kohya({f"unet.{name}": value for name, value in layers.items()})
    names = {f"lora_unet_{module.replace('.', '_')}": factor for module, factor in scaling.items()}
    alphas = {name: factor * len(state[f"{name}.lora_down.weight"]) for name, factor in names.items()}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    for name, own in alphas.items():
        # One alpha for all, since diffusers loses others on reading. A layer with its own has it in its weights.
        state[f"{name}.alpha"] = torch.tensor(alpha)
        if own != alpha:
            state[f"{name}.lora_up.weight"] = state[f"{name}.lora_up.weight"] * (own / alpha)
    with replacing(folder / KOHYA_FILE) as part:
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, part)
