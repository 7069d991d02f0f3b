# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What MAH-DPO does on the embedded story model, against separate and pooled DPO at equal training compute.

    python benchmarks/mah_dpo_effect.py --seeds 0   # one seed, about five minutes on one CPU core; four by default
    python benchmarks/mah_dpo_effect.py --report    # the tables and the picture from all seeds run so far

Three objectives with pairs labelled by rule (see `examples/mah_dpo.py`). One model with a head each is trained for
some steps of 4 pairs of each objective; three DPO models see the pairs of one objective each, 4 a step; one DPO model
sees all of them, 12 a step. All see the same number of pairs of each objective, and train a LoRA backbone. Writes
`results/mah-dpo-effect.json`, `.md` and `docs/assets/mah-dpo-trade-off.png`.
"""

import json
import math
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev

import torch
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from alignext import MAHDPOConfig, MAHDPOTrainer, mini
from alignext.functional.multi_objective import hypervolume
from common import ASSETS, RESULTS, about, example, parser, table, write


NAME = "mah-dpo-effect"
stories = example("mah_dpo")
NAMES = list(stories.RULES)
MODEL = str(mini.path("lm"))
TRAIN = "Tom Lily Ben Mia Sam Anna Max Sue Jack Sara Tim Lucy"
HELD_OUT = "Amy Bob Jane Leo"
PAIRS = 4  # of each objective a step
LORA = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57}  # by number of seeds


def sweep() -> dict[str, list[float]]:
    """The weight vectors: each objective left out, all equal, each one alone."""
    points = {"equal": [1 / 3] * 3}
    for k, name in enumerate(NAMES):
        for w in (0.0, 1.0):
            points[f"{name}={w:g}"] = [w if j == k else (1 - w) / 2 for j in range(3)]
    return points


def train(trainer: type, config: type, data: Dataset, batch: int, steps: int, learning_rate: float, seed: int, **more):
    with tempfile.TemporaryDirectory() as folder:
        args = config(
            folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=learning_rate,
            lr_scheduler_type="linear",
            logging_steps=1000,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            seed=seed,
            **more,
        )
        start = time.process_time()
        run = trainer(model=MODEL, args=args, train_dataset=data, peft_config=LORA)
        run.train()
        return run.model.eval().merge_and_unload(), time.process_time() - start


@torch.no_grad()
def margins(model: torch.nn.Module, tokenizer, pairs: Dataset) -> torch.Tensor:
    """`log pi(chosen) - log pi(rejected)` of each pair, shape `(H, n)`: one row per head."""
    head = model.objective_logits if hasattr(model, "objective_logits") else lambda hidden: model.lm_head(hidden)[None]
    backbone = model.get_decoder()
    values = []
    for start in range(0, len(pairs), 16):
        batch = pairs[start : start + 16]
        texts = [p + c for side in ("chosen", "rejected") for p, c in zip(batch["prompt"], batch[side], strict=True)]
        rows = [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in texts]
        prompt = torch.tensor([len(tokenizer(p).input_ids) for p in batch["prompt"]]).repeat(2)
        length = torch.tensor([len(row) for row in rows])
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        at = torch.arange(ids.shape[1])
        hidden = backbone(input_ids=ids, attention_mask=(at < length[:, None]).long()).last_hidden_state
        logps = torch.stack(
            [z[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0] for z in head(hidden).unbind(0)]
        )
        chosen, rejected = (logps * ((at >= prompt[:, None]) & (at < length[:, None]))[:, 1:]).sum(-1).chunk(2, -1)
        values.append(chosen - rejected)
    return torch.cat(values, -1)


def run_seed(seed: int, steps: int, learning_rate: float, samples: int, tell: int) -> dict:
    """Train everything with one seed and measure it."""
    base, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL).eval(), AutoTokenizer.from_pretrained(MODEL)
    data = stories.preferences(base, tokenizer, stories.beginnings(TRAIN), samples, seed=100 * seed + 1)
    per_objective = {name: data.filter(lambda row, name=name: row["objective"] == name) for name in NAMES}
    n = min(map(len, per_objective.values()))
    per_objective = {name: rows.shuffle(seed=seed).select(range(n)) for name, rows in per_objective.items()}
    held_out = stories.preferences(base, tokenizer, stories.beginnings(HELD_OUT), samples, seed=100 * seed + 2)
    held_out = {name: held_out.filter(lambda row, name=name: row["objective"] == name) for name in NAMES}
    held_out = {name: rows.select(range(min(len(rows), 40))) for name, rows in held_out.items()}
    prompts = tell * stories.beginnings(HELD_OUT)
    reference = {name: margins(base, tokenizer, rows) for name, rows in held_out.items()}

    def accuracy(model: torch.nn.Module, objectives: list[str] = NAMES) -> dict[str, list[float]]:
        """By objective, of each head."""
        right = {name: margins(model, tokenizer, held_out[name]) > reference[name] for name in objectives}
        return {name: r.float().mean(-1).tolist() for name, r in right.items()}

    def told(model: torch.nn.Module) -> dict[str, float]:
        texts = stories.tell(model, tokenizer, prompts, seed=100 * seed + 3)
        return stories.shares(texts) | {"words": sum(len(text.split()) for text in texts) / len(texts)}

    result = {
        "seed": seed,
        "pairs_per_objective": n,
        "held_out_pairs": {name: len(rows) for name, rows in held_out.items()},
        "stories_a_point": len(prompts),
        "accuracy": {},
        "points": {"base": told(base)},
        "cpu_seconds": {},
    }
    common = {"steps": steps, "learning_rate": learning_rate, "seed": seed}
    model, seconds = train(MAHDPOTrainer, MAHDPOConfig, per_objective, 3 * PAIRS, **common, objectives=NAMES)
    result["cpu_seconds"]["MAH-DPO"] = seconds
    result["accuracy"]["MAH-DPO"] = accuracy(model)
    for name, weights in sweep().items():
        with model.mixed_heads(weights):
            result["points"][name] = told(model)
    print(json.dumps(result), flush=True)
    for name in NAMES:
        model, seconds = train(DPOTrainer, DPOConfig, per_objective[name].remove_columns("objective"), PAIRS, **common)
        result["cpu_seconds"][f"DPO {name}"] = seconds
        result["accuracy"][f"DPO {name}"] = accuracy(model, [name])
        result["points"][f"DPO {name}"] = told(model)
    pooled = concatenate_datasets([*per_objective.values()]).remove_columns("objective")
    model, seconds = train(DPOTrainer, DPOConfig, pooled, 3 * PAIRS, **common)
    result["cpu_seconds"]["DPO pooled"] = seconds
    result["accuracy"]["DPO pooled"] = accuracy(model)
    result["points"]["DPO pooled"] = told(model)
    return result


# Tables


def proportion(shares: list[float], counts: list[int]) -> str:
    """The share over all seeds, and its standard error by the binomial distribution."""
    n = sum(counts)
    p = sum(share * count for share, count in zip(shares, counts, strict=True)) / n
    return f"{p:.3f} ± {math.sqrt(p * (1 - p) / n):.3f}"


def interval(values: list[float]) -> str:
    """Mean and half of the 95 % interval of Student's t over seeds."""
    if len(values) < 2:
        return f"{mean(values):.3f}"
    return f"{mean(values):.3f} ± {T95[len(values)] * stdev(values) / math.sqrt(len(values)):.3f}"


def volumes(run: dict) -> dict[str, float]:
    """Hypervolumes over the origin: three shares of stories span a unit cube."""

    def of(*names: str) -> float:
        return hypervolume([[run["points"][name][k] for k in NAMES] for name in names], [0.0] * 3)

    return {
        f"MAH-DPO, {len(sweep())} mixtures": of(*sweep()),
        "MAH-DPO, the 3 single heads": of(*[f"{name}=1" for name in NAMES]),
        "MAH-DPO, equal weights": of("equal"),
        "3 DPO models": of(*[f"DPO {name}" for name in NAMES]),
        "DPO on pooled pairs": of("DPO pooled"),
        "base model": of("base"),
    }


def report(runs: list[dict]) -> str:
    """The tables as Markdown."""
    parts, rows = [], []
    for model in runs[0]["accuracy"]:
        for k in range(3 if "MAH" in model else 1):
            cells = []
            for name in NAMES:
                found = [run["accuracy"][model].get(name) for run in runs]
                counts = [run["held_out_pairs"][name] for run in runs]
                cells.append(proportion([f[k] for f in found], counts) if found[0] else "")
            rows.append([f"{model}, head {NAMES[k]}" if "MAH" in model else model, *cells])
    parts.append(table(["held-out accuracy", *NAMES], rows))
    counts = [run["stories_a_point"] for run in runs]
    rows = [
        [
            point,
            *(proportion([run["points"][point][name] for run in runs], counts) for name in NAMES),
            f"{mean(run['points'][point]['words'] for run in runs):.1f}",
        ]
        for point in runs[0]["points"]
    ]
    parts.append(table(["share of stories", *NAMES, "words"], rows))
    rows = []
    n = sum(run["stories_a_point"] for run in runs)
    for name in NAMES:
        shares = [mean(run["points"][p][name] for run in runs) for p in (f"{name}=0", "equal", f"{name}=1")]
        error = max(math.sqrt(2 * p * (1 - p) / n) for p in shares)
        rows.append([name, *(f"{s:.3f}" for s in shares), f"{error:.3f}"])
    parts.append(table(["its share at its weight", "0", "1/3", "1", "error of a difference"], rows))
    by_run = [volumes(run) for run in runs]
    ours = f"MAH-DPO, {len(sweep())} mixtures"
    rows = [
        [
            name,
            f"{mean(v[name] for v in by_run):.3f}",
            ", ".join(f"{v[name]:.3f}" for v in by_run),
            interval([v[ours] - v[name] for v in by_run]) if name != ours else "",
        ]
        for name in by_run[0]
    ]
    parts.append(table(["hypervolume", "mean", "by seed", "what the mixtures are above it"], rows))
    return "\n".join(parts)


def picture(runs: list[dict], path: Path) -> None:
    """Share of stories by weight, and two objectives against each other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def share(point: str, name: str) -> float:
        return mean(run["points"][point][name] for run in runs)

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), constrained_layout=True)
    for axis, (x, y) in zip(axes, (NAMES[:2], NAMES[1:], NAMES[::2]), strict=True):
        points = [[share(p, n) for p in sweep()] for n in (x, y)]
        axis.scatter(*points, c="#2f4b7c", s=22, label="MAH-DPO, mixtures")
        (third,) = set(NAMES) - {x, y}
        edge = [[share(p, m) for p in (f"{x}=1", f"{third}=0", f"{y}=1")] for m in (x, y)]  # half and half between
        axis.plot(*edge, c="#2f4b7c", lw=0.8, alpha=0.5)
        separate = [[share(f"DPO {n}", m) for n in NAMES] for m in (x, y)]
        axis.scatter(*separate, c="#c1553b", marker="s", s=30, label="3 DPO models")
        axis.scatter(share("DPO pooled", x), share("DPO pooled", y), c="#d8a031", marker="D", s=34, label="pooled DPO")
        axis.scatter(share("base", x), share("base", y), c="#888888", marker="x", s=34, label="base model")
        axis.set(xlabel=f"share: {x}", ylabel=f"share: {y}")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def save(made: dict, settings: dict, runs: list[dict]) -> None:
    runs = sorted(runs, key=lambda run: run["seed"])
    write(NAME, "MAH-DPO: effect", made, settings | {"runs": runs}, report(runs))
    picture(runs, ASSETS / "mah-dpo-trade-off.png")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3], help="each is added to the results")
    options.add_argument("--report", action="store_true", help="the tables of what has been run, run nothing")
    options.add_argument("--steps", type=int, default=32)
    options.add_argument("--learning-rate", type=float, default=1e-4)
    options.add_argument("--samples", type=int, default=8, help="stories per beginning that pairs are made of")
    options.add_argument("--tell", type=int, default=3, help="stories per beginning at each point")
    args = options.parse_args()
    path = RESULTS / f"{NAME}.json"
    for seed in [] if args.report else args.seeds:
        run = run_seed(seed, args.steps, args.learning_rate, args.samples, args.tell)
        runs = json.loads(path.read_text())["runs"] if path.exists() else []  # another process may have added its own
        settings = {"steps": args.steps, "learning_rate": args.learning_rate}
        save(about("cpu", "transformers", "trl"), settings, [*(r for r in runs if r["seed"] != seed), run])
    if args.report:
        result = json.loads(path.read_text())
        made = {key: value for key, value in result.items() if isinstance(value, str)}
        settings = {key: result[key] for key in ("steps", "learning_rate")}
        save(made, settings, result["runs"])


if __name__ == "__main__":
    main()
