# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The commands that train: one table, TRL's parser, and what is done before and after each training."""

import argparse
import importlib.util
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignext.cli.arguments import file_of, function_of, nearest, stock_class
from alignext.cli.rows import load_pairs, load_rows, prompt_rows, splits
from alignext.methods import method
from alignext.training.runs import check_run, last_checkpoint


if TYPE_CHECKING:
    from trl import TrlParser

_MODEL = "the model is the embedded one unless --model_name_or_path names another"
_FILE = "a JSON, CSV or Parquet file, a folder or a Hub id"
_PAIRS = (
    "--dataset_name is a JSON, CSV or Parquet file with columns prompt, chosen, rejected (paths of pictures, relative "
    "to the file), a folder with such a metadata.jsonl (chosen_file_name, rejected_file_name), or a Hub id, such as "
    f"one in the format of Pick-a-Pic; {_MODEL}"
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
        return method(self.method).page == "diffusion_preference"


TRAININGS = {
    method(row.method).commands[0]: row
    for row in (
        Training("Diffusion-DPO", _PAIRS, "--dataset_name pairs.jsonl --output_dir trained --use_peft"),
        Training("Inversion-DPO", _PAIRS, "--dataset_name pairs.jsonl --output_dir trained --use_peft"),
        Training("SmPO", _PAIRS, "--dataset_name pairs.jsonl --output_dir trained --use_peft"),
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
    )
}


@dataclass
class PipelineArguments:
    """The pipeline that is trained, its adapter, and the pictures drawn on the way."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Pipeline folder or Hub id; the embedded mini-SD if not given."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a Hub id."})
    variant: str | None = field(default=None, metadata={"help": "Variant of the weight files, such as fp16."})
    dtype: str | None = field(
        default=None,
        metadata={"help": "What the frozen weights are held in.", "choices": ["float32", "bfloat16", "float16"]},
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA in place of all weights of the denoiser."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA."})
    lora_alpha: int | None = field(default=None, metadata={"help": "Scale of the LoRA; its rank if not given."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Layers with a LoRA; the attention projections if not given."}
    )
    sample_prompts: list[str] | None = field(
        default=None, metadata={"help": "Draw these before training, at evaluations and at the end, into samples/."}
    )
    sample_guidance: float | None = field(default=None, metadata={"help": "Guidance of those drawings."})


_PROMPT = field(default=None, metadata={"help": "A single prompt, instead of a dataset: the unconditional case."})
_REWARDS = field(
    default=None,
    metadata={
        "help": "One or more of: `file.py:function`, `package.module:function` (arguments as TRL gives them: "
        "completions, prompts, columns), or the folder or Hub id of a sequence classifier."
    },
)


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the commands. Their words reach `run` unread: TRL's parser for them imports all of TRL."""
    for name, training in TRAININGS.items():
        parser = subparsers.add_parser(name, help=method(training.method).task, add_help=False)

        def keep(args: Sequence[str], namespace: object = None) -> tuple[argparse.Namespace, list[str]]:
            words = [word for word in args if word != "--debug"]
            return argparse.Namespace(func=run, words=words, debug=len(words) < len(args)), []

        parser.parse_known_args = keep


# The arguments that matter first, in the order of the help.
_FIRST = (
    "dataset_name output_dir model_name_or_path use_peft learning_rate num_train_epochs reward_funcs prompt".split()
)


def make_parser(name: str) -> "TrlParser":
    """The parser of a command: the dataset, every field of the trainer's config, the model and adapter, `--config`."""
    import torch
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

    import alignext

    training = TRAININGS[name]
    script: type = ScriptArguments
    if name == "f-dpg":
        own = [("prompt", str | None, _PROMPT), ("reward_funcs", list[str] | None, _REWARDS)]
        script = make_dataclass("FDPGScriptArguments", own, bases=(ScriptArguments,))
    config = getattr(alignext, training.trainer.replace("Trainer", "Config"))
    task = method(training.method).task
    parser = TrlParser(
        (script, config, PipelineArguments if training.draws else ModelConfig, DatasetMixtureConfig),
        prog=f"alignext {name}",
        usage=f"alignext {name} --OPTION VALUE ...",  # a line instead of hundreds
        description=f"{task[0].upper()}{task[1:]}. {training.data}. --config FILE reads the same names from YAML.",
        epilog=f"Example: alignext {name} {training.example}",
        allow_abbrev=False,
    )
    ours = {
        field
        for base in (*config.__mro__, *PipelineArguments.__mro__[: training.draws])
        if base.__module__.startswith("alignext.")
        for field in inspect.get_annotations(base)
    }
    _group(parser, ours, name)
    if not (torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()):
        parser.set_defaults(use_cpu=True, bf16=False)
    return parser


def _group(parser: "TrlParser", ours: set[str], name: str) -> None:
    """Show the arguments that matter first in the help, then those of the method, then all others."""
    rest = parser._optionals
    rest.title = "options of every training"
    first = {action.dest: action for action in rest._group_actions if action.dest in _FIRST}
    own = [a for a in rest._group_actions if a.dest in ours and a.dest not in first]
    groups = {"what matters first": [first[dest] for dest in _FIRST if dest in first], f"options of {name}": own}
    for place, (heading, actions) in enumerate(groups.items()):
        group = parser.add_argument_group(heading)
        for action in actions:
            rest._group_actions.remove(action)
            group._group_actions.append(action)
        parser._action_groups.insert(place, parser._action_groups.pop())


def parse(name: str, words: Sequence[str]) -> tuple:
    """
    The dataclasses of a command's words.

    Raises:
        ValueError: An option, or a key of the YAML file, does not exist; with the nearest one that does.
        OSError: There is no such YAML file.
    """
    parser = make_parser(name)
    if "--config" in words[:-1] and not Path(path := words[words.index("--config") + 1]).is_file():
        raise FileNotFoundError(f"--config {path} is no file.")
    *parsed, in_yaml, in_words = parser.parse_args_and_config(
        args=list(words), return_remaining_strings=True, separate_remaining_strings=True
    )
    known = [option for option in parser._option_string_actions if option.startswith("--")]
    for found, where in ((in_words, ""), (in_yaml, " in --config")):
        for word in found:
            if word.startswith("--"):
                word = word.partition("=")[0]
                raise ValueError(
                    f"There is no option {word.removeprefix('--' if where else '')}{where}{nearest(word, known)}"
                )
        if found:
            raise ValueError(f"{found[0]!r} belongs to no option. Values with spaces stand in quotes.")
    return tuple(parsed)


def run(args: argparse.Namespace) -> None:
    """Train, save, and say how to load the result."""
    script, config, model, mixture = parse(args.command, args.words)
    training = TRAININGS[args.command]
    rewards = {}
    if args.command == "f-dpg":
        if not script.reward_funcs:
            raise ValueError("There is no reward. Pass --reward_funcs, such as rewards.py:dragon.")
        rewards = {"reward_funcs": [reward(name) for name in script.reward_funcs]}
    check_trackers(config)
    if training.draws:
        data = load_pairs(script, mixture)
    elif args.command == "f-dpg" and script.prompt is not None:
        data = prompt_rows(script, mixture)
    else:
        data = load_rows(script, mixture, example=training.example.split()[1])
    data = splits(data, script, config, mixture)
    if config.use_cpu:
        print("Training on the CPU.", flush=True)
    import alignext

    trainer_class = getattr(alignext, training.trainer)
    if training.draws:
        trainer = trainer_class(load_pipeline(model), args=config, peft_config=lora_config(model), **data)
        if model.sample_prompts:
            sheets = alignext.SampleGridCallback(trainer, model.sample_prompts, guidance_scale=model.sample_guidance)
            trainer.add_callback(sheets)
    else:
        if args.command == "process-reward":
            model.lora_task_type = "TOKEN_CLS"  # TRL's default is a task without head
        trainer = trainer_class(args=config, **rewards, **data, **model_arguments(model, config))
    train(trainer)
    if config.push_to_hub:
        # The Hub refuses a card that names a local file or folder.
        local = training.draws or (script.dataset_name is not None and Path(script.dataset_name).exists())
        trainer.push_to_hub(**({} if local else {"dataset_name": script.dataset_name}))
    trainer.accelerator.print(f"Saved. Load it with:\n{loading(training, trainer, model)}")
    if not training.draws:
        trainer.end()


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
        return function_of(name, name="--reward_funcs")
    file_of(name, "config.json", "adapter_config.json", name="--reward_funcs", what="sequence classifier")
    return name


def model_arguments(model: Any, config: Any) -> dict[str, Any]:
    """`model`, `peft_config` and `quantization_config` of a trainer; what else the model needs goes into `config`."""
    from trl import get_peft_config, get_quantization_config

    from alignext import mini

    config.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    } | (config.model_init_kwargs or {})
    if model.model_name_or_path:
        file_of(
            model.model_name_or_path,
            "config.json",
            "adapter_config.json",
            name="--model_name_or_path",
            what="language model",
            revision=model.model_revision,
        )
    return {
        "model": model.model_name_or_path or str(mini.path("lm")),
        "quantization_config": get_quantization_config(model),
        "peft_config": get_peft_config(model),
    }


def load_pipeline(args: PipelineArguments) -> Any:
    """The pipeline to train."""
    import torch
    from diffusers import DiffusionPipeline

    from alignext import mini

    if args.model_name_or_path:
        stock_class(args.model_name_or_path, name="--model_name_or_path", revision=args.model_revision)
    return DiffusionPipeline.from_pretrained(
        args.model_name_or_path or mini.path("sd"),
        revision=args.model_revision,
        variant=args.variant,
        dtype=getattr(torch, args.dtype or "float32"),
    )


def lora_config(args: PipelineArguments) -> Any:
    """The adapter asked for; the trainer fills in the layers."""
    if not args.use_peft:
        return None
    from peft import LoraConfig

    alpha = args.lora_r if args.lora_alpha is None else args.lora_alpha
    return LoraConfig(r=args.lora_r, lora_alpha=alpha, target_modules=args.lora_target_modules)


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
