# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Decoding methods as repositories of `custom_generate`, run by plain transformers with `trust_remote_code=True`."""

import inspect
import os
import pprint
from importlib import import_module
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin, LogitsProcessorList

import alignext
from alignext.hub_code import FORMAT, write_files


# Name of the class -> its module, which is imported when it decodes.
_METHODS = {
    "QAlign": "alignext.decoding.qalign",
    "TransferQ": "alignext.decoding.transfer_q",
    "GuidedDecoding": "alignext.decoding.guided_call",
}
_SCRIPT = '''# Written by `save_custom_generate` of alignext.
"""{name}: `model.generate(**inputs, custom_generate=THIS_FOLDER_OR_REPOSITORY, trust_remote_code=True)`.

Any of the settings may be given to `generate`, too, and `tokenizer`; that of the model's own repository if not.
"""

from math import inf, nan  # noqa: F401, as settings may say them

from alignext.decoding.hub import generate_with
from alignext.hub_code import check_format


check_format({format}, "{version}")
SETTINGS = {settings}


def generate(model, **kwargs):
    return generate_with("{name}", SETTINGS, model, **kwargs)
'''


def custom_generate_files(name: str, settings: dict[str, Any]) -> dict[str, str]:
    """
    The texts of `custom_generate/generate.py` and its requirements, by their paths.

    Args:
        name (`str`): The method.
        settings (`dict`): Its settings, which must be what JSON can say.

    Raises:
        ValueError: A setting is a function or a model.
    """
    for key, value in settings.items():
        if not _plain(value):
            raise ValueError(
                f"`{key}` must be a name that can be loaded, such as the id of a reward model, or a number or text to "
                f"be saved, received a {type(value).__name__}."
            )
    text = _SCRIPT.format(
        name=name, settings=pprint.pformat(settings, sort_dicts=False), format=FORMAT, version=alignext.__version__
    )
    return {"custom_generate/generate.py": text, "custom_generate/requirements.txt": "alignext\n"}


def write_custom_generate(folder: str | os.PathLike, name: str, settings: dict[str, Any]) -> None:
    """
    Write `custom_generate/generate.py` and its requirements into a folder, see [`custom_generate_files`].

    Args:
        folder (`str` or `os.PathLike`): New, or with other files in it.
        name (`str`): The method.
        settings (`dict`): Its settings.
    """
    write_files(folder, custom_generate_files(name, settings))


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_plain(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str))


def generate_with(name: str, settings: dict[str, Any], model: Any, **kwargs: Any) -> Any:
    """
    What a saved `generate` calls: the stock method, with the method as it was saved.

    Args:
        name (`str`): The method.
        settings (`dict`): As they were saved; arguments of the same name come before them.
        model (`PreTrainedModel`): Generates.
        **kwargs: All arguments of `generate`.

    Returns:
        What the method returns.
    """
    if name == "Steering":
        return import_module("alignext.steering.custom_generate").steered_generate(model, **settings | kwargs)
    tokenizer = kwargs.pop("tokenizer", None)
    kwargs.pop("assistant_tokenizer", None)
    if name == "SVDecode":
        return _svdecode(model, settings, kwargs)
    cls = getattr(import_module(_METHODS[name]), name)
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path, padding_side="left")
    # What both know, such as `stop_strings` and `streamer`, is the method's here: `generate` has handed it on.
    own = {key: kwargs.pop(key) for key in cls.settings() & set(kwargs) if kwargs[key] is not None}
    return GenerationMixin.generate(model, custom_generate=cls(processing_class=tokenizer, **settings | own), **kwargs)


def _svdecode(model: Any, settings: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    from alignext.decoding.svdecode import SVDecodeLogitsProcessor

    names = set(inspect.signature(SVDecodeLogitsProcessor).parameters)
    settings = settings | {key: kwargs.pop(key) for key in names & set(kwargs) if kwargs[key] is not None}
    if isinstance(settings.get("base"), str):
        settings["base"] = AutoModelForCausalLM.from_pretrained(settings["base"], dtype=model.dtype).to(model.device)
    processor = SVDecodeLogitsProcessor(model, prompt_attention_mask=kwargs.get("attention_mask"), **settings)
    kwargs["logits_processor"] = LogitsProcessorList([*(kwargs.get("logits_processor") or ()), processor])
    return GenerationMixin.generate(model, **kwargs)
