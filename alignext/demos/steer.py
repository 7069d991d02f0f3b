# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Steering: stories of the embedded model pushed towards happiness and away from it, and which tokens were moved."""

from collections.abc import Collection
from statistics import fmean

from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext import fit_steering, mini
from alignext.demos.charts import Chart
from alignext.demos.gallery import Section, Table, print_table
from alignext.demos.stories import tell
from alignext.demos.verdicts import paired, verdict
from alignext.steering import SteeringVector, trace_html, trace_steering
from alignext.steering.trace import color_scale


_HAPPENINGS = ("Lily went to the park.", "Tom had a red ball.", "One day a dog ran away.", "Mia saw a cat.")
_ENDINGS = {
    "She was so happy and smiled.": "She was so sad and cried.",
    "It was a wonderful day full of joy.": "It was a terrible day full of tears.",
    "They laughed and hugged.": "They fought and left.",
    "He loved it.": "He hated it.",
}
_HAPPY, _SAD = (
    set("happy smiled laughed fun love loved joy good".split()),
    set("sad cried tears hate bad hurt".split()),
)
_STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)


def demo(*, seed: int, steps: int | None) -> list[Section]:
    """
    Stories of the embedded model along a direction from sad to happy endings.

    Args:
        seed (`int`): Draws the stories.
        steps (`int`, *optional*): Stories for each strength; 8 if not given.
    """
    model = AutoModelForCausalLM.from_pretrained(mini.path("lm"))
    tokenizer = AutoTokenizer.from_pretrained(mini.path("lm"))
    pairs = [
        {"prompt": prompt, "positive": happy, "negative": sad}
        for prompt in _HAPPENINGS
        for happy, sad in _ENDINGS.items()
    ]
    vector = fit_steering(model, tokenizer, pairs, layers=3, progress=False)
    assert isinstance(vector, SteeringVector)
    names = ("Ben", "Anna", "Sam", "Sue", "Max", "Lucy", "Jack", "Sara")
    prompts = [f"One day, {name} found a big box." for name in names[: steps or 8]]
    rows, balance, told = [], {}, {}
    for alpha in _STRENGTHS:
        with vector.apply(model, "swfc", alpha):
            told[alpha] = tell(model, tokenizer, prompts, seed)
        counts = [[_count(text, kind) for text in told[alpha]] for kind in (_HAPPY, _SAD)]
        rows.append([alpha, *map(fmean, counts), told[alpha][0].strip()])
        balance[alpha] = [float(happy - sad) for happy, sad in zip(*counts, strict=True)]
    measures = Table(
        ["strength", "happy words a story", "sad words a story", "the first story"],
        rows,
        caption=f"SwFC at layer 3, {len(prompts)} stories for each strength. 0 is the model as it is.",
        verdict=verdict(
            "happy minus sad words",
            "strength 2",
            "the model as it is",
            paired(balance[2.0], balance[0.0]),
            f"{len(prompts)} stories",
        ),
    )
    print_table(measures)
    traces = [
        trace_steering(model, tokenizer, vector, prompts[0] + told[alpha][0], "stmp", 1.0) for alpha in (-2.0, 2.0)
    ]
    middle, scale = color_scale(traces, vector)
    return [
        Section(
            title="Steering: stories up and down",
            text="One direction in the model's states, fitted to sixteen pairs of happy and sad endings, is added "
            "while stories are written. Nothing is trained.\n\nBelow, a story from each end, token by token: blue "
            "lies on the happy side of the boundary, orange on the sad side. Underlined are the tokens that StMP, "
            "which steers what lies below the boundary only, would move.",
            charts=[
                Chart(
                    "Happier with the strength",
                    "strength",
                    "happy minus sad words a story",
                    {"stories": [(alpha, fmean(values)) for alpha, values in balance.items()]},
                )
            ],
            tables=[measures],
            passages=[trace_html(trace, middle, scale) for trace in traces],
            commands=["alignext steer fit --model MODEL --pairs pairs.jsonl --out vectors  # on yours"],
        )
    ]


def _count(text: str, kind: Collection[str]) -> int:
    return sum(word.strip('.,!?"').lower() in kind for word in text.split())
