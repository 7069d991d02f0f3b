# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What steering costs: tokens per second of the embedded model with and without it, in pairs.

    python benchmarks/steering.py   # two minutes on one CPU core

The same prompts are continued with the cache on, all tokens greedy, by turns: the model as it is, each method at
strength 0 or with a gate that never opens (so that all write the same number of tokens), and SwFC as a bias that PEFT
holds. The ratio is that of tokens per second to the model as it is, within each round. Writes
`results/steering.json` and `.md`.
"""

import functools
import warnings
from statistics import median

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext import SteeringVector, mini
from common import about, clock_of, parser, ratios, table, timed, write


PROMPTS = [f"One day, {name} went to the park." for name in ("Tom", "Lily", "Ben", "Mia", "Sam", "Anna", "Max", "Sue")]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--tokens", type=int, default=40)
    args = options.parse_args()
    warnings.simplefilter("ignore")  # peft: a layer without bias cannot be merged
    model = AutoModelForCausalLM.from_pretrained(mini.path("lm")).eval()
    tokenizer = AutoTokenizer.from_pretrained(mini.path("lm"))
    lines, found = [], {}
    for batch in (1, 8):
        inputs = tokenizer(PROMPTS[:batch], return_tensors="pt", padding=True, padding_side="left")
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        how = {"do_sample": False, "max_new_tokens": args.tokens, "min_new_tokens": args.tokens}
        size = model.config.hidden_size
        direction = torch.randn(size, generator=torch.Generator().manual_seed(0))
        vector = SteeringVector(direction, 3, 0.0, 1.0, -1.0, 0.2)
        neutral = SteeringVector(direction, 3, -1e9, 1.0, -1.0, 0.2)
        # The bias has a copy of the model of its own: an adapter stays in the one that it is put into.
        biased = vector.to_peft(AutoModelForCausalLM.from_pretrained(mini.path("lm")).eval(), 0.01)

        def generate(of=model, inputs=inputs, how=how) -> None:
            of.generate(**inputs, **how)

        def steered(sv: SteeringVector, method: str, alpha: float, run=generate) -> None:
            with sv.apply(model, method, alpha):
                run()

        contenders = {
            "plain": generate,
            "plain again": generate,
            "SwFC": functools.partial(steered, vector, "swfc", 0.01),
            "StTP, gate shut": functools.partial(steered, neutral, "sttp", 1.0),
            "StMP, gate shut": functools.partial(steered, neutral, "stmp", 1.0),
            "StMP, open": functools.partial(steered, vector, "stmp", 0.01),
            "SwFC as a bias": functools.partial(generate, biased),
        }
        seconds = timed(contenders, args.rounds, "cpu", warm_up=1)
        found[f"batch {batch}"] = seconds
        for name, values in seconds.items():
            speed = ratios(seconds["plain"], values)
            rate = batch * args.tokens / median(values)
            spread = f"{min(speed):.2f} to {max(speed):.2f}"
            lines.append([batch, name, f"{rate:.0f}", f"{median(speed):.3f}", spread])
    text = table(["rows", "", "tokens per second", "ratio to plain", "range of the rounds"], lines)
    text += (
        f"\nMedians of {args.rounds} rounds of {args.tokens} tokens, {clock_of('cpu')}, the machine loaded by other "
        "work. `plain again` is the noise of the comparison.\n"
    )
    write("steering", "Steering: cost of a token", about("cpu", "transformers", "peft"), {"seconds": found}, text)


if __name__ == "__main__":
    main()
