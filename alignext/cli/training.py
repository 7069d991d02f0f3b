# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What the commands that train share: their arguments, reading rows, the end of a run, and their demos."""

import argparse
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignext.training.runs import check_run, last_checkpoint


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import Trainer
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

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


def command_parser(name: str, *arguments: type, description: str, example: str) -> "TrlParser":
    """
    TRL's parser of the fields of dataclasses, of mixtures of datasets, and of `--config FILE`. A line instead of
    hundreds is its usage, and our own fields come first in its help.

    Args:
        name (`str`): Of the command.
        *arguments (`type`): Dataclasses of arguments.
        description (`str`): What the command does, and what data and model it takes.
        example (`str`): Words that follow the name in an example.
    """
    from trl import DatasetMixtureConfig, TrlParser

    parser = TrlParser(
        (*arguments, DatasetMixtureConfig),
        prog=f"alignext {name}",
        usage=f"alignext {name} --OPTION VALUE ...",
        description=f"{description} --config FILE reads the same names from YAML.",
        epilog=f"Example: alignext {name} {example}",
    )
    ours = {
        field
        for each in arguments
        for base in each.__mro__
        if base.__module__.startswith("alignext.")
        for field in inspect.get_annotations(base)
    }
    own = parser.add_argument_group(f"options of {name}")
    for action in [action for action in parser._optionals._group_actions if action.dest in ours]:
        parser._optionals._group_actions.remove(action)
        own._group_actions.append(action)
    parser._optionals.title = "options of every training"
    parser._action_groups.insert(0, parser._action_groups.pop())
    return parser


def load_rows(script: "ScriptArguments", mixture: "DatasetMixtureConfig", *, example: str) -> "DatasetDict":
    """The dataset by splits: a mixture from the YAML file, or a file (such as `example`), folder or Hub id."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError
    from trl import get_dataset

    if mixture.datasets:
        return get_dataset(mixture)
    if not script.dataset_name:
        raise ValueError(f"There is no dataset. Pass --dataset_name, a file such as {example}, a folder or a Hub id.")
    path = Path(script.dataset_name)
    if path.suffix in _READERS:
        if not path.is_file():
            raise FileNotFoundError(f"--dataset_name {path} is no file.")
        kind = _READERS[path.suffix]
        try:
            return load_dataset(kind, data_files=str(path), streaming=script.dataset_streaming)
        # StopIteration where it is empty; a ValueError by older versions of datasets
        except (DatasetGenerationError, StopIteration, ValueError) as error:
            cause = error.__cause__ or error
            why = "it holds no rows" if isinstance(cause, StopIteration) else cause
            raise ValueError(f"--dataset_name {path} cannot be read as {kind}: {why}") from error
    if path.is_file():
        raise ValueError(f"--dataset_name {path} is none of {', '.join(_READERS)}. Write its rows into one of these.")
    return load_dataset(script.dataset_name, script.dataset_config, streaming=script.dataset_streaming)


def splits(dataset: "dict[str, Dataset]", script: "ScriptArguments", config: Any) -> dict[str, Any]:
    """`train_dataset` and `eval_dataset` of a trainer."""
    named = {"train": script.dataset_train_split}
    if config.eval_strategy != "no":
        named["test"] = script.dataset_test_split
    for use, split in named.items():
        if split not in dataset:
            raise ValueError(
                f"The dataset has no split {split!r}, only {', '.join(dataset)}. Name one with --dataset_{use}_split"
                + (", or leave --eval_strategy out." if use == "test" else ".")
            )
    return {("train_dataset" if use == "train" else "eval_dataset"): dataset[split] for use, split in named.items()}


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
    train(trainer)
    if config.push_to_hub:
        # The Hub refuses a card that names a local file or folder.
        local = script.dataset_name is not None and Path(script.dataset_name).exists()
        trainer.push_to_hub(dataset_name=None if local else script.dataset_name)
    if loading is None:
        loader = "AutoPeftModelForCausalLM" if model.use_peft else "AutoModelForCausalLM"
        package = "peft" if model.use_peft else "transformers"
        loading = f"  from {package} import {loader}\n  {loader}.from_pretrained({config.output_dir!r})"
    trainer.accelerator.print(f"Saved. Load it with:\n{loading}")
    trainer.end()


def train(trainer: Any) -> None:
    """
    Train, from where `resume_from_checkpoint` says, and save.

    Raises:
        OSError: The disk is full. What a save makes of that is hard to read.
    """
    try:
        trainer.train(resume_from_checkpoint=checkpoint_of(trainer.args))
        trainer.save_model()
    except Exception as error:
        try:
            check_run(trainer.args, trainer.model)
        except OSError as full:
            raise full from error
        raise


def checkpoint_of(config: Any) -> str | None:
    """Where to go on: at the path that was given, or, with `last`, at the newest complete checkpoint."""
    given = config.resume_from_checkpoint
    return last_checkpoint(config.output_dir) if given in ("last", "true", "True", True) else given


# Demos

_HAPPENINGS = ("went to the park.", "found a big box.", "had a red ball.", "saw a little dog.")


def beginnings(*names: str) -> list[str]:
    """Of stories: what happens to each name."""
    return [f"One day, {name} {it}" for name in names for it in _HAPPENINGS]


def demo_settings(folder: str, seed: int, steps: int, **more: Any) -> dict[str, Any]:
    """Arguments of a short training on the CPU: nothing is saved or printed, every step is logged."""
    return {
        "output_dir": folder,
        "seed": seed,
        "max_steps": steps,
        "logging_steps": 1,
        "activation_checkpointing": False,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    } | more


def quieten(trainer: "Trainer") -> None:
    """Keep a trainer without progress bar from printing its log."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def curve(trainer: "Trainer", name: str) -> list[tuple[float, float]]:
    """What was logged under a name, as points (step, value)."""
    return [(row["step"], row[name]) for row in trainer.state.log_history if name in row]


def tell(model: Any, tokenizer: Any, prompts: list[str], seed: int, **generation: Any) -> list[str]:
    """A story for each beginning, sampled, without what the last sentence lacks."""
    import torch

    torch.manual_seed(seed)
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    ids = model.generate(**batch, do_sample=True, max_new_tokens=40, top_k=0, **generation)
    stories = tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    ends = [max(story.rfind(mark) for mark in '.!?"') + 1 for story in stories]
    return [" " + " ".join((story[:end] or story).split()) for story, end in zip(stories, ends, strict=True)]


def speaks(story: str) -> bool:
    """Whether somebody speaks in it."""
    return '"' in story
