# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Guided decoding on the embedded story model: what it costs against a plain loop, and what it does to stories.

    python benchmarks/guided_decoding.py            # both parts, about five minutes on one CPU core
    python benchmarks/guided_decoding.py --part cost

Writes `results/guided-decoding-cost.json` and `results/guided-decoding-effect.json`, a Markdown table beside each.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
)

from alignext import guided_generate, mini
from alignext.models.boundaries import sentence_boundary
from alignext.models.process_reward import ProcessReward


HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
example = import_module("process_reward")  # its stories, rule and training

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

    def count(i: int):
        def hook(module: Any, args: tuple, kwargs: dict) -> None:
            tokens[i] += kwargs["input_ids"].numel()

        return hook

    hooks = [m.register_forward_pre_hook(count(i), with_kwargs=True) for i, m in enumerate(modules)]
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
    clock = time.process_time if device == "cpu" else time.perf_counter

    def run(way: Any, prompts: list[str], seed: int) -> dict:
        torch.manual_seed(seed)
        with counted(model, scorer) as tokens:
            start = clock()
            ids = way(model, tokenizer, prompts, reward, **SETTINGS)
            seconds = clock() - start
        kept = sum(map(len, ids if isinstance(ids, list) else ids.token_ids))
        return {
            "ms per token": 1000 * seconds / kept,
            "read by the model": tokens[0] / kept,
            "read by the reward": tokens[1] / kept,
        }

    table = []
    for count in (1, 4):
        prompts = example.beginnings(example.HELD_OUT_NAMES)[:count]
        runs: dict[str, list[dict]] = {"plain loop": [], "guided_generate": []}
        for seed in range(rounds):
            for name, way in (("plain loop", plain_loop), ("guided_generate", guided_generate)):
                runs[name].append(run(way, prompts, seed))
        for name, rows in runs.items():
            row: dict[str, Any] = {"prompts": count, "way": name}
            for key in rows[0]:
                row[key] = round(statistics.median(r[key] for r in rows), 2)
            times = [r["ms per token"] / o["ms per token"] for r, o in zip(rows, runs["plain loop"], strict=True)]
            table.append(row | {"time ratio": round(statistics.median(times), 3)})
            print(table[-1], flush=True)
    return {"rounds": rounds, **SETTINGS, "table": table}


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


def interval(values: list[float]) -> str:
    """Mean and half of the 95% interval."""
    return f"{statistics.mean(values):.3f} ± {1.96 * statistics.stdev(values) / len(values) ** 0.5:.3f}"


def trained_reward(model: Any, tokenizer: Any) -> ProcessReward:
    """As the example trains it with its defaults."""
    stories = 4 * example.beginnings(example.TRAIN_NAMES)
    data = example.solutions(model, tokenizer, stories, 0, SETTINGS["max_new_tokens"])
    with tempfile.TemporaryDirectory() as folder:
        return example.train_reward(folder, MODEL, data, 48, 1e-4)


def effect(folder: str | None, repeats: int, device: str) -> dict:
    """Stories of names that no training prompt has, told in several ways from the same beginnings."""
    model, tokenizer = models(device)
    tokens = SETTINGS["max_new_tokens"]
    if folder is None:
        reward = trained_reward(model, tokenizer)
    else:
        reward = ProcessReward.from_pretrained(folder, device_map=device)
    stories = 2 * example.beginnings(example.HELD_OUT_NAMES)
    ranks = example.accuracy(reward, example.solutions(model, tokenizer, stories, 1, tokens))
    prompts = repeats * example.beginnings(example.HELD_OUT_NAMES)

    def guided(**settings: Any) -> list[str]:
        generator = torch.Generator(model.device).manual_seed(2)
        return guided_generate(model, tokenizer, prompts, reward, generator=generator, **SETTINGS | settings).texts

    def rule(completions: list[str], **kwargs: Any) -> list[float]:
        return [float(example.balance(text, example.RULE)) for text in completions]

    def by_the_rule() -> list[str]:
        generator = torch.Generator(model.device).manual_seed(2)
        return guided_generate(model, tokenizer, prompts, rule, generator=generator, **SETTINGS).texts

    ways = {
        "sampled": lambda: example.tell(model, tokenizer, prompts, 2, tokens),
        "guided, 5 candidates a sentence": guided,
        "best of 5 whole stories": lambda: guided(boundary="reply", max_step_tokens=tokens),
        "guided by the rule itself": by_the_rule,
    }
    table, base = [], None
    for name, way in ways.items():
        told = way()
        pleasant = [float(example.is_pleasant(story)) for story in told]
        others = [float(example.balance(story, example.OTHERS)) for story in told]
        nats = surprise(model, tokenizer, prompts, told)
        base = base or (pleasant, others)
        gain = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip((pleasant, others), base, strict=True)]
        table.append(
            {
                "stories": name,
                "pleasant by the rule": interval(pleasant),
                "gain": interval(gain[0]),
                "other pleasant words": interval(others),
                "gain of those": interval(gain[1]),
                "nats per token": interval(nats),
            }
        )
        print(table[-1], flush=True)
    return {
        "prompts": len(prompts),
        "pleasant above other held-out stories after their first, middle, last step": ranks,
        "table": table,
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
        means, halves = zip(*(map(float, row[key].split(" ± ")) for row in result["table"]), strict=True)
        axis.barh(names, means, xerr=halves, color="#4477aa", ecolor="#222222", capsize=3)
        axis.set_title(key, fontsize=10)
    axes[0].invert_yaxis()  # shared: the first row of the table on top
    figure.savefig(file, dpi=150)


def write(name: str, result: dict, device: str) -> None:
    """The result as JSON, and its table as Markdown."""
    machine = {
        "device": device,
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result | {"machine": machine}, indent=2) + "\n")
    header = list(result["table"][0])
    lines = [header, ["---"] * len(header)] + [[str(row[key]) for key in header] for row in result["table"]]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    (folder / f"{name}.md").write_text(text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("cost", "effect"), help="one part only (default: both)")
    parser.add_argument("--reward", help="folder that examples/process_reward.py wrote; trained anew if not given")
    parser.add_argument("--repeats", type=int, default=3, help="stories of each of 32 beginnings")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the cost part")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    if args.part != "effect":
        write("guided-decoding-cost", cost(args.rounds, args.device), args.device)
    if args.part != "cost":
        result = effect(args.reward, args.repeats, args.device)
        write("guided-decoding-effect", result, args.device)
        draw(result, HERE / "results" / "guided-decoding-effect.png")


if __name__ == "__main__":
    main()
