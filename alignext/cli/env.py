# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext env`: the versions a bug report needs."""

import argparse
import platform
import re
import shutil
import subprocess
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext env`."""
    subparsers.add_parser("env", help="print the versions that a bug report needs").set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    """Print one fact a line."""
    for name, value in facts().items():
        print(f"{name}: {value}")


def facts() -> dict[str, str]:
    """
    What is installed and what it runs on, by name. Read from metadata: nothing heavy is imported, and a package that
    fails to import is listed.
    """
    requires = metadata.requires("alignext") or []
    needed = [re.match(r"[\w.-]+", line)[0] for line in requires if "extra ==" not in line]  # ty: ignore
    installed = {package: _version(package) for package in ("alignext", *needed)}
    machine = {"python": platform.python_version(), "platform": platform.platform()}
    return installed | machine | {"CUDA of torch": _torch_cuda(), "GPU": _gpus()}


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
    text = Path(spec.origin).with_name("version.py").read_text()
    found = re.search(r"^cuda\b[^=]*=\s*'([^']+)'", text, flags=re.MULTILINE)
    return found[1] if found else "none"


def _gpus() -> str:
    """Name, memory and driver of each NVIDIA GPU, as `nvidia-smi` tells it."""
    if (smi := shutil.which("nvidia-smi")) is None:
        return "no nvidia-smi"
    query = [smi, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi failed: {error}"
    return "; ".join(answer.split("\n")).strip("; ") or "none"
