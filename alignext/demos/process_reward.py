# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Guided decoding: stories of the embedded model, sentence by sentence."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext import guided_generate, mini
from alignext.decoding.guided import GuidedStep
from alignext.demos.charts import Chart
from alignext.demos.gallery import Section, Table, print_table
from alignext.demos.stories import SPEECH, beginnings
from alignext.demos.verdicts import shares, verdict


def demo(*, seed: int, steps: int | None) -> list[Section]:
    """Stories of the embedded model, guided towards characters that speak.

    Args:
        seed (`int`): Draws the stories.
        steps (`int`, *optional*): Sentences of a story at most; 4 if not given.
    """

    def speech(completions: list[str], **kwargs: object) -> list[int]:
        return [text.count('"') for text in completions]

    model = AutoModelForCausalLM.from_pretrained(mini.path("lm"))
    tokenizer = AutoTokenizer.from_pretrained(mini.path("lm"))
    prompts = beginnings("Tom", "Lily")
    told = {
        count: guided_generate(
            model,
            tokenizer,
            prompts,
            speech,
            num_candidates=count,
            max_steps=steps or 4,
            max_step_tokens=30,
            generator=torch.Generator().manual_seed(seed),
        )
        for count in (1, 5)
    }
    talks = {count: sum('"' in text for text in output.texts) for count, output in told.items()}
    found = shares(*(['"' in text for text in told[count].texts] for count in (5, 1)))
    measures = Table(
        ["candidates for a sentence", "quotation marks a story", f"of {len(prompts)} stories, somebody speaks in"],
        [
            [count, sum(text.count('"') for text in output.texts) / len(prompts), talks[count]]
            for count, output in told.items()
        ],
        caption="One candidate is the model as it is.",
        verdict=verdict(
            "stories in which somebody speaks", "five candidates", "one", found, f"{len(prompts)} stories each"
        ),
    )
    print_table(measures)
    rows = [
        [step.text.strip(), *(f"{score:g}" for score in step.scores)] for step in told[5].steps[0] if step.text.strip()
    ]
    return [
        Section(
            title="Guided decoding: sentence by sentence",
            text="Several candidates for every sentence, the reward of the story with each, and the sentence that was "
            "kept. The reward counts quotation marks; a trained process reward takes its place.",
            charts=[
                Chart(
                    "The reward grows with the story",
                    "sentence",
                    f"reward so far, mean of {len(prompts)} stories",
                    {f"{count} candidate{'s' * (count > 1)}": _course(output.steps) for count, output in told.items()},
                )
            ],
            tables=[
                measures,
                Table(
                    ["kept", *(f"candidate {i}" for i in range(1, 6))],
                    rows,
                    caption=f"A story sentence by sentence, with the reward of each candidate. It begins with: "
                    f"{prompts[0]}",
                    mark=SPEECH,
                ),
                Table(
                    ["beginning", "one candidate", "five candidates"],
                    [[p, *(told[count].texts[k].strip() for count in (1, 5))] for k, p in enumerate(prompts)],
                    "All stories. Speech is marked.",
                    mark=SPEECH,
                ),
            ],
        )
    ]


def _course(steps: list[list["GuidedStep"]]) -> list[tuple[float, float]]:
    """After each sentence, the mean reward of the stories; one that has ended keeps what it had."""
    kept = [[step.scores[step.chosen] for step in story] for story in steps if story]
    longest = max(map(len, kept), default=0)
    return [(k + 1, sum(s[min(k, len(s) - 1)] for s in kept) / len(kept)) for k in range(longest)]
