# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""MAH-DPO: train one language model for several objectives, a head each, and mix the heads at inference."""

from alignext.training.compat import check_trl


check_trl("MAH-DPO")  # before what is imported below fails

from .config import MAHDPOConfig  # noqa: E402
from .trainer import MAHDPOTrainer  # noqa: E402


__all__ = ["MAHDPOConfig", "MAHDPOTrainer"]
