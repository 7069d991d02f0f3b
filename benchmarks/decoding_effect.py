# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Best-of-n, guided decoding, QAlign and Transfer Q* on the embedded story model: reward against generated tokens.

    python benchmarks/decoding_effect.py               # three seeds; adds to the parts that are there
    python benchmarks/decoding_effect.py --report      # table and plot from the parts

The reward is the rule of `examples/process_reward.py`: how many more pleasant than unpleasant words of a list a story
has. A second list of such words, which the reward does not know, is held out. So over-optimisation can be seen: a
reward that rises while the held-out one does not, or stories that become unlikely or alike. Writes
`results/decoding-effect.json`, a Markdown table beside it, and the plot of the docs pages.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext import QAlign, TransferQ, guided_generate, mini
from common import ASSETS, about, example, interval, parser, shown, table, write


tales = example("process_reward")  # its stories, rule and training
PARTS = Path(tempfile.gettempdir()) / "alignext-decoding-effect"
TOKENS = 32
BETA, ALPHA = 0.5, 0.5  # of a count of words
DRAWS = (1, 2, 4, 8, 16)


def rule(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(tales.balance(text, tales.RULE)) for text in completions]


class Way:
    """One way to write, on the same prompts: its name, its budget, stories and the tokens that were generated."""

    def __init__(self, model: Any, tokenizer: Any, reward: Any, prompts: list[str], seed: int) -> None:
        self.model, self.tokenizer, self.reward, self.prompts, self.seed = model, tokenizer, reward, prompts, seed
        self.batch = dict(tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(model.device))
        self.batch.pop("token_type_ids", None)

    def generate(self, custom: Any, **settings: Any) -> Any:
        torch.manual_seed(self.seed)
        settings = {"do_sample": True, "top_k": 50, "max_new_tokens": TOKENS} | settings
        return self.model.generate(**self.batch, custom_generate=custom, **settings)

    def draws(self) -> Iterator[tuple[str, int, list[str], float]]:
        """Of independent draws the best, of which there are 1, 2, 4, ..., and one in proportion to `exp(r / beta)`."""
        start = time.process_time()
        options = {"sampler": "independent", "num_steps": DRAWS[-1] - 1, "beta": BETA}
        out = self.generate(QAlign(self.reward, self.tokenizer, select="all", **options))
        seconds = time.process_time() - start
        for n in DRAWS:
            tokens = sum(len(state.ids) for chain in out.chains for state in chain[:n])
            best = [max(chain[:n], key=lambda state: state.reward).text for chain in out.chains]
            yield "best of n", n, tokens, best, seconds * n / DRAWS[-1]
            generator = torch.Generator().manual_seed(self.seed)
            weights = torch.tensor([[state.reward for state in chain[:n]] for chain in out.chains]).double() / BETA
            picked = weights.softmax(1).multinomial(1, generator=generator)[:, 0].tolist()
            soft = [chain[i].text for chain, i in zip(out.chains, picked, strict=True)]
            yield "soft best of n", n, tokens, soft, seconds * n / DRAWS[-1]

    def chains(self) -> Iterator[tuple]:
        """The last states of a chain after so many steps that it costs what the draws cost."""
        start = time.process_time()
        steps = 2 * DRAWS[-1]
        out = self.generate(QAlign(self.reward, self.tokenizer, beta=BETA, num_steps=steps))
        seconds = time.process_time() - start
        for n in (2, 4, 8, 16, 32):
            drawn = sum(state.drawn for chain in out.chains for state in chain[: n + 1])
            last = [chain[n].text for chain in out.chains]
            yield "QAlign", n, drawn, last, seconds * n / steps

    def guided(self) -> Iterator[tuple]:
        for candidates in (2, 5):
            start = time.process_time()
            counted = [0]
            told = guided_generate(
                self.model, self.tokenizer, self.prompts, _counting(self.reward, self.tokenizer, counted),
                num_candidates=candidates, max_new_tokens=TOKENS, generator=torch.Generator().manual_seed(self.seed),
            )  # fmt: skip
            yield "guided decoding", candidates, counted[0], told.texts, time.process_time() - start

    def look_ahead(self) -> Iterator[tuple]:
        for commit in (9, 3):
            start = time.process_time()
            ours = TransferQ(
                self.reward, self.tokenizer, k=4, alpha=ALPHA, rollout_tokens=8, commit_tokens=commit, min_p=0.02
            )
            out = self.generate(ours)
            width = self.batch["input_ids"].shape[1]
            texts = self.tokenizer.batch_decode(out.sequences[:, width:], skip_special_tokens=True)
            candidates = sum(int((step >= 0).sum()) for step in out.candidates)
            yield "Transfer Q*", commit, out.rollout_tokens + candidates, texts, time.process_time() - start


def _counting(reward: Any, tokenizer: Any, counted: list[int]) -> Callable[..., Any]:
    """The reward, which also counts the tokens of the newest step of each candidate."""

    def scored(completions: list, steps: list, **kwargs: Any) -> Any:
        counted[0] += sum(len(tokenizer(row[-1], add_special_tokens=False).input_ids) for row in steps if row)
        return reward(completions)

    return scored


@torch.no_grad()
def measures(model: Any, tokenizer: Any, reward: Any, prompts: list[str], texts: list[str]) -> dict[str, list[float]]:
    """Of each story; distinctness of all of them together."""
    rows = [tokenizer(f"{prompt} {text.strip()}").input_ids for prompt, text in zip(prompts, texts, strict=True)]
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    log_p = model(ids).logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    starts = [len(tokenizer(prompt).input_ids) for prompt in prompts]
    nats = [
        float(-row[start - 1 : len(all_) - 1].mean()) if len(all_) > start else 0.0
        for row, start, all_ in zip(log_p, starts, rows, strict=True)
    ]
    pairs = [pair for text in texts for pair in zip(text.split(), text.split()[1:], strict=False)]
    return {
        "reward": reward(texts),
        "held-out pleasant words": [float(tales.balance(text, tales.OTHERS)) for text in texts],
        "nats per token": nats,
        "distinct pairs of words": [len(set(pairs)) / max(len(pairs), 1)],
    }


def report() -> None:
    parts = [json.loads(file.read_text()) for file in sorted(PARTS.glob("part-*.json"))]
    names = list(dict.fromkeys((row["way"], row["budget"]) for part in parts for row in part["rows"]))
    keys = list(parts[0]["rows"][0]["measures"])
    rows = []
    for way, budget in names:
        own = [row for part in parts for row in part["rows"] if (row["way"], row["budget"]) == (way, budget)]
        stories = sum(row["stories"] for row in own)
        rows.append(
            {
                "way": way,
                "budget": budget,
                "tokens per story": round(sum(row["tokens"] for row in own) / stories, 1),
                "CPU s per story": round(sum(row["seconds"] for row in own) / stories, 2),
                **{key: interval([value for row in own for value in row["measures"][key]]) for key in keys},
            }
        )
    header = ["way", "budget", "tokens per story", "CPU s per story", *keys]
    cells = ([*(row[h] for h in header[:4]), *(shown(row[key]) for key in keys)] for row in rows)
    text = (
        f"{len(parts)} seeds, {sum(part['prompts'] for part in parts)} stories in all, completions of at most "
        f"{TOKENS} tokens. Means and "
        "95 % intervals of a bootstrap over stories; of distinct pairs over seeds. The budget: draws, steps of the "
        f"chain, candidates of a sentence, tokens kept of a winner.\n\n{table(header, cells)}"
    )
    write("decoding-effect", "Decoding: effect", about("cpu", "transformers"), {"table": rows}, text)
    draw(rows)


def draw(rows: list[dict]) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), sharex=True, layout="constrained")
    for axis, key in zip(axes, ("reward", "held-out pleasant words"), strict=True):
        for way in dict.fromkeys(row["way"] for row in rows):
            own = sorted((row for row in rows if row["way"] == way), key=lambda row: row["tokens per story"])
            x, y = [row["tokens per story"] for row in own], [row[key] for row in own]
            error = ([m - low for m, low, _ in y], [high - m for m, _, high in y])
            axis.errorbar(x, [m for m, *_ in y], yerr=error, fmt="-o", markersize=3, capsize=2, label=way, linewidth=1)
        axis.set(xscale="log", xlabel="generated tokens per story", title=key)
    axes[0].legend(fontsize=7)
    figure.savefig(ASSETS / "decoding-effect.png", dpi=150)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--prompts", type=int, default=8, help="of 32 beginnings")
    options.add_argument("--report", action="store_true", help="only table and plot")
    args = options.parse_args()
    PARTS.mkdir(exist_ok=True)
    if not args.report:
        model = AutoModelForCausalLM.from_pretrained(mini.path("lm")).eval()
        tokenizer = AutoTokenizer.from_pretrained(mini.path("lm"))
        prompts = tales.beginnings(tales.HELD_OUT_NAMES)[:: max(32 // args.prompts, 1)][: args.prompts]
        for seed in args.seeds:
            file = PARTS / f"part-{seed}.json"
            if file.exists():
                continue
            way, rows = Way(model, tokenizer, rule, prompts, 100 + seed), []
            for each in (way.draws, way.chains, way.guided, way.look_ahead):
                for name, budget, tokens, texts, seconds in each():
                    found = measures(model, tokenizer, rule, prompts, texts)
                    rows.append(
                        {
                            "way": name,
                            "budget": budget,
                            "tokens": tokens,
                            "seconds": seconds,
                            "stories": len(texts),
                            "measures": found,
                            "example": texts[0],
                        }
                    )
                    print(seed, name, budget, tokens, {k: sum(v) / len(v) for k, v in found.items()}, flush=True)
            file.write_text(json.dumps({"seed": seed, "prompts": len(prompts), "rows": rows}))
    report()


if __name__ == "__main__":
    main()
