# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What several commands read: lines of text, JSON lines, files of rows."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets import DatasetDict

READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def lines_of(path: Path | None, *, name: str = "--prompts", what: str = "a prompt per line") -> list[str]:
    """
    The lines of a file that the argument `name` gave; none without a file.

    Raises:
        OSError: There is no such file.
    """
    if path is None:
        return []
    if not path.is_file():
        raise FileNotFoundError(f"{name} {path} is no file. Pass one with {what}.")
    return path.read_text(encoding="utf-8").splitlines()


def prompts_of(path: Path | None) -> list[str]:
    """The lines of the file of `--prompts` that are not empty."""
    return [line for line in lines_of(path) if line.strip()]


def json_lines(path: Path, *keys: str, name: str) -> list[dict[str, Any]]:
    """
    The objects of a file of JSON lines that the argument `name` gave, each with these keys.

    Raises:
        OSError: There is no such file.
        ValueError: A line is no such object; with its number.
    """
    rows, wanted = [], " and ".join(f"`{key}`" for key in keys)
    for count, line in enumerate(lines_of(path, name=name, what=f"JSON lines with {wanted}"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{name} {path}, line {count}, is no JSON: {error}") from error
        if not isinstance(row, dict) or not set(keys) <= row.keys():
            raise ValueError(f"{name} {path}, line {count}, must be an object with {wanted}.")
        rows.append(row)
    return rows


def read_rows(path: Path, *, name: str, streaming: bool = False) -> "DatasetDict":
    """
    The rows of a JSON, CSV or Parquet file that the argument `name` gave.

    Raises:
        OSError: There is no such file.
        ValueError: It cannot be read.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    kind = READERS[path.suffix]
    if not path.is_file():
        raise FileNotFoundError(f"{name} {path} is no file.")
    if kind != "parquet":
        _check_encoding(path, name)
    try:
        return load_dataset(kind, data_files=str(path), streaming=streaming)
    # StopIteration where it is empty; a ValueError by older versions of datasets
    except (DatasetGenerationError, StopIteration, ValueError) as error:
        cause = error.__cause__ or error
        why = "it holds no rows" if isinstance(cause, StopIteration) else cause
        raise ValueError(f"{name} {path} cannot be read as {kind}: {why}") from error


def _check_encoding(path: Path, name: str) -> None:
    """
    Read a file of text to its end: the dataset would fail much later, at the row that is read then.

    Raises:
        ValueError: It is not UTF-8; with the line.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{name} {path} is not UTF-8: byte {line[error.start]:#x} in line {number}. Convert it: "
                    f"iconv -f latin1 -t utf-8 {path} > utf8{path.suffix}"
                ) from error
