# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext f-dpg`: move a language model towards a target distribution."""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alignext.cli.arguments import function_of
from alignext.cli.training import (
    add_command,
    command_parser,
    curve,
    demo_settings,
    load_rows,
    model_arguments,
    quieten,
    splits,
    train_and_save,
)
from alignext.methods import method


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from trl import DatasetMixtureConfig, TrlParser

    from alignext import FDPGTrainer
    from alignext.cli.gallery import Section


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext f-dpg`."""
    add_command(subparsers, "f-dpg", method("f-DPG").task, run)


def make_parser() -> "TrlParser":
    """The parser of the command: prompts, rewards, every field of `FDPGConfig`, the model, `--config FILE`."""
    from trl import ModelConfig, ScriptArguments

    from alignext import FDPGConfig

    @dataclass
    class FDPGScriptArguments(ScriptArguments):
        prompt: str | None = field(
            default=None, metadata={"help": "A single prompt, instead of a dataset: the unconditional case."}
        )
        reward_funcs: list[str] | None = field(
            default=None,
            metadata={
                "help": "One or more of: `file.py:function`, `package.module:function` (arguments as TRL gives them: "
                "completions, prompts, columns), or the folder or Hub id of a sequence classifier."
            },
        )

    return command_parser(
        "f-dpg",
        FDPGScriptArguments,
        FDPGConfig,
        ModelConfig,
        description="Move a language model towards a target: where a reward is large (--target exponential), where a "
        "constraint holds (binary), or where moments have given values (distributional). --dataset_name is a JSON, "
        "CSV or Parquet file, a folder or a Hub id with a column prompt; the model is the embedded one unless "
        "--model_name_or_path names another.",
        example="--prompt 'Once upon a time' --reward_funcs rewards.py:dragon --target binary "
        "--output_dir trained --use_cpu --bf16 false",
    )


def run(args: argparse.Namespace) -> None:
    """Train, save, and say how to load the result."""
    script, config, model, mixture = make_parser().parse_args_and_config(args=args.words)
    if not script.reward_funcs:
        raise ValueError("There is no reward. Pass --reward_funcs, such as rewards.py:dragon.")
    rewards = [reward(name) for name in script.reward_funcs]
    from alignext import FDPGTrainer

    data = splits(_prompts(script, mixture), script, config)
    trainer = FDPGTrainer(reward_funcs=rewards, args=config, **data, **model_arguments(model, config))
    train_and_save(trainer, script, model)


def reward(name: str) -> Callable | str:
    """The function that `file.py:function` or `module:function` names; a model's id is left as it is."""
    return function_of(name, name="--reward_funcs") if ":" in name or name.endswith(".py") else name


def _prompts(script, mixture: "DatasetMixtureConfig") -> "DatasetDict | dict[str, Dataset]":
    from datasets import Dataset

    if script.prompt is None:
        return load_rows(script, mixture, example="prompts.jsonl")
    if script.dataset_name or mixture.datasets:
        raise ValueError("Both --prompt and a dataset are given. Pass one of them.")
    rows = Dataset.from_list([{"prompt": script.prompt}])
    return {script.dataset_train_split: rows, script.dataset_test_split: rows}


# ------------------------------------------------------------------------------------------------------------- demo

_WORD, _PROMPT = "dog", "Once upon a time"


def demo(*, seed: int, steps: int | None) -> list["Section"]:
    """A constraint that one story in fifteen meets, before and after a short training with two divergences."""
    from alignext.cli.charts import Chart
    from alignext.cli.gallery import Section, Table, print_table

    steps = steps or 8
    rows, told, shares, paths = [], [], {}, {}
    for divergence in ("js", "forward_kl"):
        print(f"f-DPG with {divergence}, {steps} steps", flush=True)
        found, trainer = _constrain(
            divergence, seed, steps, names=[divergence] if rows else ["initial model", divergence]
        )
        rows += [each["measures"] for each in found]
        told += [story for each in found for story in each["stories"]]
        shares[divergence] = curve(trainer, "features/tells/policy")
        moved = dict(curve(trainer, "divergence/kl_policy_base"))
        paths[divergence] = [(moved[step], share) for step, share in shares[divergence] if step in moved]
    measures = Table(
        ["model", f"tells of a {_WORD}", "KL(pi, a) in nats", "self-BLEU-5", "distinct-2"],
        rows,
        caption="Over 64 stories each, so that the share is right to about 0.1. Self-BLEU grows as the stories become "
        "alike; distinct-2 falls as they repeat themselves.",
    )
    print_table(measures)
    share = f"share that tells of a {_WORD}"
    return [
        Section(
            f"f-DPG: every story tells of a {_WORD}",
            f"The target is the initial story model where its stories contain the word, and nothing else: the nearest "
            f"distribution that meets the constraint. The model approaches it from its own samples of {_PROMPT!r}, "
            "with two divergences whose optimum is the same. So few steps are a beginning; the documentation has "
            "longer runs with more targets and divergences.",
            charts=[
                Chart("Towards the constraint", "optimizer step", share, shares),
                Chart(
                    "The trade-off",
                    "KL(pi, a) in nats: how far from the initial model",
                    share,
                    paths,
                    caption="The same steps. Further up at the same distance is better. Each point is estimated from "
                    "the 64 samples of its step.",
                ),
            ],
            tables=[measures, Table(["model", "story"], told, caption=f"Begun with {_PROMPT!r}, and not selected.")],
        )
    ]


def _constrain(divergence: str, seed: int, steps: int, names: list[str]) -> "tuple[list[dict], FDPGTrainer]":
    """What the embedded model tells before and after the training, as far as named, and the trainer."""
    from datasets import Dataset

    from alignext import FDPGConfig, FDPGTrainer, mini

    def tells(completions: list[str], **kwargs: object) -> list[float]:
        return [float(_WORD in text.split()) for text in completions]

    class Evaluated(FDPGTrainer):
        last: list[str] = []

        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            Evaluated.last = completions
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    rows = Dataset.from_list([{"prompt": _PROMPT}])
    with tempfile.TemporaryDirectory() as folder:
        config = FDPGConfig(
            **demo_settings(
                folder,
                seed,
                steps,
                target="binary",
                divergence=divergence,
                learning_rate=2e-5,
                warmup_steps=1,
                num_generations=64,
                per_device_train_batch_size=64,
                per_device_eval_batch_size=64,
                max_completion_length=16,
                log_diversity=True,
            )
        )
        trainer = Evaluated(str(mini.path("lm")), tells, config, rows)
        quieten(trainer)
        found = []
        for name in names:
            if name == divergence:
                trainer.train()
            metrics = trainer.evaluate(rows)
            keys = "features/tells/policy divergence/kl_policy_base diversity/self_bleu_5 diversity/distinct_2".split()
            values = [metrics[f"eval_{key}"] for key in keys]
            stories = [[name, " ".join(text.split())] for text in Evaluated.last[:3]]
            found.append({"measures": [name, *values], "stories": stories})
    return found, trainer
