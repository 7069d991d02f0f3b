# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The `alignext` command.

One module per command, one for all that train. Each has `register(subparsers)`, which adds its parser and sets `func`:
a function of the parsed arguments that returns nothing. The modules import nothing heavy at the top, so that `--help`
answers at once.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from alignext import __version__
from alignext.cli import (
    alignedgen,
    d2_align,
    data,
    demo,
    env,
    errors,
    fade,
    generate,
    hub,
    methods,
    pictures,
    rival,
    search,
    segment,
    steer,
    training,
)
from alignext.cli.arguments import Parser


COMMANDS = (
    demo,
    methods,
    env,
    rival,
    alignedgen,
    search,
    training,
    steer,
    data,
    generate,
    d2_align,
    fade,
    segment,
    hub,
)


def make_parser() -> Parser:
    """Build the parser of the whole command."""
    parser = Parser(
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
    parser, words = make_parser(), list(sys.argv[1:] if argv is None else argv)
    if words[:1] and words[0] not in training.TRAININGS:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it tells of image processors that nobody asked for
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    try:
        words = pictures.remembered(words)
    except OSError as error:
        parser.error(str(error))
    args, unknown = parser.parse_known_args(words)
    own = commands.choices[args.command]
    if unknown:
        own.refuse(unknown[0])
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
        if args.debug:
            traceback.print_exception(error)
        options = own if args.command not in training.TRAININGS else training.make_parser(args.command)
        text, code = errors.explain(error, options._option_string_actions, getattr(args, "words_of", {}))
        _end_bars()
        print(f"alignext {args.command}: error: {text}", file=sys.stderr)
        return code
    return 0


def _end_bars() -> None:
    """Close progress bars that an error has left open: what is printed would stand behind them, and they below it."""
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    for bar in list(getattr(bars, "_instances", ())):
        bar.close()
