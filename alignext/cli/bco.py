# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext bco`: train a language model on thumbs up and thumbs down."""

import argparse
from typing import TYPE_CHECKING

from alignext.cli.training import add_command, load_rows, model_arguments, splits, train_and_save


if TYPE_CHECKING:
    from trl import TrlParser


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext bco`."""
    add_command(subparsers, "bco", "train a language model on thumbs up and thumbs down", run)


def make_parser() -> "TrlParser":
    """The parser of the command: the dataset, every field of `BCOConfig`, the model and adapter, `--config FILE`."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

    from alignext import BCOConfig

    return TrlParser(
        (ScriptArguments, BCOConfig, ModelConfig, DatasetMixtureConfig),
        prog="alignext bco",
        description="Train a language model on single completions with a thumb up or down. --dataset_name is a "
        "JSON, CSV or Parquet file, a folder or a Hub id with columns prompt, completion, label; the model is the "
        "embedded one unless --model_name_or_path names another. --config FILE reads the same names from YAML.",
        epilog="Example: alignext bco --dataset_name thumbs.jsonl --output_dir trained --use_cpu",
    )


def run(args: argparse.Namespace) -> None:
    """Train, save, and say how to load the result."""
    script, config, model, mixture = make_parser().parse_args_and_config(args=args.words)
    from alignext import BCOTrainer

    data = splits(load_rows(script, mixture, example="thumbs.jsonl"), script, config)
    trainer = BCOTrainer(args=config, **data, **model_arguments(model, config))
    train_and_save(trainer, script, model)
