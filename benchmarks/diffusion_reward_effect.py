# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
# More than 300 lines: a script, read from top to bottom.
"""What training on a reward does to the embedded models: the reward, a judge that was not trained, the subject, and
the diversity of a prompt's pictures, at equal numbers of denoiser evaluations.

    python benchmarks/diffusion_reward_effect.py                        # all runs and seeds, an hour of one core
    python benchmarks/diffusion_reward_effect.py --run style-k1 --seeds 0
    python benchmarks/diffusion_reward_effect.py --report               # tables and plot of what has been run

A denoiser evaluation is a row that goes through the denoiser forwards: both rows of guidance, those of the base model,
and those of a policy gradient's second pass count; backward passes do not, and stand in the seconds. Every run ends
with the update that uses up the budget. New samples are of things that are not in the training prompts, from the same
noise before and after. Rows go to `results/diffusion-reward-effect.json` as they come.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial, wraps
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from diffusers import DiffusionPipeline
from diffusion_preference_effect import Grid
from peft import LoraConfig
from transformers import TrainerCallback

import alignext
from alignext import mini
from alignext.diffusion.drawing import draw
from alignext.evaluation.diversity import DiversityEvaluator, by_prompt
from alignext.mini.judges import Judge
from alignext.rewards import CLIPReward, DirectionalReward, JudgeReward, PaletteReward, compressibility
from common import ASSETS, RESULTS, about, interval, parser, table, write


NAME = "diffusion-reward-effect"
BUDGET = 2400  # denoiser evaluations of a run
PROMPTS, IMAGES = 8, 4  # that are measured
LOOKS = 3  # along a run
STYLE = "glossy"
STEPS = 8
CALLS = {
    "sd": {"num_inference_steps": STEPS, "guidance_scale": 3.0},
    "flux": {"num_inference_steps": STEPS, "height": 64, "width": 64, "max_sequence_length": 16},
}


class Run(NamedTuple):
    """What is trained, on which reward, and how."""

    reward: str
    trainer: str
    settings: dict[str, Any]
    model: str = "sd"


_ALIGN = {"per_device_train_batch_size": 8, "learning_rate": 3e-3}
_POLICY = {"per_device_train_batch_size": 4, "num_images_per_prompt": 4, "num_train_steps": 4, "learning_rate": 3e-3}
_K1, _K8, _KL = _ALIGN | {"backprop_steps": 1}, _ALIGN | {"backprop_steps": 8}, {"kl_coef": 5.0}
RUNS = {
    "style-k1": Run("style", "AlignProp", _K1),
    "style-k8": Run("style", "AlignProp", _K8),
    "style-k8-kl": Run("style", "AlignProp", _K8 | _KL),
    "style-ddpo": Run("style", "DDPO", _POLICY),
    "style-ddpo-flux": Run("style", "DDPO", _POLICY, "flux"),
    "palette-k1": Run("palette", "AlignProp", _K1),
    "palette-k8": Run("palette", "AlignProp", _K8),
    "compressibility-ddpo": Run("compressibility", "DDPO", _POLICY),
    "clip-k1": Run("clip", "AlignProp", _K1),
    "clip-k8": Run("clip", "AlignProp", _K8),
    "clip-k8-kl": Run("clip", "AlignProp", _K8 | _KL),
    "clip-k8-d2": Run("clip-d2", "AlignProp", _K8),
    # At 3e-3 the CLIP reward of new prompts does not rise: a third of it.
    "clip-k8-low": Run("clip", "AlignProp", _K8 | {"learning_rate": 1e-3}),
    "clip-k8-d2-low": Run("clip-d2", "AlignProp", _K8 | {"learning_rate": 1e-3}),
}
PAIRS = (("clip-k8", "clip-k8-d2"), ("clip-k8-low", "clip-k8-d2-low"))  # without the direction, and with it
MEASURED = ("reward", "held_out", "subject", "pairwise", "vendi", "tonal", "duplicates")


class Bench:
    """Prompts, rewards and judges, loaded once."""

    def __init__(self) -> None:
        self.grid = Grid.load()
        self.clip, self.concept = CLIPReward(mini.path("clip")), Judge("concept")
        self.trained = [self.grid.prompt(concept) for concept in self.grid.trained]
        self.new = [self.grid.prompt(concept) for concept in self.grid.new[:PROMPTS]]
        # What each reward is trained by, and the judge that it does not know.
        in_style = lambda prompts: [f"{prompt}, {STYLE} style" for prompt in prompts]  # noqa: E731
        of_concept = JudgeReward("concept", probability=True)
        clip_in_style = lambda images, prompts: self.clip(images, in_style(prompts))  # noqa: E731
        self.rewards: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
            "style": (JudgeReward("style", STYLE, probability=True), clip_in_style),
            "palette": (PaletteReward([(0.9, 0.2, 0.15), (0.15, 0.1, 0.1)]), self.clip),
            "compressibility": (compressibility, self.clip),
            "clip": (self.clip, of_concept),
            "clip-d2": (self.clip, of_concept),  # measured by the plain reward, too
        }
        self.diversity = DiversityEvaluator(lambda images: self.concept(images).features)
        self.directions: dict[str, Any] = {}

    def trained_on(self, run: Run) -> Callable[..., Any]:
        """The reward that the trainer is given."""
        if run.reward != "clip-d2":
            return self.rewards[run.reward][0]
        reward = DirectionalReward(self.clip)
        if run.model not in self.directions:
            # Four pictures of each prompt: there are few prompts here.
            pipe = DiffusionPipeline.from_pretrained(mini.path(run.model))
            found = reward.fit(pipe, self.trained * 4, image_batch_size=32, **CALLS[run.model])
            self.directions[run.model] = found
            print(f"direction: {found._replace(direction=None, log=[])}", flush=True)
        reward.direction = self.directions[run.model].direction
        return reward

    @torch.no_grad()
    def measure(self, name: str, sample: Callable[..., torch.Tensor]) -> dict[str, list[float]]:
        """Each number for each prompt, a mean over its pictures."""
        texts = [prompt for prompt in self.new for _ in range(IMAGES)]
        images = sample(texts, [1000 + i for i in range(len(texts))])
        reward, held_out = self.rewards[name]
        found = {"reward": reward(images, texts), "held_out": held_out(images, texts)}
        kept = [said == text.partition(" ")[2] for said, text in zip(self.concept.name(images), texts, strict=True)]
        found["subject"] = torch.tensor(kept, dtype=torch.float32)
        rows = {key: value.unflatten(0, (PROMPTS, IMAGES)).mean(1) for key, value in found.items()}
        rows |= self.diversity(by_prompt(images, self.new)).per_prompt
        return {key: [round(x, 5) for x in rows[key].tolist()] for key in MEASURED}


class Counter(TrainerCallback):
    """Counts rows through the denoiser, measures on the way, and ends the training with its budget."""

    def __init__(self, trainer: Any, budget: int, look: Callable[[], dict[str, list[float]]]) -> None:
        self.trainer, self.budget, self.look = trainer, budget, look
        self.rows, self.counting, self.curve, self.seconds = 0, True, [], 0.0
        self.start = time.process_time()
        denoiser = trainer.accelerator.unwrap_model(trainer.model).denoiser
        forward = denoiser.forward  # not a hook: the base model is called beneath those

        @wraps(forward)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.counting:
                self.rows += len(args[0] if args else kwargs.get("sample", kwargs.get("hidden_states")))
            return forward(*args, **kwargs)

        denoiser.forward = counted

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = len(self.curve) + 1
        if self.rows >= due * self.budget / LOOKS:
            self.seconds += time.process_time() - self.start
            self.counting = False
            self.curve.append({"rows": self.rows, "step": state.global_step} | self.look())
            self.counting, self.start = True, time.process_time()
        control.should_training_stop = self.rows >= self.budget


def train(bench: Bench, run: Run, seed: int, budget: int) -> dict[str, Any]:
    """A run: its curve, and what it took."""
    pipe = DiffusionPipeline.from_pretrained(mini.path(run.model))
    pipe.set_progress_bar_config(disable=True)
    call = CALLS[run.model]
    with tempfile.TemporaryDirectory() as folder:
        args = getattr(alignext, f"{run.trainer}Config")(
            output_dir=folder,
            resolution=64,
            num_inference_steps=STEPS,
            guidance_scale=call.get("guidance_scale"),
            max_sequence_length=call.get("max_sequence_length"),
            lr_scheduler_type="constant",
            activation_checkpointing=False,
            step_checkpointing=False,
            vae_decode_batch_size=16,
            per_device_eval_batch_size=24,
            max_steps=10_000,
            seed=seed,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            **run.settings,
        )
        trainer = getattr(alignext, f"{run.trainer}Trainer")(
            pipe,
            reward_funcs=bench.trained_on(run),
            args=args,
            train_dataset=Dataset.from_dict({"prompt": bench.trained}),
            peft_config=LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]),
        )
        counter = Counter(trainer, budget, lambda: bench.measure(run.reward, trainer.sample))
        trainer.add_callback(counter)
        trainer.train()
    return {
        "updates": trainer.state.global_step, "rows": counter.rows, "cpu_seconds": round(counter.seconds, 1),
        "curve": counter.curve,
    }  # fmt: skip


def report(document: dict) -> str:
    """The table, as Markdown."""
    rows = []
    for name, run in RUNS.items():
        runs = [row for row in document["runs"] if row["run"] == name]
        if not runs:
            continue
        before = document["before"][f"{run.model} {run.reward}"]
        cells = []
        for what in ("reward", "held_out", "subject", "pairwise", "vendi", "tonal"):
            values = np.array([row["curve"][-1][what] for row in runs])
            mean, low, high = interval(values - np.array(before[what]), over=2)
            cells.append(f"{np.mean(before[what]):.3f} {mean:+.3f} ({low:+.3f} to {high:+.3f})")
        cost = f"{np.mean([row['updates'] for row in runs]):.0f} | {np.mean([row['cpu_seconds'] for row in runs]):.0f}"
        rows.append([name, len(runs), *cells, cost])
    header = ["run", "seeds", "reward", "held out", "subject", "pairwise", "Vendi", "tonal", "updates", "seconds"]
    return table(header, rows)


def at_equal_reward(document: dict) -> str:
    """D²-Align and the others on the plain CLIP reward: diversity where the reward of each is the same."""
    before = document["before"].get("sd clip")
    curves: dict[str, list[list[tuple[float, float, float]]]] = {}
    for row in document["runs"]:
        if row["run"].startswith("clip-") and before:
            points = [before, *row["curve"]]
            numbers = [tuple(np.mean(point[what]) for what in ("reward", "pairwise", "subject")) for point in points]
            curves.setdefault(row["run"], []).append(numbers)
    found = [_reached(curves, plain, led, np.mean(before["reward"])) for plain, led in PAIRS if led in curves]
    return "".join(found)


def _reached(curves: dict[str, list], plain: str, led: str, start: float) -> str:
    level = min(max(x for x, *_ in curve) for name in (plain, led) for curve in curves[name])
    rows = []
    for name, found in ((name, curves[name]) for name in (plain, led)):
        reached = [_first(curve, level) for curve in found]
        cells = [
            f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            for values in zip(*[point for point in reached if point], strict=True)
        ]
        rows.append([name, f"{sum(point is not None for point in reached)} of {len(reached)}", *(cells or ["", ""])])
    return (
        f"\nWhere a run first reaches a CLIP reward of {level:.3f} (before: {start:.3f}), "
        "interpolated between its looks; mean and range over the seeds:\n\n"
        + table(["run", "reached by", "pairwise", "subject"], rows)
    )


def _first(curve: list[tuple[float, float, float]], level: float) -> tuple[float, float] | None:
    for (x0, *y0), (x1, *y1) in pairwise(curve):
        if x0 <= level <= x1:
            share = (level - x0) / max(x1 - x0, 1e-12)
            return y0[0] + share * (y1[0] - y0[0]), y0[1] + share * (y1[1] - y0[1])
    return None


def plot(document: dict) -> None:
    """Diversity against reward along each run, the mean over seeds; rewards in units of their gain at the most."""
    from matplotlib.figure import Figure

    names = [name for name in RUNS if any(row["run"] == name for row in document["runs"])]
    rewards = list(dict.fromkeys(RUNS[name].reward.removesuffix("-d2") for name in names))
    figure = Figure(figsize=(4.2 * len(rewards), 3.8), layout="constrained")
    for k, reward in enumerate(rewards):
        axes = figure.add_subplot(1, len(rewards), k + 1, title=reward, xlabel="reward", ylabel="pairwise distance")
        for name in (name for name in names if RUNS[name].reward.removesuffix("-d2") == reward):
            run, rows = RUNS[name], [row for row in document["runs"] if row["run"] == name]
            start = document["before"][f"{run.model} {run.reward}"]
            points = [
                [np.mean([np.mean(row["curve"][i][what]) for row in rows]) for what in ("reward", "pairwise")]
                for i in range(min(len(row["curve"]) for row in rows))
            ]
            points.insert(0, [np.mean(start["reward"]), np.mean(start["pairwise"])])
            axes.plot(*zip(*points, strict=True), "-o", markersize=3.5, label=name.removeprefix(f"{reward}-"))
        axes.legend(fontsize=8)
    ASSETS.mkdir(parents=True, exist_ok=True)
    figure.savefig(ASSETS / f"{NAME}.png", dpi=110)


def save(document: dict) -> None:
    text = (
        f"Each cell: before, and the change with its 95 % interval (bootstrap over seeds and {PROMPTS} prompts of "
        f"{IMAGES} pictures). Every run has {document['budget']} denoiser evaluations. Held out: mini-CLIP's "
        "agreement with the prompt (for the style: with the prompt in that style), for the rewards by CLIP the "
        "concept judge's probability. Subject: the share in which the concept judge sees what was asked for. "
        f"Diversity: by that judge's features.\n\n{report(document)}{at_equal_reward(document)}"
    )
    made = {key: value for key, value in document.items() if isinstance(value, str | int)}
    write(NAME, "Training on rewards: effect", made, document, text)
    plot(document)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--run", choices=RUNS, nargs="+", default=list(RUNS), help="which (default: all)")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--budget", type=int, default=BUDGET, help="denoiser evaluations (default: %(default)s)")
    options.add_argument("--report", action="store_true", help="write what the runs so far say, run nothing")
    args: argparse.Namespace = options.parse_args()
    path = RESULTS / f"{NAME}.json"
    document = json.loads(path.read_text()) if path.exists() else about("cpu", "diffusers", "peft")
    document = {"budget": args.budget, "before": {}, "runs": []} | document
    if not args.report:
        if document["budget"] != args.budget:
            raise SystemExit(f"{path} has runs of {document['budget']} evaluations: send others elsewhere.")
        bench = Bench()
        for seed in args.seeds:
            for name in args.run:
                run = RUNS[name]
                key = f"{run.model} {run.reward}"
                if key not in document["before"]:
                    stock = DiffusionPipeline.from_pretrained(mini.path(run.model))
                    sample = partial(draw, stock, batch_size=24, **CALLS[run.model])
                    document["before"][key] = bench.measure(run.reward, sample)
                if (name, seed) in [(row["run"], row["seed"]) for row in document["runs"]]:
                    continue
                document["runs"].append({"run": name, "seed": seed} | train(bench, run, seed, args.budget))
                save(document)
    save(document)


if __name__ == "__main__":
    main()
