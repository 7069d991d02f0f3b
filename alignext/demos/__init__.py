# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The parts of `alignext demo`, a module for each.

Its `demo(*, seed, steps)` returns the sections of the page and prints what it measured; `steps` is `None` where the
method's own default holds.
"""
