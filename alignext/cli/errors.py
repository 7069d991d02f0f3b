# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Whose mistake an error is: decided by where it was raised, and said in the words of the command."""

import dis
import re
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType


# What the machine or the user's files cause, wherever it is noticed.
_OUTSIDE = (OSError, ImportError, UnicodeError, MemoryError)
# What libraries say of values; all else from inside of them is a call that we should not have made.
_VALUES = (ValueError, NotImplementedError)
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))


def explain(error: Exception, options: Iterable[str], words: dict[str, str]) -> tuple[str, int]:
    """
    A line on an error, and the exit code.

    Args:
        error (`Exception`): What was raised.
        options (`Iterable[str]`): The options of the command, such as `--steps`.
        words (`dict[str, str]`): Names of arguments that options of another name stand for.

    Returns:
        `tuple[str, int]`: Code 2 if it was the user's input or function, a missing file or package; 1 if it was us.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    frames = list(_frames(error.__traceback__))
    users = next((frame for frame in reversed(frames) if _is_users(frame)), None)
    if users is not None:
        code = users.tb_frame.f_code
        return f"{Path(code.co_filename).name}:{users.tb_lineno}, in {code.co_name}: {type(error).__name__}: {text}", 2
    innermost = frames[-1] if frames else None
    raised = innermost is not None and _raises(innermost)
    library = innermost is not None and not _is_ours(innermost)
    out_of_memory = type(error).__name__ == "OutOfMemoryError"
    if isinstance(error, _OUTSIDE) or out_of_memory or (raised and not library):
        return in_words(text, options, words), 2
    if library and (isinstance(error, _VALUES) or (raised and type(error) is RuntimeError)):
        return in_words(text, options, words), 2
    return f"unexpected {type(error).__name__}: {text} (please report it with the output of --debug)", 1


def in_words(text: str, options: Iterable[str], words: dict[str, str]) -> str:
    """`name`, where an option is meant by it, as that option."""
    known = dict(words)
    for option in options:
        if option.startswith("--"):
            known.setdefault(option[2:].replace("-", "_"), option)

    def option_of(match: re.Match) -> str:
        return f"{known[match[1]]}{f' {match[2]}' if match[2] else ''}" if match[1] in known else match[0]

    return re.sub(r"`(\w+)(?:=([^`]*))?`", option_of, text)


def _frames(traceback: TracebackType | None) -> Iterable[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _is_ours(frame: TracebackType) -> bool:
    return str(frame.tb_frame.f_globals.get("__name__", "")).startswith("alignext.")


def _is_users(frame: TracebackType) -> bool:
    """Neither ours nor a library's, nor what started the command."""
    file = frame.tb_frame.f_code.co_filename
    in_library = file.startswith(("<", *_LIBRARIES)) or "site-packages" in file or "dist-packages" in file
    return not in_library and not _is_ours(frame) and frame.tb_frame.f_globals.get("__name__") != "__main__"


def _raises(frame: TracebackType) -> bool:
    """Whether the frame stopped at a `raise`: the error was meant, and its text is for the reader."""
    code = frame.tb_frame.f_code.co_code
    return dis.opname[code[frame.tb_lasti]] == "RAISE_VARARGS"
