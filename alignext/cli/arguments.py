# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What several commands make of their arguments."""

import argparse
import dataclasses
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from alignext.signatures import nearest


if TYPE_CHECKING:
    from PIL.Image import Image


class Parser(argparse.ArgumentParser):
    """
    A parser that takes no abbreviations and names the nearest option or choice.

    `later`, if set, adds the options whose source is slow to import, once the command is the one that was chosen.
    """

    later: Callable[["Parser"], None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, with all options there."""
        later, self.later = self.later, None
        if later is not None:
            later(self)
        return super().parse_known_args(args, namespace)

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


def add_fields(parser: argparse._ActionsContainer, settings: Any) -> None:
    """
    Add an option for each field of a dataclass, with the first sentence of its documentation as help. What is
    not given is `None`, so that the default of the field holds. The dataclass judges the values.
    """
    entries = re.findall(r"^ {8}(\w+(?:, \w+)*) \(.*\):\s+((?:.+\n)+?)(?= {8}\w|\s*\n)", settings.__doc__ or "", re.M)
    told = {name: " ".join(text.split()) for words, text in entries for name in words.split(", ")}
    for field in dataclasses.fields(settings):
        option, default = f"--{field.name.replace('_', '-')}", f" (default: {field.default})"
        text = told[field.name].split(". ")[0].rstrip(".").replace("(lo, hi)", "LO:HI")
        text = f"{text[0].lower()}{text[1:]}".replace("`", "").replace('"', "").replace("%", "%%")
        if field.default is True:
            parser.add_argument(
                f"--no-{option[2:]}", dest=field.name, action="store_const", const=False, help=f"not: {text}"
            )
        else:
            parser.add_argument(option, type=_value, help=text + default * (field.default is not None))


def _value(text: str) -> Any:
    """A number, several with colons between them, or else the word itself."""
    try:
        found = [int(part) if part.lstrip("-").isdigit() else number(part) for part in text.split(":")]
    except (ValueError, argparse.ArgumentTypeError):
        return text
    return found[0] if len(found) == 1 else tuple(found)


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
