# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Rewards, all of one form: `reward_fn(images, prompts) -> [n]`, larger is better.

`images` are `(n, 3, H, W)`, or videos `(n, F, 3, H, W)`, float in [0, 1]; `prompts` a list of n texts, or None; those
here also take one text for all samples. A
video counts as the mean over its frames where a reward is one of images. Each has a flag `differentiable`: whether
gradients flow from the result to `images`. Any function of this form is a reward.
"""

from alignext.rewards.clip import AestheticReward, CLIPReward, PickScoreReward
from alignext.rewards.composite import Calibration, WeightedReward, calibrate_weights
from alignext.rewards.directional import DirectionalReward, RelativeReward
from alignext.rewards.dual_encoder import DualEncoderReward
from alignext.rewards.hps import HPSReward
from alignext.rewards.judges import JudgeReward
from alignext.rewards.multi_view import MultiViewConsistency, VisualHull
from alignext.rewards.pixels import (
    CompressibilityReward,
    PaletteReward,
    brightness,
    compressibility,
    dynamics,
    incompressibility,
)
from alignext.rewards.temporal import TemporalConsistency


__all__ = [
    "AestheticReward",
    "CLIPReward",
    "Calibration",
    "CompressibilityReward",
    "DirectionalReward",
    "DualEncoderReward",
    "HPSReward",
    "JudgeReward",
    "MultiViewConsistency",
    "PaletteReward",
    "PickScoreReward",
    "RelativeReward",
    "TemporalConsistency",
    "VisualHull",
    "WeightedReward",
    "brightness",
    "calibrate_weights",
    "compressibility",
    "dynamics",
    "incompressibility",
]
