# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Files that are written whole or not at all, and output folders that are tried out before work begins."""

import json
import math
import os
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: str | os.PathLike) -> Generator[Path]:
    """
    A path beside `path` to write a file or a folder to, which takes its place at the end. A process that is killed
    before, or runs out of space, leaves the old one as it was: half of a file is never read. Exchanging a folder takes
    two renames; a process that is killed between them leaves the old one whole beside `path`, as `.{name}.{pid}.old`.

    Args:
        path (`str` or `os.PathLike`): The file or folder, in a folder that exists.

    Raises:
        IsADirectoryError: A file was written, and `path` is a folder, which stays.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        if part.is_dir() and path.is_dir():
            aside = part.with_suffix(".old")
            os.replace(path, aside)
            try:
                os.replace(part, path)
            except OSError:
                os.replace(aside, path)
                raise
            shutil.rmtree(aside)
        else:
            os.replace(part, path)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """
    Write a JSON file, whole or not at all. JSON knows no NaN and no infinity: they become null.

    Args:
        path (`Path`): The file.
        value (`Any`): Of dictionaries, lists, tuples, texts and numbers.
    """

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [finite(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    with replacing(path) as part:
        part.write_text(json.dumps(finite(value), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_output(folder: str | os.PathLike, *, name: str = "output_dir", weights: Iterable["Tensor"] = ()) -> None:
    """
    Find out before the work whether its result can be written: make the folder, and a file in it that goes again.

    Args:
        folder (`str` or `os.PathLike`): Where the result will be.
        name (`str`, *optional*, defaults to `"output_dir"`): The argument, for the message.
        weights (`Iterable[torch.Tensor]`, *optional*): What will be written at least; there must be room for it.

    Raises:
        OSError: The folder cannot be made or written to, or the disk has too little room.
    """
    folder = Path(folder)
    probe = folder / f".alignext.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(4096))  # an empty file fits on a full disk
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(
            error.errno, f"`{name}` is {str(folder)!r}, which cannot be written to ({reason}). Name another folder"
        ) from error
    finally:
        if os.path.isfile(probe):  # unlike `Path.is_file`, never an error in the place of the one above
            probe.unlink()
    needed, free = sum(x.numel() * x.element_size() for x in weights), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            ENOSPC,
            f"`{name}` is {str(folder)!r}, where {free / 1e6:.0f} MB are free, and the weights alone take "
            f"{needed / 1e6:.0f} MB. Name another folder, or make room",
        )
