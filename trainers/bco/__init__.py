# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Binary Classifier Optimization: train a language model on thumbs up and thumbs down."""

from alignext.training.compat import check_trl


check_trl("BCO")  # before what is imported below fails

from .config import BCOConfig  # noqa: E402
from .trainer import BCOTrainer  # noqa: E402


__all__ = ["BCOConfig", "BCOTrainer"]
