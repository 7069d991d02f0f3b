# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Heads of a language model, one per objective."""
