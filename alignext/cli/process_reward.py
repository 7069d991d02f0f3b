# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext process-reward`: train a model that scores a solution step by step."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from trl import TrlParser


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext process-reward`, whose arguments TRL's own parser reads later: making it imports all of TRL."""
    parser = subparsers.add_parser(
        "process-reward", help="train a model that scores a solution step by step", add_help=False
    )

    def keep(args: Sequence[str], namespace: object = None) -> tuple[argparse.Namespace, list[str]]:
        words = [word for word in args if word != "--debug"]
        return argparse.Namespace(func=run, words=words, debug=len(words) < len(args)), []

    parser.parse_known_args = keep


def make_parser() -> "TrlParser":
    """The parser: the dataset, every field of `ProcessRewardConfig`, the model and adapter, `--config FILE`."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

    from alignext import ProcessRewardConfig

    return TrlParser(
        (ScriptArguments, ProcessRewardConfig, ModelConfig, DatasetMixtureConfig),
        prog="alignext process-reward",
        description="Train a process reward model on solutions with a label for every step. --dataset_name is a JSON "
        "or Parquet file, a folder or a Hub id with columns prompt, steps, labels; the model is the embedded one "
        "unless --model_name_or_path names another. --config FILE reads the same names from YAML.",
        epilog="Example: alignext process-reward --dataset_name stories.jsonl --output_dir trained --use_cpu "
        "--bf16 false",
    )


def run(args: argparse.Namespace) -> None:
    """Train, save, and say how to load the result."""
    script, config, model, mixture = make_parser().parse_args_and_config(args=args.words)
    from alignext import ProcessRewardTrainer
    from alignext.cli.training import load_rows, model_arguments, splits, train_and_save

    data = splits(load_rows(script, mixture, example="stories.jsonl"), script, config)
    model.lora_task_type = "TOKEN_CLS"  # TRL's default is a task without head
    trainer = ProcessRewardTrainer(args=config, **data, **model_arguments(model, config))
    loading = "  from alignext.models.process_reward import ProcessReward\n"
    train_and_save(trainer, script, model, loading + f"  ProcessReward.from_pretrained({config.output_dir!r})")
