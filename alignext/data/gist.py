# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""GIST and LESS over a dataset for supervised training: which rows serve a target task."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from alignext.data.core import NoScore, Values, add_columns, check_kind, weights_key
from alignext.data.encode import check_no_pictures, encode_example
from alignext.data.features import FEATURES, SketchFeatures
from alignext.data.gradients import RowGradients
from alignext.loaded import check_loaded
from alignext.methods import method as row_of
from alignext.wrapping import evaluating


logger = logging.get_logger(__name__)  # one that works without a trainer, too


def add_gradient_scores(
    model: Any,
    dataset: Any,
    target: Any,
    *,
    processing_class: Any,
    method: str = "gist",
    rank: int | None = None,
    group_by: str | None = None,
    normalisation: str = "subspace",
    optimizer_state: str | Path | None = None,
    projection_size: int = 8192,
    seed: int = 0,
    batch_size: int = 8,
    max_length: int | None = 2048,
    text_field: str = "text",
    cache: str | Path | None = None,
    progress: bool = True,
) -> Any:
    """
    Score every row by how well its gradient serves a target task, of which a handful of rows is known. One forward and
    one backward pass per row; nothing is trained.

    Args:
        model (`PeftModel` or `PreTrainedModel`): With the parameters trained that will be trained: an adapter after a
            short warm-up, as at its start half of its gradients are zero. Scored in evaluation mode.
        dataset (`Dataset` or `IterableDataset`): What can be trained on: any format of `SFTTrainer`.
        target (`Dataset`): Rows of the task, in any of these formats.
        processing_class (`PreTrainedTokenizerBase`): The tokenizer of the training.
        method (`str`, *optional*, defaults to `"gist"`): `"gist"` compares gradients in the subspace that the target's
            gradients span; `"less"` Adam's steps with the target's gradients, projected at random; `"cosine"`
            gradients as they are.
        rank (`int`, *optional*): Directions of the subspace; if not given, as many as hold 95 % of the target's
            gradients, at least 2.
        group_by (`str`, *optional*): A column of `target` with sub-tasks. A row's score is that of the one it serves
            best.
        normalisation (`str`, *optional*, defaults to `"subspace"`): The method's own; `"full"` divides by the size of
            the whole gradient, so that a row that has little to do with the target scores low.
        optimizer_state (`str` or `Path`, *optional*): For `"less"`: a checkpoint of the trainer, or its
            `optimizer.pt`, for the parameters of `model`.
        projection_size, seed (`int`, *optional*, default to 8192 and 0): Of LESS's random projection.
        batch_size, max_length (`int`, *optional*, default to 8 and 2048): Rows per pass, and tokens of a row; the end
            is cut.
        text_field (`str`, *optional*, defaults to `"text"`): The column of plain texts.
        cache (`str` or `Path`, *optional*): A folder for what is done. An interrupted call with the same folder, data,
            model and settings goes on where it ended.
        progress (`bool`, *optional*, defaults to `True`): Show a bar.

    Returns:
        The dataset with a column named after the method (the larger, the more use), `gist_energy` (the share of the
        gradient within the subspace) with `"gist"`, and one that says why a row has NaN.

    Raises:
        ValueError: If nothing is trained, the target is empty, columns are missing, `rank=1` or a target whose rows
            are all the same comes without `normalisation="full"`, or the state of the optimizer does not fit.
        NotImplementedError: If rows have pictures or are packed, or the model is an encoder-decoder.
    """
    if method not in FEATURES:
        raise ValueError(f"`method` must be one of {', '.join(FEATURES)}, received {method!r}.")
    if normalisation not in ("subspace", "full"):
        raise ValueError(f"`normalisation` must be 'subspace' or 'full', received {normalisation!r}.")
    if rank == 1 and normalisation != "full":
        raise ValueError("`rank` is 1, where every cosine is 1 or -1. Use 2 or more, or `normalisation='full'`.")
    if (optimizer_state is not None) != (method == "less"):
        raise ValueError("`optimizer_state` must be given with `method='less'`, and only then.")
    _check(model, dataset, "dataset")
    _check(model, target, "target")
    rows, groups = _target_rows(target, processing_class, max_length, text_field, group_by)
    if len(rows) < 2 and method == "gist" and normalisation != "full":
        raise ValueError("`target` has 1 row, where every cosine is 1 or -1. Give more, or `normalisation='full'`.")
    settings: Any = {"rank": rank, "full": normalisation == "full", "size": projection_size, "seed": seed}
    with evaluating(model):
        gradients = RowGradients(model)
        _warn_of_zero_b(gradients)
        make: Any = FEATURES[method]
        features = make(gradients, groups, optimizer_state=optimizer_state, **settings)
        for start in range(0, len(rows), batch_size):
            features.learn(gradients.of(rows[start : start + batch_size]))
        features.finish()
        leaks = _Leaks({tuple(row["input_ids"]) for row in rows})
        encode = partial(_encode, tokenizer=processing_class, max_length=max_length, text_field=text_field)
        names = (method, "gist_energy") if method == "gist" else (method,)

        def score(batch: list[dict[str, list[int]]]) -> Values:
            with evaluating(model):  # a stream is read after this function has ended
                return features.score(gradients.of(batch), len(batch))

        learnt = f"{list(gradients.parameters)} {rows} {groups.tolist()} {features.key}"
        key = f"{weights_key(model)} {method} {sorted(settings.items())} {learnt}"
        scored = add_columns(
            dataset,
            names,
            lambda row: leaks.seen(encode(row)),
            score,
            length=lambda row: len(row["input_ids"]),
            batch_size=batch_size,
            note=f"{method}_note",
            cache=cache,
            key=key,
            progress=progress,
            description="Scoring rows",
        )
    if leaks.count:
        logger.warning("%d rows of `dataset` are rows of `target`, too: they score high for that alone.", leaks.count)
    return scored


setattr(add_gradient_scores, "_paper", row_of("GIST").paper)  # noqa: B010, functions declare no attributes


def gradient_features(
    model: Any,
    rows: Any,
    *,
    processing_class: Any,
    projection: int = 512,
    seed: int = 0,
    batch_size: int = 8,
    max_length: int | None = 2048,
    text_field: str = "text",
) -> torch.Tensor:
    """
    The gradients of rows, projected at random to a width that can be kept, for selectors of your own. Inner products
    are those of the gradients, on average.

    Args:
        model, processing_class, batch_size, max_length, text_field: See [`add_gradient_scores`].
        rows (`Dataset`): Rows of any format of `SFTTrainer`.
        projection (`int`, *optional*, defaults to 512): The width; 0 keeps all numbers.
        seed (`int`, *optional*, defaults to 0): Of the projection.

    Returns:
        `torch.Tensor` of shape `(n, projection)`, float32; NaN for a row without a token to learn from.
    """
    _check(model, rows, "rows")
    with evaluating(model):
        gradients = RowGradients(model)
        features = SketchFeatures(gradients, projection, seed)
        encoded: dict[int, dict[str, list[int]]] = {}
        for i, row in enumerate(rows):
            try:
                encoded[i] = _encode(row, processing_class, max_length, text_field)
            except NoScore:
                continue
        found = torch.full((i + 1, projection or sum(gradients.sizes)), math.nan)
        order = sorted(encoded, key=lambda i: len(encoded[i]["input_ids"]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            found[batch] = features.of(gradients.of([encoded[i] for i in batch])).float().cpu()
    return found


class _Leaks:
    """Counts rows that are rows of the target."""

    def __init__(self, known: set[tuple[int, ...]]) -> None:
        self.known, self.count = known, 0

    def seen(self, row: dict[str, list[int]]) -> dict[str, list[int]]:
        self.count += tuple(row["input_ids"]) in self.known
        return row


def _warn_of_zero_b(gradients: RowGradients) -> None:
    b = [p for name, p in gradients.parameters.items() if ".lora_B." in name]
    if b and not any(p.detach().any() for p in b):
        logger.warning(
            "All `lora_B` are zero, as in a new adapter: the gradients of all `lora_A` are zero, and half of the "
            "features are empty. Train the adapter on a random twentieth of the data first."
        )


def _check(model: Any, dataset: Any, name: str) -> None:
    check_loaded(model)
    check_kind(dataset, name)
    if model.config.is_encoder_decoder:
        raise NotImplementedError(f"{type(model).__name__} is an encoder-decoder; pass a causal language model.")
    columns = dataset.column_names
    check_no_pictures(columns)
    if columns is not None and {"seq_lengths", "position_ids"} & set(columns):
        raise NotImplementedError(
            f"`{name}` is packed: its rows hold several examples. Pass the data without packing."
        )
    if columns is not None and {"chosen", "rejected"} <= set(columns):
        raise ValueError(f"`{name}` has preference pairs, expected single answers: prompt, completion or messages.")


def _target_rows(
    target: Any, tokenizer: Any, max_length: int | None, text_field: str, group_by: str | None
) -> tuple[list[dict[str, list[int]]], torch.Tensor]:
    """Tokens of the target's rows, and their groups."""
    if group_by is not None and group_by not in (target.column_names or ()):
        raise ValueError(
            f"`group_by` must be a column of `target`, received {group_by!r}; it has {target.column_names}."
        )
    rows, names = [], []
    for i, row in enumerate(target):
        try:
            rows.append(_encode(row, tokenizer, max_length, text_field))
        except NoScore as reason:
            raise ValueError(f"Row {i} of `target` cannot be used: {reason}.") from reason
        names.append("" if group_by is None else str(row[group_by]))
    if not rows:
        raise ValueError("`target` must have rows, received an empty dataset.")
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return rows, torch.tensor([order[name] for name in names])


def _encode(row: Mapping[str, Any], tokenizer: Any, max_length: int | None, text_field: str) -> dict[str, list[int]]:
    known = {"input_ids", "prompt", "messages", "conversations", text_field}
    if not known & set(row):
        raise ValueError(
            f"Rows do not have the right columns: found {sorted(row)}, expected 'prompt' and 'completion', "
            f"'messages', or {text_field!r}."
        )
    if any(row[name] is None for name in ("prompt", "completion", "messages", text_field) if name in row):
        raise NoScore("a cell is null")
    found = encode_example(row, tokenizer, text_field)
    if max_length is not None:
        found = {name: ids[:max_length] for name, ids in found.items()}
    if not any(label != -100 for label in found["labels"][1:]):
        raise NoScore("no token of it is trained on" + ("" if max_length is None else " before `max_length`"))
    return found
