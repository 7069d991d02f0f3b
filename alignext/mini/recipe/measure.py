# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Measure the embedded models and draw their sample sheets: `python -m alignext.mini.recipe.measure docs/assets`.

With the folder of another version of the models (as `alignext/mini` is one) as a second argument, both are compared.
"""

import random
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FluxPipeline, LattePipeline, StableDiffusionPipeline

from alignext.mini import MOTIONS, Picture, path, pictures
from alignext.mini.judges import Judge, motion
from alignext.mini.recipe import render
from alignext.mini.recipe.samples import (
    Clip,
    drawings_of,
    film,
    generate,
    generate_latents,
    real_clips,
    some_clips,
    told,
    trained_cells,
)
from alignext.mini.recipe.scores import accuracy, decode, edges, fine, psnr, reconstruct, sheet, tensor


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
DETAILS = ("koala", "pizza", "house", "guitar", "strawberry", "panda")  # eyes, dots, a window, strings, seeds, eyes
CLIP_SETS = ("unseen by it", "unseen by all", "unseen style")


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


def sharpness(
    vaes: dict[str, AutoencoderKL], drawn: dict[str, torch.Tensor], judges: tuple[Judge, Judge]
) -> list[str]:
    """The table of autoencoders: held-out drawings, and latents that denoisers made of `trained_cells`.

    Args:
        vaes (`dict[str, AutoencoderKL]`): by name; their latents are much the same.
        drawn (`dict[str, torch.Tensor]`): scaled latents, one for each cell, by the name of who drew them.
        judges (`tuple[Judge, Judge]`): of concepts and of styles.
    """
    lines = [
        "| pictures | number | autoencoder | PSNR, dB | edges | fine | concept | style |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def line(title: str, name: str, images: torch.Tensor, chosen: list[Picture], originals: torch.Tensor) -> None:
        like = "-" if name == "none" or title.startswith("by ") else f"{psnr(images, originals).mean():.1f}"
        shares = [f"{how(images).mean() / how(originals).mean():.2f}" for how in (edges, fine)]
        concept = accuracy(judges[0], images, [p.concept for p in chosen])[0]
        styled = [i for i, p in enumerate(chosen) if p.style != render.UNSEEN_STYLE]
        style = f"{accuracy(judges[1], images[styled], [chosen[i].style for i in styled])[0]:.3f}" if styled else "-"
        lines.append(f"| {title} | {len(chosen)} | {name} | {like} | {' | '.join(shares)} | {concept:.3f} | {style} |")

    for split in HELD_OUT:
        chosen = pictures(split)
        originals = tensor([p.image for p in chosen])
        line(f"`{split}`", "none", originals, chosen, originals)
        for name, vae in vaes.items():
            line(f"`{split}`", name, reconstruct(vae, originals), chosen, originals)
    for who, latents in drawn.items():
        chosen = trained_cells(len(latents))
        originals = drawings_of(chosen)
        line(f"what {who} learned", "none", originals, chosen, originals)
        for name, vae in vaes.items():
            line(f"by {who}", name, decode(vae, latents), chosen, originals)
    return lines


def interval(x: torch.Tensor) -> str:
    """A mean with the 95 % interval of a bootstrap."""
    rng = torch.Generator().manual_seed(0)
    means = x[torch.randint(len(x), (4000, len(x)), generator=rng)].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975]))
    return f"{x.mean():+.2f} ({low:+.2f} to {high:+.2f})"


def gained(
    before: torch.Tensor,
    after: torch.Tensor,
    chosen: list[Picture],
    originals: torch.Tensor,
    judges: tuple[Judge, Judge],
) -> str:
    """Cells of edges, fine and both judges' verdicts: what pictures gain, paired by drawing or caption."""
    cells = [interval((how(after) - how(before)) / how(originals).mean()) for how in (edges, fine)]
    for judge, labels in zip(judges, ([p.concept for p in chosen], [p.style for p in chosen]), strict=True):
        if not set(labels) <= set(judge.labels):
            cells.append("-")
            continue
        old, new = (
            torch.tensor([a == b for a, b in zip(judge.name(x), labels, strict=True)]) for x in (before, after)
        )
        cells.append(interval(new.float() - old.float()))
    return " | ".join(cells)


def gains(
    vaes: tuple[AutoencoderKL, AutoencoderKL],
    drawn: dict[str, tuple[torch.Tensor, torch.Tensor]],
    judges: tuple[Judge, Judge],
) -> list[str]:
    """What a version gains over another: on held-out drawings, and on what both draw of the same captions."""
    lines = ["| pictures | PSNR, dB | edges | fine | concept | style |", "|---|---|---|---|---|---|"]
    for split in HELD_OUT:
        chosen = pictures(split)
        images = tensor([p.image for p in chosen])
        old, new = (reconstruct(vae, images) for vae in vaes)
        like = interval(psnr(images, new) - psnr(images, old))
        lines.append(f"| `{split}` | {like} | {gained(old, new, chosen, images, judges)} |")
    for who, latents in drawn.items():
        chosen = trained_cells(len(latents[0]))
        old, new = (decode(vae, x) for vae, x in zip(vaes, latents, strict=True))
        lines.append(f"| by {who} | - | {gained(old, new, chosen, drawings_of(chosen), judges)} |")
    return lines


@torch.no_grad()
def measure_clip(judges: tuple[Judge, Judge], model: str | Path | None = None) -> list[str]:
    """The table of the dual encoder, beside the judges on the same pictures."""
    from alignext.mini.recipe.dual_encoder import unseen_by_clip
    from alignext.rewards import CLIPReward

    clip = CLIPReward(model or path("clip"))
    concepts = [render.word(name) for name in sorted(render.TRAINED)]
    captions = [render.caption(concept, style) for concept in concepts for style in render.STYLES]
    texts = clip.encode_text(captions)
    by_cell = texts.unflatten(0, (len(concepts), len(render.STYLES)))
    plain = clip.encode_text([render.caption(concept) for concept in concepts])
    styles = torch.nn.functional.normalize(by_cell.mean(0), dim=1)  # of a style, whatever is drawn
    held_out = {(render.word(name), style) for name, style in unseen_by_clip()}
    images, rows = render.load("train", "unseen_drawing", "unseen_style")
    sets: dict[str, list[int]] = {name: [] for name in CLIP_SETS}
    for i, row in enumerate(rows):
        if row["style"] == render.UNSEEN_STYLE:
            sets["unseen style"].append(i)
        elif (row["concept"], row["style"]) in held_out:
            sets["unseen by it"].append(i)
            if row["split"] == "unseen_drawing":
                sets["unseen by all"].append(i)
    lines = [
        "| pictures | number | caption top-1 | top-5 | concept | style | judges: concept | style |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, places in sets.items():
        chosen = [rows[i] for i in places]
        x = torch.from_numpy(images[places]).permute(0, 3, 1, 2).float() / 255
        found = clip.encode_image(x)
        concept = torch.tensor([concepts.index(row["concept"]) for row in chosen])
        cells = [f"{(found @ plain.T).argmax(1).eq(concept).float().mean():.2f}", "-"]
        own = [f"{accuracy(judges[0], x, [row['concept'] for row in chosen])[0]:.2f}", "-"]
        retrieved = ["-", "-"]
        if title != "unseen style":
            best = (found @ texts.T).topk(5).indices
            right = best == torch.tensor([captions.index(row["caption"]) for row in chosen])[:, None]
            retrieved = [f"{right[:, 0].float().mean():.2f}", f"{right.any(1).float().mean():.2f}"]
            style = torch.tensor([render.STYLES.index(row["style"]) for row in chosen])
            cells[1] = f"{(found @ styles.T).argmax(1).eq(style).float().mean():.2f}"
            own[1] = f"{accuracy(judges[1], x, [row['style'] for row in chosen])[0]:.2f}"
        lines.append(f"| {title} | {len(chosen)} | {' | '.join([*retrieved, *cells, *own])} |")
    return lines


def details(vaes: dict[str, AutoencoderKL], file: Path) -> None:
    """A sheet of held-out drawings with small parts, twice as large: the original, then through each autoencoder."""
    held_out = [p for split in HELD_OUT for p in pictures(split)]
    of_each = [[p for p in held_out if p.concept == concept] for concept in DETAILS]
    chosen = list(dict.fromkeys(p for found in of_each for p in (found[0], found[-1])))
    originals = tensor([p.image for p in chosen])
    sheet([originals, *(reconstruct(vae, originals) for vae in vaes.values())], file, zoom=2)


def load(kind: type[DiffusionPipeline], folder: Path) -> DiffusionPipeline:
    pipe = kind.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main(folder: Path, before: Path | None = None) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    judges = Judge("concept"), Judge("style")
    captions = [p.caption for p in trained_cells(256)]
    pipe, flux = load(StableDiffusionPipeline, path("sd")), load(FluxPipeline, path("flux"))
    drawn = {"mini-SD": generate_latents(pipe, captions), "mini-Flux": generate_latents(flux, captions)}
    vaes = {"shipped": pipe.vae}
    if before is not None:
        older = load(StableDiffusionPipeline, before / "sd"), load(FluxPipeline, before / "flux")
        vaes = {"before": older[0].vae} | vaes
        old = {who: generate_latents(p, captions) for who, p in zip(drawn, older, strict=True)}
        both = {who: (old[who], drawn[who]) for who in drawn}
        print("\n".join([*gains((older[0].vae, pipe.vae), both, judges), ""]), flush=True)
        drawn |= {f"{who} before": latents for who, latents in old.items()}
    details(vaes, folder / "mini-sharper.png")
    print("\n".join([*sharpness(vaes, drawn, judges), "", *measure_clip(judges), ""]), flush=True)
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
    chosen = trained_cells(256)
    captions = [render.caption(concept, style) for style in render.STYLES for concept in SHEET]
    for name, model in (("SD", pipe), ("Flux", flux)):
        lines.append(report(f"drawn by mini-{name}", decode(pipe.vae, drawn[f"mini-{name}"]), chosen, judges))
        sheet(list(generate(model, captions).split(len(SHEET))), folder / f"mini-{name.lower()}.png")
    images = generate(flux, [p.caption for p in chosen[:32]], max_sequence_length=512)
    lines.append(report("drawn by mini-Flux, prompts padded to 512 tokens", images, chosen[:32], judges))
    print("\n".join([*lines, "", *decoded, "", *measure_video(folder, judges, before)]))


def measure_video(folder: Path, judges: tuple[Judge, Judge], before: Path | None = None) -> list[str]:
    """The table of clips; writes the sample sheet, a clip per row: the first ones of each motion and style."""
    pipe = load(LattePipeline, path("video"))
    clips = some_clips(64)
    lines = ["| clips | number | concept top-1 | concept top-5 | style | motion |", "|---|---|---|---|---|---|"]
    lines.append(
        film_report("drawings in motion, through the autoencoder", real_clips(pipe.vae, clips), clips, judges)
    )
    films = film(pipe, list(map(told, clips)))
    lines.append(film_report("by mini-video", films, clips, judges))
    if before is not None:
        older = film(load(LattePipeline, before / "video"), list(map(told, clips)))
        lines.append(film_report("by mini-video before", older, clips, judges))
    first = {clip[1:]: i for i, clip in reversed(list(enumerate(clips)))}
    sheet([films[first[style, way]] for way in MOTIONS for style in render.MOVED_STYLES], folder / "mini-video.png")
    few = film(pipe, list(map(told, clips[:16])), together=8)
    lines.append(film_report("by mini-video, 8 captions in a call", few, clips[:16], judges))
    return lines


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
