# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext demo`: each method on the embedded models, shown as a gallery. Runs offline on a CPU."""

import argparse
from pathlib import Path

from alignext.cli.arguments import at_least_one
from alignext.methods import METHODS


# In the order of the page. The last one has the methods without a part of their own.
DEMOS = [*(row.demo for row in METHODS if row.demo), "measured"]


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext demo`."""
    parser = subparsers.add_parser("demo", help="run the methods on the embedded models and write a gallery")
    parser.add_argument("name", nargs="?", choices=sorted(DEMOS), help="one method only (default: all)")
    parser.add_argument("--out", type=Path, default=Path("alignext-demo"), help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    parser.add_argument(
        "--steps", type=at_least_one, help="denoising or training steps (default: as the method has it)"
    )
    parser.add_argument(
        "--processes", type=at_least_one, default=1, help="methods that run at once (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="also write into a folder with other files in it")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    """Run the demos and write the gallery."""
    from alignext.demos.gallery import claim_folder
    from alignext.demos.page import write_page

    out = claim_folder(args.out, overwrite=args.overwrite, again=True)
    names = [args.name] if args.name else DEMOS
    write_page(out, names, seed=args.seed, steps=args.steps, processes=min(args.processes, len(names)))
