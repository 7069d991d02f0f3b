# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Inversions that are kept on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from alignext.diffusion.digests import digest, weights_digest
from alignext.files import replacing


class InversionCache:
    """
    Inversions on disk, one safetensors file a picture. A file is written whole or not at all, so that an interrupted
    run goes on where it was; a run with another model, schedule or setting finds none of these.

    Args:
        folder (`str` or `Path`): Where the files are; a sub-folder per identity.
        identity (`Mapping`): All that an inversion depends on but the picture and the prompt, see
            [`inversion_identity`]. JSON values.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float16`): What tensors of more than one dimension are
            stored in.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], dtype: torch.dtype = torch.float16) -> None:
        self.dtype = dtype
        self.identity = digest(identity, str(dtype))
        self.folder = Path(folder) / self.identity[:16]
        self.folder.mkdir(parents=True, exist_ok=True)

    def key(self, prompt: str | torch.Tensor, latents: torch.Tensor) -> str:
        """The name of one picture's inversion, from its prompt, or the embeddings of it, and its latents (C, h, w), or
        (2, C, h, w) with the latents of the picture it is compared with."""
        return digest(self.identity, prompt, latents)[:40]

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def save(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep the tensors of one picture."""
        stored = {
            name: tensor.detach().to("cpu", self.dtype if _is_large(tensor) else None).contiguous()
            for name, tensor in tensors.items()
        }
        for name, tensor in stored.items():
            if not tensor.isfinite().all():
                raise ValueError(f"`{name}` of an inversion is not finite in {self.dtype}. Store it in float32.")
        with replacing(self._path(key)) as part:
            save_file(stored, part)

    def load(self, keys: Sequence[str], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """The tensors of these pictures, stacked; floats in float32.

        Raises:
            KeyError: there is no inversion under one of the keys.
        """
        missing = [key for key in keys if key not in self]
        if missing:
            raise KeyError(f"{len(missing)} of {len(keys)} inversions are not in {self.folder}.")
        rows = [load_file(self._path(key)) for key in keys]
        stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return {
            name: tensor.to(device, torch.float32 if tensor.is_floating_point() else None)
            for name, tensor in stacked.items()
        }

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def inversion_identity(
    denoiser: torch.nn.Module, scheduler: Any, *, adapter: str | None = "default", **settings: Any
) -> dict[str, Any]:
    """
    What an inversion depends on, for [`InversionCache`].

    Args:
        denoiser (`torch.nn.Module`): The frozen model that inverts.
        scheduler: Its configuration counts.
        adapter (`str`, *optional*, defaults to `"default"`): A peft adapter that is off while inverting.
        settings: Steps, guidance and all else, as JSON values.
    """
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    weights = weights_digest(denoiser, adapter)
    return {"weights": weights, "scheduler": config, "scheduler_class": type(scheduler).__name__, **settings}


def _is_large(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 1
