# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Find the rows of a mixed pool that serve a target task.

Runs offline in a minute or two on a CPU, on the model that comes with the package:

    python examples/gist.py

The pool has endings with dialogue and endings without; the target is known by four of the former. A LoRA is warmed up
on some random rows, all rows are scored by their gradients, and the best of them chosen.
"""

import argparse

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from alignext import add_gradient_scores, mini, select_for_task


NAMES = "Tom Lily Ben Mia Sam Anna".split()
ENDINGS = {
    "dialogue": ' "Hello!" said {name}. "Do you want to play?"',
    "weather": " It was cold, and {name} could see rain.",
    "a toy": " {name} had a big red ball, and it was new.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(mini.path("lm")), help="folder or Hub id of a causal language model")
    parser.add_argument("--steps", type=int, default=4, help="of the warm-up")
    parser.add_argument("--method", choices=("gist", "cosine"), default="gist")
    args = parser.parse_args()
    base, tokenizer = AutoModelForCausalLM.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model)
    rows = [
        {"prompt": f"One day, {name} met a friend.", "completion": text.format(name=name), "kind": kind}
        for name in NAMES
        for kind, text in ENDINGS.items()
    ]
    pool = Dataset.from_list(rows)
    target = Dataset.from_list(
        [
            {"prompt": f"{name} went out.", "completion": ENDINGS["dialogue"].format(name=name)}
            for name in ("Amy", "Bob", "Jane", "Leo")
        ]
    )
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]))
    config = SFTConfig(
        "gist",
        max_steps=args.steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
    )
    SFTTrainer(model, args=config, train_dataset=pool.remove_columns("kind"), processing_class=tokenizer).train()
    scored = add_gradient_scores(model, pool, target, processing_class=tokenizer, method=args.method)
    for kind in ENDINGS:
        scores = [row[args.method] for row in scored if row["kind"] == kind]
        print(f"{kind:10}{sum(scores) / len(scores):7.3f}")
    chosen = select_for_task(scored, args.method, top=4)
    print("chosen:", ", ".join(chosen["kind"][:]))


if __name__ == "__main__":
    main()
