# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Tiny random pipelines of Modular Diffusers: presets of families with a stock class, and of two without."""

from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ClassifierFreeGuidance,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2AutoBlocks,
    FluxAutoBlocks,
    QwenImageAutoBlocks,
    StableDiffusionXLAutoBlocks,
)
from diffusers.modular_pipelines import (
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    SequentialPipelineBlocks,
    WanBlocks,
)

from tests.diffusion import families
from tests.pipelines import tiny


class Words(ModularPipelineBlocks):
    """A text encoder of one vector per letter."""

    many = True  # texts in one call

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam("prompt", required=True)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        names = ("prompt_embeds", "negative_prompt_embeds")
        return [OutputParam(name, kwargs_type="denoiser_input_fields") for name in names]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
        assert self.many or isinstance(block_state.prompt, str)
        texts = [block_state.prompt] if isinstance(block_state.prompt, str) else block_state.prompt
        vectors = torch.randn(128, tiny.TEXT_DIM, generator=torch.Generator().manual_seed(0))
        codes = torch.tensor([[ord(letter) for letter in text.ljust(8)[:8]] for text in texts])
        block_state.prompt_embeds = vectors[codes]
        block_state.negative_prompt_embeds = torch.zeros_like(block_state.prompt_embeds)
        self.set_block_state(state, block_state)
        return components, state


class OneText(Words):
    many = False


def _anima() -> dict[str, Any]:
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, attn_scales=[], temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 1.5],
    )  # fmt: skip
    transformer = CosmosTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1, mlp_ratio=2,
        text_embed_dim=tiny.TEXT_DIM, adaln_lora_dim=4, max_size=(4, 16, 16), extra_pos_embed_type=None,
        concat_padding_mask=False,  # it resizes the mask with torchvision
    )  # fmt: skip
    return {"vae": vae, "transformer": transformer, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}


def _flux3() -> dict[str, Any]:
    vae = AutoencoderKLFlux2(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=4, norm_num_groups=2,
    )  # fmt: skip
    transformer = diffusers.Flux3Transformer2DModel(
        in_channels=16, cond_in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=tiny.TEXT_DIM, timestep_channels=16, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    return {"vae": vae, "transformer": transformer, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}


# diffusers 0.41 has none.
needs_flux3 = pytest.mark.skipif(not hasattr(diffusers, "Flux3AutoBlocks"), reason="this diffusers has no FLUX.3")

# Name -> preset by its name, its components, what replaces its text encoders, and where they stand.
ONLY_MODULAR = {
    "anima": ("AnimaAutoBlocks", _anima, Words, ("text_encoder", "denoise.text_conditioning")),
    "flux3": ("Flux3AutoBlocks", _flux3, OneText, ("prompt_upsampler", "text_encoder")),
}
SHARED = {
    "flux": FluxAutoBlocks,
    "flux2": Flux2AutoBlocks,
    "qwen-image": QwenImageAutoBlocks,
    "sdxl": StableDiffusionXLAutoBlocks,
    "wan-2.1": WanBlocks,
}


def components(name: str) -> dict[str, Any]:
    """The parts of a family, the same random weights each time."""
    if name in ("flux", "sdxl"):
        return getattr(tiny, f"{name}_components")()
    if name in SHARED:
        return families.build(name).components
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = ONLY_MODULAR[name][1]()
        for part in tiny.models(parts).values():
            part.eval()
            for parameter in part.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.1)
    return parts


def preset(name: str) -> SequentialPipelineBlocks:
    """The stock blocks; without text encoders where the tests give embeddings, or with one of theirs."""
    if name in SHARED:
        blocks = SHARED[name]()
        if name in ("flux2", "qwen-image"):
            blocks.sub_blocks.pop("text_encoder")
        return blocks
    stock, _, words, replaced = ONLY_MODULAR[name]
    flat = getattr(diffusers, stock)().get_execution_blocks(prompt=True).sub_blocks
    kept = {key: block for key, block in flat.items() if key not in replaced}
    blocks = SequentialPipelineBlocks.from_blocks_dict({"text_encoder": words(), **kept})
    return blocks


def pipeline(blocks: Any, parts: dict[str, Any], guidance: float | None = None) -> Any:
    """The blocks with these components."""
    pipe = blocks.init_pipeline()
    known = {name: part for name, part in parts.items() if part is not None and name in pipe.component_names}
    pipe.update_components(**known)
    if guidance is not None:
        pipe.guider.guidance_scale = guidance
        assert isinstance(pipe.guider, ClassifierFreeGuidance)
    return pipe


def call(name: str, rows: int = 2, seed: int = 0) -> dict[str, Any]:
    """Inputs for `rows` samples of four steps, as tensors."""
    given: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 4, "output_type": "pt"}
    texts = ["a fox", "an owl", "a cat"][:rows]
    if name in ("flux2", "qwen-image", "wan-2.1"):
        given |= families.call(name, rows)
    else:
        given |= {"prompt": texts} | ({"max_sequence_length": 16} if name == "flux" else {})
    return given | {"generator": torch.Generator().manual_seed(seed)}
