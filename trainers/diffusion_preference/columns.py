# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The columns of preference datasets: what they are called here, and what else datasets call them."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from datasets import Dataset, IterableDataset


IMAGES = ("image_chosen", "image_rejected")
VIDEOS = ("video_chosen", "video_rejected")
LATENTS = ("chosen_latents", "rejected_latents")
SCORES = ("score_chosen", "score_rejected")
VOTES = ("votes_chosen", "votes_rejected")
PAIRED = (IMAGES, VIDEOS, LATENTS, SCORES, VOTES)
EXTRA = ("preference_prob", "source", "mask")
COLUMNS = {"index", "columns", "prompt", *EXTRA, *(name for pair in PAIRED for name in pair)}
COLUMNS |= {"image", "video", "latents", "label"}  # of single pictures

# What else the two pictures, their scores and what is edited may be called. The first that is there counts.
_IMAGES = (IMAGES, ("chosen", "rejected"), ("jpg_0", "jpg_1"))
PICTURES = tuple(name for pair in _IMAGES for name in pair)
_SCORES = (SCORES, ("ps_score_0", "ps_score_1"))
_SOURCES = ("source", "image")


def is_embedding(name: str) -> bool:
    """Whether a column is an argument of stock calls that stands for a prompt, such as `prompt_attention_mask_2`."""
    return "prompt" in name and ("embeds" in name or "mask" in name)


def column_names(dataset: Dataset | IterableDataset) -> list[str]:
    """Those of a dataset, also of a stream that does not know them."""
    if dataset.column_names:
        return list(dataset.column_names)
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError("The stream has no rows. Look at how it was filtered or read.")
    return list(first)


def find_columns(found: Sequence[str]) -> dict[str, str]:
    """
    What a dataset of pairs calls each of our columns.

    Raises:
        ValueError: A column is missing.
    """
    names: dict[str, str] = {}
    pairs = ((LATENTS, [LATENTS]), (VIDEOS, [VIDEOS]), (IMAGES, _IMAGES), (SCORES, _SCORES), (VOTES, [VOTES]))
    for ours, candidates in pairs:
        theirs = next((pair for pair in candidates if set(pair) <= set(found)), None)
        if theirs and not (ours in (IMAGES, VIDEOS) and names):
            names |= dict(zip(ours, theirs, strict=True))
    if names.get("image_chosen") == "jpg_0" and "label_0" in found:
        names["label_0"] = "label_0"
    names |= _common(found, ("preference_prob", "mask"))

    has_order = "label_0" in names or "preference_prob" in names or "score_chosen" in names
    if not {"image_chosen", "video_chosen", "chosen_latents"} & set(names):
        missing = "the two pictures"
    elif "prompt" not in names and not any(map(is_embedding, names)):
        missing = "the prompt"
    elif names.get("image_chosen") == "jpg_0" and not has_order:
        missing = "`label_0`, which says whether `jpg_0` was preferred"
    else:
        return names
    raise ValueError(
        f"The dataset lacks {missing}. Its columns are {', '.join(found)}. Expected `prompt` (or `caption`), "
        "`image_chosen` and `image_rejected` (or `chosen` and `rejected`, or `jpg_0`, `jpg_1` and `label_0`, or "
        "`video_chosen` and `video_rejected`), or `prompt_embeds`, `chosen_latents` and `rejected_latents`. A row is "
        "for example {'prompt': 'a fox', 'image_chosen': 'fox-a.png', 'image_rejected': 'fox-b.png'}."
    )


def find_vote_columns(found: Sequence[str]) -> dict[str, str]:
    """
    What a dataset of single pictures calls each of our columns.

    Raises:
        ValueError: A column is missing.
    """
    names = {name: name for name in ("label", "latents", "video", "image") if name in found}
    names |= _common([name for name in found if name != "image"], ("mask",))
    if not {"latents", "video", "image"} & set(names):
        missing = "the picture"
    elif "prompt" not in names and not any(map(is_embedding, names)):
        missing = "the prompt"
    elif "label" not in names:
        missing = "`label`, which is True for a thumb up"
    else:
        return names
    raise ValueError(
        f"The dataset lacks {missing}. Its columns are {', '.join(found)}. Expected `prompt` (or `caption`), `image` "
        "(or `video`, or `latents`) and `label`, or pairs, as `image_chosen` and `image_rejected`. A row is for "
        "example {'prompt': 'a fox', 'image': 'fox.png', 'label': True}."
    )


def _common(found: Sequence[str], others: Sequence[str]) -> dict[str, str]:
    """What pairs and single pictures both may have."""
    names = {name: name for name in found if is_embedding(name)} | {name: name for name in others if name in found}
    for ours, candidates in (("prompt", ("prompt", "caption")), ("source", _SOURCES)):
        theirs = next((name for name in candidates if name in found), None)
        names |= {ours: theirs} if theirs else {}
    return names


def exchanged(names: Mapping[str, str]) -> dict[str, str]:
    """The name of the other one of each pair of columns."""
    pairs = [pair for pair in PAIRED if pair[0] in names]
    return {a: b for first, second in pairs for a, b in ((first, second), (second, first))}


def renamed(dataset: Dataset, names: Mapping[str, str]) -> Dataset:
    """Our columns under our names, pictures left undecoded: the collator decodes, and can name a bad row."""
    kept = {name: theirs for name, theirs in names.items() if name != "label_0"}
    dataset = dataset.select_columns(list(kept.values()))
    dataset = dataset.rename_columns({theirs: name for name, theirs in kept.items() if theirs != name})
    return undecoded(dataset, kept)


def undecoded(dataset: Any, names: Mapping[str, str]) -> Any:
    """The dataset with its columns of pictures as files."""
    for name in ("image", *IMAGES, "source", "mask"):
        several = isinstance((dataset.features or {}).get(name), list | datasets.List | datasets.Sequence)
        if name in names and not several:
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


def theirs_of(names: Mapping[str, str], swapped: bool = False) -> str:
    """What the dataset calls each of our columns where it has another name, as a row carries it."""
    other = exchanged(names) if swapped else {}
    of = {name: names[other.get(name, name)] for name in names}
    return "\t".join(f"{name}={theirs}" for name, theirs in of.items() if theirs != name)


def named(row: Mapping[str, Any], name: str) -> str:
    """What the user calls a column of this row."""
    pairs = [pair.partition("=") for pair in (row.get("columns") or "").split("\t")]
    return {ours: theirs for ours, _, theirs in pairs}.get(name, name)
