# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""SVDecode on the embedded story model after a short LoRA warm start: answers to questions about a story.

    python benchmarks/svdecode_effect.py               # three seeds; a few minutes on one CPU core

Questions and training are those of `examples/svdecode.py`. A seed draws both. Strengths are calibrated on stories that
are neither trained nor tested on. Writes
`results/svdecode-effect.json` with a Markdown table beside it.
"""

from typing import Any

import torch
from transformers import AutoTokenizer

from alignext import mini
from alignext.functional.svdecode import fit_strength, kept_positions, mean_nll
from common import about, example, interval, parser, shown, table, write


tales = example("svdecode")  # its questions and training
GRID = (-1.0, 0.5, 1.0, 2.0, 4.0, 8.0)


@torch.no_grad()
def logits_of(model: Any, data: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the tuned and the base model before each token of an answer, and the tokens."""
    read = data["labels"][:, 1:] >= 0
    how = {"input_ids": data["input_ids"], "attention_mask": data["attention_mask"]}
    tuned = model(**how).logits[:, :-1][read]
    with model.disable_adapter():
        base = model(**how).logits[:, :-1][read]
    return tuned, base, data["input_ids"][:, 1:][read]


def nll(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits, tokens))


def one_seed(tokenizer: Any, seed: int, train: int, test: int, steps: int, rate: float) -> dict[str, Any]:
    data, held_out, tested = (tales.questions(n, 10 * seed + i) for i, n in enumerate((train, test, test)))
    model = tales.warm_start(str(mini.path("lm")), tokenizer, data, seed, steps, rate)
    known, asked = (logits_of(model, tales.encoded(tokenizer, rows)) for rows in (held_out, tested))
    with model.disable_adapter():
        right = tales.exact(model, tokenizer, tested)
    found: dict[str, Any] = {"base": {"exact": right, "nll": nll(asked[1], asked[2])}}
    found["warm start"] = {"exact": tales.exact(model, tokenizer, tested), "nll": nll(asked[0], asked[2])}
    for direction in ("kl_gradient", "logit_difference"):
        for alpha in (0.0, 0.1, 0.5):
            # As `calibrate_svdecode` does it, from logits that are read once.
            fit, there = (kept_positions(*rows, alpha, direction) for rows in (known, asked))
            strength, paper = (fit_strength(fit, estimator) for estimator in ("newton", "paper"))
            how = {"alpha": alpha, "direction": direction, "strength": strength}
            found[f"{direction}, alpha {alpha:g}"] = {
                "strength": strength,
                "paper's strength": paper,
                "exact": tales.exact(model, tokenizer, tested, **how) if alpha == 0.1 else [],
                "nll": mean_nll(there, strength),
                "nll at 0": mean_nll(there, 0.0),
                "nll at the paper's strength": mean_nll(there, paper),
                "excluded": there.excluded / len(asked[2]),
                "nll on the grid": {str(s): mean_nll(there, s) for s in (0.0, *GRID)},
            }
            print(seed, direction, alpha, strength, sum(found[f"{direction}, alpha {alpha:g}"]["exact"]), flush=True)
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--train", type=int, default=256, help="questions of the warm start")
    options.add_argument("--test", type=int, default=48, help="questions of the test, and as many to calibrate on")
    options.add_argument("--steps", type=int, default=20, help="optimizer steps of 8 questions")
    options.add_argument("--learning-rate", type=float, default=1e-3)
    args = options.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(mini.path("lm"))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    found = [one_seed(tokenizer, s, args.train, args.test, args.steps, args.learning_rate) for s in args.seeds]
    header = [
        "decoding",
        "strength",
        "exact match",
        "gain",
        "NLL",
        "NLL at 0",
        "NLL at the paper's strength",
        "excluded",
    ]
    lines, warm = [], [one["warm start"]["exact"] for one in found]
    for name in found[0]:
        own = [one[name] for one in found]
        more = [
            ", ".join(f"{one[key]:.2f}" for one in own) if key in own[0] else ""
            for key in ("nll", "nll at 0", "nll at the paper's strength", "excluded")
        ]
        strength = ", ".join(f"{one['strength']:.2f}" for one in own) if "strength" in own[0] else ""
        answered = ["", ""]
        if own[0]["exact"]:
            gain = [[a - b for a, b in zip(x["exact"], y, strict=True)] for x, y in zip(own, warm, strict=True)]
            values = [one["exact"] for one in own]
            answered = [shown(interval(values, over=2), ".3f"), shown(interval(gain, over=2), "+.3f")]
        lines.append([name, strength, *answered, *more])
    grid = []
    for name in list(found[0])[2:]:
        values = [[one[name]["nll on the grid"][str(s)] for one in found] for s in (0.0, *GRID)]
        grid.append([name, *(f"{sum(v) / len(v):.3f}" for v in values)])
    text = (
        f"{len(found)} seeds, {args.test} questions each; {args.steps} steps of 8 of {args.train} questions, "
        f"learning rate {args.learning_rate:g}. Exact match and its gain over the warm start are means with 95 % "
        "intervals of a bootstrap over seeds and questions; other columns list the seeds. NLL is that of the tokens "
        f"that the mask keeps, per token.\n\n{table(header, lines)}\nMean NLL by strength:\n\n"
        f"{table(['decoding', '0', *map(str, GRID)], grid)}"
    )
    made = about("cpu", "transformers", "peft")
    write("svdecode-effect", "SVDecode: effect", made, {"seeds": args.seeds, "runs": found}, text)


if __name__ == "__main__":
    main()
