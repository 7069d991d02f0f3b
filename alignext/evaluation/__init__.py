# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What a model has become: distances between generative models, diversity, and what a reward has done to it."""

from alignext.evaluation.diversity import DiversityEvaluator, DiversityReport
from alignext.evaluation.fade import FadeScore, fade_score
from alignext.evaluation.fade_callback import FADECallback
from alignext.evaluation.reward_hacking import RewardHackingCallback
from alignext.evaluation.reward_scale import RewardVsScale, reward_vs_scale


__all__ = [
    "DiversityEvaluator",
    "DiversityReport",
    "FADECallback",
    "FadeScore",
    "RewardHackingCallback",
    "RewardVsScale",
    "fade_score",
    "reward_vs_scale",
]
