# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext mah-dpo`: train a language model for several objectives, a head each."""

import argparse
import re
import tempfile
from typing import TYPE_CHECKING

from alignext.cli.training import (
    add_command,
    beginnings,
    curve,
    demo_settings,
    load_rows,
    model_arguments,
    quieten,
    splits,
    tell,
    train_and_save,
)


if TYPE_CHECKING:
    from trl import TrlParser

    from alignext.cli.gallery import Section

# Of the demo: beginnings, and for each objective an ending that follows it and one that does not.
_BEGINNINGS = [
    f"One day, {name} {did}" for name in ("Tom", "Lily", "Ben", "Mia") for did in ("was at home.", "got up.")
]
_ENDINGS = {
    "speaks": (' "Hello!" said Mom. "Do you want to play?"', " The day was long and nothing happened at all."),
    "outdoors": (" The sun was up. A bird sat in the big tree.", " The room was dark. A box lay under the bed."),
}


_OUTDOORS = set("tree trees sun sky flower flowers grass garden park forest bird birds river hill outside".split())


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext mah-dpo`."""
    add_command(subparsers, "mah-dpo", "train a language model for several objectives", run)


def make_parser() -> "TrlParser":
    """The parser: the dataset, every field of `MAHDPOConfig`, the model and adapter, `--config FILE`."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

    from alignext import MAHDPOConfig

    return TrlParser(
        (ScriptArguments, MAHDPOConfig, ModelConfig, DatasetMixtureConfig),
        prog="alignext mah-dpo",
        description="Train a language model for several objectives at once, with one output head for each. "
        "--dataset_name is a JSON, CSV or Parquet file, a folder or a Hub id with columns prompt, chosen, rejected, "
        "objective; the model is the embedded one unless --model_name_or_path names another. --config FILE reads the "
        "same names from YAML. `alignext generate` then mixes the heads.",
        epilog="Example: alignext mah-dpo --dataset_name preferences.jsonl --output_dir trained --use_cpu",
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
        steps (`int`, *optional*): Optimizer steps of the training; 12 if not given.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer

    from alignext import MAHDPOConfig, MAHDPOTrainer, mini
    from alignext.cli.charts import Chart
    from alignext.cli.gallery import Section, Table, print_table

    rows = [
        {"prompt": beginning, "chosen": good, "rejected": bad, "objective": objective}
        for objective, (good, bad) in _ENDINGS.items()
        for beginning in _BEGINNINGS
    ]
    steps, model_folder = steps or 12, str(mini.path("lm"))
    print(f"MAH-DPO: {steps} steps on {len(rows)} pairs of two objectives", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        config = MAHDPOConfig(**demo_settings(folder, seed, steps, per_device_train_batch_size=8, learning_rate=1e-4))
        trainer = MAHDPOTrainer(model_folder, args=config, train_dataset=Dataset.from_list(rows))
        quieten(trainer)
        trainer.train()
    model, tokenizer = trainer.model.eval(), AutoTokenizer.from_pretrained(model_folder)
    new = beginnings("Amy", "Bob", "Jane", "Leo")
    told, measured = [], []
    for share in (1.0, 0.75, 0.5, 0.25, 0.0):
        weights = {"speaks": share, "outdoors": 1 - share}
        stories = tell(model, tokenizer, 4 * new, seed, objective_weights=weights)
        shares = [sum(map(rule, stories)) / len(stories) for rule in _RULES.values()]
        measured.append([f"{share:g} / {1 - share:g}", *shares])
        told.append([measured[-1][0], *(story.strip() for story in stories[:2])])
    names = " / ".join(_RULES)
    measures = Table(
        [f"weights {names}", *(f"share that {name}" for name in ("speaks", "is outdoors"))],
        measured,
        caption=f"Of {4 * len(new)} stories for each row of weights, whose beginnings were in no pair. A share "
        "is right to about 0.06.",
    )
    print_table(measures)
    return [
        Section(
            title="MAH-DPO: one model, a head for each objective",
            text="A language model was trained on pairs of two objectives, that somebody speaks and that a story is "
            "outdoors, with one output head for each on a shared backbone. The weights are chosen when it writes: the "
            "plot on the right is one model.",
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
                    "share of stories outdoors",
                    {"weights": [(row[1], row[2]) for row in measured]},
                    labels={"weights": [row[0] for row in measured]},
                    caption=f"Labels are the weights, {names}.",
                ),
            ],
            tables=[
                measures,
                Table(
                    [f"weights {names}", *new[:2]],
                    told,
                    caption="Told with the same random numbers, and not selected.",
                ),
            ],
        )
    ]


def _speaks(story: str) -> bool:
    return '"' in story


def _is_outdoors(story: str) -> bool:
    return not _OUTDOORS.isdisjoint(re.findall("[a-z]+", story.lower()))


_RULES = {"speaks": _speaks, "outdoors": _is_outdoors}
