# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""On the embedded models, searching finds more reward than a single sample and, in many steps, than best-of-N.

In few steps it is level with best-of-N, see `benchmarks/latent_search.py`, which measures with intervals and a second
reward beside the one searched.
"""

import pytest
import torch
from diffusers import LattePipeline, StableDiffusionPipeline

from alignext import LatentSearch, SearchConfig, mini
from alignext.rewards import JudgeReward, compressibility


pytestmark = pytest.mark.effect

WIDE = {"num_beams": 3, "num_candidates": 2, "lookahead_steps": 1}


def search(captions: int, steps: int, **configs: SearchConfig) -> dict[str, tuple[float, float]]:
    """Mean compressibility of held-out captions, and the evaluations it took, by method."""
    pipe = StableDiffusionPipeline.from_pretrained(mini.path("sd"))
    pipe.set_progress_bar_config(disable=True)
    prompts = [picture.caption for picture in mini.pictures("unseen_drawing")][:captions]
    results = {}
    for name, config in configs.items():
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        call = dict(num_inference_steps=steps, guidance_scale=5.0, output_type="pt", generator=generators)
        out = LatentSearch(pipe, compressibility, config)(prompts, **call)
        results[name] = (out.rewards.mean().item(), out.nfe / len(prompts))
    return results


@pytest.fixture(scope="module")
def found():
    best = SearchConfig(**WIDE, strategy="best_of_n")
    return search(2, 10, single=SearchConfig(num_beams=1, num_candidates=1), best=best, beam=SearchConfig(**WIDE))


@pytest.mark.slow
def test_search_and_best_of_n_beat_a_single_sample(found):
    single, best, beam = (found[name][0] for name in ("single", "best", "beam"))
    assert single < best and single < beam


@pytest.mark.slow
def test_it_takes_no_more_evaluations(found):
    assert found["beam"][1] == 3 + 9 * 6 <= found["best"][1] == 60


@pytest.mark.slow
def test_in_many_steps_beams_beat_best_of_n():
    wide = {"num_beams": 4, "num_candidates": 2, "lookahead_steps": 1}
    found = search(6, 50, best=SearchConfig(**wide, strategy="best_of_n"), beam=SearchConfig(**wide))
    assert found["beam"][1] <= found["best"][1]
    assert found["beam"][0] > found["best"][0]


@pytest.mark.slow
def test_search_on_mini_video_finds_clips_that_show_more_of_what_the_caption_names():
    """One caption per call: the pipeline pads several."""
    pipe = LattePipeline.from_pretrained(mini.path("video"))
    pipe.set_progress_bar_config(disable=True)
    reward = JudgeReward("concept")
    captions = ("a red fox, ink style, moving left", "a duck, glossy style, growing", "a tent, ink style, moving up",
                "an eagle, glossy style, moving down")  # fmt: skip

    def mean_reward(config: SearchConfig) -> float:
        total = 0.0
        for seed, caption in enumerate(captions):
            call = dict(num_inference_steps=10, output_type="pt", generator=torch.Generator().manual_seed(seed))
            total += LatentSearch(pipe, reward, config)(caption, **call, **mini.VIDEO_CALL).rewards.item()
        return total / len(captions)

    single = mean_reward(SearchConfig(num_beams=1, num_candidates=1))
    assert mean_reward(SearchConfig(**WIDE)) > single + 0.1
