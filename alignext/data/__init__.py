# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Which rows to train on: scores of the rows of a dataset as columns of it, and the filters that use them."""

from alignext.data.ches import add_ches_scores, filter_by_ches, score_dataloader
from alignext.data.ches_callback import CHESCallback
from alignext.data.gist import add_gradient_scores, gradient_features
from alignext.data.select import select_for_task


__all__ = [
    "CHESCallback",
    "add_ches_scores",
    "add_gradient_scores",
    "filter_by_ches",
    "gradient_features",
    "score_dataloader",
    "select_for_task",
]
