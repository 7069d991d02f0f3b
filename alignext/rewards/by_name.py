# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Rewards by name: the built-in ones, and one's own, written as `file.py:function`, whose errors name the row."""

import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alignext import rewards
from alignext.signatures import nearest


BUILT_IN = (
    "aesthetic", "brightness", "clip", "compressibility", "concept", "dynamics", "hps", "incompressibility",
    "pickscore", "style",
)  # fmt: skip


def reward_of(
    text: str,
    *,
    name: str = "--reward",
    prompts: Sequence[str] = (),
    clip: str | None = None,
    head: str | os.PathLike | None = None,
    device: str = "cpu",
) -> Callable[..., Any]:
    """
    The reward that the argument `name` gave.

    Args:
        text (`str`): One of `BUILT_IN`, or `file.py:function` or `module:function`.
        name (`str`, *optional*, defaults to `"--reward"`): The argument, for messages.
        prompts (`Sequence[str]`, *optional*): What will be drawn; a judge must know it.
        clip (`str`, *optional*): Checkpoint for `clip`, `pickscore` and `aesthetic`, the paper's by default; for `hps`
            its file.
        head (`str` or `os.PathLike`, *optional*): Weights of the head of `aesthetic`.
        device (`str`, *optional*, defaults to `"cpu"`): Where a model runs.

    Raises:
        ValueError: There is no such reward, it has no head, or a prompt is unknown to the judge.
    """
    if ":" in text or text.endswith(".py"):
        return function_of(text, name=name)
    if text not in BUILT_IN:
        known = f"one of {', '.join(BUILT_IN)}, or FILE.py:FUNCTION"
        raise ValueError(f"{name} must be {known}, received {text!r}{nearest(text, BUILT_IN) or '.'}")
    model: dict[str, Any] = {"model": clip} if clip else {}
    if text == "clip":
        return rewards.CLIPReward(**model, device=device)
    if text == "pickscore":
        return rewards.PickScoreReward(**model, device=device)
    if text == "aesthetic":
        if head is None:
            raise ValueError(f"{name} aesthetic needs --head: the file with the weights of its head.")
        return rewards.AestheticReward(head, *model.values())
    if text == "hps":
        if clip is None:
            raise ValueError(f"{name} hps needs --clip: the .pt file that its authors publish.")
        return rewards.HPSReward(clip, device=device)
    if text in ("concept", "style"):
        judge = rewards.JudgeReward(text)
        for prompt in prompts:
            judge.label(prompt)
        return judge
    return getattr(rewards, text)


def function_of(text: str, *, name: str) -> Callable[..., Any]:
    """
    The function that the argument `name` gave as `file.py:function` or `module:function`. Modules are looked for in
    the current folder, too. An error inside of it names the function and the row.

    Raises:
        OSError: There is no such file.
        ImportError: There is no such module.
        ValueError: There is no such function in it, or the file is no Python.
    """
    source, colon, function = text.rpartition(":")
    if not colon:
        raise ValueError(f"{name} {text} names no function. Write {text}:FUNCTION.")
    if source.endswith(".py"):
        if not Path(source).is_file():
            raise FileNotFoundError(f"{name} {text}: there is no file {source}.")
        # A name of its own, which hides no installed module; dataclasses look for their module under it.
        spec = importlib.util.spec_from_file_location(f"{__name__}:{Path(source).resolve()}", source)
        assert spec is not None and spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        if (folder := str(Path(source).resolve().parent)) not in sys.path:
            sys.path.append(folder)  # of the files beside it
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:  # of the file, in which no line has run that would name it
            where = f"{Path(error.filename or source).name}, line {error.lineno}"
            raise ValueError(f"{name} {text}: {where} is no Python: {error.msg}.") from error
        finally:
            del sys.modules[spec.name]  # or its functions would be pickled, and cached, by that name alone
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
