# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What several commands make of their arguments."""

import argparse
import difflib
import functools
import importlib
import importlib.util
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn


if TYPE_CHECKING:
    from PIL.Image import Image


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations and names the nearest option or choice."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += nearest(str(value), map(str, action.choices or ()))
            raise

    def refuse(self, word: str) -> NoReturn:
        """End with an error on a word that nothing takes."""
        hint = nearest(word.partition("=")[0], self._option_string_actions)
        self.error(f"there is no option {word}{hint}" if word.startswith("-") else f"{word!r} belongs to no option")


def nearest(word: str, known: Iterable[str]) -> str:
    """`. Did you mean ...?` where something known is like it, else nothing."""
    found = difflib.get_close_matches(
        word.replace("_", "-"), list(names := {k.replace("_", "-"): k for k in known}), 1
    )
    return f". Did you mean {names[found[0]]}?" if found else ""


def at_least_one(text: str) -> int:
    """A count."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def between(low: float, high: float) -> Callable[[str], float]:
    """The type of finite numbers in [low, high]."""

    def number(text: str) -> float:
        value = float(text)
        if not (low <= value <= high and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"must be in [{low:g}, {high:g}], got {value:g}")
        return value

    return number


number = between(-math.inf, math.inf)


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


def file_of(model: str, *files: str, name: str, what: str, revision: str | None = None) -> Path:
    """
    The first of some files that a checkpoint has, from its folder or the Hub.

    Args:
        model (`str`): A folder or a Hub id.
        *files (`str`): Names of the file, one of which marks what is looked for.
        name (`str`): The argument that gave it, such as `--model`.
        what (`str`): What is looked for.
        revision (`str`, *optional*): Of a Hub id.

    Raises:
        OSError: There is none, and why: no folder, no repository, no file in it, no connection.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    folder = Path(model)
    if folder.is_dir():
        for file in files:
            if (folder / file).is_file():
                return folder / file
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise OSError(f"{name} {model} is a folder without {' or '.join(files)}, so no {what}. It holds: {found}.")
    if folder.is_file():
        raise OSError(f"{name} {model} is a file. Pass the folder or Hub id of a {what}.")
    why = f"{name} {model}: there is no such folder"
    if model.count("/") != 1 or model.startswith((".", "~", "/")):
        raise OSError(f"{why}, and a Hub id is written OWNER/NAME.")
    for file in files:
        try:
            return Path(hf_hub_download(model, file, revision=revision))
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            if os.environ.get("HF_HUB_OFFLINE", "0") in ("", "0"):
                cause = "the Hub cannot be reached"
            else:
                cause = "HF_HUB_OFFLINE is set, so that the Hub is not asked"
            raise OSError(f"{why}, it is not in the cache of the Hub, and {cause}.") from error
        except GatedRepoError as error:
            raise OSError(f"{why}, and on the Hub it is gated: ask for access there, then `hf auth login`.") from error
        except RevisionNotFoundError as error:
            raise OSError(f"{name} {model} has no revision {revision!r} on the Hub.") from error
        except RepositoryNotFoundError as error:
            raise OSError(f"{why}, and no such repository on the Hub. If it is private: `hf auth login`.") from error
        except HFValidationError as error:
            raise OSError(f"{why}, and it is no Hub id: {error}") from error
        except EntryNotFoundError:
            continue
    raise OSError(f"{name} {model} is on the Hub, but has no {' or '.join(files)}: it is no {what}.")


def stock_class(model: str, *, name: str = "--model", revision: str | None = None) -> str:
    """
    The name of the pipeline class of a checkpoint of diffusers that the argument `name` gave.

    Raises:
        OSError: There is none.
    """
    what = "checkpoint of diffusers"
    file = file_of(model, "model_index.json", "modular_model_index.json", name=name, what=what, revision=revision)
    return json.loads(file.read_text(encoding="utf-8"))["_class_name"]


def picture_in(path: Path, *, name: str) -> "Image":
    """
    The picture of a file that the argument `name` gave.

    Raises:
        OSError: There is no file, no picture in it, half of one, or one that is too large.
    """
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise FileNotFoundError(f"{name} {path} is no file: pass the path of a picture.")
    try:
        with Image.open(path) as picture:
            picture.load()
    except UnidentifiedImageError as error:
        raise OSError(f"{name} {path} is no picture, or of a kind that Pillow cannot read.") from error
    except Image.DecompressionBombError as error:
        raise OSError(f"{name} {path} is too large a picture: scale it down first. {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # whatever a decoder says of half a file
        raise OSError(f"{name} {path} is broken: {error}") from error
    return picture


def function_of(text: str, *, name: str) -> Callable[..., Any]:
    """
    The function that the argument `name` gave as `file.py:function` or `module:function`. Modules are looked for in
    the current folder, too. An error inside of it names the function and the row.

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
    found = getattr(module, function, None)
    if not callable(found):
        others = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ValueError(f"{name} {text}: {source} has no function {function!r}{nearest(function, others) or '.'}")
    return _naming_rows(found, f"{name} {text}")


def _naming_rows(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function, whose errors name it and the first row that fails by itself."""
    if inspect.iscoroutinefunction(function) or not inspect.isfunction(function):
        return function

    @functools.wraps(function)
    def named(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            where = _failing_row(function, args, kwargs)
            line = error.__traceback__.tb_next.tb_lineno if error.__traceback__.tb_next else 0  # ty: ignore
            raise ValueError(f"{name} failed{where}, at line {line}: {type(error).__name__}: {error}") from error

    return named


def _failing_row(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> str:
    """` on row k`, where rows can be told and one alone fails in the same way."""
    sizes = [len(value) for value in (*args, *kwargs.values()) if hasattr(value, "__getitem__") and len(value) > 0]
    if not sizes:
        return ""
    count = max(set(sizes), key=sizes.count)

    def of(value: Any, k: int) -> Any:
        rows = hasattr(value, "__getitem__") and not isinstance(value, str | dict) and len(value) == count
        return value[k : k + 1] if rows else value

    for k in range(count):
        try:
            function(*(of(value, k) for value in args), **{key: of(value, k) for key, value in kwargs.items()})
        except Exception:
            return f" on row {k} of {count}"
    return ""
