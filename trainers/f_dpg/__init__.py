# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""f-DPG: move a language model towards a target distribution, with any f-divergence."""

from .config import FDPGConfig
from .trainer import FDPGTrainer


__all__ = ["FDPGConfig", "FDPGTrainer"]
