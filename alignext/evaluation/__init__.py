# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What a model has become: distances between generative models."""

from alignext.evaluation.fade import FadeScore, fade_score
from alignext.evaluation.fade_callback import FADECallback


__all__ = ["FADECallback", "FadeScore", "fade_score"]
