# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Decode stories with Transfer Q*: at every token, look ahead from a few candidates and let a reward have a say.

Runs offline in about a minute on a CPU, on the model that comes with the package:

    python examples/transfer_q.py

The reward counts different words of joy. Put your own function, or the id of a reward model, in its place, and an
aligned model in the place of the embedded one.
"""

import argparse
import math
import re

from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext import TransferQ, mini


JOY = set("happy fun smiled laughed love loved glad proud good nice".split())
PROMPTS = [f"One day, {name} went out." for name in ("Amy", "Bob", "Jane", "Leo")]


def joy(completions: list[str], **kwargs: object) -> list[float]:
    """How many different words of joy are in each text."""
    return [float(len(JOY & set(re.findall("[a-z]+", text.lower())))) for text in completions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(mini.path("lm")), help="any causal language model with a tokenizer")
    parser.add_argument("--steps", type=int, default=32, help="tokens of a story")
    parser.add_argument("--k", type=int, default=5, help="candidates for a token")
    parser.add_argument("--rollout-tokens", type=int, default=8, help="behind each")
    args = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(args.model)
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    settings = {"k": args.k, "rollout_tokens": args.rollout_tokens}
    ways = {
        "greedy": TransferQ(joy, tokenizer, alpha=math.inf, **settings),
        "a token at a time": TransferQ(joy, tokenizer, alpha=0.5, **settings),
        "four at a time": TransferQ(joy, tokenizer, alpha=0.5, commit_tokens=4, **settings),
    }
    for name, transfer_q in ways.items():
        out = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            custom_generate=transfer_q,
            do_sample=False,
            max_new_tokens=args.steps,
        )
        stories = tokenizer.batch_decode(out.sequences[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        reward = sum(joy(stories)) / len(stories)
        print(f"{name}: {reward:.2f} words of joy a story, {out.passes} forward passes for all {len(stories)}")
        print(f"  {PROMPTS[0]}{stories[0]}")


if __name__ == "__main__":
    main()
