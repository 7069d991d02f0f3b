# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext mah-dpo`: train a language model for several objectives, a head each."""

import argparse
import re
import tempfile
from typing import TYPE_CHECKING

from alignext.cli.training import (
    add_command,
    beginnings,
    command_parser,
    curve,
    demo_settings,
    load_rows,
    model_arguments,
    quieten,
    speaks,
    splits,
    tell,
    train_and_save,
)
from alignext.methods import method


if TYPE_CHECKING:
    from trl import TrlParser

    from alignext.cli.gallery import Section

_HAPPY = set("happy smiled smile laughed fun love loved excited proud glad joy hugged good nice".split())


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext mah-dpo`."""
    add_command(subparsers, "mah-dpo", method("MAH-DPO").task, run)


def make_parser() -> "TrlParser":
    """The parser: the dataset, every field of `MAHDPOConfig`, the model and adapter, `--config FILE`."""
    from trl import ModelConfig, ScriptArguments

    from alignext import MAHDPOConfig

    return command_parser(
        "mah-dpo",
        ScriptArguments,
        MAHDPOConfig,
        ModelConfig,
        description="Train a language model for several objectives at once, with one output head for each. "
        "--dataset_name is a JSON, CSV or Parquet file, a folder or a Hub id with columns prompt, chosen, rejected, "
        "objective; the model is the embedded one unless --model_name_or_path names another. `alignext generate` then "
        "mixes the heads.",
        example="--dataset_name preferences.jsonl --output_dir trained --use_cpu --bf16 false",
    )


def run(args: argparse.Namespace) -> None:
    """Train, save, and say how to load the result."""
    script, config, model, mixture = make_parser().parse_args_and_config(args=args.words)
    from alignext import MAHDPOTrainer

    data = splits(load_rows(script, mixture, example="preferences.jsonl"), script, config)
    trainer = MAHDPOTrainer(args=config, **data, **model_arguments(model, config))
    weights = ",".join(f"{name}=1" for name in trainer.objectives)
    train_and_save(
        trainer,
        script,
        model,
        "  from alignext import AutoModelForCausalLMWithObjectiveHeads\n"
        f"  AutoModelForCausalLMWithObjectiveHeads.from_pretrained({config.output_dir!r})\n"
        "Let it write:\n"
        f"  alignext generate --model {config.output_dir} --objective-weights {weights} --prompt ...",
    )


def demo(*, seed: int, steps: int | None) -> list["Section"]:
    """One model with two heads, and what it tells with weight on either.

    Args:
        seed (`int`): Seed of the training and of the stories.
        steps (`int`, *optional*): Optimizer steps of the training; 24 if not given.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alignext import MAHDPOConfig, MAHDPOTrainer, mini
    from alignext.cli.charts import Chart
    from alignext.cli.gallery import Section, Table, print_table

    steps, folder = steps or 24, mini.path("lm")
    base, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    known = beginnings("Tom", "Lily", "Ben", "Mia", "Sam", "Anna", "Max", "Sue")
    told = [tell(base, tokenizer, known, seed + k) for k in range(8)]
    pairs = _pairs({beginning: stories for beginning, *stories in zip(known, *told, strict=True)})
    print(f"MAH-DPO: {steps} steps on {len(pairs)} pairs of two objectives", flush=True)
    with tempfile.TemporaryDirectory() as output:
        settings = demo_settings(output, seed, steps, per_device_train_batch_size=8, learning_rate=1e-4)
        trainer = MAHDPOTrainer(
            str(folder),
            args=MAHDPOConfig(**settings),
            train_dataset=Dataset.from_list(pairs),
            processing_class=tokenizer,
            # The backbone by an adapter, which leaves more to the heads.
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
        )
        quieten(trainer)
        trainer.train()
    model, new = trainer.model.eval(), beginnings("Amy", "Bob", "Jane", "Leo")
    shown, measured = [], []
    for share in (1.0, 0.75, 0.5, 0.25, 0.0):
        weights = {"speaks": share, "happy": 1 - share}
        stories = tell(model, tokenizer, 4 * new, seed, objective_weights=weights)
        shares = [sum(map(rule, stories)) / len(stories) for rule in _RULES.values()]
        measured.append([f"{share:g} / {1 - share:g}", *shares])
        shown.append([measured[-1][0], *(story.strip() for story in stories[:2])])
    names = " / ".join(_RULES)
    measures = Table(
        [f"weights {names}", "share that speaks", "share that is happy"],
        measured,
        caption=f"Of {4 * len(new)} stories for each row of weights, whose names were in no pair. A share is right to "
        "about 0.06.",
    )
    print_table(measures)
    return [
        Section(
            title="MAH-DPO: one model, a head for each objective",
            text="Pairs of the story model's own stories, for two objectives: that somebody speaks, and that somebody "
            "is happy. They train one output head for each, on a shared backbone. The weights of the heads are chosen "
            "when the model writes, so that all points of the trade-off are one model.",
            charts=[
                Chart(
                    "Each head learns its objective",
                    "optimizer step",
                    "reward margin, mean of the batch",
                    {name: curve(trainer, f"{name}/rewards/margins") for name in _RULES},
                ),
                Chart(
                    "The trade-off",
                    "share of stories in which somebody speaks",
                    "share in which somebody is happy",
                    {"weights": [(row[1], row[2]) for row in measured]},
                    labels={"weights": [row[0] for row in measured]},
                    caption=f"Labels are the weights, {names}.",
                ),
            ],
            tables=[
                measures,
                Table(
                    [f"weights {names}", *new[:2]],
                    shown,
                    caption="Told with the same random numbers, and not selected.",
                ),
            ],
        )
    ]


def _pairs(told: dict[str, list[str]]) -> list[dict[str, str]]:
    """For each objective, stories with the same beginning of which only the chosen one follows its rule."""
    return [
        {"prompt": beginning, "chosen": good, "rejected": bad, "objective": name}
        for name, follows in _RULES.items()
        for beginning, stories in told.items()
        for good, bad in zip(filter(follows, stories), (s for s in stories if not follows(s)), strict=False)
    ]


def _is_happy(story: str) -> bool:
    return not _HAPPY.isdisjoint(re.findall("[a-z]+", story.lower()))


_RULES = {"speaks": speaks, "happy": _is_happy}
