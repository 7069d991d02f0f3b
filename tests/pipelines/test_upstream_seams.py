# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Every upstream name that the pipelines override or call still is what they rely on.

When a test here fails after an upgrade, read what changed upstream before touching the table.
"""

import functools
import inspect

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from diffusers.models.attention_processor import Attention
from diffusers.utils.torch_utils import randn_tensor

from alignext import aligned_attention

from ..seams import parameters, resolve
from . import tiny


FLUX = "diffusers.models.transformers.transformer_flux"
QWEN = "diffusers.models.transformers.transformer_qwenimage"

# Name -> all its parameters: what replaces it has to take exactly these.
REPLACED = {
    "diffusers.models.attention_processor.AttnProcessor2_0.__call__": (
        "attn hidden_states encoder_hidden_states attention_mask temb *args **kwargs"
    ),
    "diffusers.DDIMScheduler.step": (
        "model_output timestep sample eta use_clipped_model_output generator variance_noise return_dict"
    ),
    f"{FLUX}.FluxAttnProcessor.__call__": ("attn hidden_states encoder_hidden_states attention_mask image_rotary_emb"),
    f"{FLUX}2.Flux2AttnProcessor.__call__": (
        "attn hidden_states encoder_hidden_states attention_mask image_rotary_emb"
    ),
    f"{FLUX}2.Flux2ParallelSelfAttnProcessor.__call__": "attn hidden_states attention_mask image_rotary_emb",
    f"{QWEN}.QwenDoubleStreamAttnProcessor2_0.__call__": (
        "attn hidden_states encoder_hidden_states encoder_hidden_states_mask attention_mask image_rotary_emb"
    ),
    "diffusers.Flux2Transformer2DModel.forward": (
        "hidden_states encoder_hidden_states timestep img_ids txt_ids guidance joint_attention_kwargs return_dict "
        "kv_cache kv_cache_mode num_ref_tokens ref_fixed_timestep"
    ),
    "diffusers.QwenImageTransformer2DModel.forward": (
        "hidden_states encoder_hidden_states encoder_hidden_states_mask timestep img_shapes guidance attention_kwargs "
        "controlnet_block_samples additional_t_cond return_dict"
    ),
    "diffusers.FluxTransformer2DModel.forward": (
        "hidden_states encoder_hidden_states pooled_projections timestep img_ids txt_ids guidance "
        "joint_attention_kwargs controlnet_block_samples controlnet_single_block_samples return_dict "
        "controlnet_blocks_repeat"
    ),
}

# Name -> the parameters that we pass or set.
CALLED = {
    "diffusers.StableDiffusionPipeline.__call__": (
        "prompt height width num_inference_steps timesteps sigmas guidance_scale negative_prompt "
        "num_images_per_prompt eta generator latents prompt_embeds negative_prompt_embeds ip_adapter_image "
        "ip_adapter_image_embeds output_type return_dict cross_attention_kwargs guidance_rescale "
        "callback_on_step_end callback_on_step_end_tensor_inputs"
    ),
    "diffusers.StableDiffusionXLPipeline.__call__": (
        "prompt prompt_2 height width num_inference_steps timesteps sigmas denoising_end guidance_scale "
        "negative_prompt latents pooled_prompt_embeds negative_pooled_prompt_embeds cross_attention_kwargs "
        "original_size crops_coords_top_left target_size"
    ),
    "diffusers.StableDiffusionControlNetPipeline.__call__": "image controlnet_conditioning_scale guess_mode latents",
    "diffusers.StableDiffusionXLControlNetPipeline.__call__": "image controlnet_conditioning_scale guess_mode latents",
    "diffusers.StableDiffusionPipeline.encode_prompt": (
        "prompt device num_images_per_prompt do_classifier_free_guidance negative_prompt"
    ),
    "diffusers.StableDiffusionXLPipeline.encode_prompt": (
        "prompt prompt_2 device num_images_per_prompt do_classifier_free_guidance negative_prompt"
    ),
    "diffusers.StableDiffusionXLPipeline._get_add_time_ids": (
        "original_size crops_coords_top_left target_size dtype text_encoder_projection_dim"
    ),
    "diffusers.StableDiffusionPipeline.prepare_extra_step_kwargs": "generator eta",
    "diffusers.StableDiffusionPipeline.progress_bar": "iterable total",
    "diffusers.StableDiffusionPipeline.maybe_free_model_hooks": "",
    "diffusers.UNet2DConditionModel.forward": (
        "sample timestep encoder_hidden_states cross_attention_kwargs added_cond_kwargs return_dict "
        "down_block_additional_residuals mid_block_additional_residual"
    ),
    "diffusers.UNet2DConditionModel.set_attn_processor": "processor",
    "diffusers.models.attention_processor.Attention.set_processor": "processor",
    "diffusers.DDIMInverseScheduler.set_timesteps": "num_inference_steps device",
    "diffusers.DDIMInverseScheduler.step": "model_output timestep sample return_dict",
    "diffusers.DDIMScheduler.set_timesteps": "num_inference_steps device",
    "diffusers.AutoencoderKL.encode": "x",
    "diffusers.image_processor.VaeImageProcessor": (
        "vae_scale_factor do_normalize do_binarize do_convert_rgb do_convert_grayscale"
    ),
    "diffusers.image_processor.VaeImageProcessor.preprocess": "image height width resize_mode",
    "diffusers.image_processor.VaeImageProcessor.postprocess": "image output_type do_denormalize",
    "diffusers.image_processor.VaeImageProcessor.apply_overlay": "mask init_image image",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img.retrieve_latents": (
        "encoder_output generator sample_mode"
    ),
    "diffusers.pipelines.flux.pipeline_flux.retrieve_timesteps": (
        "scheduler num_inference_steps device timesteps sigmas"
    ),
    "diffusers.FluxPipeline._unpack_latents": "latents height width vae_scale_factor",
    "diffusers.AnimateDiffPipeline.decode_latents": "latents",
    "diffusers.LattePipeline.decode_latents": "latents video_length",
    "diffusers.CogVideoXPipeline.decode_latents": "latents",
    "diffusers.TextToVideoSDPipeline.decode_latents": "latents",
    "diffusers.LTXPipeline._unpack_latents": "latents num_frames height width patch_size patch_size_t",
    "diffusers.LTXPipeline._denormalize_latents": "latents latents_mean latents_std scaling_factor",
    "diffusers.AutoencoderKLLTXVideo.decode": "z temb return_dict",
    "diffusers.video_processor.VideoProcessor.postprocess_video": "video output_type",
    "diffusers.FlowMatchEulerDiscreteScheduler.set_timesteps": "num_inference_steps device sigmas mu timesteps",
    "diffusers.UniPCMultistepScheduler.set_timesteps": "num_inference_steps device sigmas mu",
    "diffusers.DDIMScheduler._threshold_sample": "sample",
    "diffusers.utils.torch_utils.randn_tensor": "shape generator device dtype",
    "diffusers.FluxPipeline.__call__": (
        "prompt height width num_inference_steps num_images_per_prompt latents prompt_embeds pooled_prompt_embeds "
        "negative_prompt_embeds negative_pooled_prompt_embeds true_cfg_scale output_type return_dict "
        "max_sequence_length joint_attention_kwargs callback_on_step_end"
    ),
    "diffusers.FluxPipeline.prepare_latents": (
        "batch_size num_channels_latents height width dtype device generator latents"
    ),
    "diffusers.FluxPipeline.encode_prompt": ("prompt prompt_2 prompt_embeds pooled_prompt_embeds max_sequence_length"),
    "diffusers.FluxPipeline._pack_latents": "latents batch_size num_channels_latents height width",
    "diffusers.FluxKontextPipeline.__call__": "image prompt height width max_area max_sequence_length",
    "diffusers.Flux2Pipeline.__call__": "image prompt height width prompt_embeds max_sequence_length",
    "diffusers.Flux2KleinPipeline.__call__": "image prompt height width prompt_embeds max_sequence_length",
    "diffusers.QwenImagePipeline.__call__": "prompt height width prompt_embeds max_sequence_length",
    "diffusers.Flux2Pipeline.encode_prompt": "prompt prompt_embeds max_sequence_length",
    "diffusers.Flux2KleinPipeline.encode_prompt": "prompt prompt_embeds max_sequence_length",
    "diffusers.QwenImagePipeline.encode_prompt": "prompt prompt_embeds max_sequence_length",
    "diffusers.Flux2Pipeline._encode_vae_image": "image generator",
    "diffusers.Flux2KleinPipeline._encode_vae_image": "image generator",
    "diffusers.Flux2Pipeline._pack_latents": "latents",
    "diffusers.QwenImagePipeline._pack_latents": "latents batch_size num_channels_latents height width",
    f"{QWEN}.QwenEmbedRope.forward": "video_fhw device max_txt_seq_len",
    f"{QWEN}.QwenEmbedRope.rope_params": "index dim theta",
    f"{QWEN}.apply_rotary_emb_qwen": "x freqs_cis use_real",
    f"{FLUX}._get_qkv_projections": "attn hidden_states encoder_hidden_states",
    f"{FLUX}.FluxPosEmbed.forward": "ids",
    "diffusers.models.attention_dispatch.dispatch_attention_fn": "query key value backend",
    "diffusers.models.embeddings.apply_rotary_emb": "x freqs_cis sequence_dim",
}

PRESENT = [
    "diffusers.UNet2DConditionModel.attn_processors",
    "diffusers.StableDiffusionPipeline._execution_device",
    "diffusers.StableDiffusionPipeline.do_classifier_free_guidance",
    "diffusers.StableDiffusionXLPipeline._execution_device",
    "diffusers.StableDiffusionXLPipeline.do_classifier_free_guidance",
    "diffusers.FluxTransformer2DModel.attn_processors",
    "diffusers.FluxTransformer2DModel.is_cache_enabled",
    f"{FLUX}.FluxIPAdapterAttnProcessor",
    "diffusers.FlowMatchEulerDiscreteScheduler.step_index",
    "diffusers.FlowMatchEulerDiscreteScheduler.begin_index",
]

SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@pytest.mark.parametrize("name", REPLACED)
def test_replaced_signature_is_unchanged(name: str) -> None:
    assert parameters(name) == REPLACED[name].split()


@pytest.mark.parametrize("name", CALLED)
def test_called_signature_takes_what_we_pass(name: str) -> None:
    found = parameters(name)
    # A decorator that hides the signature, as that of diffusers 0.41 around VAEs, passes everything on.
    assert found == ["*args", "**kwargs"] or set(CALLED[name].split()) <= set(found)


@pytest.mark.parametrize("name", PRESENT)
def test_name_is_there(name: str) -> None:
    resolve(name)


@pytest.mark.parametrize("pipeline", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_pipelines_are_called_with_everything_by_name(pipeline: str) -> None:
    # what RIVAL pops and what it fills in is found by binding the stock signature
    assert "latents" in inspect.signature(resolve(f"diffusers.{pipeline}.__call__")).parameters
    assert all(not name.startswith("*") or name == "**kwargs" for name in parameters(f"diffusers.{pipeline}.__call__"))


def test_attention_has_the_parts_a_processor_uses() -> None:
    attention = Attention(query_dim=8, heads=2, dim_head=4)
    names = (
        "processor heads to_q to_k to_v to_out norm_q norm_k group_norm spatial_norm residual_connection "
        "rescale_output_factor"
    )
    assert not [name for name in names.split() if not hasattr(attention, name)]
    assert len(attention.to_out) == 2


def test_attention_passes_on_only_what_the_processor_names() -> None:
    seen = {}

    class Processor:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, extra=None):
            seen.update(extra=extra, encoder_hidden_states=encoder_hidden_states)
            return hidden_states

    attention = Attention(query_dim=8, heads=2, dim_head=4)
    attention.set_processor(Processor())
    hidden = torch.zeros(1, 3, 8)
    attention(hidden, extra=5)
    assert seen == {"extra": 5, "encoder_hidden_states": None}


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_our_copy_of_the_flux_processor_is_the_installed_one(double: bool, fused: bool) -> None:
    # what an anchor without targets computes is the stock result, from our copy of the processor's lines
    model, ids = tiny.flux_transformer(), torch.tensor([[0.0, i, j] for i in range(2) for j in range(3)])
    if fused:
        model.fuse_qkv_projections()
    call = {
        "hidden_states": torch.randn(1, 6, 16),
        "encoder_hidden_states": torch.randn(1, 4, tiny.TEXT_DIM),
        "pooled_projections": torch.randn(1, tiny.TEXT_DIM),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]),
        "img_ids": ids,
        "txt_ids": torch.zeros(4, 3),
    }
    expected, used = model(**call).sample, []
    with aligned_attention(model, share_blocks="double" if double else "single") as sharing:
        original = sharing.attention
        sharing.attention = lambda *args, **kwargs: used.append(1) or original(*args, **kwargs)
        assert torch.equal(model(**call).sample, expected)
    assert len(used) == (2 if double else 3)


def test_flow_scheduler_numbers_its_steps_and_makes_new_timesteps_for_each_loop() -> None:
    # what tells a step's first call from its second is the scheduler's index, None before the first step
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    first = scheduler.timesteps
    assert scheduler.step_index is None and scheduler.begin_index is None
    for i, t in enumerate(scheduler.timesteps):
        scheduler.step(torch.zeros(1, 2), t, torch.zeros(1, 2))
        assert scheduler.step_index == i + 1
    scheduler.set_timesteps(3)
    assert scheduler.timesteps is not first and scheduler.step_index is None
    torch.testing.assert_close(scheduler.timesteps / 1000, scheduler.sigmas[:3])


def test_loop_finds_eta_behind_a_wrapped_step() -> None:
    class Loop:
        scheduler = DDIMScheduler(**SCHEDULER)

    step = Loop.scheduler.step
    Loop.scheduler.step = functools.wraps(step)(lambda *args, **kwargs: step(*args, **kwargs))
    found = StableDiffusionPipeline.prepare_extra_step_kwargs(Loop, None, 0.5)
    assert found == {"generator": None, "eta": 0.5}
    Loop.scheduler.step = lambda *args, **kwargs: step(*args, **kwargs)
    assert StableDiffusionPipeline.prepare_extra_step_kwargs(Loop, None, 0.5) == {}


@pytest.mark.parametrize("steps", [10, 30, 50])
def test_inverse_scheduler_climbs_the_grid_that_ddim_descends(steps: int) -> None:
    ddim = DDIMScheduler(**SCHEDULER)
    inverse = DDIMInverseScheduler.from_config(ddim.config)
    ddim.set_timesteps(steps)
    inverse.set_timesteps(steps)
    assert torch.equal(inverse.timesteps, ddim.timesteps.flip(0))
    sample, noise = torch.ones(1, 4, 2, 2), torch.full((1, 4, 2, 2), 0.3)
    for t in inverse.timesteps:
        up = inverse.step(noise, t, sample, return_dict=False)[0]
        down = ddim.step(noise, t, up, return_dict=False)[0]
        assert torch.allclose(down, sample, atol=1e-4)
        sample = up


def test_a_config_without_the_keys_clips() -> None:
    # why the scheduler that RIVAL puts in place sets them itself
    bare = {key: value for key, value in SCHEDULER.items() if key not in ("clip_sample", "set_alpha_to_one")}
    config = DDIMScheduler.from_config(bare).config
    assert config.clip_sample
    assert config.set_alpha_to_one


def test_a_list_of_generators_draws_row_by_row() -> None:
    generators = [torch.Generator().manual_seed(i) for i in (0, 1)]
    together = randn_tensor((2, 4, 2, 2), generator=generators, device=torch.device("cpu"), dtype=torch.float32)
    for i in (0, 1):
        alone = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(i))
        assert torch.equal(together[i : i + 1], alone)
