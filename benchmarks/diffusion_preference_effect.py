# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
# More than 300 lines: a script, read from top to bottom.
"""What preference training does to new samples of the embedded model: Diffusion-DPO, InPO, SmPO, Inversion-DPO.

    python benchmarks/diffusion_preference_effect.py                        # all methods and seeds, about 20 minutes
    python benchmarks/diffusion_preference_effect.py --method diffusion-dpo inpo --seeds 0 1
    python benchmarks/diffusion_preference_effect.py --report               # the tables of what has been run

Pairs are real drawings of the same thing: one in the preferred style beside one in each other style, with a prompt
that names no style; they come with the package. New samples are of other things, from the same noise before and after.
What they are compared with are the drawings that the model was trained on, which `alignext.mini.recipe.render` fetches
(`pip install alignext[mini]`, and npm). Every run is kept in `results/diffusion-preference-effect.json`; the table and
the sheet are made of all that are there.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from datasets import Dataset
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

import alignext
from alignext import mini
from alignext.diffusion.sheets import contact_sheet
from alignext.mini.judges import Judge
from alignext.mini.recipe import render
from common import RESULTS, about, interval, parser, table, write


NAME = "diffusion-preference-effect"
STYLES = ("noto", "blob", "flat", "glossy", "ink")
PREFERRED = "glossy"
SHOWN = ("crown", "frog", "cloud", "bee", "bear", "violin", "umbrella", "pineapple")

_INVERSION = {
    "num_inversion_steps": 10,
    "precompute_inversion": True,
    "num_cached_points": 10,
}
_SMPO = {"num_inversion_steps": 5, "score_min": 0.0, "score_max": 1.0}
# Method -> its trainer, and what is set beyond the settings that all have in common.
METHODS: dict[str, tuple[str, dict]] = {
    "diffusion-dpo": ("DiffusionDPO", {}),
    "inpo": ("SmPO", {"num_renoise_steps": 0, "label_sharpness": None}),
    "smpo": ("SmPO", _SMPO),
    # The soft labels of these scores make margins 3.6 times as large on the average: this beta undoes it.
    "smpo, beta 545": ("SmPO", _SMPO | {"beta": 545.0}),
    "inversion-dpo": ("InversionDPO", _INVERSION),
    "inversion-dpo, trajectory": ("InversionDPO", _INVERSION | {"target": "trajectory", "guidance_scale": 1.0}),
    "inversion-dpo, recovered": ("InversionDPO", _INVERSION | {"target": "recovered", "guidance_scale": 1.0}),
}


@dataclass
class Grid:
    """The embedded drawings by concept and style, and which concepts are trained and which drawn anew."""

    drawings: dict[str, dict[str, mini.Picture]]
    trained: list[str]  # with a drawing in each of the five styles
    new: list[str]  # known to the model, and in no pair

    @classmethod
    def load(cls) -> "Grid":
        drawings: dict[str, dict[str, mini.Picture]] = defaultdict(dict)
        for picture in mini.pictures():
            drawings[picture.concept][picture.style] = picture
        trained = [concept for concept, styles in drawings.items() if set(STYLES) <= set(styles)]
        new = [concept for concept, styles in drawings.items() if "fx" in styles and concept not in trained]
        return cls(drawings, trained, new)

    def prompt(self, concept: str) -> str:
        """Without a style."""
        return next(iter(self.drawings[concept].values())).caption.partition(",")[0]

    def pairs(self, preferred: str) -> Dataset:
        """One pair for each trained concept and other style; the style judge's probabilities are the scores."""
        rows = [
            {
                "prompt": self.prompt(concept),
                "image_chosen": self.drawings[concept][preferred].image,
                "image_rejected": self.drawings[concept][other].image,
            }
            for concept in self.trained
            for other in STYLES
            if other != preferred
        ]
        judge = Judge("style")
        for name in ("chosen", "rejected"):
            with torch.no_grad():
                probabilities = judge([row[f"image_{name}"] for row in rows]).logits.softmax(1)
            for row, score in zip(rows, probabilities[:, judge.labels.index(preferred)].tolist(), strict=True):
                row[f"score_{name}"] = score
        return Dataset.from_list(rows)


class Sampler:
    """New samples of fixed prompts from fixed noise, and what they are."""

    def __init__(self, grid: Grid, preferred: str, per_concept: int, steps: int, guidance: float) -> None:
        self.grid, self.preferred, self.steps, self.guidance = grid, preferred, steps, guidance
        self.concepts = [concept for concept in grid.new for _ in range(per_concept)]
        self.style, self.concept = Judge("style"), Judge("concept")
        self.real = self._real_features()

    @torch.no_grad()
    def _real_features(self) -> dict[str, torch.Tensor]:
        """Features of the drawings, in up to five styles, that the model was trained on or could have been."""
        images, rows = render.load("train", "unseen_drawing")
        wanted = [i for i, row in enumerate(rows) if row["concept"] in self.grid.new]
        features = self.concept([PIL.Image.fromarray(images[i]) for i in wanted]).features
        concepts = [rows[i]["concept"] for i in wanted]
        return {name: features[[i for i, other in enumerate(concepts) if other == name]] for name in self.grid.new}

    def draw(self, pipe: StableDiffusionPipeline) -> list[PIL.Image.Image]:
        pipe.set_progress_bar_config(disable=True)
        images: list[PIL.Image.Image] = []
        for start in range(0, len(self.concepts), 64):
            batch = range(start, min(start + 64, len(self.concepts)))
            images += pipe(
                [self.grid.prompt(self.concepts[i]) for i in batch],
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                generator=[torch.Generator().manual_seed(1000 + i) for i in batch],
            ).images
        return images

    @torch.no_grad()
    def judge(self, images: list[PIL.Image.Image]) -> dict[str, list[float]]:
        """Of each sample: is it in the style, is it the concept, and how far is the nearest real drawing."""
        features = self.concept(images).features
        return {
            "style": [float(name == self.preferred) for name in self.style.name(images)],
            "concept": [float(a == b) for a, b in zip(self.concept.name(images), self.concepts, strict=True)],
            "distance": [
                float(1 - (self.real[concept] @ row).max())
                for concept, row in zip(self.concepts, features, strict=True)
            ],
        }


def run(method: str, seed: int, grid: Grid, args: argparse.Namespace, sampler: Sampler) -> tuple[dict, list]:
    """Train a LoRA and draw."""
    kind, settings = METHODS[method]
    pipe = StableDiffusionPipeline.from_pretrained(mini.path("sd"))
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trainer = getattr(alignext, f"{kind}Trainer")(
            model=pipe,
            args=getattr(alignext, f"{kind}Config")(
                output_dir=folder,
                max_steps=args.steps,
                per_device_train_batch_size=args.batch,
                learning_rate=args.learning_rate,
                lr_scheduler_type="constant",
                precompute_latents=True,
                activation_checkpointing=False,
                seed=seed,
                logging_steps=10,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                **{"beta": args.beta, **settings},
            ),
            train_dataset=grid.pairs(args.preferred),
            peft_config=LoraConfig(r=16, lora_alpha=16),
        )
        trainer.train()
    seconds = time.process_time() - start
    logs = [log for log in trainer.state.log_history if "loss" in log][-3:]
    images = sampler.draw(pipe)
    row = {
        "method": method,
        "seed": seed,
        "train_cpu_seconds": round(seconds, 1),
        "last_logs": {
            name: float(np.mean([log[name] for log in logs]))
            for name in ("loss", "rewards/margins", "rewards/accuracies")
        },
        "samples": sampler.judge(images),
    }
    return row, images


def report(document: dict) -> str:
    """The table, as Markdown."""
    per_concept, before = document["settings"]["per_concept"], document["before"]
    names = ("style", "concept", "distance")

    def array(samples: dict, name: str) -> np.ndarray:
        return np.array(samples[name]).reshape(-1, per_concept)

    rows = [["before", "-", *(f"{array(before, name).mean():.3f}" for name in names), "-", "-"]]
    for method in METHODS:
        runs = [run for run in document["runs"] if run["method"] == method]
        if not runs:
            continue
        cells = []
        for name in names:
            values = np.stack([array(run["samples"], name) for run in runs])
            _, low, high = interval(values - array(before, name), over=2)
            cells.append(f"{values.mean():.3f} ({low:+.3f} to {high:+.3f})")
        accuracy = np.mean([run["last_logs"]["rewards/accuracies"] for run in runs])
        margin = np.mean([run["last_logs"]["rewards/margins"] for run in runs])
        rows.append([method, len(runs), *cells, f"{accuracy:.2f}", f"{margin:.2f}"])
    head = ["method", "seeds", "preferred style", "concept kept", "distance to real", "implicit accuracy", "margin"]
    return table(head, rows)


def save(document: dict) -> None:
    settings = document["settings"]
    text = (
        f"Preferred style: {settings['preferred']}. {settings['pairs']} real pairs, {settings['steps']} updates of "
        f"{settings['batch']} pairs, LoRA of rank 16, learning rate {settings['learning_rate']:g}, beta "
        f"{settings['beta']:g}; {settings['samples']} new samples of {settings['concepts']} other things, guidance "
        f"{settings['guidance']:g}, {settings['sampling_steps']} steps. In brackets: the 95 % interval of the change "
        "(bootstrap over seeds and things drawn). Distance: 1 - cosine of the concept judge's features to the nearest "
        "real drawing of the same thing, in any of the five styles; the samples of the first row, made coarse "
        f"(12 x 12 pixels), have {document['distance_of_coarse']:.3f}. The last two columns are what the trainer logs "
        f"in its last 30 updates.\n\n{report(document)}"
    )
    made = {key: value for key, value in document.items() if isinstance(value, str)}  # of the first run
    write(NAME, "Diffusion preference: effect", made, document, text)


def sheet(folder: Path, grid: Grid) -> None:
    """Before and after, the same noise in each column: the first sample of a few things, first seed."""
    kept = {path.stem: path for path in folder.glob("*.png")}
    names = ["before", *(method for method in METHODS if method in kept)]
    strips = {name: PIL.Image.open(kept[name]).convert("RGB") for name in names if name in kept}
    rows = [[strip.crop((64 * i, 0, 64 * i + 64, 64)) for i in range(strip.width // 64)] for strip in strips.values()]
    image = contact_sheet(rows, row_labels=list(strips), col_labels=[grid.prompt(c) for c in SHOWN], cell=96)
    image.save(RESULTS / f"{NAME}.png", optimize=True)


def strip(images: list[PIL.Image.Image], sampler: Sampler) -> PIL.Image.Image:
    out = PIL.Image.new("RGB", (64 * len(SHOWN), 64))
    for i, concept in enumerate(SHOWN):
        out.paste(images[sampler.concepts.index(concept)], (64 * i, 0))
    return out


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--method", choices=METHODS, nargs="+", default=list(METHODS), help="which (default: all)")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--preferred", choices=STYLES, default=PREFERRED)
    options.add_argument("--steps", type=int, default=60, help="updates (default: %(default)s)")
    options.add_argument("--batch", type=int, default=12, help="pairs per update (default: %(default)s)")
    options.add_argument("--learning-rate", type=float, default=5e-4)
    options.add_argument("--beta", type=float, default=2000.0)
    options.add_argument("--per-concept", type=int, default=1, help="samples of each new thing (default: %(default)s)")
    options.add_argument("--report", action="store_true", help="write the table of what has been run, run nothing")
    options.add_argument("--fresh", action="store_true", help="forget what has been run")
    args = options.parse_args()

    path, strips = RESULTS / f"{NAME}.json", Path(tempfile.gettempdir()) / NAME
    strips.mkdir(exist_ok=True)
    document = json.loads(path.read_text()) if path.exists() and not args.fresh else {}
    grid = Grid.load()
    if not args.report:
        sampler = Sampler(grid, args.preferred, args.per_concept, steps=15, guidance=3.0)
        settings = {
            "preferred": args.preferred,
            "pairs": len(grid.trained) * (len(STYLES) - 1),
            "steps": args.steps,
            "batch": args.batch,
            "learning_rate": args.learning_rate,
            "beta": args.beta,
            "concepts": len(grid.new),
            "per_concept": args.per_concept,
            "samples": len(sampler.concepts),
            "sampling_steps": sampler.steps,
            "guidance": sampler.guidance,
        }
        if document and document["settings"] != settings:
            raise SystemExit(f"{path} was made with other settings. Pass --fresh to start again.")
        if not document:
            document = about("cpu", "diffusers") | {"settings": settings, "runs": []}
            images = sampler.draw(StableDiffusionPipeline.from_pretrained(mini.path("sd")))
            document["before"] = sampler.judge(images)
            coarse = [image.resize((12, 12)).resize((64, 64)) for image in images]
            document["distance_of_coarse"] = float(np.mean(sampler.judge(coarse)["distance"]))
            strip(images, sampler).save(strips / "before.png")
            save(document)
        for seed in args.seeds:
            for method in args.method:
                done = [(run["method"], run["seed"]) for run in document["runs"]]
                if (method, seed) in done:
                    continue
                row, images = run(method, seed, grid, args, sampler)
                # Another process may have added its runs in the meantime.
                document["runs"] = json.loads(path.read_text())["runs"] + [row]
                save(document)
                if seed == min(args.seeds):
                    strip(images, sampler).save(strips / f"{method}.png")
    save(document)
    if (strips / "before.png").exists():
        sheet(strips, grid)


if __name__ == "__main__":
    main()
