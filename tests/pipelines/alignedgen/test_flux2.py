# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Sharing in FLUX.2's transformer and pipelines, against the slow attention put on the same layers."""

import functools
import itertools

import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Pipeline, Flux2Transformer2DModel

from alignext import AlignedGenFlux2KleinPipeline, AlignedGenFlux2Pipeline, StyleReference, aligned_attention
from tests.pipelines import tiny
from tests.pipelines.alignedgen import slow
from tests.pipelines.alignedgen.test_transformer import CLOSE, TEXT, H, W, rows_of, run, seeded


AXES = (4, 4, 4, 4)
LAYERS = {"single": {2, 3, 4}, "double": {0, 1}, "all": {0, 1, 2, 3, 4}, (1, 4): {1, 2, 3}}
SHIFTS = {"width": (0, 0, W, 0), "height": (0, H, 0, 0), "none": (0, 0, 0, 0), (10, 0, 0, 0): (10, 0, 0, 0)}


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Flux2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=tiny.TEXT_DIM,
            timestep_guidance_channels=16,
            axes_dims_rope=AXES,
        )
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(2)
    return model.eval().requires_grad_(False)


@pytest.fixture
def model():
    return build()


def positions(h, w, picture=0):
    return torch.tensor([[picture, i, j, 0] for i in range(h) for j in range(w)])


def inputs(rows=3, context=False, sigma=0.7):
    """With `context`, a picture to be edited follows the image, as the stock pipeline places it."""
    generator, n = seeded(1), H * W + (6 if context else 0)
    ids = torch.cat([positions(H, W), positions(2, 3, picture=10)]) if context else positions(H, W)
    return {
        "hidden_states": torch.randn(rows, n, 16, generator=generator),
        "encoder_hidden_states": torch.randn(rows, TEXT, tiny.TEXT_DIM, generator=generator),
        "timestep": torch.full((rows,), sigma),
        "guidance": torch.full((rows,), 4.0),
        "img_ids": ids.expand(rows, -1, -1),
        "txt_ids": torch.tensor([[0, 0, 0, i] for i in range(TEXT)]).expand(rows, -1, -1),
    }


def attentions(levers, img_ids, txt_ids):
    """The slow attention as the forward of a double-stream and of a single-stream layer."""

    def mixed(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return slow.mixed(q, k, v, TEXT, img_ids.float(), txt_ids.float(), AXES, levers, theta=2000.0)

    def double(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        def heads(image, text):
            return [layer(x).unflatten(-1, (-1, 16)) for layer, x in zip(image, text, strict=True)]

        text = heads((attn.add_q_proj, attn.add_k_proj, attn.add_v_proj), [encoder_hidden_states] * 3)
        image = heads((attn.to_q, attn.to_k, attn.to_v), [hidden_states] * 3)
        text = [attn.norm_added_q(text[0]), attn.norm_added_k(text[1]), text[2]]
        image = [attn.norm_q(image[0]), attn.norm_k(image[1]), image[2]]
        out = mixed(*(torch.cat(pair, dim=1) for pair in zip(text, image, strict=True)))
        return attn.to_out[0](out[:, TEXT:]), attn.to_add_out(out[:, :TEXT])

    def single(attn, hidden_states, attention_mask=None, image_rotary_emb=None):
        qkv, mlp = attn.to_qkv_mlp_proj(hidden_states).split([96, 192], dim=-1)
        q, k, v = (x.unflatten(-1, (-1, 16)) for x in qkv.split(32, dim=-1))
        return attn.to_out(torch.cat([mixed(attn.norm_q(q), attn.norm_k(k), v), attn.mlp_act_fn(mlp)], dim=-1))

    return double, single


def by_hand(model, call, layers, **levers):
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    for i, block in enumerate(blocks):
        chosen = slow.Levers(layers, **levers) if i in layers else None
        double, single = attentions(chosen, call["img_ids"][0], call["txt_ids"][0])
        block.attn.forward = functools.partial(double if i < len(model.transformer_blocks) else single, block.attn)
    try:
        return model(**call).sample
    finally:
        for block in blocks:
            del block.attn.forward


@pytest.mark.parametrize(("blocks", "context"), [*((blocks, False) for blocks in LAYERS), ("all", True)], ids=str)
def test_forward_is_the_slow_reference(model, blocks, context):
    call = inputs(context=context)
    stock = model(**call).sample
    torch.testing.assert_close(by_hand(model, call, set()), stock, **CLOSE)
    levers = [(True, 0, None), (True, 1, 1), (False, 0, 1), (False, 1, None)]
    for shift, (adain, anchor, size) in itertools.product(SHIFTS, levers):
        given = {"share_blocks": blocks, "adain": adain, "anchor_index": anchor, "target_batch_size": size}
        expected = by_hand(model, call, LAYERS[blocks], adain=adain, anchor=anchor, shift=SHIFTS[shift])
        out = run(model, call, shift=shift, **given)
        torch.testing.assert_close(out, expected, **CLOSE)
        assert (out - stock).abs().max() > 1e-2
    torch.testing.assert_close(
        run(model, call, share_blocks=blocks, isolate_anchor=False),
        by_hand(model, call, LAYERS[blocks], isolate=False, shift=SHIFTS["width"]),
        **CLOSE,
    )


def test_off_and_anchor_are_stock_bit_for_bit_and_all_is_put_back(model):
    call, before = inputs(), dict(model.attn_processors)
    stock = model(**call).sample
    assert torch.equal(run(model, call, share_end=0), stock)
    assert torch.equal(run(model, call, share_blocks="all")[0], stock[0])
    assert torch.equal(run(model, rows_of(call, [0]), share_blocks="all"), model(**rows_of(call, [0])).sample)
    assert all(p is before[name] for name, p in model.attn_processors.items()) and "forward" not in vars(model)
    with aligned_attention(model, target_batch_size=1):
        assert type(model(**call)) is type(build()(**call))


@pytest.mark.parametrize("size", [None, 1])
def test_reference_is_the_batch_with_its_row_overwritten(model, size):
    call, generator, sigma = inputs(), seeded(8), 0.7
    style = StyleReference(
        prompt_embeds=torch.randn(1, TEXT, tiny.TEXT_DIM, generator=generator),
        pooled_prompt_embeds=None,
        grid=(H, W),
        x0=torch.randn(1, H * W, 16, generator=generator),
    )
    first = {"hidden_states": style.latents(sigma, 0), "encoder_hidden_states": style.prompt_embeds}
    batch = call | {name: torch.cat([x, call[name]]) for name, x in first.items()}
    batch |= {name: call[name][:1].expand(4, *call[name].shape[1:]) for name in call.keys() - first.keys()}
    expected = by_hand(model, batch, LAYERS["single"], shift=SHIFTS["width"])[1:]
    torch.testing.assert_close(run(model, call, style_reference=style, target_batch_size=size), expected, **CLOSE)


def test_recorded_anchor_gives_the_same_targets(model):
    call = inputs()
    with aligned_attention(model, record=True) as sharing:
        together = model(**call).sample
        style = sharing.recorded()
    later = run(model, rows_of(call, [1, 2]), style_reference=style)
    torch.testing.assert_close(later, together[1:], **CLOSE)


# ------------------------------------------------------------------------------------------------------- the pipelines


PIPELINES = {AlignedGenFlux2Pipeline: Flux2Pipeline, AlignedGenFlux2KleinPipeline: Flux2KleinPipeline}


def pipeline(ours):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKLFlux2(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
        ).eval()
        vae.bn.running_mean.normal_()
    pipe = ours(vae=vae, text_encoder=None, tokenizer=None, transformer=build(), scheduler=tiny.flow_scheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(rows=3, **kwargs):
    return {
        "prompt_embeds": torch.randn(rows, TEXT, tiny.TEXT_DIM, generator=seeded(1)),
        "height": 16,
        "width": 24,
        "num_inference_steps": 3,
        "output_type": "latent",
        "generator": seeded(),
    } | kwargs


@pytest.mark.parametrize("ours", PIPELINES)
def test_pipeline(ours):
    pipe, stock = pipeline(ours), PIPELINES[ours]
    cfg = {}
    if ours is AlignedGenFlux2KleinPipeline:  # it has guidance by two calls
        cfg = {"negative_prompt_embeds": torch.zeros(3, TEXT, tiny.TEXT_DIM), "guidance_scale": 2.0}
    plain, aligned = stock.__call__(pipe, **call(**cfg)).images, pipe(**call(**cfg)).images
    assert torch.equal(aligned[0], plain[0]) and (aligned - plain)[1:].abs().amax((1, 2)).min() > 1e-2
    assert torch.equal(pipe(**call(share_end=0.0, **cfg)).images, plain)
    recorded = pipe(**call(record_style=True, target_batch_size=1, **cfg))
    torch.testing.assert_close(recorded.images, aligned, rtol=0, atol=2e-5)
    images = pipe(**call(shared_noise=True, share_end=0.0, **cfg)).images
    assert torch.equal(images[0], plain[0]) and not torch.equal(images[1], plain[1])
    pipe(**call(record_style=True, output_type="pt", **cfg))


@pytest.mark.parametrize("ours", PIPELINES)
def test_style_is_encoded_from_the_layers_of_the_call(ours, monkeypatch):
    pipe, seen = pipeline(ours), []

    @functools.wraps(pipe.encode_prompt)
    def encode(prompt, **kwargs):
        seen.append((prompt, kwargs.get("text_encoder_out_layers")))
        rows = 1 if isinstance(prompt, str) else 3
        return torch.zeros(rows, TEXT, tiny.TEXT_DIM), torch.zeros(rows, TEXT, 4)

    monkeypatch.setattr(pipe, "encode_prompt", encode)
    given = call(guidance_scale=1.0, style_image=torch.rand(3, 20, 20), style_prompt="ink")
    pipe(**given, text_encoder_out_layers=(1, 2, 3))
    assert ("ink", (1, 2, 3)) in seen


@pytest.mark.parametrize("ours", PIPELINES)
def test_style_image(ours):
    pipe = pipeline(ours)
    texts = {"prompt_embeds": torch.randn(1, TEXT, tiny.TEXT_DIM, generator=seeded(4))}
    style = pipe.encode_style(torch.rand(3, 20, 20, generator=seeded(5)), height=16, width=24, **texts)
    assert style.grid == (5, 5) and style.x0.shape == (1, 25, 16)
    z = pipe._unpack_latents_with_ids(style.x0, positions(5, 5)[None])
    z = z if isinstance(z, torch.Tensor) else torch.stack(z)
    z = pipe._unpatchify_latents(
        z * (pipe.vae.bn.running_var.view(1, -1, 1, 1) + pipe.vae.config.batch_norm_eps).sqrt()
        + pipe.vae.bn.running_mean.view(1, -1, 1, 1)
    )
    pixels = pipe.image_processor.preprocess(torch.rand(3, 20, 20, generator=seeded(5))[None])
    pixels = ((pixels + 1) / 2 * 255).round() / 255 * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(z, pipe.vae.encode(pixels).latent_dist.mean, rtol=0, atol=1e-4)
    plain = pipe(**call(guidance_scale=1.0, share_end=0.0)).images
    styled = pipe(**call(guidance_scale=1.0, style_reference=style)).images
    assert (styled - plain).abs().amax((1, 2)).min() > 1e-2
