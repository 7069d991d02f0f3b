# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""CHES over a dataset of preference pairs: which of them will push their chosen answer down."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers.utils import logging

from alignext.data.core import (
    NoScore,
    Values,
    add_columns,
    check_kind,
    chosen_rows,
    groups_of,
    numbers,
    padded,
    share_of,
    weights_key,
)
from alignext.data.encode import check_no_pictures, encode_pair
from alignext.functional.ches import answer_sums, ches_scores, growth_kernel, ln_ches_scores
from alignext.loaded import check_loaded
from alignext.methods import method
from alignext.wrapping import evaluating


logger = logging.get_logger(__name__)  # one that works without a trainer, too

COLUMNS = ("ches", "ln_ches")
NOTE = "ches_note"


def add_ches_scores(
    model: Any,
    dataset: Any,
    *,
    processing_class: Any,
    kernel: bool = False,
    batch_size: int = 8,
    max_length: int | None = 1024,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Any:
    """
    Score every preference pair by how much DPO on it would lower the likelihood of its chosen answer. One forward pass
    per pair, on the model that DPO will start from.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The policy to be trained. Scored in evaluation mode.
        dataset (`Dataset` or `IterableDataset`): Any of TRL's preference formats: `prompt`, `chosen`, `rejected`, or
            the latter two with the prompt in them, as texts or conversations.
        processing_class (`PreTrainedTokenizerBase`): The tokenizer of the training.
        kernel (`bool`, *optional*, defaults to `False`): Also `ches_kernel`, `K(+, -) / K(+, +) - 1` of
            [`growth_kernel`][alignext.functional.ches.growth_kernel], in which the output layer counts. It needs the
            logits of answers.
        batch_size (`int`, *optional*, defaults to 8): Pairs per forward pass.
        max_length (`int`, *optional*, defaults to 1024): Tokens of prompt and answer; the end is cut, as by
            `DPOTrainer`. `None` cuts nothing.
        cache (`str` or `Path`, *optional*): A folder for what is done. An interrupted call with the same folder, data,
            model and settings goes on where it ended.
        progress (`bool`, *optional*, defaults to `True`): Show a bar.

    Returns:
        The dataset with columns `ches`, `ln_ches` (the larger, the more the chosen answer falls), `ches_kernel` if
        asked for, and `ches_note`: why a row has NaN, else empty. A stream is scored while it is read.

    Raises:
        ValueError: If columns are missing, or there already, or the data is of single answers with a label.
        NotImplementedError: If rows have pictures, or the model is an encoder-decoder.
    """
    _check(model, dataset)
    if max_length is not None and max_length < 2:
        raise ValueError(f"`max_length` must be 2 or more, received {max_length}.")
    return add_columns(
        dataset,
        _names(kernel),
        partial(_encode, tokenizer=processing_class, max_length=max_length),
        partial(_score, model, kernel=kernel),
        length=_length,
        batch_size=batch_size,
        note=NOTE,
        cache=cache,
        key=f"{weights_key(model)} {kernel}",
        progress=progress,
        description="Scoring pairs",
    )


setattr(add_ches_scores, "_paper", method("CHES").paper)  # noqa: B010, functions declare no attributes


def score_dataloader(
    trainer: Any, *, kernel: bool = False, batch_size: int | None = None, progress: bool = True
) -> Any:
    """
    The scores of the rows that a `DPOTrainer` trains on, of its own tokens, cut as it cuts them, and by its model as
    it is now.

    Args:
        trainer (`DPOTrainer`): An existing trainer, or one of its subclasses.
        kernel (`bool`, *optional*, defaults to `False`): See [`add_ches_scores`].
        batch_size (`int`, *optional*): Pairs per forward pass; as in evaluation if not given.
        progress (`bool`, *optional*, defaults to `True`): Show a bar.

    Returns:
        `Dataset`: `trainer.train_dataset` with the columns of [`add_ches_scores`]. Rows that the trainer has dropped
        are not in it.

    Raises:
        ValueError: If the trainer's data has no tokens of pairs.
    """
    dataset, args = trainer.train_dataset, trainer.args
    needed = {"prompt_ids", "chosen_ids", "rejected_ids"}
    if not needed <= set(dataset.column_names or ()):
        raise ValueError(
            f"`trainer` must have prepared pairs, with columns {sorted(needed)}, has {dataset.column_names}."
        )
    model = trainer.accelerator.unwrap_model(trainer.model)
    end = getattr(args, "truncation_mode", "keep_start") == "keep_end"
    return add_columns(
        dataset,
        _names(kernel),
        partial(_cut, max_length=args.max_length, end=end),
        partial(_score, model, kernel=kernel),
        length=_length,
        batch_size=batch_size or args.per_device_eval_batch_size,
        note=NOTE,
        progress=progress,
        description="Scoring pairs",
    )


def filter_by_ches(
    dataset: Dataset,
    *,
    keep: float | None = None,
    drop_top: float | None = None,
    max_score: float | None = None,
    column: str = "ln_ches",
    by: str | None = None,
) -> Dataset:
    """
    The pairs with the lowest scores, in the order of the dataset. Rows without a score are left out, and counted in
    the log.

    Args:
        dataset (`Dataset`): Of [`add_ches_scores`].
        keep (`float`, *optional*): Share that is kept, in (0, 1]; the paper has 0.05 where most pairs are alike.
        drop_top (`float`, *optional*): Share that is dropped, in (0, 1).
        max_score (`float`, *optional*): The largest score that is kept. One of the three is given.
        column (`str`, *optional*, defaults to `"ln_ches"`): The score.
        by (`str`, *optional*): A column; the share is taken of each of its values.

    Raises:
        ValueError: If not exactly one of the three is given, a share is out of range, or no row is left.
    """
    given = [
        name for name, value in (("keep", keep), ("drop_top", drop_top), ("max_score", max_score)) if value is not None
    ]
    if len(given) != 1:
        raise ValueError(f"One of `keep`, `drop_top` and `max_score` must be given, received {given or 'none'}.")
    scores = numbers(dataset, column)
    if drop_top is not None:
        if not 0 < drop_top < 1:
            raise ValueError(f"`drop_top` must be in (0, 1), received {drop_top}.")
        keep = 1 - drop_top
    groups = groups_of(dataset, by)
    if max_score is not None:
        kept = [i for i, value in enumerate(scores) if value <= max_score]
    else:
        share = share_of(float(keep or 0.0), "keep")
        # Rounded first: 0.2 of ten rows are two, not nearly two.
        kept = sorted(chosen_rows(scores, groups, lambda n: math.ceil(round(share * n, 9)), largest=False))
    unscored = sum(map(math.isnan, scores))
    if unscored:
        logger.warning("%d of %d rows have no score and are left out; `%s` says why.", unscored, len(scores), NOTE)
    if not kept:
        raise ValueError(f"No row is left of {len(dataset)}: {given[0]}={keep or max_score} keeps none.")
    return dataset.select(kept)


def _names(kernel: bool) -> tuple[str, ...]:
    return (*COLUMNS, "ches_kernel") if kernel else COLUMNS


def _check(model: Any, dataset: Any) -> None:
    check_loaded(model)
    check_kind(dataset)
    if model.config.is_encoder_decoder:
        raise NotImplementedError(f"{type(model).__name__} is an encoder-decoder; pass a causal language model.")
    columns = dataset.column_names
    check_no_pictures(columns)
    if columns is not None and not {"chosen", "rejected"} <= set(columns):
        single = " Single answers with a label have no pair to compare." if "label" in columns else ""
        raise ValueError(
            f"`dataset` does not have the right columns: found {columns}, expected 'chosen', 'rejected' and mostly "
            f"'prompt' (example row: {{'prompt': 'Tell me.', 'chosen': 'Gladly.', 'rejected': 'No.'}}).{single}"
        )


def _encode(row: Mapping[str, Any], tokenizer: Any, max_length: int | None) -> dict[str, Any]:
    if row["chosen"] is None or row["rejected"] is None or ("prompt" in row and row["prompt"] is None):
        raise NoScore("a cell is null")
    return _cut(encode_pair(row, tokenizer), max_length)


def _cut(row: Mapping[str, Any], max_length: int | None, end: bool = False) -> dict[str, Any]:
    """Ids and answer masks of both sides."""
    found = {}
    for side in ("chosen", "rejected"):
        answer = row[f"{side}_ids"]
        if not len(answer):
            raise NoScore(f"the {side} answer is empty")
        ids = [*row["prompt_ids"], *answer]
        mask = [0] * len(row["prompt_ids"]) + [1] * len(answer)
        if max_length is not None:
            ids, mask = (ids[-max_length:], mask[-max_length:]) if end else (ids[:max_length], mask[:max_length])
        if not any(mask[1:]):
            where = "before `max_length`" if max_length is not None else "behind another one that predicts it"
            raise NoScore(f"the {side} answer has no token {where}")
        found[side] = (ids, mask)
    return found


def _length(pair: Mapping[str, Any]) -> int:
    return max(len(ids) for ids, _ in pair.values())


@torch.no_grad()
def _score(model: Any, pairs: Sequence[Mapping[str, Any]], *, kernel: bool) -> Values:
    rows = [pair[side] for side in ("chosen", "rejected") for pair in pairs]
    ids = padded([ids for ids, _ in rows], 0).to(model.device)
    attention = padded([[1] * len(ids) for ids, _ in rows], 0).to(model.device)
    mask = padded([mask for _, mask in rows], 0).to(model.device)
    with evaluating(model):
        states, logits = _states(model, ids, attention, kernel)
    (chosen, rejected), (n, m) = (x.chunk(2) for x in answer_sums(states, mask))
    found = {"ches": ches_scores(chosen, rejected), "ln_ches": ln_ches_scores(chosen, rejected, n, m)}
    if kernel:
        found["ches_kernel"] = torch.tensor([_kernel(states, logits, ids, mask, i) for i in range(len(pairs))])
    return {name: value.tolist() for name, value in found.items()}


def _states(model: Any, ids: torch.Tensor, attention: torch.Tensor, with_logits: bool) -> tuple[torch.Tensor, Any]:
    """What the output layer reads, and the logits if they are asked for."""
    if not with_logits:
        inner = model.get_base_model() if is_peft_model(model) else model
        out = inner.base_model(input_ids=ids, attention_mask=attention, use_cache=False)
        return out.last_hidden_state, None
    seen: list[torch.Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
    finally:
        handle.remove()
    return seen[0], logits


def _kernel(states: torch.Tensor, logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, pair: int) -> float:
    """`K(+, -) / K(+, +) - 1` of one pair."""
    sides = []
    for row in (pair, pair + len(ids) // 2):
        at = mask[row, 1:].nonzero()[:, 0]
        residuals = -logits[row, at].double().softmax(-1)
        residuals[torch.arange(len(at)), ids[row, at + 1]] += 1
        sides += [states[row, at].double(), residuals]
    own = float(growth_kernel(*sides[:2], *sides[:2]))
    return float(growth_kernel(*sides)) / own - 1 if own else math.nan
