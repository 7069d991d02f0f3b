# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What AlignedGen refuses: before the transformer has run once, in a text that names the argument, what came, and what
to do."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, SD3Transformer2DModel
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from safetensors.torch import save_file

from alignext import AlignedGenPipeline, StyleReference, aligned_attention
from tests.pipelines import tiny


NAN, INF = float("nan"), float("inf")


def build(**transformer):
    components = tiny.flux_components()
    if transformer:
        components["transformer"] = tiny.flux_transformer(**transformer)
    pipe = AlignedGenPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe():
    return build()


def style(**changes):
    fields = {
        "prompt_embeds": torch.zeros(1, 3, tiny.TEXT_DIM),
        "pooled_prompt_embeds": torch.zeros(1, tiny.TEXT_DIM),
        "grid": (2, 3),
        "x0": torch.zeros(1, 6, 16),
    }
    return StyleReference(**fields | changes)


def recorded(steps=3, **changes):
    sigmas = torch.linspace(1, 0.2, steps)
    return style(x0=None, trajectory=torch.zeros(steps, 1, 6, 16), sigmas=sigmas, **changes)


def refuses(pipe, *parts, error=ValueError, runs=0, **kwargs):
    """The call is refused with a message that has every part in it, and the transformer has not run."""
    calls = []
    handle = pipe.transformer.x_embedder.register_forward_pre_hook(lambda *args: calls.append(args))
    before = dict(pipe.transformer.attn_processors)
    call = {"prompt": ["a fox", "a dog"], "height": 16, "width": 16, "num_inference_steps": 2, "output_type": "latent"}
    with pytest.raises(error) as caught:
        pipe(**call | {"max_sequence_length": 16} | kwargs)
    handle.remove()
    for part in parts:
        assert str(part) in str(caught.value), str(caught.value)
    assert len(calls) == runs
    assert all(p is before[name] for name, p in pipe.transformer.attn_processors.items())
    assert "forward" not in vars(pipe.transformer)


@pytest.mark.parametrize(
    ("levers", "parts"),
    [
        ({"style_lambda": -0.1}, ["`style_lambda`", "-0.1"]),
        ({"style_lambda": NAN}, ["`style_lambda`", "nan"]),
        ({"style_lambda": INF}, ["`style_lambda`", "inf"]),
        ({"lambda_schedule": "fix"}, ["`lambda_schedule`", "'fix'", "'constant'"]),
        ({"share_start": 0.6, "share_end": 0.4}, ["`share_start`", "0.6", "0.4"]),
        ({"share_start": -0.1}, ["`share_start`", "-0.1"]),
        ({"share_end": 1.1}, ["`share_end`", "1.1"]),
        ({"share_end": NAN}, ["`share_end`", "nan"]),
        ({"share_blocks": "triple"}, ["`share_blocks`", "'triple'", "'single'"]),
        ({"share_blocks": (2, 2)}, ["`share_blocks", "(2, 2)", "`share_end=0`"]),
        ({"share_blocks": (3, 2)}, ["`share_blocks", "(3, 2)"]),
        ({"share_blocks": (-1, 2)}, ["`share_blocks", "(-1, 2)"]),
        ({"share_blocks": (0, 6)}, ["`share_blocks", "(0, 6)", "2 double", "3 single"]),
        ({"share_blocks": (1, 2, 3)}, ["`share_blocks`", "(1, 2, 3)"]),
        ({"share_blocks": 3}, ["`share_blocks` must be 'single', 'double', 'all' or (lo, hi), received 3"]),
        ({"share_blocks": (0.5, 3)}, ["`share_blocks`", "(lo, hi)", "(0.5, 3)"]),
        ({"share_blocks": None}, ["`share_blocks`", "(lo, hi)", "None"]),
        ({"shift": "left"}, ["`shift`", "'left'", "'width'"]),
        ({"shift": 3}, ["`shift` must be 'width', 'height', 'none' or one number per position axis, received 3"]),
        ({"shift": (0, "1", 0)}, ["`shift`", "one number per position axis", "(0, '1', 0)"]),
        ({"style_lambda": "high"}, ["`style_lambda` must be a number, received 'high'"]),
        ({"share_start": None}, ["`share_start` must be a number, received None"]),
        ({"share_end": (0, 1)}, ["`share_end` must be a number, received (0, 1)"]),
        ({"anchor_index": 2}, ["`anchor_index`", "2", "0..1"]),
        ({"anchor_index": -1}, ["`anchor_index`", "-1"]),
        ({"target_batch_size": 0}, ["`target_batch_size`", "0"]),
    ],
    ids=str,
)
def test_levers_out_of_range(pipe, levers, parts):
    refuses(pipe, *parts, **levers)


def test_no_prompt(pipe):
    with pytest.raises(ValueError, match="`prompt` must hold at least one text, received none"):
        pipe([])


def test_shift_with_a_wrong_number_of_axes(pipe):
    refuses(pipe, "`shift`", "3 numbers", "(0, 1)", shift=(0, 1))


def test_schedule_that_gives_no_number(pipe):
    refuses(pipe, "`lambda_schedule`", "nan", "sigma", lambda_schedule=lambda sigma: NAN)
    # One that only the last step would ask for is found before the first.
    refuses(pipe, "`lambda_schedule`", "-1", lambda_schedule=lambda sigma: 1 if sigma > 0.9 else -1)


@pytest.mark.parametrize("levers", [{"style_lambda": -1}, {"share_blocks": (3, 2)}])
def test_nothing_is_encoded_before_a_call_that_is_refused(pipe, levers, monkeypatch):
    monkeypatch.setattr(pipe, "encode_style", None)
    refuses(pipe, "`" + next(iter(levers)), style_image=torch.rand(3, 16, 16), **levers)


def test_without_a_vae(pipe):
    pipe.register_modules(vae=None)
    refuses(pipe, "no VAE", "`output_type='latent'`", output_type="pt")
    refuses(pipe, "no VAE", "`style_image`", style_image=torch.rand(3, 16, 16))
    with pytest.raises(ValueError, match="no VAE to encode"):
        pipe.encode_style(torch.rand(3, 16, 16))


def test_vae_that_overflows(pipe):
    with torch.no_grad():
        pipe.vae.encoder.conv_in.weight.mul_(INF)
    refuses(pipe, "not finite", style_image=torch.rand(3, 16, 16))


def test_misspelt_arguments(pipe):
    refuses(pipe, "`style_lamda`", "Use `style_lambda`", error=TypeError, style_lamda=1.0)
    refuses(pipe, "`steps`", "Use `num_inference_steps`", error=TypeError, steps=2)
    with pytest.raises(TypeError, match="`aligned_attention` has no argument `share_block`"):
        aligned_attention(pipe.transformer, share_block="all")
    with pytest.raises(TypeError, match="`encode_style` has no argument `max_sequence_len`"):
        pipe.encode_style(torch.rand(3, 16, 16), max_sequence_len=16)


def test_styles_that_exclude_each_other(pipe):
    image = torch.rand(3, 16, 16)
    refuses(pipe, "`style_reference`", "`style_image`", "both", style_reference=style(), style_image=image)
    refuses(pipe, "`style_prompt`", "'ink'", "`style_image`", style_prompt="ink")
    refuses(pipe, "`style_prompt`", "'ink'", style_prompt="ink", style_reference=style())
    refuses(pipe, "`record_style=True`", "there is none", style_reference=style(), record_style=True)
    refuses(pipe, "`style_reference`", "str", "StyleReference.load", style_reference="style.safetensors")


@pytest.mark.parametrize(
    ("image", "part"),
    [
        ("picture.png", "picture.png"),
        (torch.rand(5, 16, 16), "(5, 16, 16)"),
        (torch.rand(2, 3, 16, 16), "(2, 3, 16, 16)"),
        (torch.rand(3, 16, 16) * 255, "[0, 1]"),
        (np.random.default_rng(0).random((16, 16, 3)) - 0.5, "[0, 1]"),
        (np.full((16, 16, 3), NAN), "[0, 1]"),
    ],
    ids=["text", "five channels", "several", "above 1", "below 0", "not a number"],
)
def test_style_images_that_are_none(pipe, image, part):
    refuses(pipe, part, style_image=image)


def test_style_image_on_a_model_that_takes_more_than_latents():
    pipe = build(in_channels=32)
    refuses(pipe, "32 channels", "16", "Fill", style_image=torch.rand(3, 16, 16))


def test_style_of_another_model(pipe):
    refuses(pipe, "64 channels", "16", style_reference=style(x0=torch.zeros(1, 6, 64)))
    refuses(pipe, "`style_reference.prompt_embeds`", "8", style_reference=style(prompt_embeds=torch.zeros(1, 3, 8)))
    pooled = torch.zeros(1, 8)
    refuses(pipe, "`style_reference.pooled_prompt_embeds`", "8", style_reference=style(pooled_prompt_embeds=pooled))
    refuses(pipe, "(0.0, 0.18)", "(0.1, 0.4)", style_reference=style(scaling=(0.0, 0.18)))


def test_recorded_style_of_another_schedule(pipe):
    refuses(pipe, "3 steps", "2 steps", "`encode_style`", style_reference=recorded())
    refuses(pipe, "noise level", "`encode_style`", num_inference_steps=3, style_reference=recorded())
    other = recorded(2)
    with aligned_attention(pipe.transformer, style_reference=other, step=5), pytest.raises(ValueError, match="Step 5"):
        inputs = torch.zeros(1, 4, 16), torch.zeros(1, 3, tiny.TEXT_DIM), torch.zeros(1, tiny.TEXT_DIM)
        ids = torch.tensor([[0.0, i, j] for i in range(2) for j in range(2)])
        pipe.transformer(*inputs, torch.ones(1), ids, torch.zeros(3, 3), torch.ones(1))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"x0": None}, ["`x0`", "`trajectory`", "neither"]),
        ({"trajectory": torch.zeros(2, 1, 6, 16), "sigmas": torch.ones(2)}, ["both"]),
        ({"grid": (3, 3)}, ["3 x 3", "(1, 9, channels)", "(1, 6, 16)"]),
        ({"x0": torch.zeros(2, 6, 16)}, ["(2, 6, 16)"]),
        ({"noise": torch.zeros(1, 5, 16)}, ["`noise`", "(1, 5, 16)"]),
        ({"x0": None, "trajectory": torch.zeros(2, 1, 6, 16)}, ["`sigmas`", "None"]),
        ({"x0": None, "trajectory": torch.zeros(2, 1, 6, 16), "sigmas": torch.ones(3)}, ["2 steps", "3"]),
        ({"prompt_embeds": torch.zeros(2, 3, 16)}, ["`prompt_embeds`", "(2, 3, 16)"]),
    ],
    ids=str,
)
def test_styles_that_are_none(changes, parts):
    with pytest.raises(ValueError) as caught:
        style(**changes)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_style_is_frozen_and_a_file_must_be_one(tmp_path):
    with pytest.raises(dataclasses.FrozenInstanceError):
        style().seed = 3
    save_file({"x0": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is no file that `StyleReference"):
        StyleReference.load(tmp_path / "other.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:20])
    with pytest.raises(ValueError, match="or not all of it"):
        StyleReference.load(tmp_path / "half.safetensors")


# ------------------------------------------------------------------------------------------------------- transformers


def test_model_without_single_layers():
    refuses(build(num_single_layers=0), "'single'", "2 double", "0 single")
    refuses(build(num_layers=0), "'double'", "0 double", share_blocks="double")


def test_ip_adapter_would_be_lost(pipe):
    attn = pipe.transformer.transformer_blocks[0].attn
    attn.set_processor(FluxIPAdapterAttnProcessor(24, 24))
    with pytest.raises(NotImplementedError, match="FluxIPAdapterAttnProcessor"):
        pipe(["a", "b"])


def test_foreign_processors_would_be_lost(pipe):
    class Mine(type(pipe.transformer.transformer_blocks[0].attn.processor)):
        pass

    pipe.transformer.single_transformer_blocks[0].attn.set_processor(Mine())
    refuses(pipe, "Mine", "FluxAttnProcessor")


def test_context_parallelism(pipe):
    for processor in pipe.transformer.attn_processors.values():
        processor._parallel_config = object()
    refuses(pipe, "_parallel_config", "context parallelism")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_cache_goes_with_one_call_per_step_only(pipe):
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    for given in ({"target_batch_size": 1}, {"style_reference": style()}):
        refuses(pipe, next(iter(given)), "FirstBlockCacheConfig", "disable_cache", **given)


def test_other_transformers():
    with torch.device("meta"):
        sd3 = SD3Transformer2DModel(num_layers=1, num_attention_heads=1, attention_head_dim=8)
    with pytest.raises(NotImplementedError, match=r"SD3Transformer2DModel.*no rotary positions"):
        with aligned_attention(sd3):
            pass
    with pytest.raises(ValueError, match=r"FluxTransformer2DModel.*Linear"):
        with aligned_attention(torch.nn.Linear(2, 2)):
            pass


def test_anchor_beyond_the_batch_of_a_direct_call(pipe):
    with aligned_attention(pipe.transformer, anchor_index=2), pytest.raises(ValueError, match=r"`anchor_index`.*2"):
        inputs = torch.zeros(2, 4, 16), torch.zeros(2, 3, tiny.TEXT_DIM), torch.zeros(2, tiny.TEXT_DIM)
        pipe.transformer(*inputs, torch.ones(2), torch.zeros(4, 3), torch.zeros(3, 3), torch.ones(2))


def test_recording_nothing(pipe):
    with aligned_attention(pipe.transformer) as sharing, pytest.raises(ValueError, match="Nothing was recorded"):
        sharing.recorded()
    with pytest.raises(ValueError, match="`record=True`"):
        with aligned_attention(pipe.transformer, style_reference=style(), record=True):
            pass


def test_mask_for_attention(pipe):
    attn = pipe.transformer.single_transformer_blocks[0].attn
    with aligned_attention(pipe.transformer) as sharing:
        sharing.mode = "joint"
        with pytest.raises(NotImplementedError, match="attention_mask"):
            attn(torch.zeros(2, 7, 24), attention_mask=torch.zeros(7, 7))


def test_size_that_is_no_multiple_is_rounded_as_in_the_stock_pipeline(pipe):
    out = pipe(
        ["a fox", "a dog"],
        height=18,
        width=27,
        num_inference_steps=1,
        max_sequence_length=16,
        output_type="latent",
        target_batch_size=1,
    )
    assert out.images.shape == (2, 4 * 6, 16)
