# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The cost of a step of f-DPG against a step of RLOO with a KL term, on the embedded story model.

    python benchmarks/f_dpg.py
    python benchmarks/f_dpg.py --device cuda

Both sample the same completions (same seed, a learning rate that moves nothing). Writes `results/f-dpg-cost.json`,
with a Markdown table beside it. What the training does is measured by `benchmarks/f_dpg_effect.py`.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset
from transformers import TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from alignext import FDPGConfig, FDPGTrainer, mini


HERE = Path(__file__).parent
SAMPLES, TOKENS = 32, 16


def length(completions: list[str], **kwargs: object) -> list[float]:
    return [len(text) / 10 for text in completions]


RUNS = {
    "RLOOTrainer, beta 0.5": (RLOOTrainer, RLOOConfig, {"disable_dropout": True}),
    "FDPGTrainer, js": (FDPGTrainer, FDPGConfig, {"divergence": "js"}),
    "FDPGTrainer, reverse_kl": (FDPGTrainer, FDPGConfig, {"divergence": "reverse_kl"}),
    "FDPGTrainer, js, adaptive proposal": (FDPGTrainer, FDPGConfig, {"divergence": "js", "proposal": "adaptive"}),
}


class StepTimes(TrainerCallback):
    """Seconds of each optimizer step, its sampling included: of the processor on a CPU, so that other processes do not
    count; else by the clock, the device done with its work."""

    def __init__(self, cpu: bool) -> None:
        self.seconds: list[float] = []
        self.cpu = cpu

    def now(self) -> float:
        if self.cpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        self.start = self.now()

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        self.seconds.append(self.now() - self.start)


def one_run(name: str, steps: int, device: str) -> dict:
    """Run in a process of its own, for the peak memory is that of the process."""
    trainer_class, config, settings = RUNS[name]
    times = StepTimes(device == "cpu")
    with tempfile.TemporaryDirectory() as folder:
        args = config(
            folder,
            max_steps=steps,
            beta=0.5,
            num_generations=16,
            per_device_train_batch_size=SAMPLES,
            max_completion_length=TOKENS,
            learning_rate=1e-9,
            logging_steps=1000,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=device == "cpu",
            bf16=device != "cpu",
            activation_checkpointing=False,
            **settings,
        )
        data = Dataset.from_list([{"prompt": f"One day, {who} was"} for who in ("Tom", "Lily", "Ben", "Mia")])
        trainer = trainer_class(str(mini.path("lm")), length, args, data, callbacks=[times])
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device != "cpu":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return {"seconds": statistics.median(times.seconds[2:]), "peak_mib": peak}


def cost(rounds: int, steps: int, device: str) -> dict:
    """Medians over runs that take turns, so that what changes on the machine meets all of them."""

    def run(name: str) -> dict:
        command = [sys.executable, __file__, "--one-run", name, "--steps", str(steps), "--device", device]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(answer.stdout.splitlines()[-1])

    found: dict[str, list[dict]] = {name: [] for name in RUNS}
    for _ in range(rounds):
        for name in RUNS:
            found[name].append(run(name))
            print(name, found[name][-1], flush=True)
    base = found[next(iter(RUNS))]
    rows = []
    for name, results in found.items():
        row: dict = {"trainer": name}
        for key in ("seconds", "peak_mib"):
            row[key] = round(statistics.median(result[key] for result in results), 3)
        ratios = [result["seconds"] / other["seconds"] for result, other in zip(results, base, strict=True)]
        row["seconds_ratio"] = round(statistics.median(ratios), 3)
        row["ratios"] = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append(row)
    return {
        "rounds": rounds,
        "steps_a_round": steps,
        "samples_a_step": SAMPLES,
        "tokens_a_sample": TOKENS,
        "all": found,
        "table": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--one-run", choices=RUNS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    if args.one_run:
        print(json.dumps(one_run(args.one_run, args.steps, args.device)))
        return
    result = cost(args.rounds, args.steps, args.device)
    result["machine"] = {
        "device": args.device,
        "processor": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }
    folder = HERE / "results"
    (folder / "f-dpg-cost.json").write_text(json.dumps(result, indent=2) + "\n")
    header = list(result["table"][0])
    lines = [header, ["---"] * len(header)] + [[str(row[key]) for key in header] for row in result["table"]]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    (folder / "f-dpg-cost.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
