# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The `alignext` command.

One module per command. Each has `register(subparsers)`, which adds its parser and sets `func`: a function of the
parsed arguments that returns nothing. The modules import nothing heavy at the top, so that `--help` answers at once.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from alignext import __version__
from alignext.cli import (
    alignedgen,
    bco,
    demo,
    diffusion_preference,
    env,
    f_dpg,
    generate,
    mah_dpo,
    methods,
    process_reward,
    rival,
    search,
)


COMMANDS = (
    demo,
    methods,
    env,
    rival,
    alignedgen,
    search,
    diffusion_preference,
    bco,
    f_dpg,
    mah_dpo,
    process_reward,
    generate,
)

# What a user can cause: a file that is not there, a value that does not fit, a feature that does not exist yet.
_USER_ERRORS = (ValueError, OSError, NotImplementedError, ImportError)


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="alignext",
        description="Alignment methods from papers, on the diffusers pipelines and TRL trainers you already use.",
    )
    parser.add_argument("--version", action="version", version=f"alignext {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.register(subparsers)
    for subparser in subparsers.choices.values():
        subparser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments; those of the process by default.

    Returns:
        `int`: 0 when it worked, 2 when the input was at fault, 1 when we were, 130 when interrupted.
    """
    args = make_parser().parse_args(argv)
    try:
        args.func(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _end_bars()
        print(f"alignext {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `alignext methods | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _report(error, args)
    return 0


def _end_bars() -> None:
    """Close progress bars that an error has left open: what is printed would stand behind them, and they below it."""
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    for bar in list(getattr(bars, "_instances", ())):
        bar.close()


def _report(error: Exception, args: argparse.Namespace) -> int:
    """Print an error as one line, or as its traceback with `--debug`, and return the exit code."""
    if args.debug:
        traceback.print_exception(error)
    ours = not isinstance(error, _USER_ERRORS)
    text = " ".join(str(error).split()) or type(error).__name__
    if ours:
        text = f"unexpected {type(error).__name__}: {text} (please report it with the output of --debug)"
    _end_bars()
    print(f"alignext {args.command}: error: {text}", file=sys.stderr)
    return 1 if ours else 2
