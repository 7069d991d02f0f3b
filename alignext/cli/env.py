# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext env`: the versions a bug report needs."""

import argparse
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path


# Read from the installed metadata: nothing heavy is imported, and a package that fails to import is still listed.
_PACKAGES = (
    "alignext",
    "torch",
    "diffusers",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "pillow",
)


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext env`."""
    parser = subparsers.add_parser("env", help="print the versions that a bug report needs")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    """Print one fact a line."""
    for name, value in facts().items():
        print(f"{name}: {value}")


def facts() -> dict[str, str]:
    """What is installed and what it runs on, by name."""
    versions = {package: _version(package) for package in _PACKAGES}
    machine = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu count": str(os.cpu_count()),
        "CUDA of torch": _torch_cuda(),
        "GPU": _gpus(),
    }
    return versions | machine


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _torch_cuda() -> str:
    """The CUDA version torch was built for, read from its `version.py`: importing torch would take seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return "not installed"
    version_file = Path(spec.origin).with_name("version.py")
    found = re.search(r"^cuda\b[^=]*=\s*'([^']+)'", version_file.read_text(), flags=re.MULTILINE)
    return found[1] if found else "none"


def _gpus() -> str:
    """Name, memory and driver of each NVIDIA GPU, as `nvidia-smi` tells it."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return "no nvidia-smi"
    query = [smi, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi failed: {error}"
    return "; ".join(answer.split("\n")).strip("; ") or "none"
