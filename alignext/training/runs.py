# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""A run of a trainer: whether it can begin, and where it goes on."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignext.files import check_output


if TYPE_CHECKING:
    from torch import nn

# Transformers writes it after all else.
_LAST_OF_CHECKPOINT = "trainer_state.json"


def check_run(args: Any, model: "nn.Module | None" = None) -> None:
    """
    Make sure, before a model is loaded and again before it is trained, that the processes of a run know of each other,
    and that the one that saves can write to `output_dir`, see [`check_output`][alignext.files.check_output].

    Args:
        args (`TrainingArguments`): Of the trainer.
        model (`torch.nn.Module`, *optional*): There must be room for what is trained of it.

    Raises:
        ValueError: Several processes were started, and each believes to be alone.
        OSError: The folder cannot be written to, or the disk has too little room.
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


def train(trainer: Any) -> None:
    """
    Train, from where `resume_from_checkpoint` says, and save.

    Args:
        trainer (`transformers.Trainer`): Any trainer.

    Raises:
        OSError: The disk is full. What a save makes of that is hard to read.
    """
    try:
        trainer.train(resume_from_checkpoint=checkpoint_of(trainer.args))
        trainer.save_model()
    except Exception as error:
        try:
            check_run(trainer.args, trainer.model)
        except OSError as full:
            raise full from error
        raise


def checkpoint_of(config: Any) -> str | None:
    """
    Where to go on: at the path that was given, or, with `last`, at the newest complete checkpoint.

    Args:
        config (`TrainingArguments`): Of the trainer.
    """
    given = config.resume_from_checkpoint
    return last_checkpoint(config.output_dir) if given in ("last", "true", "True", True) else given


def _number(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else -1


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
