# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Types of arguments that several commands have."""

import argparse


def at_least_one(text: str) -> int:
    """A count."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
