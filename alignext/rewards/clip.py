# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Rewards on CLIP: agreement with the prompt, PickScore, and the LAION aesthetic head."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from alignext.rewards.dual_encoder import DualEncoderReward, fitted, normalised, warn_of_cut
from alignext.rewards.pixels import over_frames


class CLIPReward(DualEncoderReward):
    """
    Cosine of picture and prompt in a CLIP model, mean over the frames of a video. Differentiable: pictures are resized
    (shorter side, bicubic), cropped to the centre and normalised as tensors.

    Args:
        model (`str`, `Path` or `CLIPModel`, *optional*, defaults to `"openai/clip-vit-base-patch32"`):
            Hub id or folder, or a loaded model.
        tokenizer (`str` or tokenizer, *optional*): The model's own by default.
        device, dtype (*optional*): Where and how to load the model.
    """

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

    @property
    def name_or_path(self) -> str:
        """Where the model was loaded from."""
        return self.model.name_or_path

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors `(n, d)`, float32, of pictures `(n, 3, H, W)` in [0, 1]."""
        x = fitted(images.to(self.model.device, torch.float32), self.model.config.vision_config.image_size)
        x = normalised(x, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        features = self.model.get_image_features(pixel_values=x.to(self.model.dtype))
        return F.normalize(features.pooler_output.float(), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors `(n, d)`, float32; long texts are cut, with a warning."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        if tokens.input_ids.shape[1] == length:
            warn_of_cut(texts, [len(ids) for ids in self.tokenizer(list(texts)).input_ids], length)
        features = self.model.get_text_features(
            input_ids=tokens.input_ids.to(self.model.device),
            attention_mask=tokens.attention_mask.to(self.model.device),
        )
        return F.normalize(features.pooler_output.float(), dim=-1)


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

    @property
    def scale(self) -> float:
        """The learned scale."""
        return self.model.logit_scale.exp().item()


class AestheticReward:
    """
    LAION's aesthetic predictor: a head on the unit image features of CLIP ViT-L/14, divided by 10. Its authors publish
    heads as files: the linear `sa_0_4_vit_l_14_linear`, and `sac+logos+ava1-l14-linearMSE`, layers of 768, 1024, 128,
    64, 16 and 1 with nothing between them but dropout, which is off here. Differentiable.

    Args:
        head (`str`, `Path` or `torch.nn.Module`): File with `weight (1, d)` and `bias (1,)`, or with
            `layers.N.weight` and `layers.N.bias`; safetensors or a torch checkpoint (read without code). Or any module
            `(n, d) -> (n, 1)`.
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
            head = _head_of(state, path)
        self.head = head.to(self.clip.model.device, torch.float32).eval().requires_grad_(False)

    def __call__(self, images: torch.Tensor, prompts: str | list[str] | None = None) -> torch.Tensor:
        return over_frames(lambda frames: self.head(self.clip.encode_image(frames))[:, 0] / 10, images)


def _head_of(state: dict[str, torch.Tensor], path: Path) -> torch.nn.Sequential:
    """The linear layers of a file, in the order of their numbers."""
    layers = {"": ""} if "weight" in state else {name.rpartition(".")[0] + ".": "" for name in state}
    names = sorted(layers, key=lambda name: [int(part) for part in name.split(".") if part.isdigit()])
    found = [(state.get(f"{name}weight"), state.get(f"{name}bias")) for name in names]
    widths = [tuple(w.shape) for w, b in found if w is not None and b is not None and w.ndim == 2]
    joined = all(before[0] == after[1] for before, after in pairwise(widths))
    if len(widths) < len(found) or len(state) != 2 * len(found) or not joined or widths[-1][0] != 1:
        raise ValueError(
            f"`head` {path} must hold `weight` (1, d) and `bias` (1,), or `layers.N.weight` and `layers.N.bias` of "
            f"linear layers that end in one number, found {sorted(state)}."
        )
    head = torch.nn.Sequential(*(torch.nn.Linear(width, rows) for rows, width in widths))
    for layer, (weight, bias) in zip(head, found, strict=True):
        layer.load_state_dict({"weight": weight, "bias": bias})
    return head
