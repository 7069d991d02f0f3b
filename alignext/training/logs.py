# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The loggers of trainers: the main process speaks, as loudly as `transformers.logging.set_verbosity` has it."""

import logging

from accelerate.logging import MultiProcessAdapter
from transformers.utils import logging as transformers_logging


class TrainerLogger(MultiProcessAdapter):
    """Follows the verbosity of transformers, whose trainers ours are."""

    def isEnabledFor(self, level: int) -> bool:
        self.logger.setLevel(transformers_logging.get_verbosity())
        return super().isEnabledFor(level)


def get_logger(name: str) -> TrainerLogger:
    """
    The logger of a module.

    Args:
        name (`str`): Its `__name__`.
    """
    return TrainerLogger(logging.getLogger(name), {})
