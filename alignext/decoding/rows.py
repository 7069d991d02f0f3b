# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The shared parts of decoding methods: prompts as rows, caches that fork and are joined, and random numbers."""

import copy
import inspect
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from accelerate.utils import is_peft_model
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from alignext.rewards.process import Prompt, prompt_ids


def prompt_rows(
    tokenizer: PreTrainedTokenizerBase, prompts: Prompt | Sequence[Prompt]
) -> list[tuple[Prompt, list[int]]]:
    """
    Each prompt with its token ids; a single prompt is a list of one.

    Raises:
        ValueError: There is no prompt, one has no tokens, or there are rows of a dataset in their place.
    """
    first = prompts[0] if not isinstance(prompts, str) and len(prompts) else None
    if isinstance(first, dict) and "role" not in first:  # a dataset, or a list of its rows
        raise ValueError(
            f"`prompts` must be texts or conversations, received a row with the columns {list(first)}. Pass one "
            "column, such as `dataset['prompt']`."
        )
    one = isinstance(prompts, str) or isinstance(first, dict)
    several: Any = [prompts] if one else prompts
    rows = []
    for i, prompt in enumerate(several):
        ids = prompt_ids(tokenizer, prompt)
        if not ids:
            raise ValueError(f"`prompts[{i}]` must have at least one token, received {prompt!r}.")
        rows.append((prompt, list(ids)))
    if not rows:
        raise ValueError("`prompts` must have at least one prompt, received none.")
    return rows


def whole_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """
    The text of tokens, special ones left out, without a character at its end whose bytes are not all there: tokenizers
    show another character for it, some for those before it, too.
    """
    texts = (_decoded(tokenizer, ids[: len(ids) - cut]) for cut in range(min(4, len(ids) + 1)))
    whole = next((text for text in texts if not text.endswith("\ufffd")), None)
    return _decoded(tokenizer, ids) if whole is None else whole  # bytes that are of no character


def added_text(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], new: Sequence[int], start: str | None = None
) -> str:
    """
    What tokens add to the text of those before them, special tokens left out. Decoded alone, the first of them would
    lose the space before its word.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        ids (`Sequence[int]`): The tokens before, such as a prompt's.
        new (`Sequence[int]`): The tokens that were added.
        start (`str`, *optional*): The text of those before, where it is known.
    """
    start = whole_text(tokenizer, ids) if start is None else start
    whole = _decoded(tokenizer, [*ids, *new])
    return whole[len(start) :] if whole.startswith(start) else _decoded(tokenizer, new)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens at which `generate` ends a text: the model's own, of which chat models have several."""
    base = model.get_base_model() if is_peft_model(model) else model
    own = base.generation_config.eos_token_id if base.generation_config else None
    own = tokenizer.eos_token_id if own is None else own
    return [own] if isinstance(own, int) else list(own or ())


def left_padded(rows: Sequence[list[int]], filler: int, device: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of shape `(n, T)`, padded on the left."""
    width = max(len(ids) for ids in rows)
    ids = [[filler] * (width - len(ids)) + ids for ids in rows]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def prompt_batch(
    tokenizer: PreTrainedTokenizerBase, prompts: Prompt | Sequence[Prompt], device: Any = None
) -> dict[str, Any]:
    """
    What `generate` takes of prompts, texts or conversations, padded on the left.

    Returns:
        `dict`: `input_ids` and `attention_mask` of shape `(B, P)`, and `prompts`, which custom generation hands to
            rewards.

    Raises:
        ValueError: There is no prompt, or one has no tokens.
    """
    rows = prompt_rows(tokenizer, prompts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids, mask = left_padded([ids for _, ids in rows], pad or 0, device)
    return {"input_ids": ids, "attention_mask": mask, "prompts": [prompt for prompt, _ in rows]}


def cache_name(model: Any) -> str | None:
    """The name of the argument for a cache, which transformers 5.24 changed; None for a model without one."""
    base = model.get_base_model() if is_peft_model(model) else model
    names = inspect.signature(base.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in names), None)


def refuse_shards(model: Any, name: str) -> None:
    """
    Decoding that runs a model as often as its texts need would leave processes waiting for each other.

    Raises:
        NotImplementedError: Several processes share the weights of `model` by FSDP or ZeRO-3.
    """
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if world > 1 and (is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model)):
        raise NotImplementedError(
            f"{name} does not support FSDP and ZeRO-3: processes would wait for each other's forward passes. Gather "
            "the weights first."
        )


def forked(cache: Cache | None, rows: torch.Tensor) -> Cache | None:
    """A copy of a cache with the given rows, some of them several times."""
    cache = copy.deepcopy(cache)
    if cache is not None:
        cache.reorder_cache(rows)
    return cache


class CachedRow(NamedTuple):
    """A part of a row of a cache: `length` positions from `start` on."""

    cache: Cache | None
    row: int
    start: int
    length: int


def joined(parts: Sequence[CachedRow], config: PreTrainedConfig) -> Cache | None:
    """
    One cache of several parts, padded on the left; None if a part has no cache or one that cannot be cut. Windows and
    recurrent states have no positions that could be cut off or moved.
    """
    layers = [part.cache.layers for part in parts if part.cache is not None]
    if not layers or any(type(layer) is not DynamicLayer for row in layers for layer in row):
        return None
    width = max(part.length for part in parts)

    def aligned(states: torch.Tensor, part: CachedRow) -> torch.Tensor:
        own = states[part.row, None, :, part.start : part.start + part.length]
        return pad(own, (0, 0, width - part.length, 0))

    cache = DynamicCache(config=config)
    for i, same in enumerate(zip(*layers, strict=True)):
        if same[0].is_initialized:
            rows = list(zip(same, parts, strict=True))
            keys = torch.cat([aligned(layer.keys, part) for layer, part in rows])
            cache.update(keys, torch.cat([aligned(layer.values, part) for layer, part in rows]), i)
    return cache


@contextmanager
def drawing_from(generator: torch.Generator | None, device: torch.device) -> Generator[None]:
    """`generate` samples from the global generator of the device: lend it the state of ours, and take that back."""
    if generator is None:
        yield
        return
    if generator.device.type != device.type:
        raise ValueError(
            f"`generator` is on {generator.device}, but the model on {device}. Use torch.Generator({device.type!r})."
        )
    module: Any = torch if device.type == "cpu" else torch.get_device_module(device)
    before = module.get_rng_state()
    module.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(module.get_rng_state())
        module.set_rng_state(before)
