# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""mini-video is a stock pipeline whose clips show what the caption says and move as it says."""

import logging

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LattePipeline

from alignext.mini import MOTIONS, VIDEO_CALL, path
from alignext.mini.judges import Judge, motion
from alignext.mini.recipe import render
from alignext.mini.recipe.samples import film, some_clips, told
from alignext.rewards import JudgeReward


@pytest.fixture(scope="module")
def pipe():
    pipe = LattePipeline.from_pretrained(path("video"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_loads_as_the_stock_class_in_float32_without_a_word(caplog):
    with caplog.at_level(logging.WARNING):
        pipe = DiffusionPipeline.from_pretrained(path("video"))
    assert type(pipe) is LattePipeline
    assert not caplog.records
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder):
        assert {p.dtype for p in part.parameters()} == {torch.float32}


def test_it_is_small_enough_to_embed():
    assert sum(file.stat().st_size for file in path("video").rglob("*")) <= 16e6


def test_sizes_and_scheduler_are_those_the_methods_expect(pipe):
    assert isinstance(pipe.scheduler, DDIMScheduler)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.transformer.config.in_channels == pipe.vae.config.latent_channels
    frames = pipe("a red fox", num_inference_steps=1, output_type="pt", **VIDEO_CALL).frames
    assert frames.shape == (1, render.FRAMES, 3, 64, 64)


def test_every_word_of_the_captions_is_one_token_and_judges_find_theirs(pipe):
    tokens = pipe.tokenizer.tokenize("a red fox, ink style, moving left")
    assert tokens == ["▁a", "▁red", "▁fox", ",", "▁ink", "▁style", ",", "▁moving", "▁left"]
    assert JudgeReward("style").label("a red fox, ink style, moving left") == "ink"
    assert JudgeReward("concept").label("a red fox, ink style, moving left") == "red fox"
    for clip in some_clips(64):
        assert len(pipe.tokenizer.tokenize(told(clip))) == len(told(clip).replace(",", " ,").split())


def test_capitals_mean_what_small_letters_mean(pipe):
    small, large = (pipe.encode_prompt(text)[0] for text in ("a red fox, growing", "A Red Fox, growing"))
    torch.testing.assert_close(small, large)


def test_autoencoder_is_that_of_mini_sd(pipe):
    name = "vae/diffusion_pytorch_model.safetensors"
    assert (path("video") / name).read_bytes() == (path("sd") / name).read_bytes()


def test_the_rule_names_the_motion_of_drawings():
    """Also of a pale drawing, at another size, and whatever its place."""
    drawing = torch.ones(1, 3, 64, 64)
    drawing[:, 1:, 16:52, 22:44] = 0.7
    rng = torch.Generator().manual_seed(0)
    clips = torch.cat([render.move(drawing, name, rng) for name in MOTIONS])
    assert motion(clips).names == list(MOTIONS)
    assert motion(clips[..., 8:, :56]).names == list(MOTIONS)
    left, right, *_ = motion(clips).right.tolist()
    assert -0.4 < left < -0.2 and 0.2 < right < 0.4
    growing, shrinking = motion(clips).growth[-2:].tolist()
    assert 0.5 < growing < 1.0 and -1.0 < shrinking < -0.5
    backwards = motion(clips.flip(1)).names
    assert backwards == ["right", "left", "down", "up", "shrinking", "growing"]
    with pytest.raises(ValueError, match="clips"):
        motion(clips[:, :1])


def test_moved_drawings_stay_on_white_paper_and_captions_say_how():
    clips = render.move(torch.zeros(3, 3, 64, 64), "up", torch.Generator().manual_seed(0))
    assert clips.shape == (3, render.FRAMES, 3, 64, 64)
    assert clips.min() == 0 and clips[..., 0].min() == 1
    assert render.caption("owl", "ink", "up") == "an owl, ink style, moving up"
    assert render.caption("owl", motion="shrinking") == "an owl, shrinking"


@pytest.mark.slow
@pytest.mark.effect
@pytest.mark.parametrize(
    ("together", "number"), [(6, 6), *(pytest.param(n, 24, marks=pytest.mark.slow) for n in (1, 6))]
)
def test_shows_what_the_caption_says_and_moves_as_it_says(pipe, together, number):
    """Trained captions, one by one and in a call; chance is 1 in 170, 1 in 5 and 1 in 6."""
    clips = some_clips(number, seed=3)
    films = film(pipe, [told(clip) for clip in clips], together=together)
    middle = films[:, render.FRAMES // 2]
    concepts, styles = Judge("concept").name(middle), Judge("style").name(middle)
    assert (
        sum(found == render.word(name) for found, (name, _, _) in zip(concepts, clips, strict=True))
        >= number * 14 // 24
    )
    assert sum(found == style for found, (_, style, _) in zip(styles, clips, strict=True)) >= number * 8 // 24
    assert sum(found == way for found, (_, _, way) in zip(motion(films).names, clips, strict=True)) >= number * 9 // 24
