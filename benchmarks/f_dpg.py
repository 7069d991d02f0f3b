# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The cost of a step of f-DPG against a step of RLOO with a KL term, on the embedded story model.

    python benchmarks/f_dpg.py
    python benchmarks/f_dpg.py --device cuda

Both sample the same completions (same seed, a learning rate that moves nothing). Writes `results/f-dpg-cost.json`,
with a Markdown table beside it. What the training does is measured by `benchmarks/f_dpg_effect.py`.
"""

import argparse
import json
import resource
import tempfile
from functools import partial

import torch
from datasets import Dataset
from trl import RLOOConfig, RLOOTrainer

from alignext import FDPGConfig, FDPGTrainer, mini
from common import StepTimes, about, by_turns, clock_of, compared, in_own_process, median, parser, table_of, write


SAMPLES, TOKENS = 32, 16


def length(completions: list[str], **kwargs: object) -> list[float]:
    return [len(text) / 10 for text in completions]


RUNS = {
    "RLOOTrainer, beta 0.5": (RLOOTrainer, RLOOConfig, {"disable_dropout": True}),
    "FDPGTrainer, js": (FDPGTrainer, FDPGConfig, {"divergence": "js"}),
    "FDPGTrainer, reverse_kl": (FDPGTrainer, FDPGConfig, {"divergence": "reverse_kl"}),
    "FDPGTrainer, js, adaptive proposal": (FDPGTrainer, FDPGConfig, {"divergence": "js", "proposal": "adaptive"}),
}


def one_run(name: str, steps: int, device: str) -> dict:
    """Run in a process of its own, for the peak memory is that of the process."""
    trainer_class, config, settings = RUNS[name]
    times = StepTimes(device)
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
    return {"seconds": median(times.seconds[2:]), "peak_mib": peak}


def cost(rounds: int, steps: int, device: str) -> dict:
    words = ("--steps", steps, "--device", device)
    runs = {name: partial(in_own_process, __file__, "--one-run", name, *words) for name in RUNS}
    found = by_turns(runs, rounds)
    seconds = {name: [result["seconds"] for result in results] for name, results in found.items()}
    base, rows = next(iter(RUNS)), []
    for name, results in found.items():
        time = compared(seconds[name], seconds[base])
        row = {"trainer": name, "seconds": time["median"], "seconds_ratio": time["ratio"], "range": time["range"]}
        rows.append(row | {"peak_mib": round(median(result["peak_mib"] for result in results), 1)})
    return {
        "rounds": rounds,
        "steps_a_round": steps,
        "samples_a_step": SAMPLES,
        "tokens_a_sample": TOKENS,
        "all": found,
        "table": rows,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--one-run", choices=RUNS, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.one_run:
        print(json.dumps(one_run(args.one_run, args.steps, args.device)))
        return
    result = cost(args.rounds, args.steps, args.device)
    text = (
        f"A step of {SAMPLES} samples of {TOKENS} tokens, {clock_of(args.device)}: medians of {args.rounds} runs by "
        f"turns, ratios to the first row within a turn.\n\n{table_of(result['table'])}"
    )
    name = "f-dpg-cost" + ("" if args.device == "cpu" else "-cuda")
    write(name, "f-DPG: cost", about(args.device, "transformers", "trl"), result, text)


if __name__ == "__main__":
    main()
