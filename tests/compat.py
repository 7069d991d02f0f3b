# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Runs the fast tests with the oldest or the newest versions of the libraries that `pyproject.toml` allows.

    python tests/compat.py oldest                              # what `make compat` runs, and then newest
    python tests/compat.py newest tests/test_import.py         # further words are pytest's
    python tests/compat.py oldest --with transformers==5.20.0  # a version to try

The environment is a folder in the one that runs this, and lies on top of it: only what differs is installed, and torch
and the other compiled libraries stay as they are. The versions that were run are printed before the tests and after
them.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

from packaging.requirements import Requirement


ROOT = Path(__file__).parents[1]
KEPT = ("torch", "safetensors", "pillow", "numpy")  # compiled: as they are installed
SHOWN = (
    "python torch diffusers transformers trl peft accelerate datasets huggingface_hub tokenizers safetensors numpy "
    "pillow"
).split()


def requirements(end: str) -> list[str]:
    """What to ask pip for: every library at its lower bound, or as new as its range allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = []
    for dependency in map(Requirement, project["dependencies"]):
        if dependency.name in KEPT:
            continue
        lowest = [spec.version for spec in dependency.specifier if spec.operator == ">="]
        asked.append(f"{dependency.name}=={lowest[0]}" if end == "oldest" else str(dependency))
    return asked


def make(end: str, extra: list[str]) -> Path:
    """The interpreter of an environment that has these versions."""
    folder = Path(sys.prefix) / f"compat-{end}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    below = sysconfig.get_path("purelib")
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    # `addsitedir` reads the .pth files there as well, of which one is ours.
    (Path(own) / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
    asked = requirements(end)
    names = {Requirement(text).name for text in extra}
    asked = [text for text in asked if Requirement(text).name not in names] + extra
    print(f"Installing {', '.join(asked)} ...", flush=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run(
        [*pip, "install", "-qq", "--no-compile", *(["--upgrade"] if end == "newest" else []), *asked], check=True
    )
    return python


def versions(python: Path) -> str:
    code = f"""
import platform
from importlib.metadata import version
print(", ".join(f"{{n}} {{platform.python_version() if n == 'python' else version(n)}}" for n in {SHOWN}))
"""
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("end", choices=("oldest", "newest"))
    parser.add_argument("--with", nargs="+", default=[], dest="extra", help="versions in place of the bounds")
    args, words = parser.parse_known_args()
    python = make(args.end, args.extra)
    ran = f"{args.end}: {versions(python)}"
    print(ran, flush=True)
    code = subprocess.run([python, "-m", "pytest", "-q", "-m", "not slow", *words], cwd=ROOT).returncode
    print(f"{'passed' if code == 0 else 'FAILED'} with {ran}")
    return code


if __name__ == "__main__":
    sys.exit(main())
