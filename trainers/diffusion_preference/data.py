# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Pairs of pictures: one set of columns whatever a dataset calls them, and batches of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset, IterableDataset
from diffusers.image_processor import VaeImageProcessor
from transformers.utils import logging

from alignext.diffusion.pictures import to_pil


logger = logging.get_logger(__name__)

to_rgb = to_pil  # the name that scripts know

IMAGES = ("image_chosen", "image_rejected")
LATENTS = ("chosen_latents", "rejected_latents")
SCORES = ("score_chosen", "score_rejected")
EMBEDS = ("prompt_embeds", "pooled_prompt_embeds")
COLUMNS = {"index", "columns", "prompt", "preference_prob", *IMAGES, *LATENTS, *SCORES, *EMBEDS}

# What else the two pictures, and their scores, may be called. The first pair that is there counts.
_IMAGES = (IMAGES, ("chosen", "rejected"), ("jpg_0", "jpg_1"))
PICTURES = tuple(name for pair in _IMAGES for name in pair)
_SCORES = (SCORES, ("ps_score_0", "ps_score_1"))


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
    | `chosen_latents`, `rejected_latents` | | (C, h, w), scaled; they stand in for the pictures |
    | `prompt_embeds`, `pooled_prompt_embeds` | | (L, D) and (P,); they stand in for the prompt |
    | `score_chosen`, `score_rejected` | `ps_score_0`, `ps_score_1` | optional |
    | `preference_prob` | | optional, in [0, 1], overrides the scores |

    `label_0` is 1 where `jpg_0` was preferred, 0 where `jpg_1` was, and 0.5 for a tie.

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
    _check(dataset, name)
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
        raise ValueError("The dataset has a transform, which would be lost. Apply it with `map` instead.")
    names = _find_columns(_column_names(dataset))
    if isinstance(dataset, IterableDataset):
        return _prepare_stream(dataset, names, order_by_score)

    _check_nulls(dataset, names, name)
    scalars = [name for name in ("label_0", *SCORES, "preference_prob") if name in names]
    columns = dataset.select_columns([names[name] for name in scalars])[:] if scalars else {}
    swaps = [
        _is_swapped({name: columns[names[name]][row] for name in scalars}, row, order_by_score, names)
        for row in range(len(dataset))
    ]
    ties = swaps.count(None)
    if ties == len(swaps):
        raise ValueError(f"No pair is left: the dataset has {len(swaps)} rows, of which {ties} are ties (`label_0`).")
    if ties:
        logger.warning(f"Dropped {ties} of {len(swaps)} pairs: they are ties (`label_0` is 0.5).")

    # Swapped rows are read from the same table under the names exchanged, so that nothing is copied. A selection of
    # rows is undone first, as adding a column would write the selected rows to disk.
    order = np.arange(len(dataset)) if dataset._indices is None else dataset._indices.column(0).to_numpy()
    table = Dataset(dataset.data, info=dataset.info, split=dataset.split)
    index = np.full(len(table), -1)
    index[order] = np.arange(len(order))
    straight = _renamed(table, names).add_column("index", index)
    crossed = straight.rename_columns(_exchanged(names))
    if _theirs(names) or any(swaps):
        straight = straight.add_column("columns", [_theirs(names)] * len(table))
        crossed = crossed.add_column("columns", [_theirs(names, swapped=True)] * len(table))
    both = datasets.concatenate_datasets([straight, crossed.select_columns(straight.column_names)])
    rows = [int(i) + len(table) * swap for i, swap in zip(order, swaps, strict=True) if swap is not None]
    pairs = both.select(rows)
    arrays = [name for name in (*LATENTS, *EMBEDS) if name in names]
    return pairs.with_format("numpy", columns=arrays, output_all_columns=True) if arrays else pairs


def _prepare_stream(dataset: IterableDataset, names: dict[str, str], order_by_score: bool) -> IterableDataset:
    exchanged = _exchanged(names)
    named = bool(_theirs(names)) or "label_0" in names or (order_by_score and "score_chosen" in names)

    def canonical(row: dict[str, Any], index: int) -> dict[str, Any]:
        swap = _is_swapped(row, index, order_by_score, names)
        pair = {name: row[exchanged.get(name, name) if swap else name] for name in names if name != "label_0"}
        pair |= {"columns": _theirs(names, swapped=bool(swap))} if named else {}
        return pair | {"index": index, "_tie": swap is None}

    dataset = dataset.select_columns(list(names.values())).rename_columns(
        {theirs: name for name, theirs in names.items() if theirs != name}
    )
    if dataset.features is not None:
        for name in set(IMAGES) & set(names):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    dataset = dataset.map(canonical, with_indices=True, remove_columns=["label_0"] if "label_0" in names else None)
    return dataset.filter(lambda row: not row["_tie"]).remove_columns("_tie")


def _check(dataset: Any, name: str) -> None:
    if isinstance(dataset, Mapping):
        raise ValueError(
            f"`{name}` must be one dataset, received a {type(dataset).__name__} of {', '.join(map(repr, dataset))}. "
            "Choose a split, as in `dataset['train']`."
        )
    if not isinstance(dataset, Dataset | IterableDataset):
        raise ValueError(
            f"`{name}` must be a `Dataset` or an `IterableDataset`, received a {type(dataset).__name__}. "
            "`Dataset.from_list` makes one of a list of dictionaries, `load_dataset(...)['train']` reads one."
        )
    if isinstance(dataset, Dataset) and not len(dataset):
        raise ValueError(f"`{name}` must have rows, received an empty dataset. Look at how it was filtered or read.")


def _check_nulls(dataset: Dataset, names: dict[str, str], name: str) -> None:
    """Look for cells without a prompt or picture, decoding none."""
    for theirs in (names[ours] for ours in ("prompt", *IMAGES) if ours in names):
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


def _theirs(names: dict[str, str], swapped: bool = False) -> str:
    """What the dataset calls each of our columns where it has another name, as a row carries it."""
    other = _exchanged(names) if swapped else {}
    of = {name: names[other.get(name, name)] for name in names}
    return "\t".join(f"{name}={theirs}" for name, theirs in of.items() if theirs != name)


def _named(row: Mapping[str, Any], name: str) -> str:
    """What the user calls a column of this row."""
    pairs = [pair.partition("=") for pair in (row.get("columns") or "").split("\t")]
    return {ours: theirs for ours, _, theirs in pairs}.get(name, name)


def _column_names(dataset: Dataset | IterableDataset) -> list[str]:
    if dataset.column_names:
        return list(dataset.column_names)
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError("The stream has no rows. Look at how it was filtered or read.")
    return list(first)


def _find_columns(found: Sequence[str]) -> dict[str, str]:
    """What the dataset calls each of our columns."""
    names: dict[str, str] = {}
    for ours, candidates in ((LATENTS, [LATENTS]), (IMAGES, _IMAGES), (SCORES, _SCORES)):
        theirs = next((pair for pair in candidates if set(pair) <= set(found)), None)
        if theirs and not (ours is IMAGES and names):
            names |= dict(zip(ours, theirs, strict=True))
    if names.get("image_chosen") == "jpg_0" and "label_0" in found:
        names["label_0"] = "label_0"
    for name in (*EMBEDS, "preference_prob"):
        if name in found:
            names[name] = name
    prompt = next((name for name in ("prompt", "caption") if name in found), None)
    if prompt:
        names["prompt"] = prompt

    has_order = "label_0" in names or "preference_prob" in names or "score_chosen" in names
    if not {"image_chosen", "chosen_latents"} & set(names):
        missing = "the two pictures"
    elif not {"prompt", "prompt_embeds"} & set(names):
        missing = "the prompt"
    elif names.get("image_chosen") == "jpg_0" and not has_order:
        missing = "`label_0`, which says whether `jpg_0` was preferred"
    else:
        return names
    raise ValueError(
        f"The dataset lacks {missing}. Its columns are {', '.join(found)}. Expected `prompt` (or `caption`), "
        "`image_chosen` and `image_rejected` (or `chosen` and `rejected`, or `jpg_0`, `jpg_1` and `label_0`), or "
        "`prompt_embeds`, `chosen_latents` and `rejected_latents`. A row is for example {'prompt': 'a fox', "
        "'image_chosen': 'fox-a.png', 'image_rejected': 'fox-b.png'}."
    )


def _is_swapped(row: dict[str, Any], index: int, order_by_score: bool, names: dict[str, str]) -> bool | None:
    """Whether the second picture is the preferred one; `None` for a tie."""
    label = row.get("label_0", 1)
    if label not in (0, 0.5, 1):
        raise ValueError(
            f"`label_0` of row {index} is {label!r}, expected 1 (`jpg_0` is preferred), 0 or 0.5 (a tie)."
        )
    for name in ("preference_prob", *SCORES):
        if name not in row:
            continue
        value = row[name]
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"`{names[name]}` of row {index} is {value!r}, expected a finite number.")
        if name == "preference_prob" and not 0 <= value <= 1:
            raise ValueError(f"`preference_prob` of row {index} is {value}, expected a probability in [0, 1].")
    if label == 0.5:
        return None
    if order_by_score and "score_chosen" in row and "preference_prob" not in row:
        return row["score_rejected"] > row["score_chosen"]
    return label == 0


def _exchanged(names: dict[str, str]) -> dict[str, str]:
    """The name of the other one of each pair of columns."""
    pairs = [pair for pair in (IMAGES, LATENTS, SCORES) if pair[0] in names]
    return {a: b for first, second in pairs for a, b in ((first, second), (second, first))}


def _renamed(dataset: Dataset, names: dict[str, str]) -> Dataset:
    """Our columns under our names, pictures left undecoded: the collator decodes, and can name a bad row."""
    kept = {name: theirs for name, theirs in names.items() if name != "label_0"}
    dataset = dataset.select_columns(list(kept.values()))
    dataset = dataset.rename_columns({theirs: name for name, theirs in kept.items() if theirs != name})
    for name in set(IMAGES) & set(kept):
        dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


@dataclass
class PairCollator:
    """
    Makes batches of the rows of [`prepare_pairs`].

    Pictures are scaled until they cover a square of `resolution`, and its centre is cut out. Winners come first:
    rows 0 to B - 1 of `pixel_values` and `latents` are the preferred ones, rows B to 2B - 1 the others.

    | in the batch | shape | |
    |---|---|---|
    | `index` | (B,) | row of the dataset |
    | `pixel_values` | (2B, 3, H, W) | in [-1, 1]; or |
    | `latents` | (2B, C, h, w) | float32, as in the dataset |
    | `prompts` | B texts, or lists of texts to draw from | or |
    | `prompt_embeds`, `pooled_prompt_embeds` | (B, L, D), (B, P) | float32 |
    | `preference_prob` | (B,) | where the dataset has it |
    | `scores` | (B, 2) | where the dataset has them, the winner's first |

    Args:
        resolution (`int`):
            Side of the square in pixels, rounded down to a multiple of `vae_scale_factor`.
        vae_scale_factor (`int`):
            Pixels per latent, times the patch size of the denoiser.
    """

    resolution: int
    vae_scale_factor: int

    def __post_init__(self) -> None:
        if self.resolution < self.vae_scale_factor:
            raise ValueError(
                f"`resolution` is {self.resolution}, but one latent takes {self.vae_scale_factor} pixels."
            )
        rounded = self.resolution - self.resolution % self.vae_scale_factor
        if rounded != self.resolution:
            logger.warning(
                f"`resolution` is {self.resolution}; {rounded} is used, a multiple of what one latent takes."
            )
            self.resolution = rounded
        self._processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, resample="bilinear")

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {"index": torch.tensor([int(row["index"]) for row in rows])}
        if "chosen_latents" in rows[0]:
            batch["latents"] = _stack(rows, LATENTS)
        else:
            batch["pixel_values"] = self._pixels(rows)
        if "prompt_embeds" in rows[0]:
            batch |= {name: _stack(rows, [name]) for name in EMBEDS if name in rows[0]}
        else:
            batch["prompts"] = [_captions(row) for row in rows]
        if "preference_prob" in rows[0]:
            batch["preference_prob"] = torch.tensor([float(row["preference_prob"]) for row in rows])
        if "score_chosen" in rows[0]:
            batch["scores"] = torch.tensor([[float(row[name]) for name in SCORES] for row in rows])
        return batch

    def _pixels(self, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
        images = []
        for name in IMAGES:
            for row in rows:
                try:
                    images.append(to_pil(row[name]))
                except ValueError as error:
                    raise ValueError(f"`{_named(row, name)}` of row {row['index']}: {error}") from error
        side = self.resolution
        return self._processor.preprocess(images, height=side, width=side, resize_mode="crop")


def _captions(row: dict[str, Any]) -> str | list[str]:
    prompt = row["prompt"]
    texts = prompt if isinstance(prompt, list) else [prompt]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"`{_named(row, 'prompt')}` of row {row['index']} is {prompt!r}, expected a text or a list of texts."
        )
    return prompt


def _stack(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> torch.Tensor:
    """One tensor of these columns, the first column's rows first; float32."""
    tensors = []
    first = f"`{_named(rows[0], names[0])}` of row {rows[0]['index']}"
    for name in names:
        for row in rows:
            tensor, here = torch.as_tensor(np.asarray(row[name], dtype=np.float32)), _named(row, name)
            if not tensor.isfinite().all():
                raise ValueError(
                    f"`{here}` of row {row['index']} has values that are not finite. If a VAE in float16 overflowed, "
                    "encode again in float32."
                )
            if tensors and tensor.shape != tensors[0].shape:
                raise ValueError(
                    f"`{here}` of row {row['index']} has shape {tuple(tensor.shape)}, but {first} has "
                    f"{tuple(tensors[0].shape)}. All rows of a batch must have one size."
                )
            tensors.append(tensor)
    return torch.stack(tensors)
