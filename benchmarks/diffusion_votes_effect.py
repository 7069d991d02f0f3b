# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Pairs against votes on mini-SD, and pairs on mini-Flux (a style) and mini-video (more motion): what new samples do.

    python benchmarks/diffusion_votes_effect.py                       # all rows and seeds, half an hour
    python benchmarks/diffusion_votes_effect.py --run sd-dpo sd-kto --seeds 0
    python benchmarks/diffusion_votes_effect.py --report              # the table of what has been run

Pairs of pictures are those of `diffusion_preference_effect.py`: the embedded drawings of one thing, one in the
preferred style and one in another. Votes are the same pictures taken apart, so that Diffusion-KTO and Diffusion-DPO
see the same number of ratings, each picture as often. Pairs of videos are a drawing that slides and the same one
standing still, or sliding slowly. New samples are of other things, from the same noise before and after. Rows go to
`results/diffusion-votes-effect.json` as they come.

Rows with a style or pixels in their name came second: mini-Flux draws 8 of 16 things in the style `glossy` before it
is trained, and mini-video moves as much as a drawing that slides by 3 pixels a frame, so that the first rows of both
ask for what is there.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from datasets import Dataset, Features, Image, List, Value
from diffusers import DiffusionPipeline
from diffusion_preference_effect import PREFERRED, STYLES, Grid
from peft import LoraConfig

import alignext
from alignext import mini
from alignext.mini.judges import Judge
from common import RESULTS, about, interval, parser, table, write


NAME = "diffusion-votes-effect"
COUNT = 16  # new things, one sample of each
SD_CALL = {"num_inference_steps": 10, "guidance_scale": 3.0}


class Run(NamedTuple):
    """What is trained, on what, and how it is measured."""

    model: str
    trainer: str
    settings: dict[str, Any]
    video: bool = False
    lora: bool = True
    preferred: str = PREFERRED
    pixels: tuple[int, int] = (3, 0)  # that a drawing slides by in each frame, in the chosen video and in the other

    @property
    def before(self) -> str:
        """What the untrained model is measured as."""
        return self.model if self.preferred == PREFERRED else f"{self.model}, {self.preferred}"


_PAIRS = {"max_steps": 20, "per_device_train_batch_size": 6, "learning_rate": 1e-3, "beta": 2000.0}
_VOTES = _PAIRS | {"per_device_train_batch_size": 12}
_VIDEO = _PAIRS | {"max_steps": 15, "per_device_train_batch_size": 2, "learning_rate": 5e-5, "num_frames": 8}
RUNS = {
    "sd-dpo": Run("sd", "DiffusionDPO", _PAIRS),
    "sd-kto": Run("sd", "DiffusionKTO", _VOTES),
    "sd-kto, BCO's shift": Run("sd", "DiffusionKTO", _VOTES | {"utility": "loss-averse", "reward_shift": "ema"}),
    "flux-dpo": Run("flux", "DiffusionDPO", _PAIRS),
    "flux-dpo, flat": Run("flux", "DiffusionDPO", _PAIRS, preferred="flat"),
    "flux-dpo, ink": Run("flux", "DiffusionDPO", _PAIRS, preferred="ink"),
    "sd-kto, 60 updates": Run("sd", "DiffusionKTO", _VOTES | {"max_steps": 60}),
    "video-dpo": Run("video", "DiffusionDPO", _VIDEO, video=True, lora=False),
    "video-dpo, 6 pixels": Run(
        "video",
        "DiffusionDPO",
        _VIDEO | {"max_steps": 40, "per_device_train_batch_size": 4, "learning_rate": 1e-4},
        video=True,
        lora=False,
        pixels=(6, 2),
    ),
}
CALLS = {
    "sd": SD_CALL,
    "flux": {"height": 64, "width": 64, "max_sequence_length": 16, "num_inference_steps": 8},
    "video": mini.VIDEO_CALL | {"num_inference_steps": 8},
}


def style_pairs(grid: Grid, preferred: str) -> Dataset:
    """A pair for each thing and other style."""
    rows = [
        {
            "prompt": grid.prompt(concept),
            "image_chosen": grid.drawings[concept][preferred].image,
            "image_rejected": grid.drawings[concept][other].image,
        }
        for concept in grid.trained
        for other in STYLES
        if other != preferred
    ]
    return Dataset.from_list(rows[::2])


def motion_pairs(grid: Grid, pixels: tuple[int, int]) -> Dataset:
    """A drawing that slides to the left or right, preferred to the same one standing still or sliding less."""
    rows = []
    for concept in grid.trained:
        for style in STYLES:
            picture = grid.drawings[concept][style].image
            way = 1 if len(rows) % 2 else -1
            moving, other = ([_shifted(picture, way * step * (frame - 4)) for frame in range(8)] for step in pixels)
            rows.append({"prompt": grid.prompt(concept), "video_chosen": moving, "video_rejected": other})
    kind = List(Image())
    return Dataset.from_list(
        rows[::3], Features({"prompt": Value("string"), "video_chosen": kind, "video_rejected": kind})
    )


def pairs_of(run: Run, grid: Grid) -> Dataset:
    return motion_pairs(grid, run.pixels) if run.video else style_pairs(grid, run.preferred)


def _shifted(picture: PIL.Image.Image, pixels: int) -> PIL.Image.Image:
    out = PIL.Image.new("RGB", picture.size, "white")
    out.paste(picture, (pixels, 0))
    return out


class Sampler:
    """New samples of fixed prompts from fixed noise, and what they are."""

    def __init__(self, grid: Grid) -> None:
        self.grid, self.concepts = grid, grid.new[:COUNT]
        self.style, self.concept = Judge("style"), Judge("concept")

    @torch.no_grad()
    def measure(self, pipe: Any, run: Run) -> dict[str, list[float]]:
        pipe.set_progress_bar_config(disable=True)
        prompts = [self.grid.prompt(concept) for concept in self.concepts]
        drawn: list[Any] = []
        model = run.model
        for start in range(0, len(prompts), 12):
            seeds = range(start, min(start + 12, len(prompts)))
            generators = [torch.Generator().manual_seed(1000 + i) for i in seeds]
            drawn += list(pipe(prompts[start : start + 12], **CALLS[model], generator=generators)[0])
        if model == "video":
            frames = [np.stack([np.asarray(frame, dtype=np.float32) for frame in video]) for video in drawn]
            motion = [float(np.abs(np.diff(video, axis=0)).mean()) for video in frames]
            middle = [video[len(video) // 2] for video in drawn]
            return {"wanted": motion, "concept": self._kept(middle)}
        return {
            "wanted": [float(name == run.preferred) for name in self.style.name(drawn)],
            "concept": self._kept(drawn),
        }

    def _kept(self, images: list) -> list[float]:
        return [float(a == b) for a, b in zip(self.concept.name(images), self.concepts, strict=True)]


def train(run: Run, seed: int, data: Callable[[], Dataset]) -> tuple[Any, dict[str, Any]]:
    """The trained pipeline, and what the training took and logged."""
    pipe, start = DiffusionPipeline.from_pretrained(mini.path(run.model)), time.process_time()
    call = {"clean_caption": False} if run.video else {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = getattr(alignext, f"{run.trainer}Trainer")(
            pipe,
            args=getattr(alignext, f"{run.trainer}Config")(
                output_dir=folder,
                resolution=64,
                max_sequence_length=16 if run.model == "flux" else None,
                call_arguments=call,
                lr_scheduler_type="constant",
                activation_checkpointing=False,
                precompute_latents=True,
                seed=seed,
                logging_steps=5,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                **run.settings,
            ),
            train_dataset=data(),
            peft_config=LoraConfig(r=16, lora_alpha=16) if run.lora else None,
        )
        trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log][-2:]
    accuracy = float(np.mean([log["rewards/accuracies"] for log in logs]))
    return pipe, {"train_cpu_seconds": round(time.process_time() - start, 1), "accuracy": accuracy}


def report(document: dict) -> str:
    """The table, as Markdown."""
    rows = []
    for name, run in RUNS.items():
        runs = [row for row in document["runs"] if row["run"] == name]
        if not runs:
            continue
        before = document["before"][run.before]
        cells = []
        for what in ("wanted", "concept"):
            values = np.array([row["samples"][what] for row in runs])
            _, low, high = interval(values[..., None] - np.array(before[what])[:, None], over=2)
            cells += [f"{np.mean(before[what]):.3f}", f"{values.mean():.3f} ({low:+.3f} to {high:+.3f})"]
        accuracy = np.mean([row["accuracy"] for row in runs])
        rows.append([name, len(runs), "motion" if run.video else run.preferred, *cells, f"{accuracy:.2f}"])
    return table(["run", "seeds", "wanted", "before", "after", "concept before", "after", "accuracy"], rows)


def save(document: dict) -> None:
    text = (
        f"Wanted: the share of {COUNT} new samples in the style that is named, or the mean absolute difference of "
        "neighbouring frames (0 to 255). In brackets: the 95 % interval of the change (bootstrap over seeds and "
        "things). Accuracy: what the trainer logs at the end, of pairs or of votes. Diffusion-KTO saw the pictures of "
        f"the pairs one by one, as many ratings per update.\n\n{report(document)}"
    )
    made = {key: value for key, value in document.items() if isinstance(value, str)}
    write(NAME, "Pairs and votes: effect", made, document, text)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--run", choices=RUNS, nargs="+", default=list(RUNS), help="which (default: all)")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--report", action="store_true", help="write the table of what has been run, run nothing")
    args: argparse.Namespace = options.parse_args()
    path = RESULTS / f"{NAME}.json"
    document = json.loads(path.read_text()) if path.exists() else about("cpu", "diffusers", "peft")
    document = {"before": {}, "runs": []} | document
    if not args.report:
        grid = Grid.load()
        sampler = Sampler(grid)
        for seed in args.seeds:
            for name in args.run:
                run = RUNS[name]
                if run.before not in document["before"]:
                    stock = DiffusionPipeline.from_pretrained(mini.path(run.model))
                    document["before"][run.before] = sampler.measure(stock, run)
                if (name, seed) in [(row["run"], row["seed"]) for row in document["runs"]]:
                    continue
                pipe, row = train(run, seed, lambda run=run: pairs_of(run, grid))
                row |= {"run": name, "seed": seed, "samples": sampler.measure(pipe, run)}
                document["runs"].append(row)
                save(document)
    save(document)


if __name__ == "__main__":
    main()
