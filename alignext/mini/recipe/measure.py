# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Measure the embedded models and draw their sample sheets: `python -m alignext.mini.recipe.measure docs/assets`."""

import random
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FluxPipeline, LattePipeline, StableDiffusionPipeline
from PIL import Image

from alignext.mini import FLUX_CALL, MOTIONS, VIDEO_CALL, Picture, path, pictures
from alignext.mini.judges import Judge, motion
from alignext.mini.recipe import render


SHEET = (
    "red fox",
    "cat",
    "owl",
    "red apple",
    "mushroom",
    "hamburger",
    "sunflower",
    "rocket",
    "red car",
    "house",
    "ghost",
)
HELD_OUT = ("unseen_concept", "unseen_drawing", "unseen_style")


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


def psnr(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, (n,)."""
    return -10 * (images - others).pow(2).mean(dim=(1, 2, 3)).log10()


@torch.no_grad()
def accuracy(judge: Judge, images: torch.Tensor, answers: list[str]) -> tuple[float, float]:
    """Top-1 and top-5 accuracy."""
    best = judge(images).logits.topk(5).indices
    right = best == torch.tensor([judge.labels.index(answer) for answer in answers])[:, None]
    return right[:, 0].float().mean().item(), right.any(dim=1).float().mean().item()


def generate(pipe: DiffusionPipeline, captions: list[str], seed: int = 0, **settings) -> torch.Tensor:
    """Draw captions in 25 steps as the model's card says, each from its own seed: (n, 3, 64, 64) in [0, 1]."""
    images = []
    for i in range(0, len(captions), 32):
        some = captions[i : i + 32]
        flux = isinstance(pipe, FluxPipeline)
        usual = FLUX_CALL | {"negative_prompt": [""] * len(some)} if flux else {"guidance_scale": 5}
        rngs = [torch.Generator().manual_seed(seed + i + j) for j in range(len(some))]
        out = pipe(some, generator=rngs, output_type="pt", **{"num_inference_steps": 25} | usual | settings)
        images.append(out.images)
    return torch.cat(images)


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


def film_report(title: str, films: torch.Tensor, clips: list[Clip], judges: tuple[Judge, Judge]) -> str:
    """One line of the table of clips: the judges see their middle frames, the rule all frames."""
    seen = films[:, films.shape[1] // 2]
    top1, top5 = accuracy(judges[0], seen, [render.word(name) for name, _, _ in clips])
    style, _ = accuracy(judges[1], seen, [style for _, style, _ in clips])
    right = sum(found == way for found, (_, _, way) in zip(motion(films).names, clips, strict=True)) / len(clips)
    return f"| {title} | {len(clips)} | {top1:.2f} | {top5:.2f} | {style:.2f} | {right:.2f} |"


def report(title: str, images: torch.Tensor, chosen: list[Picture], judges: tuple[Judge, Judge]) -> str:
    """One line of the accuracy table."""
    top1, top5 = accuracy(judges[0], images, [p.concept for p in chosen])
    styles = {p.style for p in chosen}
    style = f"{accuracy(judges[1], images, [p.style for p in chosen])[0]:.2f}" if "fx" not in styles else "-"
    return f"| {title} | {len(chosen)} | {top1:.2f} | {top5:.2f} | {style} |"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    pipe = StableDiffusionPipeline.from_pretrained(path("sd"))
    pipe.set_progress_bar_config(disable=True)
    judges = Judge("concept"), Judge("style")
    lines = ["| pictures | number | concept top-1 | concept top-5 | style |", "|---|---|---|---|---|"]
    decoded, shown = ["| split | PSNR of reconstructions, dB |", "|---|---|"], []
    for split in HELD_OUT:
        chosen = pictures(split)
        images = tensor([p.image for p in chosen])
        again = reconstruct(pipe.vae, images)
        lines.append(report(split, images, chosen, judges))
        lines.append(report(f"{split}, through the autoencoder", again, chosen, judges))
        decoded.append(f"| {split} | {psnr(images, again).mean():.1f} |")
        pick = random.Random(0).sample(range(len(chosen)), 12)
        shown += [images[pick], again[pick]]
    sheet(shown, folder / "mini-vae.png")
    cells = [cell for cell, split in sorted(render.grid().items()) if split == "train"]
    cells = random.Random(1).sample(cells, 256)
    chosen = [
        Picture(Path(), render.word(n), style, render.caption(render.word(n), style), "train") for n, style in cells
    ]
    captions = [render.caption(concept, style) for style in render.STYLES for concept in SHEET]
    flux = FluxPipeline.from_pretrained(path("flux"))
    flux.set_progress_bar_config(disable=True)
    for name, model in (("SD", pipe), ("Flux", flux)):
        lines.append(report(f"drawn by mini-{name}", generate(model, [p.caption for p in chosen]), chosen, judges))
        sheet(list(generate(model, captions).split(len(SHEET))), folder / f"mini-{name.lower()}.png")
    images = generate(flux, [p.caption for p in chosen[:32]], max_sequence_length=512)
    lines.append(report("drawn by mini-Flux, prompts padded to 512 tokens", images, chosen[:32], judges))
    print("\n".join([*lines, "", *decoded, "", *measure_video(folder, judges)]))


def measure_video(folder: Path, judges: tuple[Judge, Judge]) -> list[str]:
    """The table of clips; writes the sample sheet, a clip per row: the first ones of each motion and style."""
    pipe = LattePipeline.from_pretrained(path("video"))
    pipe.set_progress_bar_config(disable=True)
    clips = some_clips(64)
    lines = ["| clips | number | concept top-1 | concept top-5 | style | motion |", "|---|---|---|---|---|---|"]
    lines.append(
        film_report("drawings in motion, through the autoencoder", real_clips(pipe.vae, clips), clips, judges)
    )
    films = film(pipe, list(map(told, clips)))
    lines.append(film_report("by mini-video", films, clips, judges))
    first = {clip[1:]: i for i, clip in reversed(list(enumerate(clips)))}
    sheet([films[first[style, way]] for way in MOTIONS for style in render.MOVED_STYLES], folder / "mini-video.png")
    few = film(pipe, list(map(told, clips[:16])), together=8)
    lines.append(film_report("by mini-video, 8 captions in a call", few, clips[:16], judges))
    return lines


if __name__ == "__main__":
    main(Path(sys.argv[1]))
