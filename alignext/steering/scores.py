# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Trait and coherence of what a steered model writes: a score for `sweep_steering`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from alignext.decoding.rows import end_tokens, left_padded
from alignext.steering.hooks import steering_off
from alignext.steering.texts import encode_prompt


def text_score(
    tokenizer: Any,
    prompts: Sequence[Any],
    trait: Callable[[list[str]], Sequence[float]],
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> Callable[[Any], tuple[float, float]]:
    """
    A score that lets the model write. Trait: the mean of `trait` over the texts. Coherence: the likelihood of a token
    under the model without steering, as a geometric mean over all that was written.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Of the model.
        prompts (`Sequence`): Texts, or lists of messages.
        trait (`Callable`): `trait(texts)` gives a number for each text, the larger, the more of the trait.
        max_new_tokens (`int`, *optional*, defaults to 64): Length of texts.
        seed (`int`, *optional*, defaults to 0): Of sampling, which is the same for every setting.

    Returns:
        `Callable`: `score(model)`, for [`sweep_steering`].

    Raises:
        ValueError: If there is no prompt; when called, if `trait` gives other than a number for each text.
    """
    if not prompts:
        raise ValueError("`prompts` must have at least one prompt.")
    pad = (tokenizer.eos_token_id or 0) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    padded, mask = left_padded([encode_prompt(tokenizer, prompt) for prompt in prompts], pad)
    length = padded.shape[1]

    @torch.no_grad()
    def score(model: Any) -> tuple[float, float]:
        inputs = {"input_ids": padded.to(model.device), "attention_mask": mask.to(model.device)}
        ends = end_tokens(model, tokenizer)
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            out = model.generate(
                **inputs,
                do_sample=True,
                top_k=0,
                max_new_tokens=max_new_tokens,
                min_new_tokens=1,
                eos_token_id=ends or None,
                pad_token_id=pad,
            )
        told = out[:, length:]
        real = torch.isin(told, torch.tensor(ends, dtype=told.dtype, device=told.device)).cumsum(1) == 0
        seen = torch.cat([inputs["attention_mask"], real.long()], 1)
        positions = (seen.cumsum(1) - 1).clamp(min=0)
        with steering_off():
            logits = model(input_ids=out, attention_mask=seen, position_ids=positions).logits[:, length - 1 : -1]
        losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), told, reduction="none")
        rows = [row[kept].tolist() for row, kept in zip(told, real, strict=True)]
        texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
        values = [float(value) for value in trait(texts)]
        if len(values) != len(texts):
            raise ValueError(f"`trait` must give a number for each of {len(texts)} texts, received {len(values)}.")
        return sum(values) / len(values), math.exp(-float(losses[real].mean()))

    return score
