# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The nodes. A picture of ComfyUI is a float tensor `(B, H, W, 3)` in [0, 1], a mask `(B, H, W)`."""

from typing import Any

import torch
from diffusers import DiffusionPipeline

import alignext
from alignext import LatentSearch, SearchConfig, mini
from alignext.methods import method
from alignext.rewards.by_name import BUILT_IN, reward_of


PIPELINE = "ALIGNEXT_PIPELINE"  # a type of our own: pipelines go from the loader to the methods
EMBEDDED = {"RIVAL": "sd", "AlignedGen": "flux", "Latent search": "sd"}
TASKS = ["variation", "text2image", "editing", "inpainting"]


class _Node:
    """What ComfyUI reads from a node besides its inputs."""

    CATEGORY = "alignext"
    FUNCTION = "run"
    RETURN_TYPES: tuple[str, ...] = ("IMAGE",)
    RETURN_NAMES: tuple[str, ...] = ("images",)


class LoadPipeline(_Node):
    """A checkpoint of diffusers as the pipeline of a method; the embedded one where none is named."""

    RETURN_TYPES = (PIPELINE,)
    RETURN_NAMES = ("pipeline",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "method": (list(EMBEDDED),),
                "model": ("STRING", {"default": "", "tooltip": "Folder or Hub id; empty for the embedded model."}),
                "dtype": (["bfloat16", "float16", "float32"],),
                "device": ("STRING", {"default": "cuda" if torch.cuda.is_available() else "cpu"}),
            }
        }

    def run(self, method: str, model: str, dtype: str, device: str) -> tuple[Any]:
        """Load it, and put the method on it."""
        name = model.strip() or mini.path(EMBEDDED[method])
        pipe = DiffusionPipeline.from_pretrained(name, dtype=getattr(torch, dtype)).to(device)
        return (pipe if method == "Latent search" else as_pipeline_of(method, pipe),)


def as_pipeline_of(name: str, pipe: Any) -> Any:
    """
    A stock pipeline as that of a method, which shares its models.

    Args:
        name (`str`): The method.
        pipe (`DiffusionPipeline`): Of a stock class that the method has a pipeline for.

    Raises:
        ValueError: There is none for its class.
    """
    row = method(name)
    classes = {parent.rpartition(".")[2]: cls for parent, cls in zip(row.parents, row.classes, strict=True)}
    stock = type(pipe).__name__
    if stock not in classes:
        raise ValueError(f"`model` is a {stock}; {name} takes {', '.join(classes)}.")
    return getattr(alignext, classes[stock])(**pipe.components)


class Variations(_Node):
    """RIVAL."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "pipeline": (PIPELINE,),
                "reference": ("IMAGE",),
                "prompt": ("STRING", {"multiline": True, "default": ""}),
                "task": (TASKS,),
                "count": ("INT", {"default": 2, "min": 1, "max": 16}),
                "steps": ("INT", {"default": 50, "min": 1, "max": 1000}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1}),
            },
            "optional": {"mask": ("MASK",)},
        }

    def run(
        self, pipeline: Any, reference: torch.Tensor, prompt: str, task: str, count: int, steps: int, seed: int,
        mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor]:  # fmt: skip
        """Variations of the first picture."""
        masks = {} if mask is None else {"mask_image": mask[0]}
        out = pipeline(
            prompt,
            reference_image=from_comfy(reference)[0],
            task=task,
            num_images_per_prompt=count,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
            **masks,
        )
        return (to_comfy(out.images),)


class OneStyle(_Node):
    """AlignedGen."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "pipeline": (PIPELINE,),
                "prompts": ("STRING", {"multiline": True, "default": "", "tooltip": "One picture per line."}),
                "style_lambda": ("FLOAT", {"default": 1.1, "min": 0.0, "max": 3.0, "step": 0.05}),
                "shared_noise": ("BOOLEAN", {"default": False}),
                "width": ("INT", {"default": 1024, "min": 16, "max": 4096, "step": 16}),
                "height": ("INT", {"default": 1024, "min": 16, "max": 4096, "step": 16}),
                "steps": ("INT", {"default": 28, "min": 1, "max": 1000}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1}),
            },
            "optional": {"style": ("IMAGE",), "style_prompt": ("STRING", {"default": ""})},
        }

    def run(
        self, pipeline: Any, prompts: str, style_lambda: float, shared_noise: bool, width: int, height: int,
        steps: int, seed: int, style: torch.Tensor | None = None, style_prompt: str = "",
    ) -> tuple[torch.Tensor]:  # fmt: skip
        """One picture per line, all in the style of the first, or of the picture."""
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        if not lines:
            raise ValueError("`prompts` must hold one text per line, received none.")
        styles = {} if style is None else {"style_image": from_comfy(style)[0], "style_prompt": style_prompt}
        out = pipeline(
            lines,
            style_lambda=style_lambda,
            shared_noise=shared_noise,
            width=width,
            height=height,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
            **styles,
        )
        return (to_comfy(out.images),)


class Search(_Node):
    """Latent search."""

    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "rewards")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        # `aesthetic` needs a file, which no input names.
        rewards = [name for name in BUILT_IN if name != "aesthetic"]
        return {
            "required": {
                "pipeline": (PIPELINE,),
                "prompt": ("STRING", {"multiline": True, "default": ""}),
                "reward": (rewards,),
                "beams": ("INT", {"default": 4, "min": 1, "max": 64}),
                "candidates": ("INT", {"default": 2, "min": 1, "max": 64}),
                "lookahead": ("INT", {"default": 6, "min": 1, "max": 64}),
                "count": ("INT", {"default": 1, "min": 1, "max": 64}),
                "steps": ("INT", {"default": 25, "min": 1, "max": 1000}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1}),
            }
        }

    def run(
        self, pipeline: Any, prompt: str, reward: str, beams: int, candidates: int, lookahead: int, count: int,
        steps: int, seed: int,
    ) -> tuple[torch.Tensor, str]:  # fmt: skip
        """The best beams, best first, and their rewards, a line each."""
        device = pipeline._execution_device.type
        score = reward_of(reward, name="`reward`", prompts=[prompt], device=device)
        config = SearchConfig(num_beams=beams, num_candidates=candidates, lookahead_steps=lookahead)
        out = LatentSearch(pipeline, score, config)(
            prompt,
            num_images_per_prompt=count,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        )
        return to_comfy(out.images), "\n".join(f"{value:.5g}" for value in out.rewards[0].tolist())


def from_comfy(pictures: torch.Tensor) -> torch.Tensor:
    """`(B, H, W, 3)` to `(B, 3, H, W)`; transparency is left out."""
    return pictures[..., :3].movedim(-1, 1).contiguous()


def to_comfy(pictures: torch.Tensor) -> torch.Tensor:
    """`(B, 3, H, W)` to `(B, H, W, 3)` on the CPU, float32 in [0, 1]."""
    return pictures.movedim(1, -1).float().clamp(0, 1).cpu().contiguous()
