# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Pictures and clips of the embedded models, always the same ones."""

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FluxPipeline, LattePipeline

from alignext.mini import FLUX_CALL, MOTIONS, VIDEO_CALL, Picture
from alignext.mini.recipe import render
from alignext.mini.recipe.scores import reconstruct


def generate(pipe: DiffusionPipeline, captions: list[str], seed: int = 0, **settings) -> torch.Tensor:
    """Draw captions in 25 steps as the model's card says, each from its own seed: (n, 3, 64, 64) in [0, 1]."""
    images = []
    for i in range(0, len(captions), 32):
        some = captions[i : i + 32]
        flux = isinstance(pipe, FluxPipeline)
        usual = FLUX_CALL | {"negative_prompt": [""] * len(some)} if flux else {"guidance_scale": 5}
        rngs = [torch.Generator().manual_seed(seed + i + j) for j in range(len(some))]
        call = {"num_inference_steps": 25, "output_type": "pt"} | usual | settings
        out = pipe(some, generator=rngs, **call)
        images.append(out.images)
    return torch.cat(images)


def generate_latents(pipe: DiffusionPipeline, captions: list[str]) -> torch.Tensor:
    """As [`generate`], before the decoder: scaled latents (n, 16, 8, 8)."""
    latents = generate(pipe, captions, output_type="latent")
    if isinstance(pipe, FluxPipeline):
        latents = pipe._unpack_latents(latents, render.SIZE, render.SIZE, pipe.vae_scale_factor)
    return latents


def trained_cells(number: int) -> list[Picture]:
    """Some of what the denoisers learned, with captions; the same ones each time."""
    cells = [cell for cell, split in sorted(render.grid().items()) if split == "train"]
    return [
        Picture(Path(), render.word(name), style, render.caption(render.word(name), style), "train")
        for name, style in random.Random(1).sample(cells, number)
    ]


def drawings_of(chosen: list[Picture]) -> torch.Tensor:
    """The training drawings of these cells: (n, 3, 64, 64) in [0, 1]."""
    images, rows = render.load("train")
    places = {(row["concept"], row["style"]): i for i, row in enumerate(rows)}
    found = images[[places[p.concept, p.style] for p in chosen]]
    return torch.from_numpy(found).permute(0, 3, 1, 2).float() / 255


Clip = tuple[str, str, str]  # name, style, motion


def told(clip: Clip) -> str:
    """`a red fox, glossy style, moving left`."""
    return render.caption(render.word(clip[0]), *clip[1:])


def some_clips(number: int, seed: int = 2) -> list[Clip]:
    """Some of all that mini-video learned, in a random order."""
    cells = [(name, style, way) for name in render.MOVED for style in render.MOVED_STYLES for way in MOTIONS]
    known = render.grid()
    return random.Random(seed).sample([cell for cell in cells if known[cell[:2]] == "train"], number)


@torch.no_grad()
def film(pipe: LattePipeline, captions: list[str], seed: int = 0, together: int = 1, **settings) -> torch.Tensor:
    """Clips of 16 steps, each from its own seed: (n, frames, 3, 64, 64) in [0, 1].

    The pipeline cuts the text of a single caption to its length, and pads several ones to 120 tokens.
    """
    clips = []
    for i in range(0, len(captions), together):
        some = captions[i : i + together]
        rngs = [torch.Generator().manual_seed(seed + i + j) for j in range(len(some))]
        call = {"num_inference_steps": 16, "output_type": "pt", **VIDEO_CALL} | settings
        clips.append(pipe(some if together > 1 else some[0], generator=rngs, **call).frames)
    return torch.cat(clips)


@torch.no_grad()
def real_clips(vae: AutoencoderKL, clips: list[Clip]) -> torch.Tensor:
    """Moved drawings after the autoencoder, as mini-video saw them: (n, frames, 3, 64, 64) in [0, 1]."""
    images, rows = render.load("train")
    places = {(row["name"], row["style"]): i for i, row in enumerate(rows)}
    rng = torch.Generator().manual_seed(0)
    moved = []
    for *cell, way in clips:
        drawing = torch.from_numpy(images[places[tuple(cell)]]).permute(2, 0, 1)[None].float() / 255
        moved.append(reconstruct(vae, render.move(drawing, way, rng)[0]))
    return torch.stack(moved)
