# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Binary Classifier Optimization: train a language model on thumbs up and thumbs down."""

from .config import BCOConfig
from .trainer import BCOTrainer


__all__ = ["BCOConfig", "BCOTrainer"]
