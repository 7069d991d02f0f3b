# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The shared parts of trainers."""
