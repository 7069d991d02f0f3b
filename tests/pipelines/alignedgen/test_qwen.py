# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Sharing in Qwen-Image's transformer and pipeline, against the slow attention put on the same layers."""

import functools
import itertools

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel

from alignext import AlignedGenQwenImagePipeline, StyleReference, aligned_attention
from tests.pipelines import tiny
from tests.pipelines.alignedgen import slow
from tests.pipelines.alignedgen.test_transformer import CLOSE, TEXT, H, W, run, seeded


AXES, LAYERS = (4, 6, 6), {"all": {0, 1, 2}, (1, 2): {1}}
SHIFTS = {"width": (0, 0, W), "height": (0, H, 0), "none": (0, 0, 0), (1.0, -2.0, 0.0): (1, -2, 0)}


def build(**config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = QwenImageTransformer2DModel(
            **{
                "in_channels": 16,
                "out_channels": 4,
                "num_layers": 3,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "joint_attention_dim": tiny.TEXT_DIM,
                "axes_dims_rope": AXES,
            }
            | config
        )
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(2)
    return model.eval().requires_grad_(False)


@pytest.fixture
def model():
    return build()


def inputs(rows=3, padded=True, context=False, sigma=0.7):
    generator, shapes = seeded(1), [(1, H, W), (1, 2, 3)] if context else [(1, H, W)]
    call = {
        "hidden_states": torch.randn(rows, sum(h * w for _, h, w in shapes), 16, generator=generator),
        "encoder_hidden_states": torch.randn(rows, TEXT, tiny.TEXT_DIM, generator=generator),
        "timestep": torch.full((rows,), sigma),
        "img_shapes": [shapes] * rows,
    }
    lengths = [TEXT, TEXT - 2, TEXT - 1, TEXT][:rows]
    mask = torch.arange(TEXT) < torch.tensor(lengths)[:, None]
    return call | ({"encoder_hidden_states_mask": mask} if padded else {})


def rows_of(call, rows):
    return {name: call[name][: len(rows)] if name == "img_shapes" else x[rows] for name, x in call.items()}


def centred(h, w, picture=0):
    """Positions count from the middle."""
    return torch.tensor(
        [[picture, i - (h - h // 2), j - (w - w // 2)] for i in range(h) for j in range(w)], dtype=torch.float32
    )


def slow_attention(levers, call):
    shapes = call["img_shapes"][0]
    ids = torch.cat([centred(h, w, i) for i, (_, h, w) in enumerate(shapes)])
    first = max(max(h // 2, w // 2) for _, h, w in shapes)
    text_ids = torch.tensor([[first + i] * 3 for i in range(TEXT)], dtype=torch.float32)
    padding = None
    if "encoder_hidden_states_mask" in call:
        padding = torch.zeros(len(call["hidden_states"]), TEXT + len(ids))
        padding[:, :TEXT][~call["encoder_hidden_states_mask"]] = -torch.inf

    def forward(attn, hidden_states, encoder_hidden_states, **kwargs):
        def heads(text, image):
            pair = text(encoder_hidden_states), image(hidden_states)
            return [x.unflatten(-1, (-1, 16)) for x in pair]

        q, k = heads(attn.add_q_proj, attn.to_q), heads(attn.add_k_proj, attn.to_k)
        v = heads(attn.add_v_proj, attn.to_v)
        q, k = [attn.norm_added_q(q[0]), attn.norm_q(q[1])], [attn.norm_added_k(k[0]), attn.norm_k(k[1])]
        q, k, v = (torch.cat(x, dim=1).transpose(1, 2) for x in (q, k, v))
        out = slow.mixed(q, k, v, TEXT, ids, text_ids, AXES, levers, padding=padding)
        return attn.to_out[0](out[:, TEXT:]), attn.to_add_out(out[:, :TEXT])

    return forward


def by_hand(model, call, layers, **levers):
    for i, block in enumerate(model.transformer_blocks):
        chosen = slow.Levers(layers, **levers) if i in layers else None
        block.attn.forward = functools.partial(slow_attention(chosen, call), block.attn)
    try:
        return model(**call).sample
    finally:
        for block in model.transformer_blocks:
            del block.attn.forward


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("blocks", "context"), [("all", False), ((1, 2), False), ("all", True)], ids=str)
def test_forward_is_the_slow_reference(model, blocks, context, padded):
    call = inputs(padded=padded, context=context)
    stock = model(**call).sample
    torch.testing.assert_close(by_hand(model, call, set()), stock, **CLOSE)
    levers = [(True, 0, None), (True, 1, 1), (False, 0, 1), (False, 1, None)]
    for shift, (adain, anchor, size) in itertools.product(SHIFTS, levers):
        given = {"share_blocks": blocks, "adain": adain, "anchor_index": anchor, "target_batch_size": size}
        expected = by_hand(model, call, LAYERS[blocks], adain=adain, anchor=anchor, shift=SHIFTS[shift])
        out = run(model, call, shift=shift, **given)
        torch.testing.assert_close(out, expected, **CLOSE)
        assert (out - stock).abs().max() > 1e-3


def test_off_and_anchor_are_stock_bit_for_bit_and_all_is_put_back(model):
    call, before = inputs(), dict(model.attn_processors)
    stock = model(**call).sample
    assert torch.equal(run(model, call, share_end=0, share_blocks="all"), stock)
    assert torch.equal(run(model, call, share_blocks="all")[0], stock[0])
    for padded in (False, True):
        alone = inputs(rows=1, padded=padded)
        assert torch.equal(run(model, alone, share_blocks="all"), model(**alone).sample)
    assert all(p is before[name] for name, p in model.attn_processors.items()) and "forward" not in vars(model)


@pytest.mark.parametrize("size", [None, 1])
def test_reference_is_the_batch_with_its_row_overwritten(model, size):
    call, generator, sigma = inputs(), seeded(8), 0.7
    style = StyleReference(
        prompt_embeds=torch.randn(1, TEXT, tiny.TEXT_DIM, generator=generator),
        pooled_prompt_embeds=None,
        grid=(H, W),
        x0=torch.randn(1, H * W, 16, generator=generator),
    )
    first = {
        "hidden_states": style.latents(sigma, 0),
        "encoder_hidden_states": style.prompt_embeds,
        "encoder_hidden_states_mask": torch.ones(1, TEXT, dtype=torch.bool),
    }
    batch = {name: torch.cat([x, call[name]]) for name, x in first.items()}
    batch |= {"timestep": torch.full((4,), sigma), "img_shapes": call["img_shapes"][:1] * 4}
    expected = by_hand(model, batch, LAYERS["all"], shift=SHIFTS["width"])[1:]
    given = {"share_blocks": "all", "target_batch_size": size}
    torch.testing.assert_close(run(model, call, style_reference=style, **given), expected, **CLOSE)


@pytest.mark.parametrize("anchor", [0, 1])
def test_recorded_anchor_gives_the_same_targets_without_its_padding(model, anchor):
    call, others = inputs(), [i for i in range(3) if i != anchor]
    with aligned_attention(model, share_blocks="all", record=True, anchor_index=anchor) as sharing:
        together = model(**call).sample
        style = sharing.recorded()
    assert style.prompt_embeds.shape[1] == (TEXT if anchor == 0 else TEXT - 2)
    later = run(model, rows_of(call, others), share_blocks="all", style_reference=style)
    torch.testing.assert_close(later, together[others], **CLOSE)


@pytest.mark.parametrize("grid", [(2, 3), (4, 9), (7, 5), (1, 1)])
def test_reference_of_another_size_lies_beside_the_targets(model, grid):
    """Its first column is the neighbour of their last one, its first row that of their last one."""
    style = StyleReference(torch.zeros(1, 3, tiny.TEXT_DIM), None, grid, x0=torch.zeros(1, grid[0] * grid[1], 16))
    for shift, axis in (("width", 2), ("height", 1)):
        with aligned_attention(model, share_blocks="all", shift=shift, style_reference=style) as sharing:
            model(**inputs())
            shifted = sharing.shifted
        expected = centred(*grid)
        expected[:, axis] += centred(H, W)[:, axis].max() + 1 - expected[:, axis].min()
        assert expected[:, axis].min() == centred(H, W)[:, axis].max() + 1
        probe = torch.randn(1, len(expected), 1, 16, generator=seeded(3))
        turned = slow.rotate(probe.transpose(1, 2), expected, AXES).transpose(1, 2)
        ours = torch.view_as_real(torch.view_as_complex(probe.unflatten(-1, (-1, 2))) * shifted[:, None]).flatten(3)
        torch.testing.assert_close(ours, turned, **CLOSE)


def test_off_needs_no_choice_of_layers(model):
    assert torch.equal(run(model, inputs(), share_end=0), model(**inputs(), return_dict=False)[0])


def test_layers_must_be_chosen_and_layered_positions_are_refused(model):
    with pytest.raises(ValueError, match=r"'single'.*3 double-stream layers.*0 single-stream"):
        run(model, inputs())
    with pytest.raises(NotImplementedError, match="QwenEmbedLayer3DRope"):
        run(build(use_layer3d_rope=True), inputs(), share_blocks="all")


# -------------------------------------------------------------------------------------------------------- the pipeline


def pipeline():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            attn_scales=[],
            temperal_downsample=[False],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.0, 2.0, 0.5, 1.5],
        ).eval()
    pipe = AlignedGenQwenImagePipeline(
        vae=vae, text_encoder=None, tokenizer=None, transformer=build(), scheduler=tiny.flow_scheduler()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe():
    return pipeline()


def call(rows=3, **kwargs):
    texts = inputs(rows)
    return {
        "prompt_embeds": texts["encoder_hidden_states"],
        "prompt_embeds_mask": texts["encoder_hidden_states_mask"],
        "share_blocks": "all",
        "height": 8 * 2,
        "width": 8 * 3,
        "num_inference_steps": 3,
        "output_type": "latent",
        "generator": seeded(),
    } | kwargs


def stock(pipe, **kwargs):
    given = call(**kwargs)
    del given["share_blocks"]
    return QwenImagePipeline.__call__(pipe, **given).images


def test_pipeline(pipe):
    negative = inputs(3)
    cfg = {
        "negative_prompt_embeds": -negative["encoder_hidden_states"],
        "negative_prompt_embeds_mask": negative["encoder_hidden_states_mask"],
        "true_cfg_scale": 2.0,
    }
    for given in ({}, cfg):
        plain, aligned = stock(pipe, **given), pipe(**call(**given)).images
        assert torch.equal(aligned[0], plain[0]) and (aligned - plain)[1:].abs().amax((1, 2)).min() > 1e-3
        off = call(share_end=0.0, **given)
        del off["share_blocks"]
        assert torch.equal(pipe(**off).images, plain)
        recorded = pipe(**call(record_style=True, target_batch_size=1, **given))
        torch.testing.assert_close(recorded.images, aligned, rtol=0, atol=2e-5)
    images = pipe(**call(shared_noise=True, share_end=0.0)).images
    assert torch.equal(images[0], stock(pipe)[0]) and not torch.equal(images[1], stock(pipe)[1])


def test_style_image(pipe):
    texts = {"prompt_embeds": torch.randn(1, TEXT, tiny.TEXT_DIM, generator=seeded(4))}
    unit = 2 * pipe.vae_scale_factor
    picture = (torch.rand(3, 2 * unit, 3 * unit, generator=seeded(5)) * 255).round() / 255
    style = pipe.encode_style(picture, height=2 * unit, width=3 * unit, **texts)
    assert style.grid == (2, 3) and style.x0.shape == (1, 6, 16)
    z = pipe._unpack_latents(style.x0, 2 * unit, 3 * unit, pipe.vae_scale_factor)
    mean, std = (
        torch.tensor(x).view(1, 4, 1, 1, 1) for x in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    with torch.no_grad():
        expected = pipe.vae.encode(picture[None, :, None] * 2 - 1).latent_dist.mean
    torch.testing.assert_close(z * std + mean, expected, rtol=0, atol=1e-5)
    styled = pipe(**call(style_reference=style)).images
    assert (styled - stock(pipe)).abs().amax((1, 2)).min() > 1e-3
