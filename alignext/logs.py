# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Whose verbosity our messages follow: diffusers' for what runs in pipelines, so that one call quiets both."""

import functools
from logging import Logger
from typing import Any

from diffusers.utils import logging


def pipeline_logger(name: str) -> Logger:
    """
    A logger beneath diffusers' own: `diffusers.utils.logging.set_verbosity_error()` holds for it, and so do handlers
    and formats that are set there.

    Args:
        name (`str`): The module's `__name__`.
    """
    return logging.get_logger(f"diffusers.{name}")


@functools.cache
def warn_once(logger: Logger, text: str) -> None:
    """A warning that is said once in a process."""
    logger.warning(text)


def log_beside(trainer: Any, control: Any, values: dict[str, float]) -> None:
    """
    Log from within a callback. A trainer that logs takes its own log of the step for done, which would be missing.

    Args:
        trainer (`Trainer`): Whose log is written.
        control (`TrainerControl`): As the callback was given it.
        values (`dict[str, float]`): What to log.
    """
    due = control.should_log
    trainer.log(values)
    control.should_log = due
