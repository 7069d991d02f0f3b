# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Pipelines of the size of SD 1.5 and SDXL with random weights: they tell what a method costs, not what it does."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel


SDXL = dict(
    sample_size=128,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(320, 640, 1280),
    transformer_layers_per_block=(1, 2, 10),
    attention_head_dim=(5, 10, 20),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
SD15 = dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def random_pipeline(cls: type[DiffusionPipeline], shape: str, dtype: torch.dtype) -> DiffusionPipeline:
    """Without text encoders, around a U-Net of that architecture, `sd15` or `sdxl`; the VAE is never run."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    unet = UNet2DConditionModel(**(SDXL if shape == "sdxl" else SD15))
    torch.set_default_dtype(torch.float32)
    vae = AutoencoderKL(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    parts = {"vae": vae, "text_encoder": None, "tokenizer": None, "unet": unet, "scheduler": scheduler}
    if shape == "sdxl":
        return cls(**parts, text_encoder_2=None, tokenizer_2=None)
    return cls(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
