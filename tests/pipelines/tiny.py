# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Tiny random stock models, built in milliseconds without a network: the components of each stock pipeline we extend.

Pictures are 16 x 16, latents (4, 8, 8), the text context 16 tokens. Weights are random but fixed by the seed.
"""

import copy
import functools

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    UNet2DConditionModel,
)
from diffusers.models.modeling_utils import ModelMixin
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)


TEXT_DIM = 16
SIZE = 16


def tokenizer() -> CLIPTokenizer:
    """One token per letter: a CLIP tokenizer with no merges. A copy each, since textual inversion adds words."""
    return copy.deepcopy(_letters())


@functools.cache
def _letters() -> CLIPTokenizer:
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=16)


def text_encoder(projection: bool = False) -> CLIPTextModel | CLIPTextModelWithProjection:
    words = _letters()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=TEXT_DIM,
        intermediate_size=32,
        projection_dim=TEXT_DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def unet(**overrides) -> UNet2DConditionModel:
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": TEXT_DIM,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**config | overrides).eval()


def vae(**overrides) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=SIZE,
        **overrides,
    ).eval()


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def sd_components(seed: int = 0) -> dict[str, object]:
    """What `StableDiffusionPipeline(**components)` takes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            "vae": vae(),
            "text_encoder": text_encoder(),
            "tokenizer": tokenizer(),
            "unet": unet(),
            "scheduler": scheduler(),
            "safety_checker": None,
            "feature_extractor": None,
            "image_encoder": None,
            "requires_safety_checker": False,
        }


def sdxl_components(seed: int = 0) -> dict[str, object]:
    """What `StableDiffusionXLPipeline(**components)` takes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            "vae": vae(),
            "text_encoder": text_encoder(),
            "text_encoder_2": text_encoder(projection=True),
            "tokenizer": tokenizer(),
            "tokenizer_2": tokenizer(),
            "unet": unet(
                cross_attention_dim=2 * TEXT_DIM,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + TEXT_DIM,
                transformer_layers_per_block=(1, 2),
                use_linear_projection=True,
            ),
            "scheduler": scheduler(),
            "image_encoder": None,
            "feature_extractor": None,
        }


def controlnet(unet: UNet2DConditionModel, seed: int = 0) -> ControlNetModel:
    """A ControlNet of that UNet whose outputs are not zero, as those of a new one are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=(4, 8), load_weights_from_unet=False
        )
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        return model.eval()


def with_controlnet(components: dict[str, object]) -> dict[str, object]:
    """Components of the pipeline's ControlNet variant."""
    return components | {"controlnet": controlnet(components["unet"])}


def flux_transformer(**overrides) -> FluxTransformer2DModel:
    config = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 12,
        "num_attention_heads": 2,
        "joint_attention_dim": TEXT_DIM,
        "pooled_projection_dim": TEXT_DIM,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 4, 4),
    }
    return FluxTransformer2DModel(**config | overrides).eval()


def t5() -> tuple[T5EncoderModel, T5Tokenizer]:
    """One token per letter, as in `tokenizer`."""
    tokens = ["<pad>", "</s>", "<unk>", "▁", *(chr(code) for code in range(33, 127))]
    words = T5Tokenizer([(token, -1.0 if i > 3 else 0.0) for i, token in enumerate(tokens)], extra_ids=0)
    config = T5Config(
        vocab_size=len(words), d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=1, num_heads=2, is_encoder_decoder=False
    )
    return T5EncoderModel(config).eval(), words


def flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """With the shift that depends on the size, as FLUX.1-dev has it."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def flux_components(seed: int = 0) -> dict[str, object]:
    """What `FluxPipeline(**components)` takes. 16 x 16 pixels are 4 x 4 packed tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder_2, tokenizer_2 = t5()
        model = flux_transformer()
        for parameter in model.parameters():  # sharper attention than at initialisation, so that it matters
            if parameter.ndim > 1:
                parameter.data.mul_(2)
        return {
            "vae": vae(shift_factor=0.1, scaling_factor=0.4),
            "text_encoder": text_encoder(),
            "text_encoder_2": text_encoder_2,
            "tokenizer": tokenizer(),
            "tokenizer_2": tokenizer_2,
            "transformer": model,
            "scheduler": flow_scheduler(),
            "image_encoder": None,
            "feature_extractor": None,
        }


def models(components: dict[str, object]) -> dict[str, torch.nn.Module]:
    """The components with weights."""
    return {name: part for name, part in components.items() if isinstance(part, (ModelMixin, torch.nn.Module))}
