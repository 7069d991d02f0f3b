# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext bco`: train a language model on thumbs up and thumbs down."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import DatasetDict
    from trl import DatasetMixtureConfig, ScriptArguments, TrlParser

_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext bco`, whose arguments TRL's own parser reads later: making it imports all of TRL."""
    parser = subparsers.add_parser("bco", help="train a language model on thumbs up and thumbs down", add_help=False)

    def keep(args: Sequence[str], namespace: object = None) -> tuple[argparse.Namespace, list[str]]:
        words = [word for word in args if word != "--debug"]
        return argparse.Namespace(func=run, words=words, debug=len(words) < len(args)), []

    parser.parse_known_args = keep


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
    from trl import get_peft_config, get_quantization_config

    from alignext import BCOTrainer, mini

    dataset = _load(script, mixture)
    evaluated = config.eval_strategy != "no"
    for split in (script.dataset_train_split, *([script.dataset_test_split] if evaluated else [])):
        if split not in dataset:
            raise ValueError(f"The dataset has no split {split!r}, only {', '.join(dataset)}. Name another one.")
    config.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    } | (config.model_init_kwargs or {})
    trainer = BCOTrainer(
        model=model.model_name_or_path or str(mini.path("lm")),
        args=config,
        train_dataset=dataset[script.dataset_train_split],
        eval_dataset=dataset[script.dataset_test_split] if evaluated else None,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    trainer.save_model()
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    loader = "AutoPeftModelForCausalLM" if model.use_peft else "AutoModelForCausalLM"
    package = "peft" if model.use_peft else "transformers"
    trainer.accelerator.print(
        f"Saved. Load it with:\n  from {package} import {loader}\n  {loader}.from_pretrained({config.output_dir!r})"
    )
    trainer.end()


def _load(script: "ScriptArguments", mixture: "DatasetMixtureConfig") -> "DatasetDict":
    """The dataset by splits: a mixture from the YAML file, or a file, folder or Hub id."""
    from datasets import load_dataset
    from trl import get_dataset

    if mixture.datasets:
        return get_dataset(mixture)
    if not script.dataset_name:
        raise ValueError(
            "There is no dataset. Pass --dataset_name, a file such as thumbs.jsonl, a folder or a Hub id."
        )
    path = Path(script.dataset_name)
    if path.suffix in _READERS:
        if not path.is_file():
            raise FileNotFoundError(f"--dataset_name {path} is no file.")
        return load_dataset(_READERS[path.suffix], data_files=str(path), streaming=script.dataset_streaming)
    return load_dataset(script.dataset_name, script.dataset_config, streaming=script.dataset_streaming)
