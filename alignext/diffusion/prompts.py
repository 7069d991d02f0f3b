# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Prompts through a pipeline's own text encoders, each once."""

import inspect
from collections.abc import Iterable, Sequence

import torch
from diffusers import DiffusionPipeline


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
