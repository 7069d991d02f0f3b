# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Files that are written whole or not at all, and output folders that are tried out before work begins."""

import json
import os
import re
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from torch import Tensor, nn

# Transformers writes it after all else.
_LAST_OF_CHECKPOINT = "trainer_state.json"


@contextmanager
def replacing(path: str | os.PathLike) -> Generator[Path]:
    """
    A path beside `path` to write a file or a folder to, which takes its place at the end. Whoever is killed before, or
    runs out of space, leaves the old one as it was, and nobody ever meets half of one. A folder cannot be exchanged at
    once: who is killed between its two renames leaves the old one whole beside `path`, as `.{name}.{pid}.old`.

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


def quick_start(folder: str | os.PathLike, start: str) -> None:
    """
    Say in the card that TRL wrote into a folder how to use what was trained, where TRL's own lines would not.

    Args:
        folder (`str` or `os.PathLike`): The trainer's `output_dir`.
        start (`str`): Markdown below the heading, in place of TRL's.
    """
    path = Path(folder, "README.md")
    text = f"## Quick start\n\n{start.strip()}\n\n"
    card = re.sub(r"## Quick start\n.*?(?=## Training procedure)", lambda _: text, path.read_text("utf-8"), flags=re.S)
    with replacing(path) as part:
        part.write_text(card, encoding="utf-8")


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


def check_run(args: Any, model: "nn.Module | None" = None) -> None:
    """
    What a trainer makes sure of before it loads a model, and again before it trains: that its processes know of each
    other, and that the one that saves can write to `output_dir`, see [`check_output`].

    Args:
        args (`TrainingArguments`): Of the trainer.
        model (`torch.nn.Module`, *optional*): There must be room for what is trained of it.

    Raises:
        ValueError: Several processes were started, and each believes to be alone.
        OSError: As of [`check_output`].
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and args.world_size == 1:
        raise ValueError(
            f"{started} processes were started, but they do not know of each other: there is no GPU to tell them. Set "
            "`use_cpu` to train on the CPU."
        )
    if args.should_save:
        trained = () if model is None else [x for x in model.parameters() if x.requires_grad]
        check_output(args.output_dir, weights=trained)


def last_checkpoint(folder: str | os.PathLike) -> str:
    """
    The newest checkpoint of a trainer that is complete; one that was being written when a run died is passed over.

    Args:
        folder (`str` or `os.PathLike`): The trainer's `output_dir`.

    Raises:
        FileNotFoundError: There is none.
    """
    states = Path(folder).glob(f"checkpoint-*/{_LAST_OF_CHECKPOINT}")
    steps = {_number(path.parent): path.parent for path in states if _is_json(path)}
    if max(steps, default=-1) < 0:
        raise FileNotFoundError(f"There is no complete checkpoint in {str(folder)!r}. Do not resume, but start anew.")
    return str(steps[max(steps)])


def _number(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else -1


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
