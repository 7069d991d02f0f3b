# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""f-DPG: move a language model towards a target distribution, with any f-divergence."""

from alignext.training.compat import check_trl


check_trl("f-DPG")  # before what is imported below fails

from .config import FDPGConfig  # noqa: E402
from .trainer import FDPGTrainer  # noqa: E402


__all__ = ["FDPGConfig", "FDPGTrainer"]
