# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext segment`: where in a picture a text-to-image model sees some words."""

import argparse
from pathlib import Path
from typing import Any

from alignext.cli import pictures
from alignext.cli.arguments import at_least_one, between, picture_in
from alignext.methods import method


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext segment`."""
    parser = subparsers.add_parser(
        "segment",
        help=method("ELBO-T2IAlign").task,
        description="Find classes in a picture with a frozen text-to-image model, without training. Runs on the "
        "embedded model (64x64 drawings) unless --model names a checkpoint of Stable Diffusion 1, 2, XL, 3 or FLUX.1.",
        epilog="Example: alignext segment kitchen.png --classes cat cup --model stabilityai/stable-diffusion-2-1-base "
        "--out found",
    )
    parser.add_argument("picture", type=Path, help="the picture")
    parser.add_argument("--classes", nargs="+", required=True, metavar="CLASS", help="what to look for")
    parser.add_argument("--prompt", help="a text in which the classes stand (default: a photo of CLASS, CLASS)")
    parser.add_argument(
        "--class-prompts", nargs="+", metavar="TEXT", help="what each class is scored by (default: a photo of CLASS)"
    )
    parser.add_argument(
        "--threshold", type=between(0, 1), default=0.5, help="below it a pixel is background (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=4307, help="of the noise (default: %(default)s)")
    parser.add_argument("--steps", type=at_least_one, default=10, help="noise levels of the maps (default: 10)")
    pictures.add_output_options(parser, what="overlays, label map, index.html and settings.json")
    group = parser.add_argument_group("the method")
    group.add_argument(
        "--strength",
        type=between(0.01, 100),
        default=3.0,
        help="how much the class that the model sees worst is sharpened; 1 for no calibration (default: %(default)s)",
    )
    group.add_argument("--keep-aspect", action="store_true", help="look at the picture in its own proportions")
    pictures.add_model_options(parser, model="a Stable Diffusion or FLUX.1 checkpoint", dtype="float16")
    parser.set_defaults(func=run, parser=parser, words_of={"elbo_strength": "--strength"})


def run(args: argparse.Namespace) -> None:
    """Find the classes, and write overlays and a label map."""
    picture = picture_in(args.picture, name="picture")
    for name in ("guidance_scale", "negative_prompt"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} has no meaning here: nothing is drawn. Leave it out.")
    import numpy as np
    import torch
    from PIL import Image

    from alignext import ELBOAlignPipeline
    from alignext.demos.gallery import Figure, Section, claim_folder
    from alignext.diffusion.pictures import to_pil
    from alignext.diffusion.sheets import heat_overlay, label_overlay

    args.out = claim_folder(args.out, overwrite=args.overwrite)
    align = ELBOAlignPipeline(pictures.load(args, "sd"))
    prompts: dict[str, Any] = {"prompt": args.prompt, "class_prompts": args.class_prompts}
    found: Any = align(
        picture,
        args.classes,
        **prompts,
        threshold=args.threshold,
        elbo_strength=args.strength,
        keep_aspect=args.keep_aspect,
        attention_timesteps=[200 * (k + 1) // args.steps for k in range(args.steps)],
        generator=torch.Generator().manual_seed(args.seed),
        **pictures.size_of(args),
    )
    settings = pictures.settings_of(args)
    ground = to_pil(picture)
    figures = [
        Figure(
            "labels", label_overlay(ground, found.label_map, args.classes), "Each class in a colour.", "all classes"
        )
    ]
    lines = []
    for k, (name, heat) in enumerate(zip(args.classes, found.heatmaps, strict=True)):
        share = (found.label_map == k + 1).float().mean().item()
        said = f"{name}: {share:.0%} of the picture, temperature {found.temperatures[k]:.2f}"
        said += "" if found.elbo[k].isnan() else f", loss {found.elbo[k]:.3f}"
        lines.append(said)
        figures.append(Figure(f"{k + 1:02d}", heat_overlay(ground, heat), f"Where {name} is seen.", said, settings))
    Image.fromarray(found.label_map.numpy().astype(np.uint8)).save(args.out / "label_map.png")
    print("\n".join(lines))
    made = "label_map.png has 0 for background, then the classes from 1"
    pictures.finish(args, [Section("", figures=figures)], made, title=f"Found in {args.picture.name}")
