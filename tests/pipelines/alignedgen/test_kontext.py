# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Sharing where pictures to be edited follow the image to be generated, against the slow reference."""

import itertools

import pytest
import torch
from diffusers import FluxKontextPipeline

from alignext import AlignedGenKontextPipeline, aligned_attention
from tests.pipelines import tiny
from tests.pipelines.alignedgen.test_transformer import (
    CLOSE,
    LAYERS,
    H,
    W,
    build,
    by_hand,
    inputs,
    positions,
    run,
    seeded,
)


def with_context(call, h=3, w=5):
    """The call with a picture of that size to be edited: one step away on the first axis."""
    rows, ids = len(call["hidden_states"]), positions(h, w)
    ids[:, 0] = 1
    context = torch.randn(rows, h * w, 16, generator=seeded(12))
    return call | {
        "hidden_states": torch.cat([call["hidden_states"], context], dim=1),
        "img_ids": torch.cat([call["img_ids"], ids]),
    }


@pytest.fixture
def model():
    return build()


def test_forward_is_the_slow_reference(model):
    call = with_context(inputs())
    torch.testing.assert_close(by_hand(model, call, set()), model(**call).sample, **CLOSE)
    shifts = {"width": (0, 0, W), (1, 0, 0): (1, 0, 0)}
    for adain, anchor, size, shift in itertools.product([True, False], [0, 1], [None, 1], shifts):
        given = {"adain": adain, "anchor_index": anchor, "target_batch_size": size, "shift": shift}
        expected = by_hand(model, call, LAYERS["all"], adain=adain, anchor=anchor, shift=shifts[shift])
        torch.testing.assert_close(run(model, call, share_blocks="all", **given), expected, **CLOSE)


def test_only_the_generated_tokens_are_shared_and_recorded(model):
    call = with_context(inputs())
    with aligned_attention(model, target_batch_size=1, record=True) as sharing:
        model(**call)
        assert sharing.image_length == H * W and sharing.grid == (H, W)
        style = sharing.recorded()
    assert torch.equal(style.trajectory[0], call["hidden_states"][:1, : H * W])
    # The recorded anchor stands alone, without the picture it was an edit of.
    plain = inputs()
    anchored = run(model, plain, style_reference=style)
    torch.testing.assert_close(anchored[1:], run(model, plain)[1:], **CLOSE)


def test_shift_along_the_first_axis(model):
    ids = []
    original = model.pos_embed.forward
    model.pos_embed.forward = lambda x: ids.append(x) or original(x)
    run(model, with_context(inputs()), shift=(1, 0, 0))
    assert ids[0].tolist() == [[1, i, j] for _, i, j in positions(H, W).tolist()]


# -------------------------------------------------------------------------------------------------------- the pipeline


def pipeline():
    pipe = AlignedGenKontextPipeline(**tiny.flux_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe():
    return pipeline()


def call(**kwargs):
    return {
        "image": torch.rand(1, 3, 16, 32, generator=seeded(5)),
        "prompt": ["a fox", "a dog", "two cats"],
        "height": 16,
        "width": 24,
        "max_area": 16 * 24,
        "num_inference_steps": 3,
        "max_sequence_length": 16,
        "output_type": "latent",
        "generator": seeded(),
        "_auto_resize": False,
    } | kwargs


@pytest.mark.parametrize("given", [{}, {"image": None}, {"negative_prompt": "grey", "true_cfg_scale": 2.0}], ids=str)
def test_anchor_is_the_stock_edit_and_others_take_over_its_style(pipe, given):
    plain = FluxKontextPipeline.__call__(pipe, **call(**given)).images
    aligned = pipe(**call(**given)).images
    assert aligned.shape == plain.shape == (3, 4 * 6, 16)
    assert torch.equal(aligned[0], plain[0]) and (aligned - plain)[1:].abs().amax((1, 2)).min() > 1e-2
    assert torch.equal(pipe(**call(share_end=0.0, **given)).images, plain)
    chunked = pipe(**call(target_batch_size=1, **given)).images
    torch.testing.assert_close(chunked, aligned, rtol=0, atol=2e-5)


def test_style_image_is_of_the_size_that_is_generated(pipe):
    seen = []
    handle = pipe.transformer.x_embedder.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape))
    out = pipe(**call(style_image=torch.rand(3, 20, 20, generator=seeded(6)), style_prompt="ink")).images
    handle.remove()
    assert out.shape == (3, 24, 16)
    # 16 * 24 pixels: 5 x 5 tokens of the style, alone; then 4 x 6 to be generated and 4 x 8 to be edited.
    assert seen[:2] == [(1, 25, 16), (3, 24 + 32, 16)]


def test_shared_noise(pipe):
    images = pipe(**call(prompt=["a fox"] * 2, image=None, shared_noise=True, share_end=0.0)).images
    torch.testing.assert_close(images[0], images[1], **CLOSE)
