# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latent search as an engine: settings, transitions, strategies, and the scheduler that runs them in any loop."""

from alignext.diffusion.schedulers import NoStepsScheduler
from alignext.search.config import SearchConfig
from alignext.search.noise_search import RandomNoiseSearch, ZeroOrderNoiseSearch
from alignext.search.scheduler import SearchScheduler


__all__ = ["NoStepsScheduler", "RandomNoiseSearch", "SearchConfig", "SearchScheduler", "ZeroOrderNoiseSearch"]
