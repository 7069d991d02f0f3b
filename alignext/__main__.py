# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`python -m alignext`, which `accelerate launch -m alignext` needs."""

import sys

from alignext.cli import main


if __name__ == "__main__":
    sys.exit(main())
