# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The cells of a dataset: nulls, numbers where texts belong, and the values that there are."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from datasets import Dataset


def distinct(dataset: Dataset, column: str) -> list[Any]:
    """The distinct values of a column, also where JSON lines have mixed their types."""
    try:
        return dataset.unique(column)
    except pa.ArrowNotImplementedError:
        found: list[Any] = []
        for value in dataset[column]:
            if not any(value is seen or (type(value) is type(seen) and value == seen) for seen in found):
                found.append(value)
        return found


def null_in(value: Any, *, deep: bool = True) -> str | None:
    """
    Where a cell has a null, as in `"[1]['content']"`; `None` where it has none. In a message that calls tools the
    content may be null.

    Args:
        value: The cell: a text, a list of texts, or a conversation.
        deep (`bool`, *optional*, defaults to `True`): Also look into lists.
    """
    if value is None:
        return ""
    if not deep or not isinstance(value, list):
        return None
    for i, item in enumerate(value):
        if item is None:
            return f"[{i}]"
        if isinstance(item, Mapping):
            for key in ("role", "content"):
                if item.get(key, "") is None and not (key == "content" and item.get("tool_calls")):
                    return f"[{i}]['{key}']"
    return None


def null_error(name: str, row: int, where: str) -> ValueError:
    """The error of a null cell."""
    way = "" if "[" in where else f", as by `dataset.filter(lambda row: row[{where!r}] is not None)`"
    return ValueError(
        f"`{name}` must have no null, received one at row {row}, column {where} (rows count from 0). A CSV cell that "
        f"is empty or reads NA comes as null. Fill it in, or leave such rows out{way}."
    )


def check_texts(dataset: Dataset, column: str, name: str) -> None:
    """Refuse a column of numbers where texts belong."""
    held = dataset.features[column]
    dtype = getattr(held, "dtype", "")
    numeric = dtype == "bool" or dtype.startswith(("int", "uint", "float", "double"))
    if type(held).__name__ == "Value" and numeric:
        raise ValueError(
            f"`{name}` must have texts in the column {column!r}, received {dtype} values such as "
            f"{dataset[0][column]!r}. Turn them into texts: `dataset.cast_column({column!r}, Value('string'))`."
        )


def rows_with_nulls(dataset: Dataset, column: str) -> Iterator[tuple[int, Any]]:
    """Number and value of the rows, if there may be a null among them."""
    if any(_may_be_null(chunk) for chunk in dataset.data.column(column).chunks):
        yield from enumerate(dataset[column])


def _may_be_null(array: pa.Array) -> bool:
    if array.null_count or isinstance(array, pa.ExtensionArray):
        return True
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return _may_be_null(array.flatten())
    if pa.types.is_struct(array.type):
        names = [array.type.field(i).name for i in range(array.type.num_fields)]
        return any(_may_be_null(array.field(key)) for key in ("role", "content") if key in names)
    return False
