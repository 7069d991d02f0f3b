# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Preference optimization of diffusion models: train a text-to-image pipeline on pairs of pictures."""

from .config import DiffusionDPOConfig, InversionDPOConfig, SmPOConfig
from .trainer import DiffusionDPOTrainer


__all__ = ["DiffusionDPOConfig", "DiffusionDPOTrainer", "InversionDPOConfig", "SmPOConfig"]
