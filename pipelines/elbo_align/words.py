# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Where words of a prompt are among the tokens that a denoiser attends to."""

import re
from collections.abc import Sequence
from typing import Any


def listing(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The prompt "a photo of {c1, c2}", and the place of each word where the list has it, in characters."""
    prompt, spans = "a photo of ", []
    for i, word in enumerate(words):
        prompt += f"{', ' if i else ''}{word}"
        end = len(prompt.rstrip())
        spans.append((end - len(word.strip()), end))
    return prompt, spans


def spans_of(
    prompt: str, words: Sequence[str], *, name: str = "classes", apart: bool = False
) -> list[tuple[int, int]]:
    """
    Places of words in a prompt, in characters. A word that is listed twice is looked for twice.

    Args:
        prompt (`str`): The prompt.
        words (`Sequence[str]`): Words or phrases.
        name (`str`, *optional*, defaults to `"classes"`): The argument, for messages.
        apart (`bool`, *optional*, defaults to `False`): Take a place inside a longer one of the words, such as that of
            "truck" in "fire truck", only if there is no other.

    Raises:
        ValueError: If a word does not stand in the prompt, or not as often as it is listed.
    """
    places_of = {word: _places(prompt, word) for word in words}
    taken = [place for places in places_of.values() for place in places]
    found, times = [], {}
    for word in words:
        places = places_of[word]
        if apart:
            places = sorted(places, key=lambda p: any(a <= p[0] and p[1] <= b and (a, b) != p for a, b in taken))
        k = times[word] = times.get(word, -1) + 1
        if not word.strip() or k >= len(places):
            count = "" if k == 0 else f" {k + 1} times"
            raise ValueError(f"`{name}` has {word!r}, which does not stand{count} in the prompt {prompt!r}. Add it.")
        found.append(places[k])
    return found


def _places(prompt: str, word: str) -> list[tuple[int, int]]:
    """All places of a whole word."""
    whole = re.escape(word.strip())
    return [m.span() for m in re.finditer(rf"(?<!\w){whole}(?!\w)", prompt, flags=re.IGNORECASE)]


def token_positions(pipe: Any, prompt: str, spans: Sequence[tuple[int, int]], length: int) -> list[list[int]]:
    """
    The tokens of each place in a prompt, as positions in what the denoiser attends to: those of CLIP, which come
    first, or of T5 for Flux.

    Args:
        pipe (`DiffusionPipeline`): Its tokenizers.
        prompt (`str`): The prompt.
        spans (`Sequence[tuple[int, int]]`): Places, of [`spans_of`].
        length (`int`): Number of tokens that the denoiser attends to.

    Raises:
        ValueError: If a place lies beyond what the text encoder reads.
        NotImplementedError: If the tokenizer does not tell places.
    """
    flux = "Flux" in type(pipe).__name__
    tokenizer = pipe.tokenizer_2 if flux else pipe.tokenizer
    try:
        encoded = tokenizer(prompt, return_offsets_mapping=True)
    except NotImplementedError as error:
        raise NotImplementedError(f"{type(tokenizer).__name__} does not tell where its tokens stand.") from error
    limit = min(length, length if flux else tokenizer.model_max_length)
    positions = []
    for start, end in spans:
        own = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > start and b > a]
        if not own or own[-1] >= limit:
            raise ValueError(
                f"{prompt[start:end]!r} lies beyond the {limit} tokens that the text encoder reads of the prompt. "
                "Shorten the prompt, or pass fewer classes."
            )
        positions.append(own)
    return positions
