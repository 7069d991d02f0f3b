# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Process rewards: train a model that says after every step of a solution how well things go."""

from .config import ProcessRewardConfig
from .trainer import ProcessRewardTrainer


__all__ = ["ProcessRewardConfig", "ProcessRewardTrainer"]
