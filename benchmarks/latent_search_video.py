# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latent search on the embedded video model: what it finds, beside best-of-N with as many evaluations.

    python benchmarks/latent_search_video.py                    # about half an hour on one CPU core
    python benchmarks/latent_search_video.py --reward concept
    python benchmarks/latent_search_video.py --clips 4 --steps 4

Writes `results/latent-search-effect-video-*.json` with a Markdown table and a picture beside it.
"""

import time

import numpy as np
import torch
from diffusers import LattePipeline
from PIL import Image

from alignext import LatentSearch, SearchConfig, mini
from alignext.diffusion.sheets import contact_sheet
from alignext.mini.judges import motion
from alignext.mini.recipe.samples import some_clips, told
from alignext.rewards import JudgeReward
from common import RESULTS, about, interval, parser, shown, table, write


class Concept:
    """Log-probability, by the concept judge, that the middle frame shows what the caption names."""

    def __init__(self) -> None:
        self.judge = JudgeReward("concept")

    def __call__(self, clips: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return self.judge(clips[:, clips.shape[1] // 2], prompts)


class Moves:
    """How far the drawing moves in the direction that the caption names, by rule, less what it moves otherwise.

    In widths of the frame; growth counts as in [`alignext.mini.judges.motion`].
    """

    def __call__(self, clips: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        found = motion(clips)
        ways = torch.stack([found.right, found.down, 0.45 * found.growth], dim=1)
        wanted = [mini.MOTIONS.index(prompt.split()[-1]) for prompt in prompts]
        axes = torch.tensor([way // 2 for way in wanted])
        signs = torch.tensor([(-1, 1, -1, 1, 1, -1)[way] for way in wanted])
        along = signs * ways.gather(1, axes[:, None])[:, 0]
        return along - (ways.abs().sum(1) - along.abs())


REWARDS = {"concept": Concept, "motion": Moves}
TEXT = {
    "concept": "log-probability of what the caption names, by the concept judge on the middle frame",
    "motion": "how far the drawing moves as the caption says, less how it moves otherwise, by rule, in widths",
}


def settings() -> dict[str, SearchConfig]:
    """As many evaluations each, within a few per cent."""
    wide = {"num_beams": 4, "num_candidates": 2, "lookahead_steps": 1}
    return {
        "best of 8": SearchConfig(**wide, strategy="best_of_n"),
        "beam 4 x 2": SearchConfig(**wide),
        "beam 2 x 2, lookahead 2": SearchConfig(num_beams=2, num_candidates=2, lookahead_steps=2),
    }


def main() -> None:
    parse = parser(__doc__)
    parse.add_argument("--reward", choices=sorted(REWARDS), default="motion", help="searched; the other is held out")
    parse.add_argument("--clips", type=int, default=32, help="captions, each with a seed of its own")
    parse.add_argument("--steps", type=int, default=16)
    parse.add_argument("--first-seed", type=int, default=1000, help="clip i has this seed + i")
    parse.add_argument("--minutes", type=float, help="begin no further clip after so many")
    args = parse.parse_args()
    pipe = LattePipeline.from_pretrained(mini.path("video"))
    pipe.set_progress_bar_config(disable=True)
    other = next(name for name in REWARDS if name != args.reward)
    reward, held_out = REWARDS[args.reward](), REWARDS[other]()
    captions = [told(clip) for clip in some_clips(args.clips, seed=7)]
    methods = {"single sample": None, **settings()}
    scores: dict[str, list[list[float]]] = {method: [] for method in methods}
    sheet, start = [], time.perf_counter()
    for i, caption in enumerate(captions):
        if args.minutes is not None and time.perf_counter() - start > 60 * args.minutes:
            break
        row = []
        for method, config in methods.items():
            seed = torch.Generator().manual_seed(args.first_seed + i)
            call = dict(num_inference_steps=args.steps, generator=seed, output_type="pt", **mini.VIDEO_CALL)
            with torch.no_grad():
                if config is None:
                    clip, nfe = pipe(caption, **call).frames, args.steps
                else:
                    out = LatentSearch(pipe, reward, config)(caption, **call)
                    clip, nfe = out.frames[:1], out.nfe
                scores[method].append([reward(clip, [caption]).item(), held_out(clip, [caption]).item(), nfe])
            row += three_frames(clip[0])
        sheet.append(row)
        print(f"{i + 1} of {len(captions)}", {m: [round(x, 2) for x in s[-1]] for m, s in scores.items()}, flush=True)

    values = {method: np.array(rows) for method, rows in scores.items()}
    columns = [f"{args.reward} (searched)", f"{other} (held out)"]

    def rows(found: dict[str, np.ndarray]) -> list[list[str]]:
        return [
            [method, f"{values[method][:, 2].mean():.0f}", *(shown(interval(v[:, k]), ".3f") for k in range(2))]
            for method, v in found.items()
        ]

    less = {m: v - values["best of 8"] for m, v in values.items() if m != "best of 8"}
    head = ["", "evaluations", *columns]
    text = "\n".join(
        [
            f"mini-video, {len(sheet)} captions it was trained on, one seed each, {args.steps} steps, guidance "
            f"{mini.VIDEO_CALL['guidance_scale']:g}, eta 1 unless said; mean and 95 % interval of a bootstrap over "
            f"captions. Searched: {TEXT[args.reward]}. Held out: {TEXT[other]}.\n",
            table(head, rows(values)),
            "Minus best of 8, paired by caption:\n",
            table(head, rows(less)),
        ]
    )
    label = f"latent-search-effect-video-{args.reward}"
    document = {
        "steps": args.steps,
        "reward": args.reward,
        "captions": captions[: len(sheet)],
        "columns": [args.reward, other, "evaluations"],
        "scores": scores,
    }
    write(label, "Latent search: effect on clips", about("cpu", "diffusers"), document, text)
    labels = [label for method in methods for label in (method, "", "")]
    picture = contact_sheet(sheet[:8], row_labels=captions[: len(sheet)][:8], col_labels=labels, cell=96)
    picture.quantize(128).save(RESULTS / f"{label}.png", optimize=True)


def three_frames(clip: torch.Tensor) -> list[Image.Image]:
    """First, middle and last."""
    frames = clip[[0, len(clip) // 2, -1]].mul(255).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(frame) for frame in frames.numpy()]


if __name__ == "__main__":
    main()
