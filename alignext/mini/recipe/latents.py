# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What the denoisers learn: latents of drawings, of two on a canvas, and of drawings in motion."""

import random
from collections.abc import Callable

import torch

from alignext import mini
from alignext.files import replacing
from alignext.mini.recipe import render
from alignext.mini.recipe.drawings import augment
from alignext.mini.recipe.fitting import fingerprint


Sampler = Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]  # (size, generator) -> latents, captions


@torch.no_grad()
def encode(vae: torch.nn.Module, images: torch.Tensor, versions: int, seed: int) -> torch.Tensor:
    """Scaled mean and standard deviation of the latents of augmented pictures, float16 (versions, N, 2, C, h, w)."""
    rng, result = torch.Generator().manual_seed(seed), []
    for _ in range(versions):
        for x in images.split(64):
            posterior = vae.encode(augment(x.float() / 255, rng, shift=0.03, scale=0.06) * 2 - 1).latent_dist
            result.append((torch.stack([posterior.mean, posterior.std], 1) * vae.config.scaling_factor).half())
    return torch.cat(result).unflatten(0, (versions, len(images)))


@torch.no_grad()
def encode_clips(vae: torch.nn.Module, drawings: torch.Tensor, versions: int, seed: int) -> torch.Tensor:
    """Scaled latents of every drawing in every motion, float16 (motions, N, versions, frames, C, h, w); cached."""
    file = render.CACHE / f"clips-{len(drawings)}-{versions}-{seed}-{fingerprint(vae)}.pt"
    if not file.exists():
        rng = torch.Generator().manual_seed(seed)
        all_of_them = []
        for motion in mini.MOTIONS:
            for drawing in drawings:
                clips = render.move(drawing.float().expand(versions, -1, -1, -1) / 255, motion, rng)
                mean = vae.encode(clips.flatten(0, 1) * 2 - 1).latent_dist.mean * vae.config.scaling_factor
                all_of_them.append(mean.half().unflatten(0, clips.shape[:2]))
        with replacing(file) as part:
            torch.save(torch.stack(all_of_them).unflatten(0, (len(mini.MOTIONS), len(drawings))), part)
    return torch.load(file, weights_only=True)


def sampler(latents: torch.Tensor, loose: torch.Tensor, without_caption: float, without_style: float) -> Sampler:
    """Draws latents with the places of their captions in `captions_of`.

    A part has no caption, and these may be any drawing (`loose`), so that unseen ones are not far.
    """
    n = latents.shape[1]

    def draw(size: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        free = round(size * without_caption)
        chosen = torch.randint(n, (size - free,), generator=rng)
        x = latents[torch.randint(len(latents), chosen.shape, generator=rng), chosen]
        y = loose[
            torch.randint(len(loose), (free,), generator=rng), torch.randint(loose.shape[1], (free,), generator=rng)
        ]
        mean, std = torch.cat([x.float(), y.float()]).unbind(1)
        z = mean + std * torch.randn(mean.shape, generator=rng)
        plain = torch.rand(len(chosen), generator=rng) < without_style
        return z, torch.cat([chosen + n * plain, torch.full((free,), 2 * n)])

    return draw


def pair_sampler(latents: torch.Tensor, styles: list[str], without_caption: float, without_style: float) -> Sampler:
    """Draws latents of two drawings of one style side by side; the caption is that of the left one.

    As in a picture of several things of which the text names one: what else is there shares its style.
    """
    n, alike = latents.shape[1], torch.tensor([[a == b for b in styles] for a in styles]).float()

    def draw(size: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        left = torch.randint(n, (size,), generator=rng)
        right = torch.multinomial(alike[left], 1, generator=rng)[:, 0]
        both = [latents[torch.randint(len(latents), (size,), generator=rng), which].float() for which in (left, right)]
        mean, std = torch.cat(both, dim=-1).unbind(1)
        ids = left + n * (torch.rand(size, generator=rng) < without_style)
        return mean + std * torch.randn(mean.shape, generator=rng), torch.where(
            torch.rand(size, generator=rng) < without_caption, 2 * n, ids
        )

    return draw


def make_canvases(
    images: torch.Tensor, rows: list[dict], number: int, pairs: float, seed: int
) -> tuple[torch.Tensor, list[dict]]:
    """White canvases (number, 3, 64, 128) with one drawing anywhere or, in a share `pairs`, two of one style.

    As in natural pictures, what stands on one canvas has one style. Captions join the two with `and`.
    """
    rng = random.Random(seed)
    size = images.shape[-1]
    canvases, named = torch.full((number, 3, size, 2 * size), 255, dtype=torch.uint8), []
    peers: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        peers.setdefault(row["style"], []).append(i)
    for canvas in canvases:
        first = rng.randrange(len(rows))
        row = dict(rows[first])
        if rng.random() < pairs:
            second = rng.choice(peers[row["style"]])
            canvas[:, :, :size], canvas[:, :, size:] = images[first], images[second]
            row["concept"] += f" and {render.caption(rows[second]['concept'])}"
        else:
            left = rng.randrange(size + 1)
            canvas[:, :, left : left + size] = images[first]
        named.append(row | {"caption": render.caption(row["concept"], row["style"])})
    return canvases, named
