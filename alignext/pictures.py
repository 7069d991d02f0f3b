# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The place of [`alignext.diffusion.pictures`] that scripts know."""

from alignext.diffusion.pictures import as_list, to_pil


__all__ = ["as_list", "to_pil"]
