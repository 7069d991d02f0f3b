# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Segmentation by words: what depends on what, places of words, pictures while they are made, and refusals."""

from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from transformers import CLIPTokenizer

from alignext import ELBOAlignPipeline, attention_maps, mini
from alignext.diffusion.denoiser import get_denoiser
from alignext.diffusion.elbo import diffusion_loss, levels_at
from alignext.diffusion.levels import training_levels
from alignext.functional.elbo_align import calibrate, heat_maps
from alignext.pipelines.elbo_align.inputs import looking_size
from alignext.pipelines.elbo_align.words import listing, spans_of, token_positions
from tests.pipelines import tiny
from tests.pipelines.latent_search import tiny_models


FEW = {"elbo_timesteps": (101, 501), "attention_timesteps": (50, 150), "prompt": "fox, owl"}
CALL = {"sd": {}, "sdxl": {}, "sd3": {}, "flux": {"max_sequence_length": 16}}
families = pytest.mark.parametrize("name", [*CALL])


def align(name: str = "sd") -> ELBOAlignPipeline:
    found = ELBOAlignPipeline(tiny_models.build(name)[0])
    found.set_progress_bar_config(disable=True)
    found.pipe.set_progress_bar_config(disable=True)
    return found


def picture(width: int = 24, height: int = 16) -> PIL.Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return PIL.Image.fromarray(np.stack([x * 9, y * 11, (x + y) * 5], -1).astype(np.uint8))


def run(name: str = "sd", classes: Any = ("fox", "owl"), **changes: Any) -> Any:
    return align(name)(picture(), list(classes), height=16, width=16, **CALL[name] | FEW | changes)


@families
def test_maps_have_the_size_of_the_picture_and_lie_between_zero_and_one(name: str):
    found = run(name)
    assert found.heatmaps.shape == (2, 16, 24) and found.label_map.shape == (16, 24)
    assert (found.heatmaps.flatten(1).min(1).values == 0).all() and (
        found.heatmaps.flatten(1).max(1).values == 1
    ).all()
    assert found.elbo.isfinite().all() and sorted(found.temperatures.tolist()) == pytest.approx([1.0, 3.0])
    expected = torch.where(found.heatmaps.max(0).values >= 0.5, found.heatmaps.argmax(0) + 1, 0)
    assert torch.equal(found.label_map, expected)


@families
def test_exchanging_the_classes_exchanges_the_results(name: str):
    one, other = run(name), run(name, ("owl", "fox"))
    for field in ("heatmaps", "elbo", "temperatures", "cross_attention"):
        torch.testing.assert_close(getattr(one, field).flip(0), getattr(other, field), rtol=1e-4, atol=1e-5)


def test_no_strength_and_given_temperatures_score_nothing(monkeypatch):
    plain = run(elbo_strength=1.0)
    scored = run(elbo_strength=3.0)
    monkeypatch.setattr("alignext.pipelines.elbo_align.align.diffusion_loss", lambda *a, **k: pytest.fail("scored"))
    again, fixed, one = run(elbo_strength=1.0), run(temperatures=[2.0, 1.0]), run(classes=["fox"])
    assert torch.equal(plain.heatmaps, again.heatmaps) and plain.elbo.isnan().all()
    assert torch.equal(plain.cross_attention, scored.cross_attention)
    assert fixed.temperatures.tolist() == [2.0, 1.0] and not torch.equal(fixed.heatmaps[0], plain.heatmaps[0])
    assert torch.equal(fixed.heatmaps[1], plain.heatmaps[1])
    assert one.temperatures.tolist() == [1.0] and one.heatmaps.isfinite().all()


def test_a_picture_of_a_batch_is_that_alone():
    pictures = [picture(), picture(16, 24)]
    pipe = align()
    both = pipe(pictures, ["fox", "owl"], height=16, width=16, **FEW)
    alone = [pipe(p, ["fox", "owl"], height=16, width=16, **FEW) for p in pictures]
    assert all(torch.equal(a.heatmaps, b.heatmaps) for a, b in zip(both, alone, strict=True))
    assert both[1].heatmaps.shape == (2, 24, 16)
    own = pipe(pictures, [["fox", "owl"], ["owl"]], height=16, width=16, **FEW)
    assert [len(o.heatmaps) for o in own] == [2, 1]
    seeds = [torch.Generator().manual_seed(i) for i in (1, 4307)]
    other = pipe(pictures, ["fox", "owl"], height=16, width=16, generator=seeds, **FEW)
    assert torch.equal(other[1].heatmaps, both[1].heatmaps) and not torch.equal(other[0].heatmaps, both[0].heatmaps)


def test_proportions_may_stay():
    pipe = align().pipe  # looks at 16 x 16 pixels by itself
    assert looking_size(pipe, picture(32, 16), None, None, None, False) == (16, 16)
    assert looking_size(pipe, picture(32, 16), None, None, None, True) == (8, 24)
    assert looking_size(pipe, picture(300, 400), None, 512, 512, True) == (592, 440)
    h, w = align()(picture(32, 16), ["fox", "owl"], keep_aspect=True, **FEW).cross_attention.shape[-2:]
    assert w == 3 * h


def test_chunks_do_not_matter():
    whole = run(batch_size=16)
    single = run(batch_size=1)
    torch.testing.assert_close(single.elbo, whole.elbo, rtol=1e-5, atol=0)
    torch.testing.assert_close(single.heatmaps, whole.heatmaps, rtol=0, atol=1e-3)


def test_latents_may_stand_for_a_picture():
    pipe = align()
    latents = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = pipe(latents=latents, classes=["fox", "owl"], **FEW)
    assert found.heatmaps.shape == (2, 8 * pipe.pipe.vae_scale_factor, 8 * pipe.pipe.vae_scale_factor)


def test_nothing_stays_also_after_an_error(monkeypatch):
    pipe = align()
    unet = pipe.pipe.unet.train()
    processors, scheduler, state = unet.attn_processors, pipe.pipe.scheduler, torch.random.get_rng_state()
    pipe(picture(), ["fox", "owl"], height=16, width=16, **FEW)
    monkeypatch.setattr("alignext.pipelines.elbo_align.maps.AttentionSums.word_maps", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipe(picture(), ["fox", "owl"], height=16, width=16, **FEW)
    assert unet.attn_processors == processors and pipe.pipe.scheduler is scheduler and unet.training
    assert not any(m._forward_pre_hooks for m in unet.modules()) and "forward" not in vars(unet)
    assert torch.equal(torch.random.get_rng_state(), state)


# The loss


@families
def test_a_denoiser_that_knows_has_no_loss_and_one_that_says_nothing_one(name: str, monkeypatch):
    pipe = align(name).pipe
    kind, flow = type(get_denoiser(pipe)), name in ("sd3", "flux")
    x0 = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    call = {"height": 8 * pipe.vae_scale_factor, "width": 8 * pipe.vae_scale_factor, **CALL[name]}
    original = kind.forward

    def nothing(self, *args, **kwargs):
        return tuple(torch.zeros_like(o) for o in original(self, *args, **kwargs | {"return_dict": False}))

    monkeypatch.setattr(kind, "forward", nothing)
    losses = diffusion_loss(pipe, x0, ["a fox", "an owl"], [101, 601], noise, **call)
    target = noise - x0 if flow else noise
    torch.testing.assert_close(losses, target.square().flatten(1).mean(1)[:, None].expand(2, 2))

    levels = training_levels(pipe, (8, 8))
    told = [levels.timesteps[k - 1].item() for k in levels_at(levels, [101, 601], flow)]

    def knows(self, *args, **kwargs):
        out = original(self, *args, **kwargs | {"return_dict": False})[0]
        t = kwargs.get("timestep", args[1] if len(args) > 1 else None).float().flatten()
        t = t * 1000 if name == "flux" else t
        which = [min(range(2), key=lambda i: abs(told[i] - value)) for value in t.tolist()]
        rows = (
            torch.stack([target[i] for i in which]) if len(t) == len(out) else target[:1].expand(len(out), -1, -1, -1)
        )
        return (pipe._pack_latents(rows, *rows.shape) if name == "flux" else rows,)

    monkeypatch.setattr(kind, "forward", knows)
    assert diffusion_loss(pipe, x0, ["a fox", "an owl"], [101, 601], noise, **call).abs().max() < 1e-9


def test_the_rows_of_a_loss_are_counted(monkeypatch):
    pipe, rows = align().pipe, []
    original = type(pipe.unet).forward

    def counting(self, sample, *args, **kwargs):
        rows.append(len(sample))
        return original(self, sample, *args, **kwargs)

    monkeypatch.setattr(type(pipe.unet), "forward", counting)
    noise = torch.randn(4, 4, 8, 8)
    diffusion_loss(pipe, noise[0], ["a", "b", "c"], [1, 101, 201, 301], noise, batch_size=6)
    assert rows == [6, 6, 6, 6]  # two to record the call, then 12 pairs of prompt and level in two
    with pytest.raises(ValueError, match=r"`timesteps` must be in \[1, 999\]"):
        diffusion_loss(pipe, noise[0], ["a"], [1500], noise[:1])


# Words


def test_words_are_found_at_their_own_place():
    assert spans_of("a Fox, a foxglove and a fox", ["fox", "fox"]) == [(2, 5), (24, 27)]
    assert spans_of("a photo of ice cream, cup", ["cup", "ice cream"]) == [(22, 25), (11, 20)]
    with pytest.raises(ValueError, match="does not stand 2 times"):
        spans_of("a fox", ["fox", "fox"])
    with pytest.raises(ValueError, match="'owl', which does not stand in the prompt"):
        spans_of("a fox", ["owl"])


@pytest.mark.parametrize("classes", [["fire truck", "truck"], ["truck", "fire truck"]])
def test_a_class_within_another_has_its_own_place(classes: list[str]):
    prompt, other = "a fire truck and a truck", "the fire truck, no truck, a fire truck"
    place = dict(zip(classes, spans_of(prompt, classes, apart=True), strict=True))
    assert place == {"fire truck": (2, 12), "truck": (19, 24)}
    place = dict(zip(classes, spans_of(other, classes, apart=True), strict=True))
    assert place == {"fire truck": (4, 14), "truck": (19, 24)}
    # Without another place it is that within the longer one, and words of a picture are taken as they come.
    assert dict(zip(classes, spans_of("a fire truck", classes, apart=True), strict=True))["truck"] == (7, 12)
    assert dict(zip(classes, spans_of(prompt, classes), strict=True))["truck"] == (7, 12)


def test_classes_of_the_prompt_of_our_own_stand_where_they_are_listed():
    for classes in (["fire truck", "truck"], ["photo", "of", "a"], [" cup ", "ice cream"], ["truck"]):
        prompt, spans = listing(classes)
        assert prompt == f"a photo of {', '.join(classes)}"
        assert [prompt[start:end] for start, end in spans] == [c.strip() for c in classes]
        assert all(start >= len("a photo of ") for start, _ in spans)


def test_a_class_within_another_has_a_map_of_its_own(monkeypatch: pytest.MonkeyPatch):
    seen = []
    attention = ELBOAlignPipeline._attention
    monkeypatch.setattr(
        ELBOAlignPipeline, "_attention", lambda self, *args: seen.append(args[1:3]) or attention(self, *args)
    )
    for prompt, expected in ((None, (19, 21)), ("ox, a red ox, ox", (0, 2)), ("a red ox", (6, 8))):
        run("flux", ["red ox", "ox"], prompt=prompt, elbo_strength=1.0, max_sequence_length=32)
        text, spans = seen.pop()
        assert text[slice(*spans[0])] == "red ox" and spans[1] == expected
    assert not seen


@pytest.mark.parametrize("words", [["red fox"], ["house"], ["red fox", "house"]])
def test_tokens_of_real_tokenizers_spell_the_words(words: list[str]):
    for name in ("sd", "flux"):
        pipe = type("StableDiffusion" if name == "sd" else "Flux", (), {})()
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(mini.path(name) / ("tokenizer" if name == "sd" else "tokenizer_2"))
        pipe.tokenizer = pipe.tokenizer_2 = tokenizer
        prompt = "a red fox and a house, flat style"
        ids = tokenizer(prompt)["input_ids"]
        for word, own in zip(words, token_positions(pipe, prompt, spans_of(prompt, words), 24), strict=True):
            assert tokenizer.decode([ids[i] for i in own]).strip() == word


def test_words_of_several_tokens_and_beyond_the_end():
    tokenizer: Any = tiny.tokenizer()  # a token per letter, 16 of them
    assert isinstance(tokenizer, CLIPTokenizer)
    pipe = type("StableDiffusion", (), {"tokenizer": tokenizer})()
    assert token_positions(pipe, "a fox, owls", [(2, 5), (7, 11)], 16) == [[2, 3, 4], [6, 7, 8, 9]]
    with pytest.raises(ValueError, match="lies beyond the 16 tokens"):
        token_positions(pipe, "a photograph of a fox", [(18, 21)], 16)


# While a picture is made


@families
def test_a_picture_is_that_of_the_stock_call(name: str):
    pipe, call = tiny_models.build(name)
    pipe.set_progress_bar_config(disable=True)
    call = dict(tiny_models.BUILDERS[name][1]) | {"num_inference_steps": 2, "output_type": "pt"}
    stock = pipe("fox, owl", generator=torch.Generator().manual_seed(0), **call).images
    found = attention_maps(pipe, "fox, owl", ["owl", "fox"], generator=torch.Generator().manual_seed(0), **call)
    assert torch.equal(found.images, stock)
    assert found.maps.shape[:2] == (1, 2) and found.maps.min() == 0 and found.maps.max() == 1
    assert not any(m._forward_pre_hooks for m in get_denoiser(pipe).modules()) and "forward" not in vars(
        get_denoiser(pipe)
    )
    assert attention_maps(pipe, "fox, owl", num_images_per_prompt=2, **call).maps.shape[:2] == (2, 2)


def test_guidance_is_left_out_of_the_maps():
    """Rows without the prompt attend to other tokens: maps with guidance and without see the same words."""
    pipe = tiny_models.build("sd")[0]
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    one = [
        attention_maps(
            pipe, "fox, owl", latents=latents, num_inference_steps=1, guidance_scale=g, negative_prompt="a"
        ).maps
        for g in (1.0, 5.0)
    ]
    torch.testing.assert_close(*one)


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": []}, "`classes` must be a list of texts with at least one"),
        ({"classes": ["fox", "fox"]}, "received 'fox' twice"),
        ({"classes": ["fox", ""]}, "`classes` must be a list of texts"),
        ({"classes": ["fox", "cat"]}, "'cat', which does not stand in the prompt"),
        ({"threshold": 1.5}, r"`threshold` must be in \[0, 1\], received 1.5"),
        ({"elbo_strength": 0.0}, "`elbo_strength` must be in"),
        ({"temperatures": [1.0]}, "`temperatures` must have one entry for each"),
        ({"class_prompts": ["a"]}, "`class_prompts` must have one entry for each"),
        ({"height": 17}, "must be multiples of"),
        ({"attention_timesteps": (5000,)}, r"`timesteps` must be in \[1, 999\]"),
        ({"elbo_timesteps": 20}, "`elbo_timesteps` must be the timesteps themselves, .* received 20"),
        ({"attention_timesteps": 2}, "`attention_timesteps` must be the timesteps themselves"),
        ({"latents": torch.zeros(4, 8, 8)}, "Either `image` or `latents`"),
        ({"prompt": "a long photograph of fox, owl"}, "lies beyond the 16 tokens"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        align()(picture(), **{"classes": ["fox", "owl"], "height": 16, "width": 16, **FEW, **change})


def test_weights_of_layers_must_fit():
    with pytest.raises(ValueError, match="`layer_weights` must have"):
        run(layer_weights=[1.0])
    with pytest.raises(TypeError, match="`wdth` is an argument of neither"):
        run(wdth=3)


def test_other_pipelines_are_refused_by_name():
    with pytest.raises(NotImplementedError, match="attention is understood of UNet2DConditionModel"):
        ELBOAlignPipeline(tiny_models.build("wan-2.1")[0])
    parts = tiny.sd_components() | {"unet": tiny.unet(in_channels=9)}
    with pytest.raises(ValueError, match="its denoiser takes 9"):
        ELBOAlignPipeline(StableDiffusionInpaintPipeline(**parts))
    with pytest.raises(ValueError, match="also calls the denoiser for other words"):
        attention_maps(tiny_models.build("flux")[0], "fox", true_cfg_scale=3.0, negative_prompt="")
    with pytest.raises(TypeError, match="no argument `num_inferance_steps`"):
        attention_maps(tiny_models.build("sd")[0], "fox", num_inferance_steps=2)


def test_a_map_lights_up_where_the_word_is():
    """By hand: cross attention that is known makes the maps that are returned."""
    found = run(elbo_strength=1.0)
    grid = found.cross_attention.shape[-2:]
    eye = torch.eye(grid[0] * grid[1])
    again = heat_maps(calibrate(found.cross_attention, torch.ones(2)), eye, eye)
    assert again.shape == found.cross_attention.shape and found.cross_attention.min() >= 0
