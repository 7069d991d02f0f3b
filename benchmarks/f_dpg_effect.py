# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
# More than 300 lines: a script, read from top to bottom.
"""Three targets, four divergences, one budget: what f-DPG makes of the embedded story model.

    python benchmarks/f_dpg_effect.py                                  # everything, one after the other
    python benchmarks/f_dpg_effect.py --target binary --divergence js  # some runs, into a folder of parts
    python benchmarks/f_dpg_effect.py --initial                        # the initial model and the targets
    python benchmarks/f_dpg_effect.py --report                         # table and plot from the parts there are

Writes `results/f-dpg-effect.json` with a Markdown table beside it, and the plot of the docs page (needs matplotlib).
"""

import json
import math
import re
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PrinterCallback

from alignext import FDPGConfig, FDPGTrainer, mini
from alignext.functional.moment_matching import fit_lambda
from alignext.functional.target_estimates import effective_sample_size
from alignext.trainers.f_dpg.diversity import distinct_n, self_bleu
from common import ASSETS, about, interval, parser, shown, table, write


PARTS = Path(tempfile.gettempdir()) / "alignext-f-dpg-effect"
PROMPT = "Once upon a time"
TOKENS, SAMPLES = 16, 64  # of a completion; of a step
JOY = set("happy fun smile smiled laugh laughed friend friends play played playing love loved loves nice kind".split())


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def lion(completions: list[str], **kwargs: object) -> list[float]:
    """1 in 0.7 % of the stories of the initial model."""
    return [float("lion" in words(text)) for text in completions]


def boy(completions: list[str], **kwargs: object) -> list[float]:
    return [float("boy" in words(text)) for text in completions]


def dog(completions: list[str], **kwargs: object) -> list[float]:
    return [float("dog" in words(text)) for text in completions]


def joy(completions: list[str], **kwargs: object) -> list[float]:
    """How many different words of joy are in a story."""
    return [float(len(words(text) & JOY)) for text in completions]


TARGETS = {
    "binary": ([lion], {"target": "binary"}),
    "distributional": ([boy, dog], {"target": "distributional", "target_moments": [0.4, 0.3], "moment_samples": 1024}),
    "exponential": ([joy], {"target": "exponential", "beta": 0.5}),
}
DIVERGENCES = ("forward_kl", "reverse_kl", "js", "tv")
# Reverse KL to a target that excludes anything is infinite; with the floor, sentences without the word stay possible.
FLOOR = {"binary_floor": 1e-3}


class Sampler(FDPGTrainer):
    """Also gives samples with their log-probabilities: `(completions, log pi, log a, rewards)`."""

    @torch.no_grad()
    def draw(self, number: int) -> tuple[list[str], torch.Tensor, torch.Tensor, torch.Tensor]:
        texts, parts = [], []
        for _ in range(math.ceil(number / SAMPLES)):
            with self._unnoticed(training=False):
                samples = self._sample([{"prompt": PROMPT}] * SAMPLES)[1]
            texts += samples.completions
            parts.append(torch.cat([samples.log_q[:, None], samples.log_ref[:, None], samples.rewards], 1))
        values = torch.cat(parts)
        return texts, values[:, 0], values[:, 1], values[:, 2:]


def make(target: str, divergence: str, seed: int, steps: int, learning_rate: float, folder: str, cpu: bool) -> Sampler:
    functions, settings = TARGETS[target]
    if target == "binary" and divergence == "reverse_kl":
        settings = settings | FLOOR
    args = FDPGConfig(
        folder,
        divergence=divergence,
        max_steps=steps,
        per_device_train_batch_size=SAMPLES,
        num_generations=SAMPLES,
        per_device_eval_batch_size=SAMPLES,
        max_completion_length=TOKENS,
        learning_rate=learning_rate,
        warmup_steps=2,
        seed=seed,
        logging_steps=2 if target != "binary" else 4,
        log_diversity=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=cpu,
        bf16=False,
        activation_checkpointing=False,
        **settings,
    )
    trainer = Sampler(str(mini.path("lm")), list(functions), args, Dataset.from_list([{"prompt": PROMPT}]))
    trainer.remove_callback(PrinterCallback)
    return trainer


def describe(texts: list[str], log_pi: torch.Tensor, log_a: torch.Tensor, rewards: torch.Tensor) -> dict:
    """Each measure as mean and interval; diversity over blocks as large as a batch."""
    blocks = [texts[i : i + SAMPLES] for i in range(0, len(texts), SAMPLES)]
    return {
        **{f"feature_{k}": interval(rewards[:, k]) for k in range(rewards.size(1))},
        "kl_policy_base": interval(log_pi - log_a),
        "entropy": interval(-log_pi),
        **{f"distinct_{n}": interval([distinct_n(b, n) for b in blocks]) for n in (1, 2)},
        "self_bleu_5": interval([self_bleu(b) for b in blocks]),
    }


def one_run(target: str, divergence: str, seed: int, steps: int, learning_rate: float, final: int, cpu: bool) -> dict:
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(target, divergence, seed, steps, learning_rate, folder, cpu)
        trainer.train()
        torch.manual_seed(1000 + seed)
        drawn = trainer.draw(final)
    end = describe(*drawn)
    texts, log_pi, log_a, rewards = drawn
    # p / pi of the samples of the policy: the other direction needs samples of p.
    log_p = log_a + trainer.log_scores(rewards)
    ess = effective_sample_size(log_p - log_pi).item() / len(texts)
    end["ess_of_target"] = (ess, ess, ess)
    curve = [
        {key: value for key, value in log.items() if key.split("/")[0] in _LOGGED}
        for log in trainer.state.log_history
        if "loss" in log
    ]
    return {
        "target": target,
        "divergence": divergence,
        "seed": seed,
        "steps": steps,
        "learning_rate": learning_rate,
        "lambda": trainer.target_state.coefficients,
        "cpu_seconds": time.process_time() - start,
        "end": end,
        "stories": texts[:5],
        "curve": curve,
    }


_LOGGED = {"step", "features", "divergence", "entropy", "diversity", "z", "grad_norm", "completions"}


def initial(final: int, cpu: bool) -> dict:
    """The initial model, and what the targets are by importance sampling from it."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make("distributional", "js", 0, 1, 1e-5, folder, cpu)
        torch.manual_seed(2000)
        texts, log_pi, log_a, _ = trainer.draw(final)
    result = {"samples": final, "stories": texts[:5], "targets": {}}
    for target, (functions, settings) in TARGETS.items():
        rewards = torch.tensor([function(texts) for function in functions], dtype=torch.float64).T
        result.setdefault("end", {})[target] = describe(texts, log_pi, log_a, rewards)
        if target == "distributional":
            score = rewards @ fit_lambda(torch.zeros(len(texts)), rewards, settings["target_moments"])
        else:
            score = rewards[:, 0].log() if target == "binary" else rewards[:, 0] / settings["beta"]
        weights = score.softmax(0)
        log_z = (score.logsumexp(0) - math.log(len(texts))).item()
        result["targets"][target] = {
            **{f"feature_{k}": (weights @ rewards[:, k]).item() for k in range(rewards.size(1))},
            "kl_target_base": (weights * torch.where(weights > 0, score, 0.0)).sum().item() - log_z,
            "entropy": -(weights @ log_a).item(),
            "z": math.exp(log_z),
            "ess": effective_sample_size(score).item(),
        }
    return result


def report() -> None:
    """One table, one plot, from the parts."""
    parts = [json.loads(file.read_text()) for file in sorted(PARTS.glob("*-*-*.json"))]
    base = json.loads((PARTS / "initial.json").read_text())
    seeds = sorted({part["seed"] for part in parts})
    table_rows: list[list] = []
    rows: list[dict] = []
    for target, (functions, _) in TARGETS.items():
        names = [function.__name__ for function in functions]
        end, wanted = base["end"][target], base["targets"][target]
        ways = [("initial model", [end], "-"), *((d, _ends(parts, target, d), "") for d in DIVERGENCES)]
        for name, ends, count in ways:
            if not ends:
                continue
            row = {"target": target, "divergence": name, "seeds": len(ends)}
            row |= {key: _over_seeds([end[key] for end in ends]) for key in ends[0]}
            rows.append(row)
            features = ", ".join(f"{n} {_shown(row[f'feature_{k}'])}" for k, n in enumerate(names))
            measures = ("kl_policy_base", "entropy", "distinct_1", "distinct_2", "self_bleu_5")
            table_rows.append([target, name, count or len(ends), features, *(_shown(row[key]) for key in measures)])
        features = ", ".join(f"{n} {wanted[f'feature_{k}']:.3f}" for k, n in enumerate(names))
        cells = [target, "the target", "-", features, f"{wanted['kl_target_base']:.2f}", f"{wanted['entropy']:.1f}"]
        table_rows.append([*cells, "", "", ""])
    head = "target, divergence, seeds, satisfaction, KL(pi, a), entropy, distinct-1, distinct-2, self-BLEU-5".split(
        ", "
    )
    text = (
        "In brackets: of one seed the 95 % interval of a bootstrap over samples, of several seeds their range.\n\n"
        f"{table(head, table_rows)}"
    )
    document = {"seeds": seeds, "initial": base, "table": rows, "runs": parts}
    write("f-dpg-effect", "f-DPG: effect", about("cpu", "transformers", "trl"), document, text)
    plot(parts, base, ASSETS / "f_dpg.png")


def _ends(parts: list[dict], target: str, divergence: str) -> list[dict]:
    return [part["end"] for part in parts if part["target"] == target and part["divergence"] == divergence]


def _over_seeds(found: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Mean with its interval over samples of one seed, with the range over seeds of more."""
    means = [mean for mean, _, _ in found]
    return found[0] if len(found) == 1 else (sum(means) / len(means), min(means), max(means))


def _shown(found: tuple[float, float, float]) -> str:
    return shown(found, ".3g")


def plot(parts: list[dict], base: dict, path: Path) -> None:
    """Satisfaction, KL to the initial model, entropy and self-BLEU over training, and the trade-off at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colors = dict(zip(DIVERGENCES, ("#1f77b4", "#d62728", "#2ca02c", "#9467bd"), strict=True))
    panels = [
        ("satisfaction", None),
        ("KL(pi, a)", "divergence/kl_policy_base"),
        ("entropy of a token", "entropy"),
        ("distinct-2", "diversity/distinct_2"),
        ("self-BLEU-5", "diversity/self_bleu_5"),
    ]
    figure, axes = plt.subplots(len(TARGETS), len(panels), figsize=(3.2 * len(panels), 2.6 * len(TARGETS)))
    for row, (target, (functions, _)) in zip(axes, TARGETS.items(), strict=True):
        for axis, (title, key) in zip(row, panels, strict=True):
            axis.set_title(f"{target}: {title}", fontsize=9)
            axis.tick_params(labelsize=7)
            for part in parts:
                if part["target"] != target:
                    continue
                steps = [log["step"] for log in part["curve"]]
                color, label = colors[part["divergence"]], part["divergence"] if part["seed"] == 0 else None
                keys = [key] if key else [f"features/{f.__name__}/policy" for f in functions]
                for name, style in zip(keys, ("-", "--"), strict=False):
                    values = [log.get(name, math.nan) for log in part["curve"]]
                    axis.plot(steps, values, style, color=color, label=label, linewidth=1, alpha=0.85)
                    label = None
            wanted = base["targets"][target]
            if key is None:
                for k in range(len(functions)):
                    axis.axhline(wanted[f"feature_{k}"], color="gray", linewidth=0.8, linestyle=":")
            if title == "KL(pi, a)":
                axis.axhline(wanted["kl_target_base"], color="gray", linewidth=0.8, linestyle=":")
        row[0].legend(fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("step", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--target", choices=TARGETS, nargs="*", help="runs of these targets only")
    options.add_argument("--divergence", choices=DIVERGENCES, nargs="*", help="runs of these divergences only")
    options.add_argument("--initial", action="store_true", help="measure the initial model and the targets only")
    options.add_argument("--report", action="store_true", help="only write table and plot from the parts")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--steps", type=int, help="default: 40 for the rare constraint, 25 for the others")
    options.add_argument("--learning-rate", type=float, default=1.5e-5)
    options.add_argument("--final", type=int, default=256, help="stories that are measured at the end")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = options.parse_args()
    cpu = args.device == "cpu"
    PARTS.mkdir(parents=True, exist_ok=True)
    everything = not (args.target or args.divergence or args.initial or args.report)
    if args.initial or everything:
        (PARTS / "initial.json").write_text(json.dumps(initial(2048, cpu)))
    if args.target or args.divergence or everything:
        for target in args.target or TARGETS:
            for divergence in args.divergence or DIVERGENCES:
                steps = args.steps or (40 if target == "binary" else 25)
                result = one_run(target, divergence, args.seed, steps, args.learning_rate, args.final, cpu)
                (PARTS / f"{target}-{divergence}-{args.seed}.json").write_text(json.dumps(result))
                print(target, divergence, {key: _shown(value) for key, value in result["end"].items()}, flush=True)
    if args.report or everything:
        report()


if __name__ == "__main__":
    main()
