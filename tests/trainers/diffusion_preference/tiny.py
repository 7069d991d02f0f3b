# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Tiny random pipelines of the four families: pictures of 16 x 16, latents of 8 x 8."""

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from ...pipelines.tiny import SIZE, TEXT_DIM, sd_components, sdxl_components, text_encoder, tokenizer


def vae(channels: int, shift: float | None) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=2,
        sample_size=SIZE,
        shift_factor=shift,
        scaling_factor=1.5,
        force_upcast=False,
    ).eval()


def t5() -> tuple[T5EncoderModel, T5Tokenizer]:
    letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((chr(c), -3.0) for c in range(33, 127))]
    words = T5Tokenizer(letters, extra_ids=0, model_max_length=16)
    config = T5Config(
        vocab_size=len(words), d_model=TEXT_DIM, d_kv=8, d_ff=16, num_layers=1, num_heads=2, is_gated_act=True
    )
    return T5EncoderModel(config).eval(), words


def sd() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(**sd_components())


def sdxl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(**sdxl_components())


def sd3() -> StableDiffusion3Pipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, words = t5()
        transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * TEXT_DIM,
            caption_projection_dim=16,
            pooled_projection_dim=2 * TEXT_DIM,
            pos_embed_max_size=8,
        )
        # The last layer of a new model is zero, and with it the gradient of all others.
        torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
        encoder = T5EncoderModel(T5Config(**encoder.config.to_dict() | {"d_model": 2 * TEXT_DIM})).eval()
        return StableDiffusion3Pipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(4, 0.25),
            text_encoder=text_encoder(projection=True),
            tokenizer=tokenizer(),
            text_encoder_2=text_encoder(projection=True),
            tokenizer_2=tokenizer(),
            text_encoder_3=encoder,
            tokenizer_3=words,
        )


def flux(guidance_embeds: bool = True) -> FluxPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, words = t5()
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=TEXT_DIM,
            pooled_projection_dim=TEXT_DIM,
            axes_dims_rope=(2, 2, 4),
            guidance_embeds=guidance_embeds,
        )
        return FluxPipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=vae(4, 0.25),
            text_encoder=text_encoder(),
            tokenizer=tokenizer(),
            text_encoder_2=encoder,
            tokenizer_2=words,
        )


PIPELINES = {"sd": sd, "sdxl": sdxl, "sd3": sd3, "flux": flux}
