# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""MAH-DPO: one model with two heads."""

import re
import tempfile

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext import MAHDPOConfig, MAHDPOTrainer, mini
from alignext.demos.charts import Chart
from alignext.demos.gallery import Section, Table, print_table
from alignext.demos.stories import SPEECH, beginnings, curve, quieten, settings, speaks, tell
from alignext.demos.verdicts import shares, verdict


_HAPPY = set("happy smiled smile laughed fun love loved excited proud glad joy hugged good nice".split())


def demo(*, seed: int, steps: int | None) -> list[Section]:
    """One model with two heads, and what it tells with weight on either.

    Args:
        seed (`int`): Seed of the training and of the stories.
        steps (`int`, *optional*): Optimizer steps of the training; 40 if not given.
    """
    steps, folder = steps or 40, mini.path("lm")
    base, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    known = beginnings("Tom", "Lily", "Ben", "Mia", "Sam", "Anna", "Max", "Sue")
    told = [tell(base, tokenizer, known, seed + k) for k in range(8)]
    pairs = _pairs({beginning: stories for beginning, *stories in zip(known, *told, strict=True)})
    print(f"MAH-DPO: {steps} steps on {len(pairs)} pairs of two objectives", flush=True)
    with tempfile.TemporaryDirectory() as output:
        arguments = settings(output, seed, steps, per_device_train_batch_size=8, learning_rate=1e-4)
        trainer = MAHDPOTrainer(
            str(folder),
            args=MAHDPOConfig(**arguments),
            train_dataset=Dataset.from_list(pairs),
            processing_class=tokenizer,
            # The backbone by an adapter, which leaves more to the heads.
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
        )
        quieten(trainer)
        trainer.train()
    model, new = trainer.model.eval(), beginnings("Amy", "Bob", "Jane", "Leo")
    shown, measured, hits = [], [], []
    for share in (1.0, 0.5, 0.0):
        weights = {"speaks": share, "happy": 1 - share}
        stories = tell(model, tokenizer, 8 * new, seed, objective_weights=weights)
        hits.append([[rule(story) for story in stories] for rule in _RULES.values()])
        measured.append([f"{share:g} / {1 - share:g}", *(sum(each) / len(stories) for each in hits[-1])])
        shown.append([story.strip() for story in stories[:16:2]])
    told = [
        verdict(
            f"stories with {name}",
            f"all weight on it ({first})",
            "none",
            shares(one, none),
            f"{len(one)} stories each",
        )
        for name, first, one, none in (
            ("speech", measured[0][0], hits[0][0], hits[-1][0]),
            ("happiness", measured[-1][0], hits[-1][1], hits[0][1]),
        )
    ]
    names = " / ".join(_RULES)
    measures = Table(
        [f"weights {names}", "share that speaks", "share that is happy"],
        measured,
        caption=f"Of {8 * len(new)} stories for each row of weights, whose names were in no pair.",
        verdict=" ".join(told),
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
                    ["beginning", *(f"{names} {row[0]}" for row in measured)],
                    [list(row) for row in zip(new[::2], *shown, strict=True)],
                    caption="Told with the same random numbers, and not selected. Speech and happy words are marked.",
                    mark=rf"{SPEECH}|\b(?:{'|'.join(sorted(_HAPPY))})\b",
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
