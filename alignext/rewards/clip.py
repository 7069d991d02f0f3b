# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Rewards on CLIP: agreement with the prompt, PickScore, and the LAION aesthetic head."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from alignext.rewards.pixels import check_images, over_frames
from alignext.rewards.protocol import as_prompts


class CLIPReward:
    """
    Cosine of picture and prompt in a CLIP model, mean over the frames of a video. Differentiable: pictures are resized
    (shorter side, bicubic), cropped to the centre and normalised as tensors.

    Args:
        model (`str`, `Path` or `CLIPModel`, *optional*, defaults to `"openai/clip-vit-base-patch32"`):
            Hub id or folder, or a loaded model.
        tokenizer (`str` or tokenizer, *optional*): The model's own by default.
        device, dtype (*optional*): Where and how to load the model.
    """

    differentiable = True

    def __init__(
        self,
        model: str | os.PathLike | CLIPModel = "openai/clip-vit-base-patch32",
        tokenizer: Any = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        named = isinstance(model, str | os.PathLike)
        source = str(model) if named else model.name_or_path
        if named:
            model = CLIPModel.from_pretrained(source, dtype=dtype)
        self.model = model.to(device).eval().requires_grad_(False)
        tokenizer = source if tokenizer is None else tokenizer
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer) if isinstance(tokenizer, str) else tokenizer

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Unit features `(n, d)`, float32, of pictures `(n, 3, H, W)` in [0, 1]."""
        side = self.model.config.vision_config.image_size
        height, width = images.shape[-2:]
        size = [max(side, round(side * x / min(height, width))) for x in (height, width)]
        x = images.to(self.model.device, torch.float32)
        if size != [height, width]:
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((x - side) // 2 for x in size)
        x = x[..., top : top + side, left : left + side]
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        features = self.model.get_image_features(pixel_values=((x - mean) / std).to(self.model.dtype))
        return F.normalize(features.pooler_output.float(), dim=-1)

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit features `(n, d)`, float32; long texts are cut."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        features = self.model.get_text_features(
            input_ids=tokens.input_ids.to(self.model.device),
            attention_mask=tokens.attention_mask.to(self.model.device),
        )
        return F.normalize(features.pooler_output.float(), dim=-1)

    def __call__(self, images: torch.Tensor, prompts: str | list[str] | None) -> torch.Tensor:
        check_images(images)
        prompts = as_prompts(prompts, len(images))
        if prompts is None:
            raise ValueError(f"{type(self).__name__} compares with the prompts: pass `prompt`, not embeddings alone.")
        unique = sorted(set(prompts))
        texts = self.embed_texts(unique)[[unique.index(prompt) for prompt in prompts]]
        if images.ndim == 5:
            texts = texts.repeat_interleave(images.shape[1], dim=0)
        return over_frames(lambda frames: (self.embed_images(frames) * texts).sum(-1), images)


class PickScoreReward(CLIPReward):
    """
    PickScore (arXiv 2305.01569): the logit, cosine times the learned scale, of a CLIP model that was trained on which
    picture people prefer. Arguments as those of [`CLIPReward`].
    """

    def __init__(
        self,
        model: str | os.PathLike | CLIPModel = "yuvalkirstain/PickScore_v1",
        tokenizer: Any = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        **kwargs: Any,
    ) -> None:
        super().__init__(model, tokenizer, **kwargs)

    def __call__(self, images: torch.Tensor, prompts: str | list[str] | None) -> torch.Tensor:
        return self.model.logit_scale.exp().float() * super().__call__(images, prompts)


class AestheticReward:
    """
    A linear head on the unit image features of CLIP ViT-L/14, divided by 10: LAION's aesthetic predictor, whose
    head `sa_0_4_vit_l_14_linear` its authors publish as a file. Differentiable.

    Args:
        head (`str`, `Path` or `torch.nn.Module`): File with `weight (1, d)` and `bias (1,)`, safetensors or a torch
            checkpoint (read without code), or any module `(n, d) -> (n, 1)`.
        clip (`str` or [`CLIPReward`], *optional*, defaults to `"openai/clip-vit-large-patch14"`): The features.
    """

    differentiable = True

    def __init__(
        self, head: str | os.PathLike | torch.nn.Module, clip: str | CLIPReward = "openai/clip-vit-large-patch14"
    ) -> None:
        self.clip = clip if isinstance(clip, CLIPReward) else CLIPReward(clip)
        if not isinstance(head, torch.nn.Module):
            path = Path(head)
            state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
            if state.keys() != {"weight", "bias"} or len(state["weight"]) != 1:
                raise ValueError(f"`head` {path} must hold `weight` (1, d) and `bias` (1,), found {sorted(state)}.")
            head = torch.nn.Linear(state["weight"].shape[1], 1)
            head.load_state_dict(state)
        self.head = head.to(self.clip.model.device, torch.float32).eval().requires_grad_(False)

    def __call__(self, images: torch.Tensor, prompts: str | list[str] | None = None) -> torch.Tensor:
        return over_frames(lambda frames: self.head(self.clip.embed_images(frames))[:, 0] / 10, images)
