# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""BCO against KTO on the embedded story model: the cost of a step, and what the training does.

    python benchmarks/bco.py            # both parts, about ten minutes on one CPU core
    python benchmarks/bco.py --part cost

Writes `results/bco-cost.json` and `results/bco-effect.json`, with a Markdown table beside each.
"""

import argparse
import copy
import json
import resource
import tempfile
from functools import partial

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import KTOConfig, KTOTrainer

from alignext import BCOConfig, BCOTrainer, mini
from common import StepTimes, about, by_turns, compared, example, in_own_process, median, parser, table_of, write


stories = example("bco")
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


def trained(trainer: type, config: type, data: Dataset, steps: int, **settings: object) -> tuple:
    """The model after training, and the seconds of the steps."""
    times, more = StepTimes("cpu"), {k: settings.pop(k) for k in ("prompt_embedder",) if k in settings}
    with tempfile.TemporaryDirectory() as folder:
        args = config(folder, max_steps=steps, **COMMON | settings)
        run = trainer(model=MODEL, args=args, train_dataset=data, callbacks=[times], **more)
        run.train()
    return run.model.eval(), times.seconds


COST = {
    "KTOTrainer, apo_zero_unpaired": (KTOTrainer, KTOConfig, {"loss_type": "apo_zero_unpaired"}),
    "BCOTrainer": (BCOTrainer, BCOConfig, {}),
    "KTOTrainer, kto": (KTOTrainer, KTOConfig, {"loss_type": "kto"}),
}


def one_cost_run(name: str, steps: int) -> dict:
    """Run in a process of its own, for the peak memory is that of the process."""
    trainer, config, settings = COST[name]
    rows = [
        {"prompt": "One day, a boy went out.", "completion": " He ran. He sang." * 4, "label": i % 2 == 0}
        for i in range(16 * steps)
    ]
    _, seconds = trained(trainer, config, Dataset.from_list(rows), steps, **settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": median(seconds[2:]), "peak_mib": peak}


def cost(rounds: int, steps: int) -> dict:
    # Given back at once, freed memory does not count: the peak is then that of what is in use, not of the allocator.
    frugal = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}

    def run(name: str) -> tuple[float, float]:
        words = (__file__, "--one-run", name, "--steps", steps)
        return in_own_process(*words)["seconds"], in_own_process(*words, **frugal)["peak_mib"]

    found = by_turns({name: partial(run, name) for name in COST}, rounds)
    seconds, peak = ({name: [pair[i] for pair in pairs] for name, pairs in found.items()} for i in (0, 1))
    base = next(iter(COST))
    rows = []
    for name in COST:
        time, memory = compared(seconds[name], seconds[base]), compared(peak[name], peak[base])
        row = {"trainer": name, "seconds": time["median"], "seconds_ratio": time["ratio"], "range": time["range"]}
        rows.append(row | {"peak_mib": memory["median"], "peak_mib_ratio": memory["ratio"]})
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


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--part", choices=("cost", "effect"), help="one part only (default: both)")
    options.add_argument("--steps", type=int, default=36, help="optimizer steps of the effect part")
    options.add_argument("--learning-rate", type=float, default=5e-5)
    options.add_argument("--rounds", type=int, default=5, help="rounds of the cost part")
    options.add_argument("--one-run", choices=COST, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.one_run:
        print(json.dumps(one_cost_run(args.one_run, args.steps)))
        return
    made = about("cpu", "transformers", "trl")
    if args.part != "effect":
        found = cost(args.rounds, steps=12)
        text = (
            f"Processor time of a step of {found['rows_a_step']} rows and peak memory of the process: medians of "
            f"{args.rounds} runs by turns, ratios to the first row within a turn.\n\n{table_of(found['table'])}"
        )
        write("bco-cost", "BCO: cost", made, found, text)
    if args.part != "cost":
        found = effect(args.steps, args.learning_rate)
        text = (
            f"{found['steps']} steps. Accuracy: implicit, on {found['held_out']} held-out stories. Speaks: share "
            f"of new stories in which somebody does.\n\n{table_of(found['table'])}"
        )
        write("bco-effect", "BCO: effect", made, found, text)


if __name__ == "__main__":
    main()
