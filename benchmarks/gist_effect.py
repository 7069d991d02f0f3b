# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Whether GIST finds the useful rows of a mixed pool, against LESS, plain cosines and chance, on the story model.

    python benchmarks/gist_effect.py            # three seeds, three minutes each on one CPU core
    python benchmarks/gist_effect.py --report   # the tables from all seeds run so far

The pool holds the model's own endings: a tenth with dialogue, which is the target, the rest without, and a quarter of
these with their words shuffled. An adapter is warmed up on a random twentieth; the target is known by up to sixteen
other endings with dialogue. Precision: the share of dialogue among the best twentieth. Then a new adapter is trained
on that twentieth, and its loss on held-out dialogue compared. Writes `results/gist-effect.json` and `.md`.
"""

import json
import random
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from steering_effect import spread
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from alignext import add_gradient_scores, mini, select_for_task
from alignext.data.encode import encode_example
from common import RESULTS, about, example, parser, table, write


NAME, MODEL = "gist-effect", str(mini.path("lm"))
stories = example("process_reward")
METHODS = ("gist", "gist, full", "less", "cosine", "random")


@torch.no_grad()
def endings(model: Any, tokenizer: Any, names: str, seed: int, tokens: int, copies: int) -> list[dict[str, str]]:
    """The model's own, several for each beginning."""
    torch.manual_seed(seed)
    prompts = copies * stories.beginnings(names)
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    out = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=tokens, min_new_tokens=4)
    texts = tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return [{"prompt": prompt, "completion": text} for prompt, text in zip(prompts, texts, strict=True)]


def talks(row: dict[str, str]) -> bool:
    return '"' in row["completion"]


def train(tokenizer: Any, data: Dataset, seed: int, steps: int, folder: str, save: bool = False) -> Any:
    args = SFTConfig(
        folder,
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=5e-4,
        lr_scheduler_type="constant",
        save_strategy="steps" if save else "no",
        save_steps=steps,
        logging_steps=steps,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        optim="adamw_torch",
        seed=seed,
    )
    torch.manual_seed(seed)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL), lora)
    SFTTrainer(model, args=args, train_dataset=data, processing_class=tokenizer).train()
    return model.eval()


@torch.no_grad()
def loss(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> float:
    """Mean over rows of the mean loss of their answers' tokens."""
    found = []
    for row in rows:
        ids = encode_example(row, tokenizer)
        found.append(float(model(torch.tensor([ids["input_ids"]]), labels=torch.tensor([ids["labels"]])).loss))
    return mean(found)


def run_seed(seed: int, tokens: int, steps: int, size: int) -> dict[str, Any]:
    base, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL).eval(), AutoTokenizer.from_pretrained(MODEL)
    draw = random.Random(seed)
    own = endings(base, tokenizer, "Tom Lily Ben Mia Sam Anna", 100 + seed, tokens, 1 + size // 30)
    others = endings(base, tokenizer, "Amy Bob Jane Leo Zoe Kim", 200 + seed, tokens, 4)
    dialogue, plain = [row for row in own if talks(row)], [row for row in own if not talks(row)]
    known = [row for row in others if talks(row)]
    known, held_out = known[: len(known) // 2][:16], known[len(known) // 2 :][:16]
    pool = dialogue[: size // 10] + plain[: size - size // 10]
    for row in pool[size // 10 : size // 10 + size // 4]:
        words = row["completion"].split()
        draw.shuffle(words)
        row["completion"] = " ".join(words)
    draw.shuffle(pool)
    data, keep = Dataset.from_list(pool), max(1, size // 20)
    row: dict[str, Any] = {"seed": seed, "pool": len(pool), "useful": sum(map(talks, pool)), "kept": keep, "found": {}}
    row["before"] = loss(base, tokenizer, held_out)
    with tempfile.TemporaryDirectory() as folder:
        warm = train(tokenizer, data.select(range(size // 20)), seed, steps, folder, save=True)
        scored: Any = None
        for method in METHODS:
            if method == "random":
                chosen = data.select(draw.sample(range(len(data)), keep))
            elif method == "gist, full":  # the same pass, divided by the whole gradient
                full = [x * y for x, y in zip(scored["gist"], scored["gist_energy"], strict=True)]
                chosen = select_for_task(scored.add_column("full", full), "full", top=keep)
            else:
                kind = method
                scored = add_gradient_scores(
                    warm,
                    data,
                    Dataset.from_list(known),
                    processing_class=tokenizer,
                    method=kind,
                    optimizer_state=Path(folder, f"checkpoint-{steps}") if kind == "less" else None,
                    progress=False,
                )
                chosen = select_for_task(scored, kind, top=keep)
            plainly = chosen.select_columns(["prompt", "completion"])
            model = train(tokenizer, plainly, seed, steps, str(Path(folder, "again")))
            row["found"][method] = {
                "precision": mean(map(talks, chosen)),
                "loss": loss(model, tokenizer, held_out),
            }
            print(seed, method, row["found"][method], flush=True)
    return row


def report(found: dict[str, Any]) -> None:
    rows = found["rows"]
    lines = [["none", "", spread([row["before"] for row in rows], 3)]]
    for method in METHODS:
        of = [row["found"][method] for row in rows]
        lines.append([method, spread([x["precision"] for x in of]), spread([x["loss"] for x in of], 3)])
    text = table(["chosen by", "dialogue among the chosen", "loss on held-out dialogue after training on them"], lines)
    chance = mean(row["useful"] / row["pool"] for row in rows)
    text += (
        f"\n{len(rows)} seeds with 95 % intervals (Student's t). Of {rows[0]['pool']} rows {rows[0]['kept']} are "
        f"chosen; chance finds {chance:.2f}.\n"
    )
    write(NAME, "GIST: useful rows of a mixed pool", about("cpu", "transformers", "trl", "peft"), found, text)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options.add_argument("--steps", type=int, default=15, help="of each training")
    options.add_argument("--tokens", type=int, default=20, help="of an ending")
    options.add_argument("--size", type=int, default=400, help="of the pool")
    options.add_argument("--report", action="store_true")
    args = options.parse_args()
    file = Path(RESULTS, f"{NAME}.json")
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"rows": []}
    found["settings"] = {"steps": args.steps, "tokens": args.tokens, "batch": 4, "learning_rate": 5e-4}
    for seed in [] if args.report else args.seeds:
        if seed not in {row["seed"] for row in found["rows"]}:
            found["rows"].append(run_seed(seed, args.tokens, args.steps, args.size))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found))
    if found["rows"]:
        report(found)


if __name__ == "__main__":
    main()
