# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Decoding with a reward: what best-of-n, guided decoding, QAlign and Transfer Q* make of the tokens they draw."""

import re
from collections.abc import Set
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext import GuidedDecoding, QAlign, TransferQ, mini
from alignext.decoding.rows import prompt_batch
from alignext.demos.charts import Chart
from alignext.demos.gallery import Section, Table, print_table
from alignext.demos.verdicts import paired, verdict


_JOY = set("happy fun smiled laughed love loved glad proud good nice".split())
_OTHERS = set("excited smile friend friends played hugged kind best wow yay special warm beautiful".split())


def demo(*, seed: int, steps: int | None) -> list[Section]:
    """Stories of the embedded model that a reward pulls towards words of joy.

    Args:
        seed (`int`): Draws the stories.
        steps (`int`, *optional*): Of the chain; 32 if not given.
    """
    steps = steps or 32
    model = AutoModelForCausalLM.from_pretrained(mini.path("lm"))
    tokenizer = AutoTokenizer.from_pretrained(mini.path("lm"))
    prompts = [
        f"One day, {name} {it}."
        for name in ("Amy", "Bob", "Leo", "Jane", "Sam", "Sue")
        for it in ("went out", "saw a dog")
    ]
    batch = prompt_batch(tokenizer, prompts)
    width, rows, counts = batch["input_ids"].shape[1], [], {}

    def generate(ours: Any, **settings: Any) -> Any:
        torch.manual_seed(seed)
        how = {"do_sample": True, "top_k": 50, "max_new_tokens": 32} | settings
        return model.generate(**batch, custom_generate=ours, **how)

    def measured(way: str, budget: str, drawn: float, texts: list[str]) -> None:
        values = [sum(_count(text, words) for text in texts) / len(texts) for words in (_JOY, _OTHERS)]
        rows.append([way, budget, drawn / len(texts), *values, texts[0].strip()])
        counts[way, budget] = [float(_count(text, _JOY)) for text in texts]

    def decoded(out: Any) -> list[str]:
        return tokenizer.batch_decode(out.sequences[:, width:], skip_special_tokens=True)

    half = max(steps // 2, 1)
    out = generate(QAlign(_joy, tokenizer, sampler="independent", num_steps=half - 1, select="all"))
    for n in _doubling(half):
        first = [chain[:n] for chain in out.chains]
        best = [max(chain, key=lambda state: state.reward).text for chain in first]
        measured("best of n", f"n = {n}", sum(state.drawn for chain in first for state in chain), best)
    for count in (2, 5):
        out = generate(GuidedDecoding(_joy, tokenizer, num_candidates=count, max_step_tokens=16))
        drawn = sum(step.num_tokens * len(step.candidates) for text in out.steps for step in text)
        measured("guided decoding", f"{count} candidates", drawn, decoded(out))
    out = generate(QAlign(_joy, tokenizer, beta=0.3, num_steps=steps))
    for n in _doubling(steps):
        drawn = sum(state.drawn for chain in out.chains for state in chain[: n + 1])
        measured("QAlign", f"{n} step{'s' * (n > 1)}", drawn, [chain[n].text for chain in out.chains])
    for commit in (9, 3):
        ours = TransferQ(_joy, tokenizer, k=4, alpha=0.3, rollout_tokens=8, commit_tokens=commit, min_p=0.02)
        out = generate(ours)
        drawn = out.rollout_tokens + sum(int((step >= 0).sum()) for step in out.candidates)
        measured("Transfer Q*", f"{commit} tokens at a time", drawn, decoded(out))
    last = {row[0]: row for row in rows}
    plain, *more = [row for row in rows if row[0] == "best of n"]
    told = []
    for row in last.values():
        against = [("one story", plain)]
        if row[0] != "best of n":
            nearest = min((plain, *more), key=lambda other: abs(other[2] - row[2]))
            against.append((f"best of n ({nearest[1]}, about as many tokens)", nearest))
        told += [
            verdict(
                "words of joy",
                f"{row[0]} ({row[1]})",
                name,
                paired(counts[row[0], row[1]], counts[other[0], other[1]]),
                f"{len(prompts)} stories",
            )
            for name, other in against
        ]
    table = Table(
        ["way", "budget", "tokens drawn a story", "words of joy", "words of another list"],
        [row[:-1] for row in rows],
        caption="Tokens of guided decoding are counted as if all candidates of a sentence were as long as the kept "
        "one.",
        verdict=" ".join(told),
    )
    print_table(table)
    return [
        Section(
            title="Decoding with a reward: four ways to spend tokens",
            text="The reward counts different words of joy in a story of the embedded model. Best-of-n draws whole "
            "stories, guided decoding sentences, QAlign new endings of a story, Transfer Q* looks ahead at every few "
            "tokens. The second list of words is unknown to the reward: it shows what more reward is worth.",
            charts=[
                Chart(
                    title,
                    "tokens drawn a story",
                    f"{title.lower()}, mean of {len(prompts)} stories",
                    {way: [(row[2], row[column]) for row in rows if row[0] == way] for way in last},
                )
                for title, column in (("Words of joy", 3), ("Words of another list", 4))
            ],
            tables=[
                table,
                Table(
                    ["way", "budget", prompts[0]],
                    [[row[0], row[1], row[-1]] for row in last.values()],
                    caption="With the largest budget of each, and not selected. Words of joy are marked.",
                    mark=rf"\b(?:{'|'.join(sorted(_JOY))})\b",
                ),
            ],
        )
    ]


def _count(text: str, words: Set[str]) -> int:
    return len(words & set(re.findall("[a-z]+", text.lower())))


def _joy(completions: list[str], **kwargs: object) -> list[float]:
    return [float(_count(text, _JOY)) for text in completions]


def _doubling(most: int) -> list[int]:
    """1, 2, 4, ... up to a number."""
    return [2**i for i in range(most.bit_length()) if 2**i <= most]
