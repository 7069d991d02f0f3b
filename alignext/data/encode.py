# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Rows of TRL's formats as token ids, as `DPOTrainer` and `SFTTrainer` prepare them; tests hold them against these."""

import json
from collections.abc import Mapping
from typing import Any

from trl.data_utils import extract_prompt, is_conversational, maybe_convert_to_chatml


def check_no_pictures(columns: Any) -> None:
    """
    Raises:
        NotImplementedError: If there is a column of pictures.
    """
    found = [name for name in columns or () if name in ("image", "images")]
    if found:
        raise NotImplementedError(f"`dataset` has a column {found[0]!r}: rows with pictures are not supported.")


def encode_pair(row: Mapping[str, Any], tokenizer: Any) -> dict[str, list[int]]:
    """`prompt_ids`, `chosen_ids` and `rejected_ids` of a preference pair."""
    found: dict[str, Any] = dict(row) if "prompt" in row else dict(extract_prompt(row))
    chat = is_conversational(found)
    prompt = _prompt_ids(tokenizer, found, chat)
    wholes = []
    for side in ("chosen", "rejected"):
        answer = found[side] if chat else _with_eos(found[side], tokenizer)
        wholes.append(_whole_ids(tokenizer, found, found["prompt"] + answer, chat))
    # Where a token merges across the boundary, the answer begins there.
    length = min(common_start(prompt, whole) for whole in wholes)
    return {
        "prompt_ids": prompt[:length],
        "chosen_ids": wholes[0][length:],
        "rejected_ids": wholes[1][length:],
    }


def encode_example(row: Mapping[str, Any], tokenizer: Any, text_field: str = "text") -> dict[str, list[int]]:
    """`input_ids` and `labels` of a row for supervised training, -100 where no loss is taken."""
    if "input_ids" in row:
        ids = list(row["input_ids"])
        return {"input_ids": ids, "labels": list(row.get("labels") or ids)}
    found: dict[str, Any] = maybe_convert_to_chatml(dict(row))
    chat = is_conversational(found)
    if "prompt" in found:
        answer = found["completion"] if chat else _with_eos(found["completion"], tokenizer)
        prompt, whole = (
            _prompt_ids(tokenizer, found, chat),
            _whole_ids(tokenizer, found, found["prompt"] + answer, chat),
        )
        start = common_start(prompt, whole)
        return {"input_ids": whole, "labels": [-100] * start + whole[start:]}
    text = found["messages"] if chat else _with_eos(found[text_field], tokenizer)
    ids = _whole_ids(tokenizer, found, text, chat)
    return {"input_ids": ids, "labels": list(ids)}


def common_start(ids: list[int], other: list[int]) -> int:
    """Number of leading tokens that are the same."""
    pairs = zip(ids, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(other)))


def _with_eos(text: str, tokenizer: Any) -> str:
    return text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token


def _prompt_ids(tokenizer: Any, row: Mapping[str, Any], chat: bool) -> list[int]:
    if not chat:
        return tokenizer(row["prompt"])["input_ids"]
    return _template(tokenizer, row, row["prompt"], add_generation_prompt=True)


def _whole_ids(tokenizer: Any, row: Mapping[str, Any], text: Any, chat: bool) -> list[int]:
    return _template(tokenizer, row, text) if chat else tokenizer(text)["input_ids"]


def _template(tokenizer: Any, row: Mapping[str, Any], messages: Any, **more: Any) -> list[int]:
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    more |= row.get("chat_template_kwargs") or {}
    return tokenizer.apply_chat_template(messages, tools=tools, return_dict=True, **more)["input_ids"]
