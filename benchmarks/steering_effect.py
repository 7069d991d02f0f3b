# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What steering does to stories of the embedded model: how much of a trait, and what it costs in coherence.

    python benchmarks/steering_effect.py --seeds 0 1 2   # about seven minutes a seed on one CPU core
    python benchmarks/steering_effect.py --report        # the tables and the picture from all seeds run so far

Three traits, each asked for by a sentence before the beginning of a story: a happy tone, dialogue, a cat. The model's
own stories with and without that sentence are the data of all methods, a story with the trait beside one without it:
fitted directions read both behind the same beginning, Concept DAS trains on them. Then the model goes on from
beginnings of other names, without the sentence, steered at one layer. Trait: the share of stories that have it, by
counting words. Coherence: the negative log-likelihood of a story's tokens under the model without steering, and the
share of distinct pairs of words. Writes
`results/steering-effect.json`, `.md` and `docs/assets/steering-trade-off.png`.
"""

import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext import CDASConfig, CDASTrainer, SteeringVector, fit_steering, make_quads, mini
from common import ASSETS, RESULTS, about, example, parser, table, write


NAME, LAYER = "steering-effect", 3
stories = example("process_reward")
TRAIN, HELD_OUT = "Tom Lily", "Amy Bob"  # each with eight beginnings
STRENGTHS = {
    "SwFC": (0.25, 0.5, 1.0),
    "SwFC, mean difference": (0.25, 0.5),
    "StTP": (0.0, 4.0),
    "StMP": (1.0, 2.0, 4.0),
    "Concept DAS": (0.5, 1.0),
}
DRAWS = 8  # stories of each beginning that the data are chosen from
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # by number of seeds


def happy(text: str) -> bool:
    return stories.balance(text, stories.RULE) + stories.balance(text, stories.OTHERS) >= 2


# What asks for the trait, and whether a story has it.
TRAITS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "happy tone": ("Everyone was so happy. They smiled, laughed and hugged.", happy),
    "dialogue": ('"Hello!" said Mom. "How are you?" said Dad. "I am fine," said Mom.', lambda text: '"' in text),
    "a cat": ("There was a little cat, and the cat loved to play.", lambda text: bool(re.search(r"\bcats?\b", text))),
}


class Teller:
    """The embedded model, and what its stories are like."""

    def __init__(self, seed: int, tokens: int) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(mini.path("lm")).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(mini.path("lm"), padding_side="left")
        self.seed, self.tokens = seed, tokens

    def measure(
        self, prompts: list[str], has: Callable[[str], bool], vector: SteeringVector | None = None, **how: Any
    ) -> dict[str, float]:
        """Stories from these beginnings: trait, and coherence without steering."""
        batch = self.tokenizer(prompts, return_tensors="pt", padding=True)
        settings = {"do_sample": True, "top_k": 0, "max_new_tokens": self.tokens}
        ids, mask = batch["input_ids"], batch["attention_mask"]
        torch.manual_seed(self.seed)
        if vector is None:
            out = self.model.generate(ids, attention_mask=mask, **settings)
        else:
            with vector.apply(self.model, **how):
                out = self.model.generate(ids, attention_mask=mask, **settings)
        told = out[:, ids.shape[1] :]
        real = (told != self.tokenizer.pad_token_id) & (told != self.tokenizer.eos_token_id)
        seen = torch.cat([mask, real.long()], 1)
        positions = (seen.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = self.model(out, attention_mask=seen, position_ids=positions).logits[:, ids.shape[1] - 1 : -1]
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), told, reduction="none")
        texts = self.tokenizer.batch_decode(told, skip_special_tokens=True)
        pairs = [list(itertools.pairwise(words)) for words in map(str.split, texts)]
        distinct = [len(set(found)) / len(found) for found in pairs if found]
        return {
            "trait": mean(map(has, texts)),
            "nll": float(nll[real].mean()),
            "distinct": mean(distinct) if distinct else 0.0,
            "example": texts[0],
        }


def vectors(
    teller: Teller, add: str, has: Callable[[str], bool], seed: int, steps: int
) -> dict[str, tuple[SteeringVector, str]]:
    """The vector of each method, and the name of how it is applied."""
    model, tokenizer = teller.model, teller.tokenizer
    quads = make_quads(
        model,
        tokenizer,
        DRAWS * stories.beginnings(TRAIN),
        lambda prompt: f"{add} {prompt}",
        max_new_tokens=teller.tokens,
        batch_size=32,
        seed=100 + seed,
        progress=False,
    ).filter(lambda row: has(row["concept_completion"]) and not has(row["neutral_completion"]))
    print(len(quads), "pairs", flush=True)
    pairs = [
        {"prompt": row["neutral_prompt"], "positive": row["concept_completion"], "negative": row["neutral_completion"]}
        for row in quads
    ]
    logistic, difference = (
        fit_steering(model, tokenizer, pairs, layers=LAYER, direction=kind, progress=False)
        for kind in ("logistic", "mean_difference")
    )
    with tempfile.TemporaryDirectory() as folder:
        args = CDASConfig(
            folder,
            layer=str(LAYER),
            max_steps=steps,
            learning_rate=0.08,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=16,
            report_to="none",
            save_strategy="no",
            logging_steps=4,
            use_cpu=True,
            disable_tqdm=True,
            seed=seed,
        )
        trainer = CDASTrainer(model, args, quads, processing_class=tokenizer)
        trainer.train()
        learnt = trainer.steering_vector
        print("Concept DAS", trainer.plain_loss, trainer.state.log_history[-2:], flush=True)
    return {
        "SwFC": (logistic, "swfc"),
        "SwFC, mean difference": (difference, "swfc"),
        "StTP": (logistic, "sttp"),
        "StMP": (logistic, "stmp"),
        "Concept DAS": (learnt, "clamp"),
    }


def run(seed: int, tokens: int, steps: int, done: set[tuple[int, str]]) -> Iterator[list[dict[str, Any]]]:
    """All methods and strengths, trait after trait, but for those that are done."""
    teller = Teller(seed, tokens)
    prompts = 3 * stories.beginnings(HELD_OUT)
    for trait, (add, has) in TRAITS.items():
        if (seed, trait) in done:
            continue
        rows: list[dict[str, Any]] = []
        asked = [f"{add} {prompt}" for prompt in prompts]
        found = vectors(teller, add, has, seed, steps)
        cosine = float(found["SwFC"][0].direction @ found["Concept DAS"][0].direction)

        def note(method: str, alpha: float, values: dict, trait=trait, cosine=cosine, rows=rows) -> None:
            rows.append({"seed": seed, "of": trait, "method": method, "alpha": alpha, "cosine": cosine, **values})
            print(json.dumps(rows[-1]), flush=True)

        note("plain", 0.0, teller.measure(prompts, has))
        note("asked for", 0.0, teller.measure(asked, has))
        learnt = found["Concept DAS"][0]
        for alpha in (-1.0,):
            note("asked for, Concept DAS against it", alpha, teller.measure(asked, has, learnt, alpha=alpha))
        for method, (vector, how) in found.items():
            for alpha in STRENGTHS[method]:
                note(method, alpha, teller.measure(prompts, has, vector, method=how, alpha=alpha))
        yield rows


# The report


def spread(values: list[float], digits: int = 2) -> str:
    """Mean and 95 % interval over seeds, by Student's t."""
    if len(values) < 2:
        return f"{mean(values):.{digits}f}"
    half = T95[len(values)] * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.{digits}f} ± {half:.{digits}f}"


def of(rows: list[dict], trait: str, method: str, alpha: float, name: str) -> list[float]:
    return [row[name] for row in rows if (row["of"], row["method"], row["alpha"]) == (trait, method, alpha)]


def best(rows: list[dict], trait: str, method: str) -> float | None:
    """The strength with the most of the trait among those that keep the coherence."""
    plain = {name: mean(of(rows, trait, "plain", 0.0, name)) for name in ("nll", "distinct")}
    kept = [
        alpha
        for alpha in STRENGTHS[method]
        if mean(of(rows, trait, method, alpha, "nll")) <= 1.1 * plain["nll"]
        and mean(of(rows, trait, method, alpha, "distinct")) >= 0.9 * plain["distinct"]
    ]
    return max(kept, key=lambda alpha: mean(of(rows, trait, method, alpha, "trait")), default=None)


def report(found: dict[str, Any]) -> None:
    rows = found["rows"]
    seeds = sorted({row["seed"] for row in rows})
    text = ""
    for trait in TRAITS:
        lines = []
        for method in ("plain", "asked for"):
            lines.append(
                [method, "", *(spread(of(rows, trait, method, 0.0, n)) for n in ("trait", "nll", "distinct"))]
            )
        for method in STRENGTHS:
            alpha = best(rows, trait, method)
            if alpha is None:
                lines.append([method, "none keeps coherence", "", "", ""])
                continue
            cells = (spread(of(rows, trait, method, alpha, n)) for n in ("trait", "nll", "distinct"))
            lines.append([method, f"{alpha:g}", *cells])
        for alpha in (-1.0,):
            name = "asked for, Concept DAS against it"
            cells = (spread(of(rows, trait, name, alpha, n)) for n in ("trait", "nll", "distinct"))
            lines.append([name, f"{alpha:g}", *cells])
        every = [
            [method, f"{a:g}", *(spread(of(rows, trait, method, a, n)) for n in ("trait", "nll"))]
            for method, alphas in STRENGTHS.items()
            for a in alphas
        ]
        cosines = spread(of(rows, trait, "plain", 0.0, "cosine"))
        header = ["method", "strength", "stories with the trait", "NLL of a token", "distinct pairs of words"]
        text += f"## {trait}\n\n{table(header, lines)}\nAll strengths:\n\n{table([header[0], *header[1:4]], every)}\n"
        text += f"Cosine of Concept DAS's and SwFC's direction: {cosines}.\n\n"
    text += (
        f"Means of {len(seeds)} seeds with 95 % intervals (Student's t), 48 stories each. Of each method, the "
        "strength with the most of the trait among those whose NLL is at most 1.1 times and whose distinct pairs are "
        "at least 0.9 times those of the model as it is; chosen on the same stories, which favours methods with more "
        "strengths alike. All strengths are in the picture, too.\n"
    )
    draw(rows)
    settings = found["settings"]
    write(
        NAME,
        "Steering: trait against coherence",
        about("cpu", "transformers"),
        {"settings": settings, "rows": rows},
        text,
    )


def draw(rows: list[dict]) -> None:
    """Trait against coherence, a panel per trait, a line per method."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(TRAITS), figsize=(12, 4), layout="constrained", sharey=True)
    for panel, trait in zip(panels, TRAITS, strict=True):
        for method, alphas in STRENGTHS.items():
            points = [[mean(of(rows, trait, method, a, n)) for n in ("nll", "trait")] for a in alphas]
            start = [mean(of(rows, trait, "plain", 0.0, n)) for n in ("nll", "trait")]
            panel.plot(*zip(start, *points, strict=True), "-o", markersize=4, label=method)
        asked = [mean(of(rows, trait, "asked for", 0.0, n)) for n in ("nll", "trait")]
        panel.plot(*asked, "*", color="black", markersize=11, label="asked for")
        panel.plot(*start, "s", color="black", markersize=6, label="plain")
        panel.set(title=trait, xlabel="NLL of a token without steering")
    panels[0].set_ylabel("share of stories with the trait")
    panels[0].legend(frameon=False, fontsize=8)
    ASSETS.mkdir(parents=True, exist_ok=True)
    figure.savefig(ASSETS / "steering-trade-off.png", dpi=110)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options.add_argument("--tokens", type=int, default=40, help="length of stories")
    options.add_argument("--steps", type=int, default=24, help="of Concept DAS, of 4 rows")
    options.add_argument("--report", action="store_true")
    args = options.parse_args()
    file = Path(RESULTS, f"{NAME}.json")
    found = json.loads(file.read_text()) if file.exists() else {"rows": []}
    found["settings"] = {"layer": LAYER, "tokens": args.tokens, "steps": args.steps, "stories": 48}
    for seed in [] if args.report else args.seeds:
        done = {(row["seed"], row["of"]) for row in found["rows"]}
        for rows in run(seed, args.tokens, args.steps, done):
            found["rows"] += rows
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found))
    if found["rows"]:
        report(found)


if __name__ == "__main__":
    main()
