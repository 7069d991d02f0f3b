# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What several heads cost: a training step against DPO's, decoding against the plain model, memory of the heads.

    python benchmarks/mah_dpo.py               # about two minutes on one CPU core
    python benchmarks/mah_dpo.py --part decode
    python benchmarks/mah_dpo.py --device cuda

Writes `results/mah-dpo-cost.json` and `.md`; one part alone, or another device, writes files of its own.
`mah_dpo_effect.py` has the effect.
"""

import contextlib
import copy
import functools
import tempfile
from collections.abc import Callable

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
from trl import DPOConfig, DPOTrainer

from alignext import AutoModelForCausalLMWithObjectiveHeads, MAHDPOConfig, MAHDPOTrainer, mini
from alignext.heads.heads import ObjectiveHeads
from alignext.heads.settings import HeadSettings
from common import about, clock_of, compared, parser, table_of, timed, write


MODEL = str(mini.path("lm"))
NAMES = ["first", "second", "third"]
SHAPES = {"Qwen2.5-7B": (152064, 3584), "Llama-3.1-8B": (128256, 4096), "Qwen2.5-0.5B": (151936, 896)}


def take_turns(candidates: dict[str, Callable[[], object]], rounds: int, device: str) -> list[dict]:
    """Medians, and ratios to the first candidate; the first round warms up."""
    measured = timed(candidates, rounds, device, warm_up=1)
    base = measured[next(iter(candidates))]
    return [{"what": name, **compared(values, base), "all": values} for name, values in measured.items()]


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
            settings = HeadSettings(["one"], head_type)
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


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--part", choices=("train", "decode"), help="one part only (default: both)")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = options.parse_args()
    parts: dict[str, list[dict]] = {}
    if args.part != "decode":
        parts["step of 12 pairs"], parts["memory"] = training(args.rounds, args.device)
        lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
        parts["step of 12 pairs, LoRA backbone"], _ = training(args.rounds, args.device, lora)
    if args.part != "train":
        parts["decoding"] = decoding(args.rounds, args.device)
    text = f"Seconds: {clock_of(args.device)}, medians of {args.rounds} rounds by turns; ratios within a round.\n"
    text += "".join(f"\n{name}\n\n{table_of(rows)}" for name, rows in parts.items())
    name = "mah-dpo-cost" + (f"-{args.part}" if args.part else "") + ("" if args.device == "cpu" else "-cuda")
    write(name, "MAH-DPO: cost", about(args.device, "transformers", "trl"), {"rounds": args.rounds, **parts}, text)


if __name__ == "__main__":
    main()
