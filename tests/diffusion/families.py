# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Tiny random pipelines of the families in use today, beside those of `tests/pipelines`, with embeddings for texts."""

import warnings
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxFillPipeline,
    FluxKontextPipeline,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus

from tests.pipelines import tiny
from tests.pipelines.latent_search import tiny_models


D, TEXT, SIZE = tiny.TEXT_DIM, 6, tiny.SIZE
PARTS = {"text_encoder": None, "tokenizer": None}


def flow() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def texts(rows: int, dim: int = D) -> torch.Tensor:
    return torch.randn(rows, TEXT, dim, generator=torch.Generator().manual_seed(1))


def mask(rows: int) -> torch.Tensor:
    """Every other row is shorter."""
    return (torch.arange(TEXT) < torch.tensor([TEXT - i % 2 for i in range(rows)])[:, None]).long()


def picture(side: int = SIZE) -> PIL.Image.Image:
    return PIL.Image.radial_gradient("L").resize((side, side)).convert("RGB")


def as_picture(pixels: list) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.asarray(pixels, dtype=np.uint8))


def _flux_editing(cls: Any, **config: Any) -> Any:
    parts = tiny.flux_components()
    return cls(**{k: v for k, v in parts.items() if k not in ("image_encoder", "feature_extractor")} | config)


def _fill() -> FluxFillPipeline:
    # Latents, those of the masked picture, and the mask of every pixel under a token.
    return _flux_editing(
        FluxFillPipeline, transformer=tiny.flux_transformer(in_channels=16 + 16 + 16, out_channels=16)
    )


def _flux2(cls: Any, guidance: bool) -> Any:
    vae = AutoencoderKLFlux2(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=4, norm_num_groups=2,
    )  # fmt: skip
    vae.bn.running_mean.normal_()
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=D, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=guidance,
    )  # fmt: skip
    return cls(vae=vae, transformer=transformer, scheduler=tiny.flow_scheduler(), **PARTS)


def _qwen(cls: Any, **parts: Any) -> Any:
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, attn_scales=[], temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 1.5],
    )  # fmt: skip
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=D, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return cls(vae=vae, transformer=transformer, scheduler=tiny.flow_scheduler(), **PARTS, **parts)


def _z_image() -> ZImagePipeline:
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=D,
        axes_dims=[2, 2, 4], axes_lens=[64, 16, 16],
    )  # fmt: skip
    # A new model has padding tokens from memory that nobody set.
    torch.nn.init.zeros_(transformer.x_pad_token)
    torch.nn.init.zeros_(transformer.cap_pad_token)
    return ZImagePipeline(vae=tiny.vae(shift_factor=0.1), transformer=transformer, scheduler=flow(), **PARTS)


def _sana() -> SanaPipeline:
    vae = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
    )  # fmt: skip
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=D,
        sample_size=8, timestep_scale=0.001,
    )  # fmt: skip
    return SanaPipeline(vae=vae, transformer=transformer, scheduler=flow(), **PARTS)


def _pixart() -> PixArtSigmaPipeline:
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
        cross_attention_dim=16, sample_size=8, caption_channels=D, use_additional_conditions=False,
    )  # fmt: skip
    return PixArtSigmaPipeline(vae=tiny.vae(), transformer=transformer, scheduler=tiny.scheduler(), **PARTS)


def _lumina2() -> Lumina2Pipeline:
    transformer = Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=16, num_layers=1, num_refiner_layers=1, num_attention_heads=2,
        num_kv_heads=1, multiple_of=8, axes_dim_rope=(2, 2, 4), axes_lens=(16, 16, 16), cap_feat_dim=D,
    )  # fmt: skip
    vae = AutoencoderKL(  # the pipeline has 8 pixels a latent, whatever its VAE has
        block_out_channels=(4,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=2,
        shift_factor=0.1,
    )  # fmt: skip
    return Lumina2Pipeline(vae=vae, transformer=transformer, scheduler=flow(), **PARTS)


def _chroma() -> ChromaPipeline:
    transformer = ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=12, num_attention_heads=2,
        joint_attention_dim=D, axes_dims_rope=(4, 4, 4), approximator_num_channels=8, approximator_hidden_dim=8,
        approximator_layers=1,
    )  # fmt: skip
    return ChromaPipeline(vae=tiny.vae(shift_factor=0.1), transformer=transformer, scheduler=flow(), **PARTS)


def _hunyuan_dit() -> HunyuanDiTPipeline:
    transformer = HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, sample_size=8, hidden_size=16,
        num_layers=2, cross_attention_dim=D, cross_attention_dim_t5=D, pooled_projection_dim=8, text_len=TEXT,
        text_len_t5=TEXT, activation_fn="gelu-approximate", use_style_cond_and_image_meta_size=False,
    )  # fmt: skip
    parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler = DDPMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear")
    return HunyuanDiTPipeline(vae=tiny.vae(), transformer=transformer, scheduler=scheduler, **PARTS, **parts)


def _cogview4() -> CogView4Pipeline:
    transformer = CogView4Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2, text_embed_dim=D,
        time_embed_dim=8, condition_dim=4, pos_embed_max_size=8, sample_size=8, rope_axes_dim=(8, 8),
    )  # fmt: skip
    return CogView4Pipeline(vae=tiny.vae(shift_factor=0.1), transformer=transformer, scheduler=flow(), **PARTS)


def _small(**call: Any) -> dict[str, Any]:
    return {"height": SIZE, "width": SIZE, **call}


def _masked(rows: int) -> dict[str, torch.Tensor]:
    return {"prompt_embeds": texts(rows), "prompt_attention_mask": mask(rows)}


def _pooled(rows: int) -> dict[str, torch.Tensor]:
    return {"prompt_embeds": texts(rows), "pooled_prompt_embeds": texts(rows)[:, 0]}


def _qwen_call(rows: int) -> dict[str, torch.Tensor]:
    return {"prompt_embeds": texts(rows), "prompt_embeds_mask": mask(rows)}


def _two_masked(rows: int) -> dict[str, torch.Tensor]:
    return {
        **_masked(rows), "prompt_embeds_2": texts(rows), "prompt_attention_mask_2": mask(rows),
    }  # fmt: skip


# Name -> pipeline, and the arguments of its call for so many samples.
FAMILIES = {
    "kontext": (
        lambda: _flux_editing(FluxKontextPipeline),
        lambda n: _small(**_pooled(n), image=picture(), max_area=SIZE**2, _auto_resize=False),
    ),
    "fill": (
        _fill,
        lambda n: _small(**_pooled(n), image=picture(), mask_image=picture().convert("L")),
    ),
    "flux2": (lambda: _flux2(Flux2Pipeline, True), lambda n: _small(prompt_embeds=texts(n))),
    "flux2-editing": (
        lambda: _flux2(Flux2Pipeline, True), lambda n: _small(prompt_embeds=texts(n), image=picture(64)),
    ),
    "flux2-klein": (lambda: _flux2(Flux2KleinPipeline, False), lambda n: _small(prompt_embeds=texts(n))),
    "qwen-image": (lambda: _qwen(QwenImagePipeline), lambda n: _small(**_qwen_call(n))),
    "qwen-image-edit": (
        lambda: _qwen(QwenImageEditPipeline, processor=None), lambda n: _small(**_qwen_call(n), image=picture()),
    ),
    "qwen-image-edit-plus": (
        lambda: _qwen(QwenImageEditPlusPipeline, processor=None),
        lambda n: _small(**_qwen_call(n), image=[picture()]),
    ),
    "z-image": (_z_image, lambda n: _small(prompt_embeds=[*texts(n)])),
    "sana": (
        _sana,
        lambda n: _masked(n) | {"height": 32, "width": 32, "use_resolution_binning": False, "clean_caption": False},
    ),
    "pixart-sigma": (_pixart, lambda n: _small(**_masked(n), use_resolution_binning=False, clean_caption=False)),
    "lumina2": (_lumina2, lambda n: _small(**_masked(n))),
    "chroma": (_chroma, lambda n: _small(prompt_embeds=texts(n), prompt_attention_mask=mask(n).bool())),
    "hunyuan-dit": (_hunyuan_dit, lambda n: _small(**_two_masked(n), use_resolution_binning=False)),
    "cogview4": (_cogview4, lambda n: _small(prompt_embeds=texts(n))),
}  # fmt: skip
# These take texts.
FAMILIES |= {
    name: (
        lambda name=name: tiny_models.build(name)[0],
        lambda n, name=name: {"prompt": ["a fox", "an owl", "a cat"][:n], **tiny_models.BUILDERS[name][1]},
    )
    for name in tiny_models.BUILDERS
}


def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen-Image's editing pipelines scale every picture to a megapixel, which takes minutes here."""
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: (SIZE, SIZE, None))
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "calculate_dimensions", lambda area, ratio: (SIZE, SIZE))


def build(name: str) -> Any:
    """The pipeline with the same random weights each time, and no layer of zeros, as new models have at their end."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # diffusers' Chroma imports a class of its own from an old place
        torch.manual_seed(0)
        pipe = FAMILIES[name][0]()
        for part in tiny.models(pipe.components).values():
            part.eval()
            for parameter in part.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.1)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(name: str, rows: int = 2, seed: int = 0) -> dict[str, Any]:
    """Arguments of the stock call for `rows` samples."""
    return {**FAMILIES[name][1](rows), "generator": torch.Generator().manual_seed(seed)}
