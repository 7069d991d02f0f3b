# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Process rewards: train a model that says after every step of a solution how well things go."""

from alignext.training.compat import check_trl


check_trl("Process Reward")  # before what is imported below fails

from .config import ProcessRewardConfig  # noqa: E402
from .trainer import ProcessRewardTrainer  # noqa: E402


__all__ = ["ProcessRewardConfig", "ProcessRewardTrainer"]
