# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Training of picture models on rewards: by their gradient (AlignProp, DRaFT, Direct-Align), or as a policy (DDPO)."""

from .align_prop import AlignPropConfig, AlignPropTrainer
from .ddpo import DDPOTrainer
from .ddpo_config import DDPOConfig


__all__ = ["AlignPropConfig", "AlignPropTrainer", "DDPOConfig", "DDPOTrainer"]
