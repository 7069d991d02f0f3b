# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
# More than 300 lines: a table with a row per training, and the one command that reads it.
"""The commands that train: one table, TRL's parser, and what is done before and after each training."""

import argparse
import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignext.cli import training_options as options
from alignext.cli.arguments import file_of
from alignext.cli.rows import load_pairs, load_rows, prompt_rows, splits
from alignext.methods import method
from alignext.training.runs import train


if TYPE_CHECKING:
    from trl import TrlParser

_MODEL = "the model is the embedded one unless --model_name_or_path names another"
_FILE = "a JSON, CSV or Parquet file, a folder or a Hub id"
_PAIRS = (
    "--dataset_name is a JSON, CSV or Parquet file with columns prompt, chosen, rejected (paths of pictures, relative "
    "to the file), a folder with such a metadata.jsonl (chosen_file_name, rejected_file_name), or a Hub id, such as "
    f"one in the format of Pick-a-Pic; {_MODEL}"
)

_VOTES = (
    "--dataset_name is a JSON, CSV or Parquet file with columns prompt, image (a path, relative to the file) and "
    f"label (true for a thumb up), a folder with such a metadata.jsonl, a Hub id, or pairs; {_MODEL}"
)


@dataclass(frozen=True)
class Training:
    """
    A command that trains.

    Args:
        method (`str`): Its row in the table of methods, which has the trainer; the config is named after it.
        data (`str`): What its help says of the dataset, and more.
        example (`str`): Words that follow the name in an example.
        loads (`str`, *optional*, defaults to `""`): How to load the result; a language model by default.
    """

    method: str
    data: str
    example: str
    loads: str = ""

    @property
    def trainer(self) -> str:
        """The public name of its trainer."""
        return method(self.method).classes[0]

    @property
    def draws(self) -> bool:
        """Whether it trains a pipeline."""
        return self.rewarded or method(self.method).page == "diffusion_preference"

    @property
    def rewarded(self) -> bool:
        """Whether it trains a pipeline on rewards."""
        return method(self.method).page in ("alignprop", "ddpo")


TRAININGS = {
    method(row.method).commands[0]: row
    for row in (
        Training("Diffusion-DPO", _PAIRS, "--dataset_name pairs.jsonl --output_dir trained --use_peft"),
        Training("Diffusion-KTO", _VOTES, "--dataset_name votes.jsonl --output_dir trained --use_peft"),
        Training("Inversion-DPO", _PAIRS, "--dataset_name pairs.jsonl --output_dir trained --use_peft"),
        Training("SmPO", _PAIRS, "--dataset_name pairs.jsonl --output_dir trained --use_peft"),
        Training(
            "AlignProp",
            "Rewards need a gradient: clip, pickscore, aesthetic, brightness, concept, style, or a function of yours. "
            f"--dataset_name is {_FILE} with a column prompt; {_MODEL}",
            "--prompt 'a red fox' 'a crown' --reward_funcs rewards.py:warm --output_dir trained --use_peft",
        ),
        Training(
            "DDPO",
            f"Rewards may be any function. --dataset_name is {_FILE} with a column prompt; {_MODEL}",
            "--prompt 'a red fox' 'a crown' --reward_funcs compressibility --output_dir trained --use_peft",
        ),
        Training(
            "BCO",
            f"--dataset_name is {_FILE} with columns prompt, completion, label; {_MODEL}",
            "--dataset_name thumbs.jsonl --output_dir trained",
        ),
        Training(
            "f-DPG",
            "--target says where to: where a reward is large (exponential), where a constraint holds (binary), or "
            "where moments have given values (distributional). "
            f"--dataset_name is {_FILE} with a column prompt; {_MODEL}",
            "--prompt 'Once upon a time' --reward_funcs rewards.py:dragon --target binary --output_dir trained",
        ),
        Training(
            "MAH-DPO",
            f"--dataset_name is {_FILE} with columns prompt, chosen, rejected, objective; {_MODEL}. Each objective "
            "gets an output head, and `alignext generate` mixes them",
            "--dataset_name preferences.jsonl --output_dir trained",
            "  from alignext import AutoModelForCausalLMWithObjectiveHeads\n"
            "  AutoModelForCausalLMWithObjectiveHeads.from_pretrained({folder!r})\n"
            "Let it write:\n"
            "  alignext generate --model {folder} --objective-weights {weights} --prompt ...",
        ),
        Training(
            "Process rewards",
            "--dataset_name is a JSON or Parquet file, a folder or a Hub id with columns prompt, steps, labels; "
            + _MODEL,
            "--dataset_name stories.jsonl --output_dir trained",
            "  from alignext.rewards.process import ProcessReward\n  ProcessReward.from_pretrained({folder!r})\n"
            "Let it guide:\n  alignext generate --model MODEL --reward {folder} --prompt ...",
        ),
        Training(
            "Concept DAS",
            f"--dataset_name is {_FILE} with columns neutral_prompt, neutral_completion, concept_prompt, "
            f"concept_completion; {_MODEL}. A vector is trained, and nothing of the model",
            "--dataset_name quads.jsonl --output_dir trained",
            '  from alignext import SteeringVector\n  SteeringVector.load("{folder}/steering.safetensors")\n'
            "Let it steer:\n  alignext steer apply --model MODEL --vector {folder}/steering.safetensors --prompt ...",
        ),
    )
}


# Arguments of trainers by options of another name.
_WORDS = {"train_dataset": "--dataset_name", "eval_dataset": "--dataset_name", "model": "--model_name_or_path"}


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the commands. Their words reach `run` unread: TRL's parser for them imports all of TRL."""
    for name, training in TRAININGS.items():
        parser = subparsers.add_parser(name, help=method(training.method).task, add_help=False)

        def keep(args: Sequence[str], namespace: object = None) -> tuple[argparse.Namespace, list[str]]:
            words = [word for word in args if word != "--debug"]
            return argparse.Namespace(func=run, words=words, words_of=_WORDS, debug=len(words) < len(args)), []

        parser.parse_known_args = keep


def make_parser(name: str) -> "TrlParser":
    """The parser of a command."""
    training = TRAININGS[name]
    task = method(training.method).task
    text = f"{task[0].upper()}{task[1:]}. {training.data}."
    return options.make_parser(name, training.trainer, text, training.example, draws=training.draws)


def parse(name: str, words: Sequence[str]) -> tuple:
    """The dataclasses of a command's words: the dataset, the trainer's config, the model, a mixture of datasets."""
    return options.parse(make_parser(name), words)


def run(args: argparse.Namespace) -> None:
    """Train, save, and say how to load the result."""
    # TRL still reads and sets what transformers has renamed; there is nothing that its reader could do.
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing", FutureWarning)
    script, config, model, mixture = parse(args.command, args.words)
    training = TRAININGS[args.command]
    if script.num_processes < 1:
        raise ValueError(f"--num_processes must be at least 1, received {script.num_processes}.")
    if script.num_processes > 1 and "LOCAL_RANK" not in os.environ:
        return launch(args, script.num_processes, config)
    takes_rewards = training.rewarded or args.command == "f-dpg"
    if takes_rewards and not script.reward_funcs:
        raise ValueError("There is no reward. Pass --reward_funcs, such as rewards.py:dragon.")
    rewards = {"reward_funcs": [reward(name) for name in script.reward_funcs]} if args.command == "f-dpg" else {}
    check_trackers(config)
    if training.draws and not training.rewarded:
        data = load_pairs(script, mixture)
    elif takes_rewards and script.prompt is not None:
        data = prompt_rows(script, mixture, at_least=rows_of_update(config) if training.rewarded else 1)
    else:
        data = load_rows(script, mixture, example=training.example.split()[1])
    data = splits(data, script, config, mixture)
    if config.use_cpu:
        print("Training on the CPU.", flush=True)
    import alignext

    if training.rewarded:
        rewards = {"reward_funcs": options.picture_rewards(script, data["train_dataset"], config)}
    trainer_class = getattr(alignext, training.trainer)
    if training.draws:
        trainer = trainer_class(
            options.load_pipeline(model), args=config, peft_config=options.lora_config(model), **rewards, **data
        )
        if model.sample_prompts:
            sheets = alignext.SampleGridCallback(trainer, model.sample_prompts, guidance_scale=model.sample_guidance)
            trainer.add_callback(sheets)
    else:
        if args.command == "process-reward":
            model.lora_task_type = "TOKEN_CLS"  # TRL's default is a task without head
        trainer = trainer_class(args=config, **rewards, **data, **options.model_arguments(model, config))
    train(trainer)
    if config.push_to_hub:
        # The Hub refuses a card that names a local file or folder.
        local = training.draws or (script.dataset_name is not None and Path(script.dataset_name).exists())
        trainer.push_to_hub(**({} if local else {"dataset_name": script.dataset_name}))
    trainer.accelerator.print(f"Saved. Load it with:\n{loading(training, trainer, model)}")
    if not training.draws:
        trainer.end()


def launch(args: argparse.Namespace, count: int, config: Any) -> None:
    """
    Run the command in several processes of this machine, through `accelerate launch`.

    Raises:
        ValueError: There are fewer GPUs.
        SystemExit: A process failed, with its exit code.
    """
    import torch

    if not config.use_cpu and count > (found := torch.cuda.device_count()):
        raise ValueError(f"--num_processes {count} needs a GPU each, and there are {found}. --use_cpu takes the CPU.")
    # Without this, accelerate starts one process where it finds no GPU.
    words = ["--multi_gpu"] if config.use_cpu else []
    words = ["-m", "accelerate.commands.launch", *words, "--num_processes", str(count), "--main_process_port", "0"]
    answer = subprocess.run([sys.executable, *words, "-m", "alignext", args.command, *args.words])
    if answer.returncode:
        raise SystemExit(answer.returncode)


def rows_of_update(config: Any) -> int:
    """Rows of a dataset that an update takes, of all processes."""
    return config.train_batch_size * config.gradient_accumulation_steps * config.world_size


def loading(training: Training, trainer: Any, model: Any) -> str:
    """Lines that load what was trained."""
    folder = trainer.args.output_dir
    if training.draws:
        return trainer.usage()
    if training.loads:
        weights = ",".join(f"{name}=1" for name in getattr(trainer, "objectives", ()))
        return training.loads.format(folder=folder, weights=weights)
    loader = "AutoPeftModelForCausalLM" if model.use_peft else "AutoModelForCausalLM"
    package = "peft" if model.use_peft else "transformers"
    return f"  from {package} import {loader}\n  {loader}.from_pretrained({folder!r})"


def check_trackers(config: Any) -> None:
    """
    Look for the packages of `--report_to` before anything is loaded.

    Raises:
        ImportError: One is not installed.
    """
    for name in config.report_to:
        if name in _TRACKERS and importlib.util.find_spec(name) is None:
            raise ImportError(
                f"--report_to {name} needs the package {name}, which is not installed: pip install {name}, or all of "
                "them with the extra `trackers` of alignext. --report_to none does without."
            )


_TRACKERS = ("wandb", "tensorboard", "trackio", "mlflow", "comet_ml", "clearml", "dvclive", "swanlab")


def reward(name: str) -> Any:
    """The function that `file.py:function` or `module:function` names; a model's id is left as it is."""
    if ":" in name or name.endswith(".py"):
        from alignext.rewards.by_name import function_of

        return function_of(name, name="--reward_funcs")
    file_of(name, "config.json", "adapter_config.json", name="--reward_funcs", what="sequence classifier")
    return name
