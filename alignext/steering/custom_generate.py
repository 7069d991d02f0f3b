# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Steering as `generate(custom_generate=...)`: from a folder or a repository, without a line of ours."""

import base64
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import GenerationMixin

from alignext.decoding.hub import custom_generate_files, write_custom_generate
from alignext.files import replacing
from alignext.steering.vector import SteeringVector


def steered_generate(
    model: Any,
    inputs: torch.Tensor | None = None,
    *,
    vector: str,
    method: str | None = None,
    alpha: float = 1.0,
    position: str = "all",
    **kwargs: Any,
) -> Any:
    """
    The model's own `generate`, steered.

    Args:
        model (`PreTrainedModel`): A causal language model.
        inputs (`torch.Tensor`, *optional*): As `generate` has it; also `input_ids` among the others.
        vector (`str`): The bytes of a [`SteeringVector`]'s file, in base 64.
        method (`str`, *optional*), alpha (`float`, *optional*, defaults to 1.0): See [`SteeringVector.attach`].
        position (`str`, *optional*, defaults to `"all"`): `"response"` leaves the prompt alone.
        **kwargs: Further arguments of `generate`.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder, SteeringVector._file_name)
        with replacing(file) as part:
            part.write_bytes(base64.b64decode(vector))
        found = SteeringVector.load(file)
    where: dict[str, Any] = {"position": position}
    if position == "response":
        ids = inputs if inputs is not None else kwargs["input_ids"]
        mask = kwargs.get("attention_mask")
        where["prompt_lengths"] = (torch.ones_like(ids) if mask is None else mask).sum(1).tolist()
    with found.apply(model, method, alpha, **where):
        return GenerationMixin.generate(model, inputs, **kwargs)


def files(vector: SteeringVector, method: str | None = None, alpha: float = 1.0) -> dict[str, str]:
    """The texts of `custom_generate/generate.py` and its requirements, by their paths, the vector within."""
    return custom_generate_files("Steering", _settings(vector, method, alpha))


def save(vector: SteeringVector, folder: str | os.PathLike, method: str | None = None, alpha: float = 1.0) -> None:
    """
    Write a folder for `model.generate(custom_generate=folder, trust_remote_code=True)`, the vector inside of the
    script. A call may give another `method`, `alpha` and `position`.

    Args:
        vector ([`SteeringVector`]): The direction.
        folder (`str` or `os.PathLike`): Where to.
        method (`str`, *optional*), alpha (`float`, *optional*, defaults to 1.0): See [`SteeringVector.attach`].
    """
    write_custom_generate(folder, "Steering", _settings(vector, method, alpha))


def _settings(vector: SteeringVector, method: str | None, alpha: float) -> dict[str, Any]:
    method = vector.method if method is None else method
    vector.check(method, alpha)
    with TemporaryDirectory() as folder:
        file = Path(folder, SteeringVector._file_name)
        vector.save(file)
        return {"method": method, "alpha": alpha, "vector": base64.b64encode(file.read_bytes()).decode()}
