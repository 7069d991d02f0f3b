# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Directions in the residual stream of a frozen language model: fitted, applied while it runs, kept and shared."""

from alignext.steering.fit import fit_steering
from alignext.steering.hooks import steering_off
from alignext.steering.scores import text_score
from alignext.steering.sweep import Setting, sweep_steering
from alignext.steering.trace import Trace, save_traces, trace_html, trace_steering
from alignext.steering.vector import SteeringVector


__all__ = [
    "Setting",
    "SteeringVector",
    "Trace",
    "fit_steering",
    "save_traces",
    "steering_off",
    "sweep_steering",
    "text_score",
    "trace_html",
    "trace_steering",
]
