# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""How the embedded pictures and models were made. `python -m alignext.mini.recipe.train <config>` makes one again."""
