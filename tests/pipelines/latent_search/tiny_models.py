# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Tiny random versions of the pipelines that a search is promised for, beside those of `tests/pipelines/tiny.py`."""

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LattePipeline,
    LatteTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MotionAdapter,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

from .. import tiny


def _sd3() -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32,
        pos_embed_max_size=16,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny.vae(shift_factor=0.1, scaling_factor=1.3), text_encoder=tiny.text_encoder(projection=True),
        tokenizer=tiny.tokenizer(), text_encoder_2=tiny.text_encoder(projection=True), tokenizer_2=tiny.tokenizer(),
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def _animatediff() -> AnimateDiffPipeline:
    adapter = MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=2
    )
    return AnimateDiffPipeline(
        vae=tiny.vae(), text_encoder=tiny.text_encoder(), tokenizer=tiny.tokenizer(), unet=tiny.unet(),
        motion_adapter=adapter, scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False),
    )  # fmt: skip


def _latte() -> LattePipeline:
    t5, words = tiny.t5()
    transformer = LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
        cross_attention_dim=16, attention_bias=True, sample_size=8, patch_size=2, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False,
        caption_channels=t5.config.d_model, video_length=2,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    return LattePipeline(
        tokenizer=words, text_encoder=t5, vae=tiny.vae(), transformer=transformer, scheduler=scheduler
    )


def _cogvideox() -> CogVideoXPipeline:
    t5, words = tiny.t5()
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=t5.config.d_model, num_layers=1, sample_width=2, sample_height=2, sample_frames=5, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=16,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4), latent_channels=4, layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", snr_shift_scale=3.0
    )
    return CogVideoXPipeline(tokenizer=words, text_encoder=t5, vae=vae, transformer=transformer, scheduler=scheduler)


def _wan_transformer(dim: int) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=dim, freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip


def _wan(two: bool = False) -> WanPipeline:
    t5, words = tiny.t5()
    vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    parts = {"tokenizer": words, "text_encoder": t5, "vae": vae, "scheduler": scheduler}
    parts |= {"transformer_2": _wan_transformer(t5.config.d_model), "boundary_ratio": 0.8} if two else {}
    return WanPipeline(transformer=_wan_transformer(t5.config.d_model), **parts)


def _hunyuan() -> HunyuanVideoPipeline:
    words = tiny.tokenizer()
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            eos_token_id=words.eos_token_id,
        )
    ).eval()  # the pipeline asks for 77 tokens
    llama = LlamaModel(
        LlamaConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
            pad_token_id=words.pad_token_id,
        )
    ).eval()  # fmt: skip
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=True, text_embed_dim=16,
        pooled_projection_dim=tiny.TEXT_DIM, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=4,
        mid_block_add_attention=False,
    )  # fmt: skip
    return HunyuanVideoPipeline(
        text_encoder=llama, tokenizer=words, transformer=transformer, vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0), text_encoder_2=clip, tokenizer_2=words,
    )  # fmt: skip


def _ltx() -> LTXPipeline:
    t5, words = tiny.t5()
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=1, caption_channels=t5.config.d_model,
    )  # fmt: skip
    vae = AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False), patch_size=1,
        encoder_causal=True, decoder_causal=False,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05)
    return LTXPipeline(scheduler=scheduler, vae=vae, text_encoder=t5, tokenizer=words, transformer=transformer)


def _text_to_video_sd() -> TextToVideoSDPipeline:
    unet = UNet3DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, norm_num_groups=4, cross_attention_dim=16,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )  # fmt: skip
    return TextToVideoSDPipeline(
        vae=tiny.vae(), text_encoder=tiny.text_encoder(), tokenizer=tiny.tokenizer(), unet=unet,
        scheduler=tiny.scheduler(),
    )  # fmt: skip


# Name -> pipeline, and the call's arguments that keep it small.
BUILDERS = {
    "sd": (lambda: StableDiffusionPipeline(**tiny.sd_components()), {}),
    "sdxl": (lambda: StableDiffusionXLPipeline(**tiny.sdxl_components()), {}),
    "sd3": (_sd3, {}),
    "flux": (lambda: FluxPipeline(**tiny.flux_components()), {"height": 16, "width": 16}),
    "animatediff": (_animatediff, {"num_frames": 3, "height": 16, "width": 16}),
    "latte": (_latte, {"video_length": 2, "height": 16, "width": 16, "clean_caption": False}),
    "cogvideox": (_cogvideox, {"num_frames": 5, "height": 16, "width": 16, "max_sequence_length": 16}),
    "wan-2.1": (_wan, {"num_frames": 5, "height": 16, "width": 16, "max_sequence_length": 16}),
    "wan-2.2": (lambda: _wan(two=True), {"num_frames": 5, "height": 16, "width": 16, "max_sequence_length": 16}),
    "hunyuan": (
        _hunyuan,
        {
            "num_frames": 5, "height": 16, "width": 16, "max_sequence_length": 16,
            "prompt_template": {"template": "{}", "crop_start": 0},
        },
    ),
    "ltx": (_ltx, {"num_frames": 5, "height": 32, "width": 32, "max_sequence_length": 16}),
    "text-to-video-sd": (_text_to_video_sd, {"num_frames": 3, "height": 16, "width": 16}),
}  # fmt: skip


def build(name: str):
    """A pipeline with the same random weights each time, and the small call's arguments."""
    make, call = BUILDERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = make()
    for part in tiny.models(pipe.components).values():
        part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe, call
