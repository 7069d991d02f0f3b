# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""BCO: thumbs up for stories in which somebody speaks."""

import tempfile
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext import BCOConfig, BCOTrainer, fade_score, mini
from alignext.demos.charts import Chart
from alignext.demos.gallery import Section, Table, print_table
from alignext.demos.stories import SPEECH, beginnings, curve, quieten, settings, speaks, tell
from alignext.demos.verdicts import moved, shares, verdict


_NEW = ("Amy", "Bob", "Jane", "Leo")
_BATCH = 16


def demo(*, seed: int, steps: int | None) -> list[Section]:
    """Thumbs up for stories in which somebody speaks, thumbs down for the others.

    Args:
        seed (`int`): Seed of the stories and of the training.
        steps (`int`, *optional*): Optimizer steps of the training; 24 if not given.
    """
    steps = steps or 24
    folder = mini.path("lm")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    known, new = beginnings("Tom", "Lily", "Ben", "Mia", "Sam", "Anna", "Max", "Sue"), beginnings(*_NEW)
    rounds = -(-_BATCH * steps // (2 * len(known)))  # every story is seen about twice
    print(f"BCO: {rounds * len(known)} stories to train on, {steps} steps", flush=True)
    rows: list[dict[str, Any]] = [
        {"prompt": prompt, "completion": story, "label": speaks(story)}
        for k in range(rounds)
        for prompt, story in zip(known, tell(model, tokenizer, known, seed + k), strict=True)
    ]
    up = sum(row["label"] for row in rows)
    before = tell(model, tokenizer, 4 * new, seed)
    with tempfile.TemporaryDirectory() as folder:
        config = BCOConfig(
            **settings(
                folder,
                seed,
                steps,
                per_device_train_batch_size=_BATCH,
                learning_rate=1e-4,
                desirable_weight=(len(rows) - up) / max(up, 1),  # both classes weigh the same
            )
        )
        trainer = BCOTrainer(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        quieten(trainer)
        trainer.train()
    after = tell(model.eval(), tokenizer, 4 * new, seed)
    told = {"before": before, "after": after}
    found = shares(*([speaks(story) for story in told[name]] for name in ("after", "before")))
    measures = Table(
        ["stories", "somebody speaks", "words a story"],
        [
            [name, sum(map(speaks, stories)) / len(stories), sum(len(s.split()) for s in stories) / len(stories)]
            for name, stories in told.items()
        ],
        caption=f"Shares and means over {len(before)} new stories, whose names were in none of those trained on.",
        verdict=verdict("stories in which somebody speaks", "after", "before", found, f"{len(before)} stories each"),
    )
    print_table(measures)
    base = AutoModelForCausalLM.from_pretrained(mini.path("lm"))
    moved_by = fade_score(
        model, base, new[:4], tokenizer, num_samples=4, max_new_tokens=24, seed=seed, batch_size=16, progress=False
    )
    distance = Table(
        ["direction", "nats a story", "standard error"],
        [
            ["what the base tells and the trained model does not", *moved_by.forward[:2]],
            ["what the trained model tells and the base does not", *moved_by.reverse[:2]],
        ],
        caption="FADE: how far the training has moved the model, over 16 beginnings of 24 tokens from each.",
        verdict=moved("What the trained model tells and the base does not", moved_by.reverse[:2], "16 stories"),
    )
    print_table(distance)
    rewards = {name: curve(trainer, f"rewards/{name}") for name in ("chosen", "rejected")}
    return [
        Section(
            "BCO: stories with a thumb up, stories with a thumb down",
            f"The story model told {len(rows)} stories. Those in which somebody speaks ({up}) got a thumb up, the "
            "others a thumb down. No story belongs to another one: these are single completions, not pairs.\n\n"
            "The implicit reward of a story is how much more likely the training has made it, times beta. BCO makes "
            "it the logit of a classifier of the two kinds, with the shift delta between them.",
            charts=[
                Chart(
                    "The two kinds part",
                    "optimizer step",
                    "implicit reward, mean of the batch",
                    {
                        "thumb up": rewards["chosen"],
                        "thumb down": rewards["rejected"],
                        "delta": curve(trainer, "delta"),
                    },
                ),
                Chart(
                    "How many are on the right side",
                    "optimizer step",
                    "share of the batch",
                    {"on the right side of delta": curve(trainer, "rewards/accuracies")},
                    caption="Of the stories that are trained on.",
                ),
            ],
            tables=[
                measures,
                distance,
                Table(
                    ["beginning", "before", "after"],
                    [[new[k], before[k].strip(), after[k].strip()] for k in range(0, len(new), len(new) // 8)],
                    caption="Told with the same random numbers before and after, and not selected. Speech is marked.",
                    mark=SPEECH,
                ),
            ],
        )
    ]
