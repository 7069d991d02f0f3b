# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The embedded classifiers: what is drawn (`concept`) and in which `style`. And measures of likeness and motion."""

from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from transformers import ResNetForImageClassification

from alignext.mini import MOTIONS, path


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
        pooled = self.model.resnet(self._pixels(images)).pooler_output.flatten(1)
        return Judgement(self.model.classifier(pooled), F.normalize(pooled, dim=1))

    @torch.no_grad()
    def texture(self, images: list[Image] | torch.Tensor) -> torch.Tensor:
        """Gram matrices `F F^T` of the channels after the stem and the first two stages: the style, without where
        things are, as in Gatys et al. (2016).

        Args:
            images (`list[PIL.Image.Image]` or `torch.Tensor`): as above.

        Returns:
            `torch.Tensor`: (n, width), of unit length, so that a dot product is the mean of the layers' cosines.
        """
        states = self.model.resnet(self._pixels(images), output_hidden_states=True).hidden_states[:3]
        grams = [(x.flatten(2) @ x.flatten(2).mT).flatten(1) for x in states]
        return torch.cat([F.normalize(gram, dim=1) for gram in grams], dim=1) / len(grams) ** 0.5

    def _pixels(self, images: list[Image] | torch.Tensor) -> torch.Tensor:
        if not isinstance(images, torch.Tensor):
            arrays = [np.asarray(image.convert("RGB").resize((64, 64)), dtype=np.float32) / 255 for image in images]
            images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"`images` has shape {tuple(images.shape)}, expected (n, 3, h, w) with values in [0, 1].")
        images = images.to(self.model.device, torch.float32)
        if images.shape[-2:] != (64, 64):
            images = F.interpolate(images, size=(64, 64), mode="bilinear", antialias=True)
        return images * 2 - 1

    def name(self, images: list[Image] | torch.Tensor) -> list[str]:
        """The most likely label of each picture."""
        return [self.labels[i] for i in self(images).logits.argmax(1).tolist()]


class Motion(NamedTuple):
    """What [`motion`] found, for each of n clips."""

    right: torch.Tensor  # (n,), how far the drawing goes in the clip, in widths of the frame
    down: torch.Tensor  # (n,), in heights
    growth: torch.Tensor  # (n,), log of how many times larger it becomes

    @property
    def names(self) -> list[str]:
        """The strongest motion of each clip: left, right, up, down, growing or shrinking."""
        found = torch.stack([-self.right, self.right, -self.down, self.down, 0.45 * self.growth, -0.45 * self.growth])
        return [MOTIONS[i] for i in found.argmax(0).tolist()]


def motion(clips: torch.Tensor) -> Motion:
    """How the drawings of clips move: by rule, without a model.

    A pixel weighs as much as it is darker than white paper. Right and down follow the centre of these weights, growth
    the log of their root-mean-square distance from it; each is the least-squares slope over the frames, times the
    length of the clip. A doubled size counts as much as a way of 0.31 frames: both are about what mini-video learned.

    Args:
        clips (`torch.Tensor`): (n, frames, 3, h, w) in [0, 1], with two or more frames.

    Returns:
        `Motion`: `right`, `down` and `growth`, (n,) each.

    Raises:
        ValueError: the shape is another one.
    """
    if clips.ndim != 5 or clips.shape[1] < 2 or clips.shape[2] != 3:
        raise ValueError(f"`clips` has shape {tuple(clips.shape)}, expected (n, frames, 3, h, w), 2 frames or more.")
    ink = 1 - clips.float().amin(dim=2)
    ink = torch.where(ink > 0.1, ink, 1e-6)  # (n, frames, h, w); paper is never quite white
    ink = ink / ink.sum(dim=(2, 3), keepdim=True)
    frames, h, w = ink.shape[1:]
    across, below = (torch.arange(size, device=ink.device) / size for size in (w, h))
    x, y = (ink * across).sum(dim=(2, 3)), (ink * below[:, None]).sum(dim=(2, 3))
    far = (across - x[..., None, None]) ** 2 + (below[:, None] - y[..., None, None]) ** 2
    size = (ink * far).sum(dim=(2, 3)).log() / 2
    when = torch.linspace(-0.5, 0.5, frames, device=ink.device)
    return Motion(*((values * when).sum(1) / when.square().sum() for values in (x, y, size)))


def palette_overlap(a: Image, b: Image) -> float:
    """Intersection of the colour histograms of two pictures, 4 x 4 x 4 colours, white paper left out; in [0, 1]."""
    shares = []
    for image in (a, b):
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        pixels = pixels[(pixels < 240).any(axis=1)]
        counts = np.bincount(pixels // 64 @ np.array([16, 4, 1]), minlength=64)
        shares.append(counts / max(counts.sum(), 1))
    return float(np.minimum(*shares).sum())


@torch.no_grad()
def likeness(images: list[Image], style: Judge) -> dict[str, float]:
    """How alike the pictures of a set are, as means over its pairs.

    Args:
        images (`list[PIL.Image.Image]`): two or more pictures.
        style (`Judge`): the style judge.

    Returns:
        `dict[str, float]`: `"style"`, cosine of the judge's features; `"same style"`, share of pairs for which it
        names one style; `"palette"`, [`palette_overlap`].
    """
    pairs = list(combinations(range(len(images)), 2))
    features, names = style(images).features, style.name(images)
    each = [
        ((features[i] @ features[j]).item(), names[i] == names[j], palette_overlap(images[i], images[j]))
        for i, j in pairs
    ]
    return dict(zip(("style", "same style", "palette"), np.mean(each, axis=0).tolist(), strict=True))
