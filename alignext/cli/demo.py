# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext demo`: each method on the embedded models, shown as a gallery. Runs offline on a CPU."""

import argparse
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from alignext.cli.arguments import at_least_one


# Name -> the command module of the method. Its `demo(out, *, seed, steps)` returns the sections of its gallery and
# prints what it measured; `steps` is None where the method's own default holds.
_DEMOS = {
    "rival": "alignext.cli.rival",
    "alignedgen": "alignext.cli.alignedgen",
    "diffusion-dpo": "alignext.cli.diffusion_preference",
    "search": "alignext.cli.search",
    "f-dpg": "alignext.cli.f_dpg",
    "mah-dpo": "alignext.cli.mah_dpo",
    "process-reward": "alignext.cli.process_reward",
}


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext demo`."""
    parser = subparsers.add_parser("demo", help="run the methods on the embedded models and write a gallery")
    parser.add_argument("name", nargs="?", choices=sorted(_DEMOS), help="one method only (default: all)")
    parser.add_argument("--out", type=Path, default=Path("alignext-demo"), help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    parser.add_argument("--steps", type=at_least_one, help="denoising steps (default: as the method has it)")
    parser.add_argument("--overwrite", action="store_true", help="also write into a folder with other files in it")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    """Run the demos and write the gallery."""
    from alignext.cli.gallery import claim_folder, write_gallery

    names = [args.name] if args.name else sorted(_DEMOS)
    out = claim_folder(args.out, overwrite=args.overwrite)
    start = time.perf_counter()
    sections = []
    with _one_thread():
        for name in names:
            sections += import_module(_DEMOS[name]).demo(out, seed=args.seed, steps=args.steps)
    page = write_gallery(
        out,
        sections,
        title="alignext: alignment methods on the embedded models",
        intro="Made offline on small models that come with the package. They show what a method does, not how good "
        "its pictures are on a large model.",
    )
    print(f"Done in {time.perf_counter() - start:.0f} s. Open {page.resolve()}")


@contextmanager
def _one_thread() -> Generator[None]:
    """The embedded models are too small to be shared out: on a busy machine threads spend their time on waiting."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
