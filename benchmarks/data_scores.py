# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What scoring rows costs, as ratios to the training that they are scored for.

    python benchmarks/data_scores.py   # a few minutes on one CPU core

On the embedded model, the same rows by turns: CHES against one DPO step and against the log-probabilities of the
reference, which `precompute_ref_log_probs` computes; GIST and LESS against plain cosines and one step of supervised
training, all of a LoRA. Peak memory is that of all tensors alive. Writes `results/data-scores.json` and `.md`.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from alignext import add_ches_scores, add_gradient_scores, mini
from common import PeakBytes, about, clock_of, compared, parser, seconds, table, write


MODEL, ROWS = str(mini.path("lm")), 8
NAMES = ("Tom", "Lily", "Ben", "Mia", "Sam", "Anna", "Max", "Sue")
CHOSEN = " He was happy and smiled, and they played with the ball all day until it was time to go home."
REJECTED = " It was cold and the rain came down, so everybody ran to the house and closed the big door."


def settings(folder: str, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": ROWS,
        "per_device_eval_batch_size": ROWS,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "disable_tqdm": True,
        "max_steps": 1,
        "logging_steps": 100,
        "optim": "adamw_torch",
        **more,
    }


def lora() -> Any:
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL), config)


def measured(
    contenders: dict[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    peaks = {}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            spent = seconds(run, "cpu")
            if turn:
                times[name].append(spent)
                print(name, spent, flush=True)
    for name, run in contenders.items():
        with PeakBytes() as memory:
            run()
        peaks[name] = memory.peak
    return times, peaks


def lines(times: dict[str, list[float]], peaks: dict[str, int], base: str) -> list[list[str]]:
    found = []
    for name, values in times.items():
        ratio = compared(values, times[base])
        found.append([name, ratio["median"], ratio["ratio"], ratio["range"], f"{peaks[name] / 2**20:.0f}"])
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    args = options.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    prompts = [f"One day, {name} went to the park." for name in NAMES]
    pairs = Dataset.from_list([{"prompt": p, "chosen": CHOSEN, "rejected": REJECTED} for p in prompts])
    rows = Dataset.from_list([{"prompt": p, "completion": CHOSEN} for p in prompts])
    target = Dataset.from_list([{"prompt": p, "completion": REJECTED} for p in prompts[:4]])
    header = ["", "seconds", "ratio", "range of the rounds", "peak, MiB"]
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"processing_class": tokenizer, "progress": False, "batch_size": ROWS}
        plain = AutoModelForCausalLM.from_pretrained(MODEL)
        dpo = DPOTrainer(lora(), args=DPOConfig(**settings(folder)), train_dataset=pairs, processing_class=tokenizer)
        batch = dpo.data_collator([dpo.train_dataset[i] for i in range(ROWS)])

        def step(trainer: Any, inputs: dict[str, torch.Tensor]) -> None:
            trainer.model.train()
            trainer.compute_loss(trainer.model, dict(inputs)).backward()
            for p in trainer.model.parameters():
                p.grad = None

        contenders: dict[str, Callable[[], object]] = {
            "DPO, forward and backward": lambda: step(dpo, batch),
            "reference's log-probabilities": lambda: dpo.compute_ref_log_probs(dpo.model, dict(batch)),
            "CHES": lambda: add_ches_scores(plain, pairs, **quiet),
            "CHES with its kernel": lambda: add_ches_scores(plain, pairs, kernel=True, **quiet),
        }
        ches_times, ches_peaks = measured(contenders, args.rounds)
        model = lora()
        sft = SFTTrainer(
            model,
            args=SFTConfig(**settings(str(Path(folder, "sft")), save_strategy="steps", save_steps=1)),
            train_dataset=rows,
            processing_class=tokenizer,
        )
        sft.train()
        state = Path(folder, "sft", "checkpoint-1")
        inputs = sft.data_collator([sft.train_dataset[i] for i in range(ROWS)])
        # What the target costs is paid once: candidates are what grows.
        many = Dataset.from_list(4 * rows.to_list())

        def gist(**more: Any) -> None:
            add_gradient_scores(model, many, target, **quiet, **more)

        contenders = {
            "supervised training, forward and backward": lambda: [step(sft, inputs) for _ in range(4)],
            "GIST": lambda: gist(),
            "LESS": lambda: gist(method="less", optimizer_state=state),
            "plain cosine": lambda: gist(method="cosine"),
        }
        gist_times, gist_peaks = measured(contenders, args.rounds)
    text = f"## {ROWS} pairs\n\n" + table(header, lines(ches_times, ches_peaks, "DPO, forward and backward"))
    text += f"\n## {len(many)} rows, {len(target)} of the target\n\n"
    text += table(header, lines(gist_times, gist_peaks, "supervised training, forward and backward"))
    text += (
        f"\nMedians of {args.rounds} rounds by turns, {clock_of('cpu')}, the machine loaded by other work. Scores "
        "include the tokens of their rows, trainers' steps do not; GIST and its kin include the target's rows.\n"
    )
    document = {"ches": ches_times, "gist": gist_times, "peaks": ches_peaks | gist_peaks}
    write("data-scores", "Scores of rows: what they cost", about("cpu", "transformers", "trl", "peft"), document, text)


if __name__ == "__main__":
    main()
