# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Preference optimization of diffusion models: train a text-to-image pipeline on pairs of pictures."""

from alignext.training.samples import SampleGridCallback

from .config import DiffusionDPOConfig, InversionDPOConfig, SmPOConfig
from .diffusion_dpo import DiffusionDPOTrainer
from .inversion import InversionDPOTrainer, SmPOTrainer


__all__ = [
    "DiffusionDPOConfig",
    "DiffusionDPOTrainer",
    "InversionDPOConfig",
    "InversionDPOTrainer",
    "SampleGridCallback",
    "SmPOConfig",
    "SmPOTrainer",
]
