# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Prompts and pictures through a pipeline's own encoders, and what of that, and of inversions, is kept."""

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from alignext.files import replacing


TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@torch.no_grad()
def encode_prompts(
    pipe: DiffusionPipeline, prompts: Sequence[str], max_sequence_length: int | None = None
) -> dict[str, torch.Tensor]:
    """
    Embeddings of prompts by the pipeline's own `encode_prompt`, on the device of its text encoders. What is longer
    than a text encoder reads is cut, as in sampling.

    Args:
        pipe (`DiffusionPipeline`): Of Stable Diffusion 1, 2, XL or 3, or Flux.
        prompts (`Sequence[str]`): `B` prompts.
        max_sequence_length (`int`, *optional*): Tokens for the T5 encoder of SD3 and Flux; the pipeline's default.

    Returns:
        `dict[str, torch.Tensor]`: `prompt_embeds` of shape `(B, L, D)` and, but for Stable Diffusion 1 and 2,
        `pooled_prompt_embeds` of shape `(B, P)`.
    """
    return _encode(pipe, prompts, False, max_sequence_length)[0]


@torch.no_grad()
def encode_unconditional(
    pipe: DiffusionPipeline, n: int = 1, max_sequence_length: int | None = None
) -> dict[str, torch.Tensor]:
    """
    What the pipeline takes for no prompt in classifier-free guidance, `n` times: zeros for most XL checkpoints
    (`force_zeros_for_empty_prompt`), else the embeddings of `""`. Flux, which has no such guidance, gets the latter.
    """
    return _encode(pipe, [""] * n, True, max_sequence_length)[1]


def _encode(
    pipe: DiffusionPipeline, prompts: Sequence[str], guidance: bool, max_sequence_length: int | None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    encoders = [getattr(pipe, name, None) for name in TEXT_ENCODERS]
    device = next((encoder.device for encoder in encoders if encoder is not None), None)
    if device is None:
        raise ValueError(
            f"{type(pipe).__name__} has no text encoder. Load one, or give the dataset a column `prompt_embeds`."
        )
    arguments = {
        "prompt": list(prompts),
        "prompt_2": None,
        "prompt_3": None,
        "device": device,
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": guidance,
    }
    if max_sequence_length is not None:
        arguments["max_sequence_length"] = max_sequence_length
    known = inspect.signature(pipe.encode_prompt).parameters
    found = pipe.encode_prompt(**{name: value for name, value in arguments.items() if name in known})
    if len(found) == 2:  # Stable Diffusion 1 and 2
        return {"prompt_embeds": found[0]}, {"prompt_embeds": found[1]}
    if len(found) == 3:  # Flux; the third are positions, all zero
        both = {"prompt_embeds": found[0], "pooled_prompt_embeds": found[1]}
        return both, both
    embeds, negative, pooled, negative_pooled = found
    conditional = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    return conditional, {"prompt_embeds": negative, "pooled_prompt_embeds": negative_pooled}


class PromptCache:
    """
    Embeddings of prompts, each encoded once and alone, so that they do not depend on what it was in a batch with.

    Args:
        pipe (`DiffusionPipeline`): Whose text encoders are used.
        max_sequence_length (`int`, *optional*): As of [`encode_prompts`].
        max_prompts (`int`, *optional*, defaults to 4096): The oldest go when there are more. A prompt takes 0.2 MB in
            float16 for Stable Diffusion 1, 0.3 MB for XL and 4 MB for Flux.
    """

    def __init__(
        self, pipe: DiffusionPipeline, max_sequence_length: int | None = None, max_prompts: int = 4096
    ) -> None:
        self.pipe, self.max_sequence_length, self.max_prompts = pipe, max_sequence_length, max_prompts
        self._kept: dict[str, dict[str, torch.Tensor]] = {}

    def __call__(self, prompts: Sequence[str], device: torch.device | str | None = None) -> dict[str, torch.Tensor]:
        """As [`encode_prompts`], on `device`; the CPU by default."""
        self.fill(prompts)
        names = self._kept[prompts[0]]
        rows = {
            name: torch.cat([self._kept[prompt][name] for prompt in prompts]).to(device or "cpu") for name in names
        }
        self._trim()
        return rows

    def fill(self, prompts: Iterable[str]) -> None:
        """Encode what is not kept yet. The text encoders may go once every prompt of the training is kept."""
        for prompt in prompts:
            if prompt not in self._kept:
                embeds = encode_prompts(self.pipe, [prompt], self.max_sequence_length)
                self._kept[prompt] = {name: tensor.cpu() for name, tensor in embeds.items()}

    def _trim(self) -> None:
        for prompt in list(self._kept)[: max(0, len(self._kept) - self.max_prompts)]:
            del self._kept[prompt]


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


def weights_digest(module: torch.nn.Module, ignored_adapter: str | None = None) -> str:
    """A hash of all weights and buffers, the same with and without that peft adapter."""
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in module.state_dict().items()
        if ignored_adapter not in name.split(".")
    }
    return digest(*(item for name in sorted(state) for item in (name, state[name])))


def digest(*items: Any) -> str:
    """SHA-256 of tensors, by type, shape and bytes, and of JSON values."""
    total = hashlib.sha256()
    for item in items:
        if isinstance(item, torch.Tensor):
            total.update(f"{item.dtype}{tuple(item.shape)}".encode())
            total.update(item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            total.update(json.dumps(item, sort_keys=True, default=str).encode())
        total.update(b"\0")
    return total.hexdigest()


def _is_large(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 1
