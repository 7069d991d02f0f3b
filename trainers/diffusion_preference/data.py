# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Datasets of pairs and of votes, brought to one set of columns whatever they call them."""

import math
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, IterableDataset
from transformers.utils import logging

from alignext.diffusion.pictures import to_pil
from alignext.training.door import check_dataset_kind

from .collators import PairCollator as PairCollator
from .columns import COLUMNS as COLUMNS
from .columns import (
    IMAGES,
    LATENTS,
    SCORES,
    VIDEOS,
    VOTES,
    column_names,
    exchanged,
    find_columns,
    find_vote_columns,
    is_embedding,
    renamed,
    theirs_of,
    undecoded,
)
from .columns import PICTURES as PICTURES


logger = logging.get_logger(__name__)

to_rgb = to_pil  # the name that scripts know


def prepare_pairs(
    dataset: Dataset | IterableDataset, *, order_by_score: bool = True, name: str = "dataset"
) -> Dataset | IterableDataset:
    """
    Rename the columns of a preference dataset, put the preferred picture first and drop ties. No picture is decoded or
    copied.

    | column afterwards | also accepted | |
    |---|---|---|
    | `index` | | the row in `dataset` |
    | `columns` | | where a row has other names than these, both of them, for messages |
    | `prompt` | `caption` | text, or a list of texts to draw from |
    | `image_chosen`, `image_rejected` | `chosen`, `rejected`; `jpg_0`, `jpg_1` with `label_0` | PIL, bytes or path |
    | `video_chosen`, `video_rejected` | | files, or frames (F, H, W, 3), or lists of pictures |
    | `chosen_latents`, `rejected_latents` | | (C, h, w), scaled; they stand in for the pictures |
    | `prompt_embeds`, `pooled_prompt_embeds` | | (L, D) and (P,), with whatever else of prompts the stock call takes |
    | `source` | `image` | what an editing pipeline edits: a picture, or a list of them |
    | `mask` | | optional: where it is trained, white; of the size of the pictures |
    | `score_chosen`, `score_rejected` | `ps_score_0`, `ps_score_1` | optional |
    | `votes_chosen`, `votes_rejected` | | optional: the picture with more votes won |
    | `preference_prob` | | optional, in [0, 1], overrides the scores |

    `label_0` is 1 where `jpg_0` was preferred, 0 where `jpg_1` was, and 0.5 for a tie. Beside it `preference_prob` is
    the probability that the label is right. Without it, `preference_prob` is that of the first picture; with
    `order_by_score=False` the one with more than half of it is put first. `jpg_0` and `jpg_1` with nothing but scores
    are ordered by these, and those that have the same are ties.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            The pairs.
        order_by_score (`bool`, *optional*, defaults to `True`):
            Swap the pictures of a row whose rejected one has the higher score, as SmPO does, unless there is a
            `preference_prob`. Ties by label are dropped all the same. `False`: the label alone counts.
        name (`str`, *optional*, defaults to `"dataset"`):
            What messages call it.

    Returns:
        `Dataset` or `IterableDataset`: With those of the columns above that there are.

    Raises:
        ValueError: if it is no dataset or an empty one, columns are missing, a prompt or picture is null, every row is
            a tie, or a label, score or probability is out of range. The message names the column and the row.
    """
    check_dataset_kind(dataset, name)
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
        raise ValueError("The dataset has a transform, which would be lost. Apply it with `map` instead.")
    names = find_columns(column_names(dataset))
    if isinstance(dataset, IterableDataset):
        return _prepare_stream(dataset, names, order_by_score)

    _check_nulls(dataset, names, name)
    scalars = [name for name in ("label_0", *SCORES, *VOTES, "preference_prob") if name in names]
    columns = dataset.select_columns([names[name] for name in scalars])[:] if scalars else {}
    said = [{name: columns[names[name]][row] for name in scalars} for row in range(len(dataset))]
    swaps = [_is_swapped(row, number, order_by_score, names) for number, row in enumerate(said)]
    ties = swaps.count(None)
    if ties == len(swaps):
        raise ValueError(f"No pair is left: the dataset has {len(swaps)} rows, of which {ties} are ties.")
    if ties:
        logger.warning(
            f"Dropped {ties} of {len(swaps)} pairs: they are ties (`label_0` is 0.5, or votes or scores are equal)."
        )

    # Swapped rows are read from the same table under the names exchanged, so that nothing is copied. A selection of
    # rows is undone first, as adding a column would write the selected rows to disk.
    order = np.arange(len(dataset)) if dataset._indices is None else dataset._indices.column(0).to_numpy()
    table = Dataset(dataset.data, info=dataset.info, split=dataset.split)
    index = np.full(len(table), -1)
    index[order] = np.arange(len(order))
    straight = renamed(table, names).add_column("index", index)
    if "preference_prob" in names:
        sure = np.zeros(len(table))
        sure[order] = [_probability(row, swap) for row, swap in zip(said, swaps, strict=True)]
        straight = straight.remove_columns("preference_prob").add_column("preference_prob", sure)
    crossed = straight.rename_columns(exchanged(names))
    if theirs_of(names) or any(swaps):
        straight = straight.add_column("columns", [theirs_of(names)] * len(table))
        crossed = crossed.add_column("columns", [theirs_of(names, swapped=True)] * len(table))
    both = datasets.concatenate_datasets([straight, crossed.select_columns(straight.column_names)])
    rows = [int(i) + len(table) * swap for i, swap in zip(order, swaps, strict=True) if swap is not None]
    pairs = both.select(rows)
    return _with_arrays(pairs, names)


def _prepare_stream(dataset: IterableDataset, names: dict[str, str], order_by_score: bool) -> IterableDataset:
    other = exchanged(names)
    named = bool(theirs_of(names)) or any(n in names for n in ("label_0", *SCORES, *VOTES, "preference_prob"))

    def canonical(row: dict[str, Any], index: int) -> dict[str, Any]:
        swap = _is_swapped(row, index, order_by_score, names)
        pair = {name: row[other.get(name, name) if swap else name] for name in names if name != "label_0"}
        pair |= {"columns": theirs_of(names, swapped=bool(swap))} if named else {}
        pair |= {"preference_prob": _probability(row, swap)} if "preference_prob" in names else {}
        return pair | {"index": index, "_tie": swap is None}

    dataset = dataset.select_columns(list(names.values())).rename_columns(
        {theirs: name for name, theirs in names.items() if theirs != name}
    )
    if dataset.features is not None:
        dataset = undecoded(dataset, names)
    dataset = dataset.map(canonical, with_indices=True, remove_columns=["label_0"] if "label_0" in names else None)
    return dataset.filter(lambda row: not row["_tie"]).remove_columns("_tie")


def _with_arrays(dataset: Dataset, names: dict[str, str]) -> Dataset:
    arrays = [name for name in names if name in (*LATENTS, "latents") or is_embedding(name)]
    return dataset.with_format("numpy", columns=arrays, output_all_columns=True) if arrays else dataset


def prepare_votes(dataset: Dataset | IterableDataset, *, name: str = "dataset") -> Dataset | IterableDataset:
    """
    Single pictures with a thumb up or down, under our names. Pairs are taken apart: the winner has one thumb up, the
    loser one down. Which one won is what people said, and scores only where nobody did.

    | column afterwards | also accepted | |
    |---|---|---|
    | `index` | | the row in `dataset`; of pairs, the winners first |
    | `prompt` | `caption`; embeddings | as of [`prepare_pairs`] |
    | `image` | `video`, `latents`; the columns of pairs | PIL, bytes or path |
    | `label` | | True or 1 for a thumb up, False or 0 for one down |
    | `source`, `mask` | | as of [`prepare_pairs`]; `source` has no other name here |

    Args:
        dataset (`Dataset` or `IterableDataset`): The pictures; of pairs a `Dataset`.
        name (`str`, *optional*, defaults to `"dataset"`): What messages call it.

    Raises:
        ValueError: As [`prepare_pairs`]; a label is none.
    """
    check_dataset_kind(dataset, name)
    found = column_names(dataset)
    pairs = (IMAGES, VIDEOS, LATENTS, ("chosen", "rejected"), ("jpg_0", "jpg_1"))
    if any(set(pair) <= set(found) for pair in pairs):
        return _taken_apart(dataset, name)
    names = find_vote_columns(found)
    if isinstance(dataset, IterableDataset):
        dataset = dataset.select_columns(list(names.values())).rename_columns(
            {theirs: ours for ours, theirs in names.items() if theirs != ours}
        )
        dataset = undecoded(dataset, names) if dataset.features is not None else dataset
        return dataset.map(lambda row, index: _checked_label(row, index), with_indices=True)
    _check_nulls(dataset, names, name)
    for row, label in enumerate(dataset["label"]):
        _checked_label({"label": label}, row)
    votes = renamed(dataset, names).add_column("index", np.arange(len(dataset)))
    return _with_arrays(votes, names)


def _checked_label(row: dict[str, Any], index: int) -> dict[str, Any]:
    if row["label"] is None or isinstance(row["label"], str) or row["label"] not in (True, False):
        raise ValueError(f"`label` of row {index} is {row['label']!r}, expected True (a thumb up) or False.")
    return row | {"index": index}


def _taken_apart(dataset: Dataset | IterableDataset, name: str) -> Dataset:
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            f"`{name}` is a stream of pairs. Votes on single pictures are taken from a `Dataset` of them."
        )
    pairs, parts = prepare_pairs(dataset, order_by_score=False, name=name), []
    for side, label in enumerate((True, False)):
        ours = {"image": IMAGES[side], "video": VIDEOS[side], "latents": LATENTS[side]}
        kept = {theirs: mine for mine, theirs in ours.items() if theirs in pairs.column_names}
        others = [c for c in pairs.column_names if c in ("prompt", "source", "mask") or is_embedding(c)]
        part = pairs.select_columns([*kept, *others]).rename_columns(kept)
        parts.append(part.add_column("label", [label] * len(pairs)))
    both = datasets.concatenate_datasets(parts)
    return _with_arrays(both.add_column("index", np.arange(len(both))), dict.fromkeys(both.column_names, ""))


def _check_nulls(dataset: Dataset, names: dict[str, str], name: str) -> None:
    """Look for cells without a prompt or picture, decoding none."""
    for theirs in (names[ours] for ours in ("prompt", "source", "image", *IMAGES, *VIDEOS) if ours in names):
        column = dataset.data.column(theirs)
        if column.null_count == 0:
            continue
        nulls = column.is_null().to_numpy()
        nulls = nulls if dataset._indices is None else nulls[dataset._indices.column(0).to_numpy()]
        if nulls.any():
            raise ValueError(
                f"`{theirs}` of row {nulls.argmax()} is None in `{name}` (rows count from 0). Fill it in, or leave "
                f"such rows out, as by `dataset.filter(lambda row: row[{theirs!r}] is not None)`."
            )


def _is_swapped(row: dict[str, Any], index: int, order_by_score: bool, names: dict[str, str]) -> bool | None:
    """Whether the second picture is the preferred one; `None` for a tie."""
    label = row.get("label_0", 1)
    if label not in (0, 0.5, 1):
        raise ValueError(
            f"`label_0` of row {index} is {label!r}, expected 1 (`jpg_0` is preferred), 0 or 0.5 (a tie)."
        )
    for name in ("preference_prob", *SCORES, *VOTES):
        if name not in row:
            continue
        value = row[name]
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"`{names[name]}` of row {index} is {value!r}, expected a finite number.")
        if name == "preference_prob" and not 0 <= value <= 1:
            raise ValueError(f"`preference_prob` of row {index} is {value}, expected a probability in [0, 1].")
        if name in VOTES and value < 0:
            raise ValueError(f"`{names[name]}` of row {index} is {value}, expected a number of votes.")
    if label == 0.5:
        return None
    if "votes_chosen" in row:
        more, fewer = row["votes_chosen"], row["votes_rejected"]
        return None if more == fewer else fewer > more
    labelled = "label_0" in row
    unordered = not labelled and names.get("image_chosen") == "jpg_0"  # other names say which one was chosen
    if "preference_prob" in row and not labelled and not order_by_score:  # for SmPO its sign is that of the factor
        first, second = row["preference_prob"], 1 - row["preference_prob"]
    elif "preference_prob" not in row and "score_chosen" in row and (order_by_score or unordered):
        first, second = (row[name] for name in SCORES)
    else:
        return label == 0
    return None if unordered and first == second else second > first


def _probability(row: dict[str, Any], swap: bool | None) -> float:
    """That the first picture is the better one, once they are in order."""
    as_given = bool(swap) == (row.get("label_0", 1) == 0)
    return row["preference_prob"] if as_given else 1 - row["preference_prob"]
