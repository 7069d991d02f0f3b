# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What the commands that train share: their arguments, reading rows, and the end of a run."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def add_command(
    subparsers: argparse._SubParsersAction, name: str, help: str, run: Callable[[argparse.Namespace], None]
) -> None:
    """Add a command whose words reach `run` unread, as `args.words`: TRL's parser for them imports all of TRL."""
    parser = subparsers.add_parser(name, help=help, add_help=False)

    def keep(args: Sequence[str], namespace: object = None) -> tuple[argparse.Namespace, list[str]]:
        words = [word for word in args if word != "--debug"]
        return argparse.Namespace(func=run, words=words, debug=len(words) < len(args)), []

    parser.parse_known_args = keep


def load_rows(script: "ScriptArguments", mixture: "DatasetMixtureConfig", *, example: str) -> "DatasetDict":
    """The dataset by splits: a mixture from the YAML file, or a file (such as `example`), folder or Hub id."""
    from datasets import load_dataset
    from trl import get_dataset

    if mixture.datasets:
        return get_dataset(mixture)
    if not script.dataset_name:
        raise ValueError(f"There is no dataset. Pass --dataset_name, a file such as {example}, a folder or a Hub id.")
    path = Path(script.dataset_name)
    if path.suffix in _READERS:
        if not path.is_file():
            raise FileNotFoundError(f"--dataset_name {path} is no file.")
        return load_dataset(_READERS[path.suffix], data_files=str(path), streaming=script.dataset_streaming)
    return load_dataset(script.dataset_name, script.dataset_config, streaming=script.dataset_streaming)


def splits(dataset: "dict[str, Dataset]", script: "ScriptArguments", config: Any) -> dict[str, Any]:
    """`train_dataset` and `eval_dataset` of a trainer."""
    named = {"train_dataset": script.dataset_train_split}
    if config.eval_strategy != "no":
        named["eval_dataset"] = script.dataset_test_split
    for split in named.values():
        if split not in dataset:
            raise ValueError(f"The dataset has no split {split!r}, only {', '.join(dataset)}. Name another one.")
    return {name: dataset[split] for name, split in named.items()}


def model_arguments(model: "ModelConfig", config: Any) -> dict[str, Any]:
    """`model`, `peft_config` and `quantization_config` of a trainer; what else the model needs goes into `config`."""
    from trl import get_peft_config, get_quantization_config

    from alignext import mini

    config.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    } | (config.model_init_kwargs or {})
    return {
        "model": model.model_name_or_path or str(mini.path("lm")),
        "quantization_config": get_quantization_config(model),
        "peft_config": get_peft_config(model),
    }


def train_and_save(trainer: Any, script: "ScriptArguments", model: "ModelConfig", loading: str | None = None) -> None:
    """Train, save, push if wanted, and say how to load the result: by `loading`, or as a language model."""
    config = trainer.args
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    trainer.save_model()
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    if loading is None:
        loader = "AutoPeftModelForCausalLM" if model.use_peft else "AutoModelForCausalLM"
        package = "peft" if model.use_peft else "transformers"
        loading = f"  from {package} import {loader}\n  {loader}.from_pretrained({config.output_dir!r})"
    trainer.accelerator.print(f"Saved. Load it with:\n{loading}")
    trainer.end()
