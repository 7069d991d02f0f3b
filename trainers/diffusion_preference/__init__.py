# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Preference optimization of diffusion models: train a pipeline on pairs of pictures or videos, or on votes."""

from alignext.training.samples import SampleGridCallback

from .config import DiffusionDPOConfig
from .diffusion_dpo import DiffusionDPOTrainer
from .diffusion_kto import DiffusionKTOConfig, DiffusionKTOTrainer
from .inversion import InversionDPOTrainer, SmPOTrainer
from .inversion_config import InversionDPOConfig, SmPOConfig


__all__ = [
    "DiffusionDPOConfig",
    "DiffusionDPOTrainer",
    "DiffusionKTOConfig",
    "DiffusionKTOTrainer",
    "InversionDPOConfig",
    "InversionDPOTrainer",
    "SampleGridCallback",
    "SmPOConfig",
    "SmPOTrainer",
]
