# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The model cards that TRL and PEFT write, mended."""

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id

import alignext
from alignext.files import replacing


def mend_card(folder: str | os.PathLike, name: str, start: str | None = None) -> None:
    """
    Mend the card that TRL or PEFT wrote into a folder: a base model that is a folder of this machine, or none, is not
    named, the lines of Python open the result, and the version of alignext is told.

    Args:
        folder (`str` or `os.PathLike`): Where the `README.md` is, if there is one.
        name (`str`): Id or name of the result.
        start (`str`, *optional*): Markdown below the heading "Quick start", where TRL's would not do.
    """
    path = Path(folder, "README.md")
    if not path.is_file():
        return
    card = ModelCard.load(path, ignore_metadata_errors=True)
    bases = card.data.base_model or []
    foreign = [base for base in ([bases] if isinstance(bases, str) else bases) if not _is_hub_id(base)]
    if foreign:
        card.data.base_model = None
        card.data.tags = [tag for tag in card.data.tags or [] if not tag.endswith(tuple(foreign))]
    text = card.text
    for base in [*foreign, "None"]:
        text = text.replace(f"a fine-tuned version of [{base}](https://huggingface.co/{base})", "a fine-tuned model")
    text = text.replace('model="None"', f'model="{name}"')
    if start is not None:
        heading = f"## Quick start\n\n{start.strip()}\n\n"
        text = re.sub(r"## Quick start\n.*?(?=## Training procedure)", lambda _: heading, text, flags=re.S)
    if "- alignext: " not in text:
        text = text.replace("- TRL: ", f"- alignext: {alignext.__version__}\n- TRL: ", 1)
    card.text = text
    with replacing(path) as part:
        part.write_text(str(card), encoding="utf-8")


def result_name(args: Any, model_name: str | None = None) -> str:
    """The name of a result on its card: its id on the Hub, or what was said, or the last part of its folder."""
    return args.hub_model_id or model_name or Path(args.output_dir).resolve().name


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not os.path.exists(name)
