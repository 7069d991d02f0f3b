# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Guided decoding on the embedded story model: what it costs against a plain loop, and what it does to stories.

    python benchmarks/guided_decoding.py            # both parts, about five minutes on one CPU core
    python benchmarks/guided_decoding.py --part cost

Writes `results/guided-decoding-cost.json` and `results/guided-decoding-effect.json`, a Markdown table beside each.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
)

from alignext import guided_generate, mini
from alignext.decoding.boundaries import sentence_boundary
from alignext.rewards.process import ProcessReward
from common import (
    RESULTS,
    about,
    by_turns,
    clock_of,
    example,
    interval,
    median,
    now,
    parser,
    ratios,
    shown,
    table,
    table_of,
    write,
)


tales = example("process_reward")  # its stories, rule and training
MODEL = str(mini.path("lm"))
SETTINGS = {"num_candidates": 5, "max_new_tokens": 60}


def models(device: str) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(MODEL).eval().to(device)
    return model, AutoTokenizer.from_pretrained(MODEL)


# Cost


class SentenceEnds(StoppingCriteria):
    def __init__(self, tokenizer: Any, start: int) -> None:
        self.tokenizer, self.start = tokenizer, start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        step = input_ids[0, self.start :]
        ends = len(step) >= 8 and sentence_boundary(self.tokenizer.decode(step, skip_special_tokens=True))
        return torch.tensor([ends], device=input_ids.device)


def plain_loop(
    model: Any, tokenizer: Any, prompts: list[str], reward: ProcessReward, num_candidates: int, max_new_tokens: int
) -> list[list[int]]:
    """The same in the plainest way: one prompt and one candidate at a time, each read and scored from the start."""
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt).input_ids
        start, steps = len(ids), []
        while len(ids) - start < max_new_tokens and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
            options = []
            for _ in range(num_candidates):
                sequence = model.generate(
                    input_ids=torch.tensor([ids], device=model.device),
                    attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
                    do_sample=True,
                    top_k=50,
                    max_new_tokens=max_new_tokens - (len(ids) - start),
                    stopping_criteria=StoppingCriteriaList([SentenceEnds(tokenizer, len(ids))]),
                )[0].tolist()
                text = tokenizer.decode(sequence, skip_special_tokens=True)
                step = text[len(tokenizer.decode(ids, skip_special_tokens=True)) :]
                options.append((reward([prompt], steps=[[*steps, step]]).item(), step, sequence))
            _, step, ids = max(options, key=lambda option: option[0])
            steps.append(step)
        found.append(ids[start:])
    return found


@contextmanager
def counted(*modules: torch.nn.Module) -> Iterator[list[int]]:
    """Tokens that each module reads, padding included."""
    tokens = [0] * len(modules)

    def counter(i: int):
        def hook(module: Any, args: tuple, kwargs: dict) -> None:
            tokens[i] += kwargs["input_ids"].numel()

        return hook

    hooks = [m.register_forward_pre_hook(counter(i), with_kwargs=True) for i, m in enumerate(modules)]
    try:
        yield tokens
    finally:
        for hook in hooks:
            hook.remove()


def cost(rounds: int, device: str) -> dict:
    """Medians over rounds in which both ways take turns. Per kept token, for the texts are not equally long."""
    model, tokenizer = models(device)
    torch.manual_seed(0)
    scorer = AutoModelForTokenClassification.from_pretrained(MODEL, num_labels=1).to(device)
    reward = ProcessReward(scorer, tokenizer)

    def run(way: Any, prompts: list[str], seeds: Iterator[int]) -> dict:
        torch.manual_seed(next(seeds))
        with counted(model, scorer) as tokens:
            start = now(device)
            ids = way(model, tokenizer, prompts, reward, **SETTINGS)
            seconds = now(device) - start
        kept = sum(map(len, ids if isinstance(ids, list) else ids.token_ids))
        return {
            "ms per token": 1000 * seconds / kept,
            "read by the model": tokens[0] / kept,
            "read by the reward": tokens[1] / kept,
        }

    rows, ways = [], {"plain loop": plain_loop, "guided_generate": guided_generate}
    for number in (1, 4):
        prompts = tales.beginnings(tales.HELD_OUT_NAMES)[:number]
        found = by_turns({name: partial(run, way, prompts, count()) for name, way in ways.items()}, rounds)
        base = [each["ms per token"] for each in found["plain loop"]]
        for name, each in found.items():
            row: dict[str, Any] = {"prompts": number, "way": name}
            row |= {key: round(median(one[key] for one in each), 2) for key in each[0]}
            ratio = median(ratios([one["ms per token"] for one in each], base))
            rows.append(row | {"time ratio": round(ratio, 3)})
    return {"rounds": rounds, **SETTINGS, "table": rows}


# Effect


@torch.no_grad()
def surprise(model: Any, tokenizer: Any, prompts: list[str], stories: list[str]) -> list[float]:
    """Nats per token of each story under the model that told it: what guidance moves away from."""
    values = []
    for prompt, story in zip(prompts, stories, strict=True):
        start = len(tokenizer(prompt).input_ids)
        ids = torch.tensor([tokenizer(f"{prompt} {story.strip()}").input_ids], device=model.device)
        logps = model(ids).logits[0, :-1].float().log_softmax(-1).gather(-1, ids[0, 1:, None])
        values.append(-logps[start - 1 :].mean().item())
    return values


def trained_reward(model: Any, tokenizer: Any) -> ProcessReward:
    """As the example trains it with its defaults."""
    stories = 4 * tales.beginnings(tales.TRAIN_NAMES)
    data = tales.solutions(model, tokenizer, stories, 0, SETTINGS["max_new_tokens"])
    with tempfile.TemporaryDirectory() as folder:
        return tales.train_reward(folder, MODEL, data, 48, 1e-4)


def effect(folder: str | None, repeats: int, device: str) -> dict:
    """Stories of names that no training prompt has, told in several ways from the same beginnings."""
    model, tokenizer = models(device)
    tokens = SETTINGS["max_new_tokens"]
    if folder is None:
        reward = trained_reward(model, tokenizer)
    else:
        reward = ProcessReward.from_pretrained(folder, device_map=device)
    stories = 2 * tales.beginnings(tales.HELD_OUT_NAMES)
    ranks = tales.accuracy(reward, tales.solutions(model, tokenizer, stories, 1, tokens))
    prompts = repeats * tales.beginnings(tales.HELD_OUT_NAMES)

    def guided(**settings: Any) -> list[str]:
        generator = torch.Generator(model.device).manual_seed(2)
        return guided_generate(model, tokenizer, prompts, reward, generator=generator, **SETTINGS | settings).texts

    def rule(completions: list[str], **kwargs: Any) -> list[float]:
        return [float(tales.balance(text, tales.RULE)) for text in completions]

    def by_the_rule() -> list[str]:
        generator = torch.Generator(model.device).manual_seed(2)
        return guided_generate(model, tokenizer, prompts, rule, generator=generator, **SETTINGS).texts

    ways = {
        "sampled": lambda: tales.tell(model, tokenizer, prompts, 2, tokens),
        "guided, 5 candidates a sentence": guided,
        "best of 5 whole stories": lambda: guided(boundary="reply", max_step_tokens=tokens),
        "guided by the rule itself": by_the_rule,
    }
    rows: list[dict[str, Any]] = []
    base = None
    for name, way in ways.items():
        told = way()
        pleasant = [float(tales.is_pleasant(story)) for story in told]
        others = [float(tales.balance(story, tales.OTHERS)) for story in told]
        nats = surprise(model, tokenizer, prompts, told)
        base = base or (pleasant, others)
        gain = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip((pleasant, others), base, strict=True)]
        rows.append(
            {
                "stories": name,
                "pleasant by the rule": interval(pleasant),
                "gain": interval(gain[0]),
                "other pleasant words": interval(others),
                "gain of those": interval(gain[1]),
                "nats per token": interval(nats),
            }
        )
        print(rows[-1], flush=True)
    return {
        "prompts": len(prompts),
        "pleasant above other held-out stories after their first, middle, last step": ranks,
        "table": rows,
    }


def draw(result: dict, file: Path) -> None:
    """Both measures of the effect part with their intervals, if matplotlib is there."""
    try:
        from matplotlib import pyplot
    except ImportError:
        return
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 2.2), sharey=True, layout="constrained")
    names = [row["stories"] for row in result["table"]]
    for axis, key in zip(axes, ("pleasant by the rule", "other pleasant words"), strict=True):
        means, lows, highs = zip(*(row[key] for row in result["table"]), strict=True)
        below, above = ([abs(end - mean) for end, mean in zip(ends, means, strict=True)] for ends in (lows, highs))
        axis.barh(names, means, xerr=(below, above), color="#4477aa", ecolor="#222222", capsize=3)
        axis.set_title(key, fontsize=10)
    axes[0].invert_yaxis()  # shared: the first row of the table on top
    figure.savefig(file, dpi=150)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--part", choices=("cost", "effect"), help="one part only (default: both)")
    options.add_argument("--reward", help="folder that examples/process_reward.py wrote; trained anew if not given")
    options.add_argument("--repeats", type=int, default=3, help="stories of each of 32 beginnings")
    options.add_argument("--rounds", type=int, default=3, help="rounds of the cost part")
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    args = options.parse_args()
    made = about(args.device, "transformers")
    if args.part != "effect":
        found = cost(args.rounds, args.device)
        text = (
            f"Per kept token: {clock_of(args.device)}, and tokens read, padding included; medians of {args.rounds} "
            f"rounds by turns, ratios within a round.\n\n{table_of(found['table'])}"
        )
        write("guided-decoding-cost", "Guided decoding: cost", made, found, text)
    if args.part != "cost":
        found = effect(args.reward, args.repeats, args.device)
        first, *measures = found["table"][0]
        rows = ([row[first], *(shown(row[key], ".3f") for key in measures)] for row in found["table"])
        text = f"Means and 95 % intervals of a bootstrap over stories.\n\n{table([first, *measures], rows)}"
        write("guided-decoding-effect", "Guided decoding: effect", made, found, text)
        draw(found, RESULTS / "guided-decoding-effect.png")


if __name__ == "__main__":
    main()
