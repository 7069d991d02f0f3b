# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Measure how far a story model is from another, beside a yardstick.

Runs offline in about a minute on a CPU, on the model that comes with the package and two copies with noise on them:

    python examples/fade.py
    python examples/fade.py --model unlearned --reference retrained --baseline retrained-2
"""

import argparse
import copy

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext import fade_score, mini


PROMPTS = ["Once upon a time", "One day, Tom"]


def noisy(model: torch.nn.Module, by: float, seed: int) -> torch.nn.Module:
    """A copy whose weights have noise on them, in units of their own deviation."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.ndim > 1:
                weight.add_(by * weight.std() * torch.randn(weight.shape, generator=generator))
    return other


def main() -> None:
    """Compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id (default: the reference with noise on its weights)")
    parser.add_argument("--reference", default=str(mini.path("lm")))
    parser.add_argument("--baseline", help="another model for the table (default: a copy with less noise)")
    parser.add_argument("--num-samples", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    args = parser.parse_args()

    reference = AutoModelForCausalLM.from_pretrained(args.reference)
    tokenizer = AutoTokenizer.from_pretrained(args.reference)
    model = AutoModelForCausalLM.from_pretrained(args.model) if args.model else noisy(reference, 0.05, seed=0)
    other = AutoModelForCausalLM.from_pretrained(args.baseline) if args.baseline else noisy(reference, 0.02, seed=1)
    sizes = {"num_samples": args.num_samples, "max_new_tokens": args.max_new_tokens}
    print(fade_score(model, reference, PROMPTS, tokenizer, baselines={"baseline": other}, **sizes))


if __name__ == "__main__":
    main()
