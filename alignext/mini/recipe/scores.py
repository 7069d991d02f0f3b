# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""How like and how sharp pictures are, and what the judges make of them."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from alignext.mini.judges import Judge


def tensor(images: list[Image.Image]) -> torch.Tensor:
    """(n, 3, 64, 64) in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 255


def sheet(rows: list[torch.Tensor], file: Path, zoom: int = 1) -> None:
    """Write rows of pictures (n, 3, 64, 64) in [0, 1] below each other."""
    image = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1).permute(1, 2, 0)
    picture = Image.fromarray((image * 255).round().byte().numpy())
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(file, optimize=True)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Encode and decode (n, 3, 64, 64) in [0, 1]."""
    return (vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Pictures of scaled latents: (n, 3, 64, 64) in [0, 1]."""
    parts = [vae.decode(x / vae.config.scaling_factor).sample for x in latents.split(32)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


def psnr(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, (n,)."""
    return -10 * (images - others).pow(2).mean(dim=(1, 2, 3)).log10()


def edges(images: torch.Tensor) -> torch.Tensor:
    """Mean gradient magnitude of pictures (n, 3, h, w): of the differences to the next pixel right and below, (n,)."""
    right, down = images.diff(dim=3)[:, :, :-1], images.diff(dim=2)[..., :-1]
    return (right.square() + down.square()).sqrt().mean(dim=(1, 2, 3))


def fine(images: torch.Tensor) -> torch.Tensor:
    """Mean magnitude of the second differences (the Laplacian) of pictures (n, 3, h, w): (n,).

    A soft edge has the gradient of a sharp one, spread over more pixels; this tells them apart.
    """
    inner = images[..., 1:-1, 1:-1]
    around = images[..., 2:, 1:-1] + images[..., :-2, 1:-1] + images[..., 1:-1, 2:] + images[..., 1:-1, :-2]
    return (around - 4 * inner).abs().mean(dim=(1, 2, 3))


@torch.no_grad()
def accuracy(judge: Judge, images: torch.Tensor, answers: list[str]) -> tuple[float, float]:
    """Top-1 and top-5 accuracy."""
    best = judge(images).logits.topk(5).indices
    right = best == torch.tensor([judge.labels.index(answer) for answer in answers])[:, None]
    return right[:, 0].float().mean().item(), right.any(dim=1).float().mean().item()
