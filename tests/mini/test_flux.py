# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""mini-Flux is a stock pipeline and draws what the caption says, however long the padding."""

import logging

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxPipeline

from alignext.mini import FLUX_CALL, path
from alignext.mini.judges import Judge
from alignext.mini.recipe import render
from alignext.mini.recipe.samples import generate


@pytest.fixture(scope="module")
def pipe():
    pipe = FluxPipeline.from_pretrained(path("flux"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_loads_as_the_stock_class_in_float32_without_a_word(caplog):
    with caplog.at_level(logging.WARNING):
        pipe = DiffusionPipeline.from_pretrained(path("flux"))
    assert type(pipe) is FluxPipeline
    assert not caplog.records
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        assert {p.dtype for p in part.parameters()} == {torch.float32}


def test_it_is_small_enough_to_embed():
    assert sum(file.stat().st_size for file in path("flux").rglob("*")) <= 16e6


def test_sizes_and_scheduler_are_those_the_methods_expect(pipe):
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
    assert pipe.scheduler.config.shift == 1 and not pipe.scheduler.config.use_dynamic_shifting
    assert not pipe.transformer.config.guidance_embeds
    assert pipe.vae_scale_factor == 8
    assert pipe.transformer.config.in_channels == 4 * pipe.vae.config.latent_channels
    assert pipe.vae.config.shift_factor == 0
    wide = pipe("a red fox", num_inference_steps=1, **FLUX_CALL | {"width": 128})
    assert wide.images[0].size == (128, 64)


def test_tokenizers_know_the_captions_and_spell_the_rest(pipe):
    ids = pipe.tokenizer_2("a red fox, flat style").input_ids
    assert pipe.tokenizer_2.convert_ids_to_tokens(ids[:-1]) == ["▁a", "▁red", "▁fox", ",", "▁flat", "▁style"]
    assert ids[-1] == pipe.tokenizer_2.eos_token_id
    assert pipe.tokenizer_2.unk_token_id not in pipe.tokenizer_2("a zygote on tiptoe; 3%!").input_ids
    assert pipe.tokenizer_2.pad_token_id == 0


def test_capitals_mean_what_small_letters_mean(pipe):
    small, large = (pipe.encode_prompt(text, max_sequence_length=16)[:2] for text in ("a red fox", "A Red Fox"))
    for a, b in zip(small, large, strict=True):
        torch.testing.assert_close(a, b)


def test_autoencoder_is_that_of_mini_sd(pipe):
    name = "vae/diffusion_pytorch_model.safetensors"
    assert (path("flux") / name).read_bytes() == (path("sd") / name).read_bytes()


@pytest.mark.slow
@pytest.mark.effect
@pytest.mark.parametrize(
    ("tokens", "number", "wanted"), [(16, 16, 14), pytest.param(512, 6, 4, marks=pytest.mark.slow)]
)
def test_draws_what_the_caption_says_in_the_style_it_says(pipe, tokens, number, wanted):
    """Trained captions, padded short and to the pipeline's default; chance is 1 in 170, and 1 in 5 for the style."""
    cells = [(name, style) for (name, style), split in sorted(render.grid().items()) if split == "train"]
    cells = cells[:: len(cells) // number][:number]
    captions = [render.caption(render.word(name), style) for name, style in cells]
    images = generate(pipe, captions, max_sequence_length=tokens, num_inference_steps=25 if tokens == 16 else 12)
    concepts, styles = Judge("concept").name(images), Judge("style").name(images)
    assert sum(found == render.word(name) for found, (name, _) in zip(concepts, cells, strict=True)) >= wanted
    if tokens == 16:
        assert sum(found == style for found, (_, style) in zip(styles, cells, strict=True)) >= number * 0.55
