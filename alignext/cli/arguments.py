# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What several commands make of their arguments."""

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from PIL.Image import Image


def at_least_one(text: str) -> int:
    """A count."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def between(low: float, high: float) -> Callable[[str], float]:
    """The type of numbers in [low, high]."""

    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be in [{low:g}, {high:g}], got {value:g}")
        return value

    return number


def device_of(name: str | None) -> str:
    """
    The device that `--device` names, or cuda where there is one, else cpu.

    Raises:
        ValueError: There is no such device here.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        raise ValueError(f"--device {name} cannot be used here, --device cpu can: {error}") from error
    return name


def stock_class(model: str, *, name: str = "--model", **kwargs: Any) -> str:
    """
    The name of the pipeline class of a checkpoint of diffusers that the argument `name` gave; `kwargs` are what loads
    its config.

    Raises:
        OSError: There is none.
    """
    from diffusers import DiffusionPipeline

    try:
        return DiffusionPipeline.load_config(model, **kwargs)["_class_name"]
    except OSError as error:
        raise OSError(f"{name} {model} is no checkpoint of diffusers (a folder or a Hub id): {error}") from error


def picture_in(path: Path, *, name: str) -> "Image":
    """
    The picture of a file that the argument `name` gave.

    Raises:
        OSError: There is no file, or no picture in it.
    """
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise FileNotFoundError(f"{name} {path} is no file: pass the path of a picture.")
    try:
        with Image.open(path) as picture:
            picture.load()
    except UnidentifiedImageError as error:
        raise OSError(f"{name} {path} is no picture, or of a kind that Pillow cannot read.") from error
    return picture


def function_of(text: str, *, name: str) -> Callable[..., Any]:
    """
    The function that the argument `name` gave as `file.py:function` or `module:function`. Modules are looked for in
    the current folder, too.

    Raises:
        OSError: There is no such file.
        ImportError: There is no such module.
        ValueError: There is no such function in it.
    """
    source, colon, function = text.rpartition(":")
    if not colon:
        raise ValueError(f"{name} {text} names no function. Write {text}:FUNCTION.")
    if source.endswith(".py"):
        if not Path(source).is_file():
            raise FileNotFoundError(f"{name} {text}: there is no file {source}.")
        spec = importlib.util.spec_from_file_location(Path(source).stem, source)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            module = importlib.import_module(source)
        except ModuleNotFoundError as error:
            raise ImportError(f"{name} {text}: {error}. A file is written as file.py:{function}.") from error
    if not callable(getattr(module, function, None)):
        raise ValueError(f"{name} {text}: {source} has no function {function!r}.")
    return getattr(module, function)
