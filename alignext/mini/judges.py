# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The two embedded image classifiers: what is drawn (`concept`) and in which `style`."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from transformers import ResNetForImageClassification

from alignext.mini import path


class Judgement(NamedTuple):
    logits: torch.Tensor  # (n, labels)
    features: torch.Tensor  # (n, width), unit vectors: their dot product is a cosine similarity


class Judge:
    """One of the judges, in float32 on the CPU.

    Args:
        name (`str`): `"concept"` or `"style"`.

    Attributes:
        labels (`list[str]`): the name of every logit.
    """

    def __init__(self, name: str) -> None:
        self.model = ResNetForImageClassification.from_pretrained(path(f"judge-{name}"), dtype=torch.float32).eval()
        self.labels = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]

    def __call__(self, images: list[Image] | torch.Tensor) -> Judgement:
        """Judge pictures; differentiable for tensors.

        Args:
            images (`list[PIL.Image.Image]` or `torch.Tensor`): pictures, or (n, 3, h, w) in [0, 1]; resized to 64x64.

        Returns:
            `Judgement`: `logits` (n, labels) and `features` (n, width).
        """
        if not isinstance(images, torch.Tensor):
            arrays = [np.asarray(image.convert("RGB").resize((64, 64)), dtype=np.float32) / 255 for image in images]
            images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"`images` has shape {tuple(images.shape)}, expected (n, 3, h, w) with values in [0, 1].")
        images = images.to(self.model.device, torch.float32)
        if images.shape[-2:] != (64, 64):
            images = F.interpolate(images, size=(64, 64), mode="bilinear", antialias=True)
        pooled = self.model.resnet(images * 2 - 1).pooler_output.flatten(1)
        return Judgement(self.model.classifier(pooled), F.normalize(pooled, dim=1))

    def name(self, images: list[Image] | torch.Tensor) -> list[str]:
        """The most likely label of each picture."""
        return [self.labels[i] for i in self(images).logits.argmax(1).tolist()]
