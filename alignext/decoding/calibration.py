# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The strength of steering vector decoding, from completions that are known."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from alignext.decoding.svdecode import BaseModel
from alignext.functional.svdecode import Positions, fit_strength, kept_positions, mean_nll
from alignext.rewards.process import prompt_ids
from alignext.wrapping import evaluating


logger = logging.get_logger(__name__)


@dataclass
class SVDecodeCalibration:
    """
    A strength, and what it was found from.

    Attributes:
        strength (`float`): For [`SVDecodeLogitsProcessor`].
        nll (`dict[float, float]`): Mean negative log-likelihood of the known tokens, by strength: at 0, at `strength`
            and on the grid.
        num_tokens (`int`): Known tokens that were used.
        num_excluded (`int`): Known tokens that the mask excludes.
    """

    strength: float
    nll: dict[float, float]
    num_tokens: int
    num_excluded: int


def calibrate_svdecode(
    model: Any,
    dataset: Iterable[Mapping[str, Any]],
    processing_class: PreTrainedTokenizerBase,
    *,
    base: Any = None,
    alpha: float = 0.1,
    direction: str = "kl_gradient",
    estimator: str = "newton",
    grid: Sequence[float] = (-1.0, 1.0, 2.0, 4.0, 8.0),
    batch_size: int = 8,
    max_length: int = 1024,
) -> SVDecodeCalibration:
    r"""
    Find the strength of [`SVDecodeLogitsProcessor`] under which held-out completions are likely. Data that the model
    was tuned on has a smaller residual, and gives a smaller strength.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The tuned model.
        dataset (`Dataset` or an iterable of `dict`):
            Rows with `prompt` and `completion`, texts or conversations, or with `messages`, of which the last is the
            completion. Only completions count.
        processing_class (`PreTrainedTokenizerBase`): The tokenizer.
        base, alpha, direction: As for [`SVDecodeLogitsProcessor`].
        estimator (`str`, *optional*, defaults to `"newton"`):
            `"newton"`, the minimum of the NLL; `"paper"`, a mean of ratios; `"grid"`, the best of `grid` and 0.
        grid (`Sequence[float]`, *optional*): Strengths whose NLL is in the result.
        batch_size (`int`, *optional*, defaults to 8): Rows per forward pass.
        max_length (`int`, *optional*, defaults to 1024): Longer rows are cut.

    Returns:
        [`SVDecodeCalibration`].

    Raises:
        ValueError: There is no known token, or an argument is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must be in [0, 1], received {alpha}.")
    before = BaseModel(model, base)
    rows = [_encoded(processing_class, row, i, max_length) for i, row in enumerate(dataset)]
    if not rows:
        raise ValueError("`dataset` must have rows, received none.")
    parts = []
    with evaluating(model), evaluating(before.model):
        for start in range(0, len(rows), batch_size):
            parts.append(_positions(model, before, rows[start : start + batch_size], alpha, direction))
    positions = _together(parts)
    if not len(positions.targets):
        raise ValueError(
            f"`alpha` is {alpha}, which excludes every token of the completions of `dataset` ({positions.excluded}): "
            "the tuned model finds none of them plausible. Lower it, or pass `alpha=0`."
        )
    strength = fit_strength(positions, estimator, tuple(grid))
    if strength == 0 and not positions.steering.abs().max() > 1e-8:
        logger.warning("The tuned model and its base give the same distributions, so that there is nothing to steer.")
    nll = {float(s): mean_nll(positions, s) for s in sorted({0.0, strength, *grid})}
    return SVDecodeCalibration(strength, nll, len(positions.targets), positions.excluded)


def _encoded(tokenizer: Any, row: Mapping[str, Any], number: int, max_length: int) -> tuple[torch.Tensor, int]:
    """Token ids of a row, and the length of its prompt."""
    if "messages" in row:
        prompt, completion = row["messages"][:-1], row["messages"][-1:]
    elif "prompt" in row and "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
    else:
        raise ValueError(
            f"`dataset` must have 'prompt' and 'completion', or 'messages', received {list(row)} in row {number}."
        )
    start = prompt_ids(tokenizer, prompt)
    if isinstance(prompt, str):
        ids = tokenizer(prompt + completion)["input_ids"]
        ids = (
            ids if ids[: len(start)] == start else start + tokenizer(completion, add_special_tokens=False)["input_ids"]
        )
        eos = tokenizer.eos_token_id
        ids = ids if eos is None or ids[-1] == eos else [*ids, eos]
    else:
        ids = tokenizer.apply_chat_template([*prompt, *completion], tokenize=True, return_dict=True)["input_ids"]
    return torch.tensor(ids[:max_length]), len(start)


@torch.no_grad()
def _positions(model: Any, before: BaseModel, rows: list, alpha: float, direction: str) -> Positions:
    ids = pad_sequence([row for row, _ in rows], batch_first=True).to(model.device)
    mask = pad_sequence([torch.ones_like(row) for row, _ in rows], batch_first=True).to(model.device)
    known = mask.bool()
    for i, (_, start) in enumerate(rows):
        known[i, :start] = False
    tuned = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -ids.shape[1] :]
    with before() as base:
        given = base(input_ids=ids.to(base.device), attention_mask=mask.to(base.device), use_cache=False).logits
    read = known[:, 1:]
    args = tuned[:, :-1][read], given[:, :-1].to(tuned.device)[read], ids[:, 1:][read]
    found = kept_positions(*args, alpha, direction)
    return Positions(*(value.cpu() for value in found[:3]), found.excluded)


def _together(parts: list[Positions]) -> Positions:
    width = max(part.logits.shape[1] for part in parts)

    def padded(values: torch.Tensor, filler: float) -> torch.Tensor:
        return torch.nn.functional.pad(values, (0, width - values.shape[1]), value=filler)

    return Positions(
        torch.cat([padded(part.logits, -torch.inf) for part in parts]),
        torch.cat([padded(part.steering, 0.0) for part in parts]),
        torch.cat([part.targets for part in parts]),
        sum(part.excluded for part in parts),
    )
