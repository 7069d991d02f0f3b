# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""MAH-DPO: train one language model for several objectives, a head each, and mix the heads at inference."""

from .config import MAHDPOConfig
from .trainer import MAHDPOTrainer


__all__ = ["MAHDPOConfig", "MAHDPOTrainer"]
