# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""BCO and process rewards as a plug-in of axolotl: `plugins: [alignext.trainers.axolotl.AlignextPlugin]`."""

from alignext.trainers.axolotl.plugin import AlignextArgs, AlignextPlugin


__all__ = ["AlignextArgs", "AlignextPlugin"]
