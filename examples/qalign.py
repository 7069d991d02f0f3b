# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Draw stories in proportion to a reward with QAlign, beside plain samples and best-of-n for as many tokens.

Runs offline in about a minute on a CPU, on the model that comes with the package:

    python examples/qalign.py

The reward counts different words of joy. A second list, which the reward does not know, shows whether stories are
joyful or only full of those words. Put your own function, or the id of a reward model, in the place of `joy`.
"""

import argparse
import re

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext import QAlign, QAlignOutput, mini


JOY = set("happy fun smiled laughed love loved glad proud good nice".split())
HELD_OUT = set("excited smile friend friends played hugged kind best wow yay special warm beautiful".split())
PROMPTS = [f"One day, {name} {it}." for name in ("Amy", "Bob", "Jane", "Leo") for it in ("went out", "saw a dog")]


def count(texts: list[str], words: set[str]) -> list[float]:
    """How many different words of a list are in each text."""
    return [float(len(words & set(re.findall("[a-z]+", text.lower())))) for text in texts]


def joy(completions: list[str], **kwargs: object) -> list[float]:
    return count(completions, JOY)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(mini.path("lm")), help="any causal language model with a tokenizer")
    parser.add_argument("--steps", type=int, default=24, help="of the chain")
    parser.add_argument("--beta", type=float, default=0.5, help="smaller for more reward")
    parser.add_argument("--tokens", type=int, default=40, help="length of a story")
    args = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(args.model)
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")

    def write(qalign: QAlign) -> QAlignOutput:
        torch.manual_seed(0)
        return model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            custom_generate=qalign,
            do_sample=True,
            top_k=0,
            max_new_tokens=args.tokens,
        )

    n = max(args.steps // 2, 1)
    ways = {
        "plain samples": QAlign(joy, tokenizer, num_steps=0),
        f"best of {n}": QAlign(joy, tokenizer, sampler="independent", num_steps=n - 1, select="max_reward"),
        f"QAlign, {args.steps} steps": QAlign(joy, tokenizer, num_steps=args.steps, beta=args.beta),
    }
    for name, qalign in ways.items():
        out = write(qalign)
        stories = tokenizer.batch_decode(out.sequences[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        drawn = sum(out.proposed_tokens) / len(stories)
        words, others = mean(joy(stories)), mean(count(stories, HELD_OUT))
        print(f"{name}: {words:.2f} words of joy, {others:.2f} held-out ones, {drawn:.0f} tokens drawn a story")
    print(f"accepted {float(out.acceptance_rate.mean()):.0%}; split-Rhat {out.split_rhat.tolist()}")
    print(f"{PROMPTS[0]}{stories[0]}")


if __name__ == "__main__":
    main()
