# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latent search: one sample, the best of several, and a search of as many evaluations."""

from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from alignext import LatentSearch, SearchConfig, mini
from alignext.demos.charts import Chart
from alignext.demos.gallery import Figure, Section, Table, middle_frame, print_table
from alignext.demos.measured import quoted
from alignext.demos.verdicts import paired, verdict
from alignext.diffusion.sheets import contact_sheet
from alignext.mini.judges import motion
from alignext.rewards import JudgeReward, compressibility


_METHODS: dict[str, dict[str, Any]] = {
    "one sample": {"num_beams": 1, "num_candidates": 1},
    "best of 8": {"num_beams": 8, "num_candidates": 1, "strategy": "best_of_n"},
    "beam search": {"num_beams": 4, "num_candidates": 2, "lookahead_steps": 1},
}
_CLIPS = (
    "a rocket, ink style, moving up",
    "a fish, glossy style, moving left",
    "a red car, flat style, moving right",
)


def demo(*, seed: int, steps: int | None) -> list[Section]:
    """Pictures that compress well: one sample, the best of 8, and a beam search at as many evaluations."""
    call = {"num_inference_steps": steps or 50, "guidance_scale": 5.0}
    prompts = [picture.caption for picture in mini.pictures("unseen_drawing")][:4]
    pipe = StableDiffusionPipeline.from_pretrained(mini.path("sd"))
    samples, table, charts = _compare(pipe, prompts, "compressibility", compressibility, _concept, seed, call)
    sheet = contact_sheet(
        [[middle_frame(sample) for sample in row] for row in samples], row_labels=prompts, col_labels=list(_METHODS)
    )
    pictures = Section(
        "Latent search: pictures that compress well",
        "No training: partial drawings are tried, estimated and kept or dropped while the model draws. The reward is "
        "minus the size of the picture as a JPEG, in kilobytes, so that the search prefers plain ones. The best of 8 "
        "costs as much as the beam search and looks at finished drawings only. Fifty steps are many choices: with "
        "ten, search is level with the best of 8. What the reward does not ask for is given up, such as the string of "
        "the balloon.",
        figures=[Figure("search", sheet, alt="Captions by row: one sample, best of 8, beam search.")],
        charts=charts,
        tables=[table],
    )
    return [pictures, _video_section(seed, steps)]


def _video_section(seed: int, steps: int | None) -> Section:
    """The same for clips, by how far they move as their caption says."""
    pipe = DiffusionPipeline.from_pretrained(mini.path("video"))
    call = {"num_inference_steps": steps or 16, **mini.VIDEO_CALL}
    samples, table, charts = _compare(pipe, list(_CLIPS), "motion", _moves, _concept, seed, call)
    frames = [
        contact_sheet(
            [[middle_frame(clip[k]) for clip in row] for row in samples], row_labels=_CLIPS, col_labels=list(_METHODS)
        )
        for k in range(len(samples[0][0]))
    ]
    return Section(
        "Latent search: clips that move as they were told",
        "The same search on a video model. The reward is how far the drawing moves as its caption says, less how it "
        "moves otherwise, in widths of the frame, by a rule without a model. Three captions are few: over 32, a "
        f"benchmark found the beam search ahead of the best of 8 by {quoted('search')}.",
        figures=[Figure("search-clips", frames, alt="Captions by row: one sample, best of 8, beam search.")],
        charts=charts,
        tables=[table],
    )


def _concept(samples: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Log-probability of what the caption names, of a picture or of the middle frame of a clip."""
    frames = samples if samples.ndim == 4 else samples[:, samples.shape[1] // 2]
    return JudgeReward("concept")(frames, prompts)


def _moves(clips: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """How far a clip moves as its caption says, less how it moves otherwise, in widths of the frame."""
    found = motion(clips)
    ways = torch.stack([found.right, found.down, 0.45 * found.growth], dim=1)
    wanted = [mini.MOTIONS.index(prompt.split()[-1]) for prompt in prompts]
    signs = torch.tensor([(-1, 1, -1, 1, 1, -1)[way] for way in wanted])
    along = signs * ways.gather(1, torch.tensor([way // 2 for way in wanted])[:, None])[:, 0]
    return along - (ways.abs().sum(1) - along.abs())


def _compare(pipe: Any, prompts: list[str], name: str, reward: Any, held_out: Any, seed: int, call: dict) -> tuple:
    """
    The three ways to spend evaluations, with the same noise.

    Returns:
        `tuple`: Samples `[prompt][method]`, the table, and charts of what was gained and of how the beam search went.
    """
    pipe.set_progress_bar_config(disable=True)
    samples: list[list[torch.Tensor]] = [[] for _ in prompts]
    found: dict[str, list[list[float]]] = {method: [] for method in _METHODS}
    estimates = []
    for k, prompt in enumerate(prompts):
        print(f"search {k + 1}/{len(prompts)}: {prompt}", flush=True)
        for method, settings in _METHODS.items():
            search = LatentSearch(pipe, reward, SearchConfig(**settings))
            result = search(prompt, generator=torch.Generator().manual_seed(seed + k), output_type="pt", **call)
            samples[k].append(result[0][0])
            other = held_out(result[0][:1], [prompt]).item()
            found[method].append([result.nfe, result.rewards[0, 0].item(), other])
            if method == "beam search":
                estimates.append([(entry["node"] + 1, entry["rewards"][0]) for entry in result.history])
    means = {method: torch.tensor(rows, dtype=torch.float64).mean(0).tolist() for method, rows in found.items()}
    gained = paired(*([row[1] for row in found[method]] for method in ("beam search", "best of 8")))
    given_up = paired(*([row[2] for row in found[method]] for method in ("beam search", "one sample")))
    table = Table(
        ("", "evaluations", f"{name} (searched)", "concept (held out)"),
        [(method, round(nfe), searched, other) for method, (nfe, searched, other) in means.items()],
        "Means over the captions. Held out: the log-probability of what the caption names, by the embedded judge, "
        "which the search did not see.",
        verdict(name, "beam search", "best of 8", gained, f"{len(prompts)} captions")
        + " "
        + verdict("what was not searched for", "beam search", "one sample", given_up, f"{len(prompts)} captions"),
    )
    print_table(table)
    course = []
    for scored in zip(*estimates, strict=True):  # the same step of every prompt
        rewards = torch.stack([values.float() for _, values in scored])
        course.append((scored[0][0], rewards.amax(1).mean().item(), rewards.mean().item()))
    series = {method: [(nfe, searched)] for method, (nfe, searched, _) in means.items()}
    lines = {"best": [(step, best) for step, best, _ in course], "mean": [(step, mean) for step, _, mean in course]}
    told = "What the candidates of a step are estimated to become: the best of them, and their mean."
    charts = [
        Chart("What the evaluations buy", "evaluations of the denoiser", name, series, lines=False),
        Chart("The beam search as it goes", "denoising step", name, lines, caption=told),
    ]
    return samples, table, charts
