# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""BCO against KTO on the embedded story model: the cost of a step, and what the training does.

    python benchmarks/bco.py            # both parts, about ten minutes on one CPU core
    python benchmarks/bco.py --part speed

Writes `results/bco-speed.json` and `results/bco-effect.json`, with a Markdown table beside each.
"""

import argparse
import copy
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import KTOConfig, KTOTrainer

from alignext import BCOConfig, BCOTrainer, mini


HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
stories = import_module("bco")  # the example: its data and what it measures

MODEL = str(mini.path("lm"))
COMMON = {
    "per_device_train_batch_size": 16,
    "lr_scheduler_type": "linear",
    "logging_steps": 1000,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
}
BOYS, GIRLS = "Tom Ben Sam Max Jack Tim", "Lily Mia Anna Sue Sara Lucy"


class StepTimes(TrainerCallback):
    """CPU seconds of each optimizer step: other processes on the machine do not count."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        self.start = time.process_time()

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        self.seconds.append(time.process_time() - self.start)


def trained(trainer: type, config: type, data: Dataset, steps: int, **settings: object) -> tuple:
    """The model after training, and the seconds of the steps."""
    times, more = StepTimes(), {k: settings.pop(k) for k in ("prompt_embedder",) if k in settings}
    with tempfile.TemporaryDirectory() as folder:
        args = config(folder, max_steps=steps, **COMMON | settings)
        run = trainer(model=MODEL, args=args, train_dataset=data, callbacks=[times], **more)
        run.train()
    return run.model.eval(), times.seconds


SPEED = {
    "KTOTrainer, apo_zero_unpaired": (KTOTrainer, KTOConfig, {"loss_type": "apo_zero_unpaired"}),
    "BCOTrainer": (BCOTrainer, BCOConfig, {}),
    "KTOTrainer, kto": (KTOTrainer, KTOConfig, {"loss_type": "kto"}),
}


def one_speed_run(name: str, steps: int) -> dict:
    """Run in a process of its own, for the peak memory is that of the process."""
    trainer, config, settings = SPEED[name]
    rows = [
        {"prompt": "One day, a boy went out.", "completion": " He ran. He sang." * 4, "label": i % 2 == 0}
        for i in range(16 * steps)
    ]
    _, seconds = trained(trainer, config, Dataset.from_list(rows), steps, **settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(seconds[2:]), "peak_mib": peak}


def speed(rounds: int, steps: int) -> dict:
    """Medians over runs that take turns, so that what changes on the machine meets all of them."""
    # Given back at once, freed memory does not count: the peak is then that of what is in use, not of the allocator.
    frugal = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}

    def run(name: str, **environment: str) -> dict:
        command = [sys.executable, __file__, "--one-run", name, "--steps", str(steps)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
        return json.loads(answer.stdout.splitlines()[-1])

    seconds: dict[str, list[float]] = {name: [] for name in SPEED}
    peak: dict[str, list[float]] = {name: [] for name in SPEED}
    for _ in range(rounds):
        for name in SPEED:
            seconds[name].append(run(name)["seconds"])
            peak[name].append(run(name, **frugal)["peak_mib"])
    base = next(iter(SPEED))
    rows = []
    for name in SPEED:
        row = {"trainer": name}
        for key, values in (("seconds", seconds), ("peak_mib", peak)):
            row[key] = round(statistics.median(values[name]), 3)
            ratios = [value / other for value, other in zip(values[name], values[base], strict=True)]
            row[f"{key}_ratio"] = round(statistics.median(ratios), 3)
        rows.append(row)
    return {
        "rounds": rounds,
        "steps_a_round": steps,
        "rows_a_step": 16,
        "all": {"seconds": seconds, "peak_mib": peak},
        "table": rows,
    }


def effect(steps: int, learning_rate: float) -> dict:
    """Held-out implicit accuracy and share of new stories in which somebody speaks."""
    base, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL).eval(), AutoTokenizer.from_pretrained(MODEL)
    names = f"{BOYS} {GIRLS}"
    data = stories.thumbs(base, tokenizer, 6 * stories.beginnings(names), seed=0)
    new_prompts = 4 * stories.beginnings("Amy Bob Jane Leo")
    held_out = stories.thumbs(base, tokenizer, new_prompts, seed=1)
    # Of two thirds of the prompts, only one class is kept: up for boys, down for girls.
    both = set(BOYS.split()[:2] + GIRLS.split()[:2])

    def kept(row: dict) -> bool:
        name = row["prompt"].split()[2]
        return name in both or row["label"] == (name in BOYS.split())

    split = data.filter(kept)
    reference = stories.log_probabilities(base, tokenizer, held_out)

    def measure(name: str, model: torch.nn.Module, rows: Dataset | None) -> dict:
        told = stories.tell(model, tokenizer, new_prompts, seed=2)
        rewards = stories.log_probabilities(model, tokenizer, held_out) - reference
        row = {
            "method": name,
            "rows": len(rows) if rows else 0,
            "accuracy": round(stories.accuracy(rewards, held_out["label"]), 3) if rows else None,
            "speaks": round(sum(map(stories.somebody_speaks, told)) / len(told), 3),
            "words": round(sum(len(story.split()) for story in told) / len(told), 1),
        }
        print(row, flush=True)
        return row

    runs = {
        "BCO": (BCOTrainer, BCOConfig, data, {}),
        "BCO, running mean": (BCOTrainer, BCOConfig, data, {"reward_shift": "running_mean"}),
        "BCE (no shift)": (BCOTrainer, BCOConfig, data, {"reward_shift": "none"}),
        "KTO": (KTOTrainer, KTOConfig, data, {"loss_type": "kto"}),
        "KTO, apo_zero_unpaired": (KTOTrainer, KTOConfig, data, {"loss_type": "apo_zero_unpaired"}),
        "split prompts: BCO": (BCOTrainer, BCOConfig, split, {}),
        "split prompts: BCO with UDM": (BCOTrainer, BCOConfig, split, {"udm_embedding": "policy"}),
    }
    table = [measure("start", copy.deepcopy(base), None)]
    for name, (trainer, config, rows, settings) in runs.items():
        up = sum(rows["label"])
        settings |= {"learning_rate": learning_rate, "desirable_weight": (len(rows) - up) / up}
        model, _ = trained(trainer, config, rows, steps, **settings)
        table.append(measure(name, model, rows))
    return {
        "steps": steps,
        "learning_rate": learning_rate,
        "up": sum(data["label"]),
        "held_out": len(held_out),
        "held_out_up": sum(held_out["label"]),
        "table": table,
    }


def write(name: str, result: dict) -> None:
    """The result as JSON, and its table as Markdown."""
    machine = {
        "device": "cpu",
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
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
    parser.add_argument("--part", choices=("speed", "effect"), help="one part only (default: both)")
    parser.add_argument("--steps", type=int, default=36, help="optimizer steps of the effect part")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the speed part")
    parser.add_argument("--one-run", choices=SPEED, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    if args.one_run:
        print(json.dumps(one_speed_run(args.one_run, args.steps)))
        return
    if args.part != "effect":
        write("bco-speed", speed(args.rounds, steps=12))
    if args.part != "speed":
        write("bco-effect", effect(args.steps, args.learning_rate))


if __name__ == "__main__":
    main()
