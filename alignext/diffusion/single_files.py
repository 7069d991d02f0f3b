# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints in a single file, as they are traded: which pipeline the weights are of."""

import os
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint
from safetensors import SafetensorError, safe_open


def kind_of(file: str | os.PathLike, *, name: str = "file") -> str:
    """
    The Hub id of the pipeline whose weights a single file has, as diffusers tells it by names and shapes. Of a
    `.safetensors` file no weight is read.

    Args:
        file (`str` or `os.PathLike`): A `.safetensors` or `.ckpt` file.
        name (`str`, *optional*, defaults to `"file"`): The argument, for the message.

    Raises:
        OSError: It is no such file.
    """
    try:
        if Path(file).suffix == ".safetensors":
            with safe_open(file, "pt") as found:
                shapes = {key: found.get_slice(key).get_shape() for key in found.keys()}
            weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        else:
            weights = load_single_file_checkpoint(os.fspath(file))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise OSError(
            f"{name} {file} is a file, but no checkpoint in one (.safetensors or .ckpt). Pass such a file, a folder "
            f"or a Hub id. {error}"
        ) from error
    return fetch_diffusers_config(weights)["pretrained_model_name_or_path"]
