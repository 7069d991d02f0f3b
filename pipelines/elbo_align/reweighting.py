# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Phrases of a prompt that count more while a picture is made, the more the picture lacks them. Experimental."""

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from alignext.diffusion.denoiser import get_denoiser
from alignext.diffusion.recording import record_call
from alignext.functional.elbo_align import phrase_weights
from alignext.pipelines.elbo_align.inputs import check_range
from alignext.pipelines.elbo_align.maps import text_side
from alignext.pipelines.elbo_align.words import spans_of, token_positions
from alignext.wrapping import wrapped


@contextmanager
def balanced_phrases(
    pipe: Any, prompt: str, phrases: Sequence[str], strength: float = 1.2, **call: Any
) -> Generator[list[torch.Tensor]]:
    r"""
    Within it, the stock call with this prompt weighs its phrases anew in every step: `strength^m_k`, with `m_k` from 0
    for the phrase whose own prediction is nearest to that of the prompt to 1 for the farthest. A weight `w` makes the
    embeddings `e` of a phrase's tokens `e_0 + w (e - e_0)`, with `e_0` those of the empty prompt.

    **Experimental**: the weighting of embeddings is this library's, as the release uses another one.

    Args:
        pipe (`DiffusionPipeline`): Of Stable Diffusion 1, 2, XL, 3 or FLUX.1. It stays as it is.
        prompt (`str`): The prompt that the stock call is given.
        phrases (`Sequence[str]`): At least two phrases that stand in it.
        strength (`float`, *optional*, defaults to 1.2): Weight of the farthest; 1 is the stock call, bit for bit.
        call: Arguments of the stock call that its conditioning depends on, such as `height`, `width` and
            `max_sequence_length`.

    Yields:
        `list[torch.Tensor]`: The weights of every step, filled while the call runs.

    Raises:
        ValueError: If there are fewer than two phrases, one does not stand in the prompt, or the strength is out of
            range.
        NotImplementedError: If the denoiser is of another family.

    Example:

    ```python
    >>> with balanced_phrases(pipe, "a cat and a red cup", ["a cat", "a red cup"]) as weights:
    ...     image = pipe("a cat and a red cup").images[0]
    ```

    Source: Zhou et al., [arXiv 2506.09740](https://huggingface.co/papers/2506.09740), the use while generating. A step
    costs one further row per phrase.
    """
    text_side(pipe)
    check_range("strength", strength, 1e-3, 1e3)
    if len(phrases) < 2:
        raise ValueError(f"`phrases` must have at least two phrases to compare, received {list(phrases)}.")
    spans = spans_of(prompt, phrases, name="phrases", apart=True)
    weights: list[torch.Tensor] = []
    if strength == 1:
        yield weights
        return
    generator = torch.Generator().manual_seed(0)
    alone = record_call(pipe, prompt=list(phrases), generator=generator, **call).kwargs
    empty = record_call(pipe, prompt=[""], generator=generator, **call).kwargs["encoder_hidden_states"]
    positions = token_positions(pipe, prompt, spans, int(empty.shape[1]))
    K, denoiser = len(phrases), get_denoiser(pipe)
    names = list(inspect.signature(denoiser.forward).parameters)
    latents = names[0]  # "sample" of U-Nets, "hidden_states" of transformers

    def weighing(forward: Callable[..., Any]) -> Callable[..., Any]:
        @torch.no_grad()
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            given = dict(zip(names, args, strict=False)) | kwargs
            x, t = given[latents], given["timestep"]
            # Guidance puts rows without the prompt before those with it: the last row has it in any case.
            row = {name: _last(value, len(x)) for name, value in given.items()}
            own = {**given, **alone, latents: row[latents].expand(K, *x.shape[1:])}
            own["timestep"] = t[-1:].expand(K) if t.ndim else t
            predictions = (forward(**own)[0].float(), forward(**row)[0].float())
            distances = (predictions[0] - predictions[1]).square().flatten(1).mean(1)
            weights.append(phrase_weights(distances.cpu(), strength))
            text = given["encoder_hidden_states"].clone()
            guided = len(text) > 1 and not torch.equal(text[0], text[-1])
            for weight, tokens in zip(weights[-1].tolist(), positions, strict=True):
                if weight == 1:  # as it is, bit for bit
                    continue
                base, with_prompt = empty[:, tokens].to(text), text[len(text) // 2 if guided else 0 :]
                with_prompt[:, tokens] = base + weight * (with_prompt[:, tokens] - base)
            return forward(**given | {"encoder_hidden_states": text})

        return wrapper

    with wrapped(denoiser, weighing):
        yield weights


def _last(value: Any, rows: int) -> Any:
    """The last row of whatever has a row per sample."""
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == rows:
        return value[-1:]
    if isinstance(value, dict):
        return {name: _last(v, rows) for name, v in value.items()}
    return value
