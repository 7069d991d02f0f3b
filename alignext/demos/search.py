# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latent search: one sample, the best of several, and a search of as many evaluations."""

from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from alignext import LatentSearch, SearchConfig, mini
from alignext.demos.charts import Chart
from alignext.demos.gallery import Figure, Section, Table, middle_frame, print_table
from alignext.diffusion.sheets import contact_sheet
from alignext.rewards import JudgeReward, dynamics


_METHODS: dict[str, dict[str, Any]] = {
    "one sample": {"num_beams": 1, "num_candidates": 1},
    "best of 8": {"num_beams": 8, "num_candidates": 1, "strategy": "best_of_n"},
    "beam search": {"num_beams": 4, "num_candidates": 2, "lookahead_steps": 1},
}
_CLIPS = ("a rocket, ink style, moving up", "a fish, glossy style, moving left")


def demo(*, seed: int, steps: int | None) -> list[Section]:
    """The style that a caption asks for: one sample, the best of 8, and a beam search at as many evaluations."""
    call = {"num_inference_steps": steps or 12, "guidance_scale": 5.0}
    prompts = [picture.caption for picture in mini.pictures("unseen_drawing")][:3]
    judges = JudgeReward("style"), JudgeReward("concept")
    samples, measured, course = _compare(
        StableDiffusionPipeline.from_pretrained(mini.path("sd")), prompts, *judges, seed, call
    )
    sheet = contact_sheet(
        [[middle_frame(sample) for sample in row] for row in samples], row_labels=prompts, col_labels=list(_METHODS)
    )
    caption = "Log-probabilities by two judges, means over the captions; the search saw only the first."
    pictures = Section(
        "Latent search: the style that was asked for",
        "No training: partial drawings are tried, estimated and kept or dropped while the model draws. The best of 8 "
        "costs about as much as the beam search and looks at finished drawings only.",
        figures=[Figure("search", sheet, alt="Captions by row: one sample, best of 8, beam search.")],
        charts=_charts("style log-probability", measured, course),
        tables=[_table("style", "concept", measured, caption)],
    )
    return [pictures, _video_section(seed, steps)]


def _video_section(seed: int, steps: int | None) -> Section:
    """The same for clips, by how much moves in them."""
    concept = JudgeReward("concept")

    def of_the_middle(clips: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return concept(clips[:, clips.shape[1] // 2], prompts)

    pipe = DiffusionPipeline.from_pretrained(mini.path("video"))
    call = {"num_inference_steps": steps or 12, **mini.VIDEO_CALL}
    samples, measured, course = _compare(pipe, list(_CLIPS), dynamics, of_the_middle, seed, call)
    frames = [
        contact_sheet(
            [[middle_frame(clip[k]) for clip in row] for row in samples], row_labels=_CLIPS, col_labels=list(_METHODS)
        )
        for k in range(len(samples[0][0]))
    ]
    caption = "Mean change of a pixel from frame to frame, and the log-probability of what the caption names by the "
    caption += "embedded judge, which the search did not see. Means over the captions."
    return Section(
        "Latent search: clips with more motion in them",
        "The same search on a video model.",
        figures=[Figure("search-clips", frames, alt="Captions by row: one sample, best of 8, beam search.")],
        charts=_charts("change from frame to frame", measured, course),
        tables=[_table("motion", "concept", measured, caption)],
    )


def _compare(pipe: Any, prompts: list[str], reward: Any, held_out: Any, seed: int, call: dict) -> tuple:
    """
    The three ways to spend evaluations, with the same noise.

    Returns:
        `tuple`: Samples `[prompt][method]`, rows `(method, evaluations, reward, held_out)`, and how the estimates went
        in the beam search: per scored step `(step, best, mean)`. Rewards are means over the prompts.
    """

    pipe.set_progress_bar_config(disable=True)
    samples: list[list[torch.Tensor]] = [[] for _ in prompts]
    measured, estimates = [], []
    for name, settings in _METHODS.items():
        found = []
        for k, prompt in enumerate(prompts):
            generator = torch.Generator().manual_seed(seed + k)
            search = LatentSearch(pipe, reward, SearchConfig(**settings))
            result = search(prompt, generator=generator, output_type="pt", **call)
            samples[k].append(result[0][0])
            other = held_out(result[0][:1], [prompt]).item()
            found.append([result.nfe, result.rewards[0, 0].item(), other])
            if name == "beam search":
                estimates.append([(entry["node"] + 1, entry["rewards"][0]) for entry in result.history])
        nfe, searched, other = torch.tensor(found, dtype=torch.float64).mean(0).tolist()
        measured.append((name, round(nfe), searched, other))
    course = []
    for scored in zip(*estimates, strict=True):  # the same step of every prompt
        rewards = torch.stack([values.float() for _, values in scored])
        course.append((scored[0][0], rewards.amax(1).mean().item(), rewards.mean().item()))
    return samples, measured, course


def _charts(of: str, measured: list[tuple], course: list[tuple]) -> list[Chart]:

    series = {name: [(nfe, searched)] for name, nfe, searched, _ in measured}
    estimates = {
        "best": [(step, best) for step, best, _ in course],
        "mean": [(step, mean) for step, _, mean in course],
    }
    return [
        Chart("What the evaluations buy", "evaluations of the denoiser", of, series, lines=False),
        Chart(
            "The beam search as it goes",
            "denoising step",
            of,
            estimates,
            caption="What the candidates of a step are estimated to become: the best of them, and their mean.",
        ),
    ]


def _table(searched: str, held_out: str, measured: list[tuple], caption: str) -> Table:

    table = Table(("", "evaluations", f"{searched} (searched)", f"{held_out} (held out)"), measured, caption)
    print_table(table)
    return table
