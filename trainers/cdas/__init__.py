# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Concept DAS: learn one direction in a frozen language model that switches a concept on and off."""

from .config import CDASConfig
from .quads import make_quads
from .trainer import CDASTrainer


__all__ = ["CDASConfig", "CDASTrainer", "make_quads"]
