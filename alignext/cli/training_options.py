# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What the commands that train are told: TRL's parser over dataclasses, and the model that it names."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignext.cli.arguments import file_of, stock_class
from alignext.signatures import nearest


if TYPE_CHECKING:
    from trl import TrlParser


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


_PROCESSES = field(default=1, metadata={"help": "Processes that share the training, such as one for each GPU here."})
_PROMPT = field(default=None, metadata={"help": "A single prompt, instead of a dataset: the unconditional case."})
_REWARDS = field(
    default=None,
    metadata={
        "help": "One or more of: `file.py:function`, `package.module:function` (arguments as TRL gives them: "
        "completions, prompts, columns), or the folder or Hub id of a sequence classifier."
    },
)


_PICTURE_PROMPTS = field(default=None, metadata={"help": "Prompts, in place of a dataset."})
_PICTURE_REWARDS = field(
    default=None,
    metadata={
        "help": "One or more of: aesthetic, brightness, clip, compressibility, concept, dynamics, hps, "
        "incompressibility, pickscore, style, or `file.py:function` or `package.module:function`."
    },
)
_REWARD_MODEL = field(
    default=None, metadata={"help": "Checkpoint for clip, pickscore and aesthetic; the paper's by default."}
)
_REWARD_HEAD = field(default=None, metadata={"help": "Weights of the head of aesthetic."})


# The arguments that matter first, in the order of the help.
_FIRST = (
    "dataset_name output_dir model_name_or_path use_peft learning_rate num_train_epochs reward_funcs prompt".split()
)


def make_parser(name: str, trainer: str, text: str, example: str, *, draws: bool) -> "TrlParser":
    """
    The parser of a command: the dataset, every field of the trainer's config, the model and adapter, `--config`.

    Args:
        name (`str`): Of the command.
        trainer (`str`): Public name of its trainer; the config is named after it.
        text (`str`): What the help says of it.
        example (`str`): Words that follow the name in an example.
        draws (`bool`): Whether it trains a pipeline.
    """
    import torch
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

    import alignext

    own: list = [("num_processes", int, _PROCESSES)]
    if name == "f-dpg":
        own += [("prompt", str | None, _PROMPT), ("reward_funcs", list[str] | None, _REWARDS)]
    elif name in ("alignprop", "ddpo"):
        own += [("prompt", list[str] | None, _PICTURE_PROMPTS), ("reward_funcs", list[str] | None, _PICTURE_REWARDS)]
        own += [("reward_model", str | None, _REWARD_MODEL), ("reward_head", str | None, _REWARD_HEAD)]
    script = make_dataclass("CommandArguments", own, bases=(ScriptArguments,))
    config = getattr(alignext, trainer.replace("Trainer", "Config"))
    parser = TrlParser(
        (script, config, PipelineArguments if draws else ModelConfig, DatasetMixtureConfig),
        prog=f"alignext {name}",
        usage=f"alignext {name} --OPTION VALUE ...",  # a line instead of hundreds
        description=f"{text} --config FILE reads the same names from YAML.",
        epilog=f"Example: alignext {name} {example}",
        allow_abbrev=False,
    )
    ours = {
        field
        for base in (*config.__mro__, *PipelineArguments.__mro__[:draws])
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


def parse(parser: "TrlParser", words: Sequence[str]) -> tuple:
    """
    The dataclasses of a command's words.

    Raises:
        ValueError: An option, or a key of the YAML file, does not exist; with the nearest one that does. Or the file
            is no YAML.
        OSError: There is no such YAML file.
    """
    if "--config" in words[:-1] and not Path(path := words[words.index("--config") + 1]).is_file():
        raise FileNotFoundError(f"--config {path} is no file.")
    from yaml import YAMLError

    try:
        *parsed, in_yaml, in_words = parser.parse_args_and_config(
            args=list(words), return_remaining_strings=True, separate_remaining_strings=True
        )
    except YAMLError as error:
        said = " ".join(str(error).split())
        raise ValueError(f"--config {words[words.index('--config') + 1]} is no YAML: {said}.") from error
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


def picture_rewards(script: Any, dataset: Any, config: Any) -> list[Any]:
    """The rewards that `--reward_funcs` names. A judge has to know the prompts."""
    from datasets import Dataset

    from alignext.rewards.by_name import reward_of

    prompts = list(dict.fromkeys(dataset["prompt"])) if isinstance(dataset, Dataset) else ()
    device = str(config.device)
    return [
        reward_of(
            text,
            name="--reward_funcs",
            prompts=prompts,
            clip=script.reward_model,
            head=script.reward_head,
            device=device,
        )
        for text in script.reward_funcs
    ]


def lora_config(args: PipelineArguments) -> Any:
    """The adapter asked for; the trainer fills in the layers."""
    if not args.use_peft:
        return None
    from peft import LoraConfig

    alpha = args.lora_r if args.lora_alpha is None else args.lora_alpha
    return LoraConfig(r=args.lora_r, lora_alpha=alpha, target_modules=args.lora_target_modules)
