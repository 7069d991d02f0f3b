# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What several heads cost: a training step against DPO's, decoding against the plain model, memory of the heads.

    python benchmarks/mah_dpo.py               # about two minutes on one CPU core
    python benchmarks/mah_dpo.py --part decode
    python benchmarks/mah_dpo.py --device cuda

Writes `results/mah_dpo.json` and `.md`. Ratios are medians over rounds in which all candidates take turns; on a CPU
the seconds are those of the process, so that other processes do not count. `mah_dpo_effect.py` has the effect.
"""

import argparse
import contextlib
import copy
import functools
import gc
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
from trl import DPOConfig, DPOTrainer

from alignext import AutoModelForCausalLMWithObjectiveHeads, MAHDPOConfig, MAHDPOTrainer, mini
from alignext.models.objective_heads import ObjectiveHeads


MODEL = str(mini.path("lm"))
NAMES = ["first", "second", "third"]
RESULT = Path(__file__).parent / "results" / "mah_dpo.json"
SHAPES = {"Qwen2.5-7B": (152064, 3584), "Llama-3.1-8B": (128256, 4096), "Qwen2.5-0.5B": (151936, 896)}


def seconds(function: Callable[[], object], device: str) -> float:
    """Of the process on a CPU, of the clock on an accelerator."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def take_turns(candidates: dict[str, Callable[[], object]], rounds: int, device: str) -> list[dict]:
    """Medians, and ratios to the first candidate within each round; the first round warms up."""
    measured: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, function in candidates.items():
            gc.collect()
            value = seconds(function, device)
            if turn:
                measured[name].append(value)
    base = measured[next(iter(candidates))]
    return [
        {
            "what": name,
            "seconds": round(statistics.median(values), 4),
            "ratio": round(statistics.median(v / b for v, b in zip(values, base, strict=True)), 3),
            "all": [round(value, 4) for value in values],
        }
        for name, values in measured.items()
    ]


def trainer(head_type: str | None, folder: str, device: str, lora: LoraConfig | None) -> Trainer:
    """One that is ready for a step of 12 pairs, four of each objective."""
    story = " He ran to the big tree. He saw a bird. He was happy."
    rows = [
        {"prompt": "One day, a boy went out.", "chosen": story * 2, "rejected": story[::-1], "objective": NAMES[i % 3]}
        for i in range(12)
    ]
    data = Dataset.from_list(rows)
    common = {
        "per_device_train_batch_size": 12,
        "activation_checkpointing": False,
        "report_to": "none",
        "use_cpu": device == "cpu",
        "bf16": device != "cpu",
    }
    if head_type is None:
        plain = data.remove_columns("objective")
        return DPOTrainer(MODEL, args=DPOConfig(folder, **common), train_dataset=plain, peft_config=lora)
    config = MAHDPOConfig(folder, objectives=NAMES, head_type=head_type, **common)
    return MAHDPOTrainer(MODEL, args=config, train_dataset=data, peft_config=lora)


def training(rounds: int, device: str, lora: LoraConfig | None = None) -> tuple[list[dict], list[dict]]:
    """Steps in turn, and the bytes that the heads took."""
    steps: dict[str, Callable[[], object]] = {}
    memory = []
    kinds = {
        "DPOTrainer": None,
        "MAHDPOTrainer, 3 full heads": "full",
        "MAHDPOTrainer, 3 heads of rank 64": "low_rank",
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, head_type in kinds.items():
            run = trainer(head_type, folder, device, lora)
            batch = next(iter(run.get_train_dataloader()))
            run.create_optimizer()
            run.current_gradient_accumulation_steps = 1  # which `train` sets

            def step(run: Trainer = run, batch: dict = batch) -> None:
                run.model.train()
                run.training_step(run.model, batch)
                run.optimizer.step()
                run.optimizer.zero_grad(set_to_none=False)

            steps[name] = step
            step()
            if head_type is not None:
                heads = [p for n, p in run.model.named_parameters() if "objective_heads" in n and p.requires_grad]
                tensors = [t for p in heads for t in (p, p.grad, *run.optimizer.state[p].values())]
                total = sum(t.numel() * t.element_size() for t in tensors)
                memory.append(
                    {"model": f"embedded story model, {head_type}, measured", "MiB a head": total / 3 / 2**20}
                )
        table = take_turns(steps, rounds, device)
    for name, (vocabulary, width) in SHAPES.items():
        for head_type in ("full", "low_rank"):
            settings = {"objectives": ["one"], "head_type": head_type, "rank": 64, "alpha": 64}
            with torch.device("meta"):
                heads = ObjectiveHeads(settings, vocabulary, width, bias=False)
            numbers = sum(p.numel() for p in heads.parameters())
            # float32 weight, gradient and the two moments of Adam
            memory.append(
                {"model": f"{name}, {head_type}, {numbers / 1e6:.1f}M numbers", "MiB a head": 16 * numbers / 2**20}
            )
    return table, [{**row, "MiB a head": round(row["MiB a head"], 1)} for row in memory]


def decoding(rounds: int, device: str) -> list[dict]:
    """Greedy stories of 64 tokens for a batch of 8 prompts."""
    plain = AutoModelForCausalLM.from_pretrained(MODEL).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    batch = tokenizer(["Once upon a time"] * 8, return_tensors="pt").to(device)
    settings = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False}
    candidates = {"plain model": lambda: plain.generate(**batch, **settings)}
    stack = contextlib.ExitStack()
    by_row = torch.eye(3)[torch.arange(8) % 3] * 0.6 + 0.2
    for head_type in ("full", "low_rank"):
        model = AutoModelForCausalLMWithObjectiveHeads.from_pretrained(MODEL, NAMES, head_type=head_type)
        model = model.to(device).eval()

        def folded(model: torch.nn.Module = model) -> None:
            model.generate(**batch, **settings, objective_weights=[0.5, 0.3, 0.2])

        def rows(model: torch.nn.Module = model) -> None:
            model.generate(**batch, **settings, objective_weights=by_row)

        def before(model: torch.nn.Module = model) -> None:
            model.generate(**batch, **settings)  # within the context below

        if head_type == "full":
            again = copy.deepcopy(model)
            stack.enter_context(again.mixed_heads([0.5, 0.3, 0.2]))
            candidates["3 full heads, folded before the call"] = functools.partial(before, again)
        candidates[f"3 {head_type} heads, folded at the call"] = folded
        candidates[f"3 {head_type} heads, weights by row"] = rows
    with stack:
        return take_turns(candidates, rounds, device)


def markdown(rows: list[dict]) -> str:
    header = [key for key in rows[0] if key != "all"]
    lines = [header, ["---"] * len(header)] + [[str(row[key]) for key in header] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("train", "decode"), help="one part only (default: both)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if args.part != "decode":
        result["step of 12 pairs"], result["memory"] = training(args.rounds, args.device)
        lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
        result["step of 12 pairs, LoRA backbone"], _ = training(args.rounds, args.device, lora)
    if args.part != "train":
        result["decoding"] = decoding(args.rounds, args.device)
    result["machine"] = {
        "device": args.device,
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "rounds": args.rounds,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    text = "\n".join(f"{name}\n\n{markdown(rows)}" for name, rows in result.items() if name != "machine")
    RESULT.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
