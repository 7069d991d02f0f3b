# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Directions in the residual stream of a frozen language model: fitted, applied while it runs, kept and shared."""

from alignext.steering.fit import fit_steering
from alignext.steering.sweep import Setting, sweep_steering
from alignext.steering.vector import SteeringVector


__all__ = ["Setting", "SteeringVector", "fit_steering", "sweep_steering"]
