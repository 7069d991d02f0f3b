# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The search scheduler in a modular pipeline, where guidance is a component that counts steps."""

import numpy as np
import pytest
import torch
from diffusers.modular_pipelines import WanBlocks

from alignext.search import SearchConfig, SearchScheduler

from .tiny_models import build


pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")


@pytest.fixture
def pipe(monkeypatch):
    # It cleans the prompt with a library that it imports only where there is one.
    monkeypatch.setattr("diffusers.modular_pipelines.wan.encoders.prompt_clean", str.strip)
    stock, _ = build("wan-2.1")
    pipe = WanBlocks().init_pipeline()
    pipe.update_components(**{k: v for k, v in stock.components.items() if v is not None and k in pipe.components})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, **schedule):
    """Two beams of two candidates: four rows, drawn by the pipeline, of which the first two are starts."""
    calls = []
    scheduler = SearchScheduler(
        pipe.scheduler,
        lambda x0: x0.flatten(1).mean(1),
        SearchConfig(num_beams=2, num_candidates=2, lookahead_steps=2),
        generator=torch.Generator().manual_seed(0),
    )
    scheduler.leading_starts = True
    pipe.update_components(scheduler=scheduler)
    pipe.transformer.register_forward_pre_hook(lambda *args: calls.append(1))
    videos = pipe(
        prompt=["a fox"] * 4,
        negative_prompt=[""] * 4,
        height=16,
        width=16,
        num_frames=5,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        output="videos",
        **schedule,
    )
    return scheduler, videos, len(calls)


def test_the_whole_search_runs_and_guidance_stays_on(pipe):
    scheduler, videos, calls = run(pipe, sigmas=np.linspace(0.99, 0.25, 4))
    assert scheduler.finished and len(scheduler.history) == 3 and videos.isfinite().all()
    assert calls == 2 * len(scheduler.plan) == 14  # with and without the prompt, at every evaluation
    torch.testing.assert_close(videos[:2], videos[2:])  # the winners, best first, again and again


def test_a_number_of_steps_alone_would_switch_guidance_off(pipe):
    """Why the documentation says to pass `sigmas`: the guider stops after so many evaluations."""
    scheduler, _, calls = run(pipe, num_inference_steps=4)
    assert calls < 2 * len(scheduler.plan)
