# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The one place where the version stands."""

__version__ = "0.1.0.dev0"
