# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Whether CHES tells which pairs lower their chosen answer, on the embedded story model.

    python benchmarks/ches_effect.py            # three seeds, a minute each on one CPU core
    python benchmarks/ches_effect.py --report   # the tables from all seeds run so far

Pairs of the model's own endings: the rejected one shares none, half or most of its tokens with the chosen one. DPO
trains a LoRA on a random two thirds of them for some steps; then the log-probability of every chosen answer is held
against the score that its pair had before. The same number of steps on the third with the lowest, with the highest and
a random third shows what filtering does. Writes `results/ches-effect.json` and `.md`.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from steering_effect import spread
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from alignext import add_ches_scores, mini
from alignext.data.counts import spearman
from alignext.data.encode import encode_pair
from common import RESULTS, about, example, parser, table, write


NAME, MODEL = "ches-effect", str(mini.path("lm"))
stories = example("process_reward")
SHARED = {"none": 0.0, "half": 0.5, "most": 0.85}
COLUMNS = ("ln_ches", "ches", "ches_kernel")


@torch.no_grad()
def pairs(model: Any, tokenizer: Any, seed: int, tokens: int) -> Dataset:
    """For each beginning a chosen ending and, by turns, a rejected one that shares so much of it."""
    torch.manual_seed(seed)
    prompts = stories.beginnings("Tom Lily Ben Mia Sam Anna")
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")

    def told(ids: torch.Tensor, mask: torch.Tensor, count: int) -> torch.Tensor:
        settings = {"do_sample": True, "top_k": 0, "max_new_tokens": count, "min_new_tokens": count}
        return model.generate(ids, attention_mask=mask, **settings)

    start = batch.input_ids.shape[1]
    whole = told(batch.input_ids, batch.attention_mask, tokens)
    rows: list[dict[str, str]] = [{} for _ in prompts]
    for k, (name, share) in enumerate(SHARED.items()):
        which = list(range(k, len(prompts), len(SHARED)))
        kept = int(share * tokens)
        ids = whole[which, : start + kept]
        mask = torch.cat([batch.attention_mask[which], torch.ones(len(which), kept, dtype=torch.long)], 1)
        other = told(ids, mask, tokens - kept)
        for place, i in enumerate(which):
            chosen, rejected = tokenizer.decode(whole[i, start:]), tokenizer.decode(other[place, start:])
            rows[i] = {"prompt": prompts[i], "chosen": chosen, "rejected": rejected, "shared": name}
    return Dataset.from_list(rows)


@torch.no_grad()
def chosen_logps(model: Any, tokenizer: Any, data: Dataset) -> list[float]:
    """Of every chosen answer."""
    found = []
    for row in data:
        ids = encode_pair(row, tokenizer)
        start, whole = len(ids["prompt_ids"]), torch.tensor([ids["prompt_ids"] + ids["chosen_ids"]])
        logps = model(whole).logits[0, start - 1 : -1].log_softmax(-1)
        found.append(float(logps.gather(-1, whole[0, start:, None]).sum()))
    return found


def train(tokenizer: Any, data: Dataset, seed: int, steps: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        args = DPOConfig(
            folder,
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            beta=0.1,
            logging_steps=steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            seed=seed,
        )
        lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
        model = AutoModelForCausalLM.from_pretrained(MODEL)
        trainer = DPOTrainer(model, args=args, train_dataset=data, processing_class=tokenizer, peft_config=lora)
        trainer.train()
        return trainer.model.eval()


def run_seed(seed: int, steps: int, tokens: int) -> dict[str, Any]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL).eval(), AutoTokenizer.from_pretrained(MODEL)
    data = pairs(model, tokenizer, seed, tokens)
    data = add_ches_scores(model, data, processing_class=tokenizer, kernel=True, progress=False)
    before = chosen_logps(model, tokenizer, data)

    def change(rows: list[int]) -> list[float]:
        """Of every chosen answer, by training on some of the pairs."""
        after = chosen_logps(
            train(tokenizer, data.select(rows).remove_columns("shared"), seed, steps), tokenizer, data
        )
        return [x - y for x, y in zip(after, before, strict=True)]

    order = sorted(range(len(data)), key=lambda i: data[i]["ln_ches"])
    shuffled = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    third = len(data) // 3
    parts = {"lowest": order[:third], "random": shuffled[:third], "highest": order[-third:]}
    on_two_thirds = change(shuffled[: 2 * third])
    row: dict[str, Any] = {"seed": seed, "shared": data["shared"][:], "change": on_two_thirds}
    row |= {name: data[name][:] for name in COLUMNS}
    row["trained"] = {}
    for name, rows in parts.items():
        moved = change(rows)
        row["trained"][name] = {"own": mean(moved[i] for i in rows), "all": mean(moved)}
        print(seed, name, row["trained"][name], flush=True)
    return row


def of_seeds(rows: list[dict], of: Callable[[dict], float], digits: int = 2) -> str:
    return spread([of(row) for row in rows], digits)


def report(found: dict[str, Any]) -> None:
    rows = found["rows"]

    def correlation(row: dict, column: str) -> float:
        return spearman(row[column], row["change"])

    def third(row: dict, k: int) -> float:
        order = sorted(range(len(row["change"])), key=lambda i: row["ln_ches"][i])
        n = len(order) // 3
        return mean(row["change"][i] for i in order[k * n : (k + 1) * n])

    def shared(row: dict, name: str, column: str) -> float:
        return mean(x for x, of in zip(row[column], row["shared"], strict=True) if of == name)

    text = table(
        ["pairs by ln-CHES", "change of the chosen log-probability"],
        [
            [name, of_seeds(rows, lambda row, k=k: third(row, k))]
            for k, name in enumerate(("lowest", "middle", "highest"))
        ],
    )
    text += "\n" + table(
        ["score", "rank correlation with the change (negative: it tells the fall)"],
        [[f"`{name}`", of_seeds(rows, lambda row, name=name: correlation(row, name))] for name in COLUMNS],
    )
    text += "\n" + table(
        ["shared tokens", "ln-CHES", "change of the chosen log-probability"],
        [
            [
                name,
                of_seeds(rows, lambda row, name=name: shared(row, name, "ln_ches"), 1),
                of_seeds(rows, lambda row, name=name: shared(row, name, "change")),
            ]
            for name in SHARED
        ],
    )
    text += "\n" + table(
        ["trained on a third", "change of its own chosen answers", "of all chosen answers"],
        [
            [
                name,
                of_seeds(rows, lambda row, name=name: row["trained"][name]["own"]),
                of_seeds(rows, lambda row, name=name: row["trained"][name]["all"]),
            ]
            for name in ("lowest", "random", "highest")
        ],
    )
    count = len(rows[0]["change"])
    text += f"\n{len(rows)} seeds with 95 % intervals (Student's t), {count} pairs each.\n"
    write(NAME, "CHES: which chosen answers fall", about("cpu", "transformers", "trl", "peft"), found, text)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options.add_argument("--steps", type=int, default=6)
    options.add_argument("--tokens", type=int, default=12, help="of an ending")
    options.add_argument("--report", action="store_true")
    args = options.parse_args()
    file = Path(RESULTS, f"{NAME}.json")
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"rows": []}
    found["settings"] = {"steps": args.steps, "tokens": args.tokens, "batch": 4, "learning_rate": 1e-3, "beta": 0.1}
    for seed in [] if args.report else args.seeds:
        if seed not in {row["seed"] for row in found["rows"]}:
            found["rows"].append(run_seed(seed, args.steps, args.tokens))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found))
    if found["rows"]:
        report(found)


if __name__ == "__main__":
    main()
