# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""mini-SD is a stock pipeline, draws what the caption says, and its autoencoder keeps unseen pictures."""

import logging

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline

from alignext.mini import path, pictures
from alignext.mini.judges import Judge
from alignext.mini.recipe import render
from alignext.mini.recipe.samples import generate
from alignext.mini.recipe.scores import fine, psnr, reconstruct, tensor


@pytest.fixture(scope="module")
def pipe():
    pipe = StableDiffusionPipeline.from_pretrained(path("sd"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_loads_as_the_stock_class_in_float32_without_a_word(caplog, capfd):
    with caplog.at_level(logging.WARNING):
        pipe = DiffusionPipeline.from_pretrained(path("sd"))
    assert type(pipe) is StableDiffusionPipeline
    assert not caplog.records
    assert "requires" not in capfd.readouterr().err
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert {p.dtype for p in part.parameters()} == {torch.float32}
    assert pipe.safety_checker is None and not pipe.config.requires_safety_checker


def test_scheduler_and_sizes_are_those_the_methods_expect(pipe):
    assert isinstance(pipe.scheduler, DDIMScheduler)
    wanted = {"beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    assert wanted.items() <= dict(pipe.scheduler.config).items()
    assert pipe.vae_scale_factor == 8
    assert pipe.unet.config.in_channels == pipe.vae.config.latent_channels
    assert pipe("a red fox", num_inference_steps=1).images[0].size == (64, 64)


def test_tokenizer_knows_the_captions_and_spells_the_rest(pipe):
    ids = pipe.tokenizer("a red fox, flat style").input_ids
    assert pipe.tokenizer.convert_ids_to_tokens(ids[1:-1]) == [
        f"{w}</w>" for w in ("a", "red", "fox", ",", "flat", "style")
    ]
    assert pipe.tokenizer.unk_token_id not in pipe.tokenizer("a zygote on Café ☕").input_ids[:-1]


def test_latents_have_the_scale_the_denoiser_expects(pipe):
    images = tensor([p.image for p in pictures("unseen_concept")])
    with torch.no_grad():
        latents = pipe.vae.encode(images * 2 - 1).latent_dist.mean * pipe.vae.config.scaling_factor
    assert 0.8 < latents.std() < 1.2
    assert latents.mean().abs() < 0.1


@pytest.mark.parametrize(
    "split",
    [
        "unseen_drawing",
        pytest.param("unseen_concept", marks=pytest.mark.slow),
        pytest.param("unseen_style", marks=pytest.mark.slow),
    ],
)
def test_autoencoder_keeps_pictures_it_never_saw(pipe, split):
    images = tensor([p.image for p in pictures(split)])
    found = reconstruct(pipe.vae, images)
    assert psnr(images, found).mean() > 25
    assert fine(found).mean() > 0.72 * fine(images).mean()


@pytest.mark.effect
def test_draws_what_the_caption_says_in_the_style_it_says(pipe):
    """16 trained captions; chance is 1 in 170 for the concept and 1 in 5 for the style."""
    cells = [(name, style) for (name, style), split in sorted(render.grid().items()) if split == "train"][::44][:16]
    images = generate(pipe, [render.caption(render.word(name), style) for name, style in cells])
    concepts, styles = Judge("concept").name(images), Judge("style").name(images)
    assert sum(found == render.word(name) for found, (name, _) in zip(concepts, cells, strict=True)) >= 12
    assert sum(found == style for found, (_, style) in zip(styles, cells, strict=True)) >= 7
