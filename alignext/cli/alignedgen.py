# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext alignedgen`: a set of pictures in one style."""

import argparse
from pathlib import Path
from typing import Any

from alignext.cli import pictures
from alignext.cli.arguments import Parser, add_fields, at_least_one, number, picture_in
from alignext.methods import method


_PER_ROW = 4


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext alignedgen`."""
    parser = subparsers.add_parser(
        "alignedgen",
        help=method("AlignedGen").task,
        description="Draw several prompts in one consistent style: that of the first image, of a picture of yours, or "
        "of an earlier set. Needs no training. Runs on the embedded model (64x64 drawings) unless --model names a "
        "Flux checkpoint.",
        epilog="Example: alignext alignedgen 'a red fox' 'an owl' 'a house' 'a rocket' --share-blocks all --compare "
        "--out set",
    )
    parser.add_argument("prompt", nargs="+", help="what to draw, one image each; the first one sets the style")
    parser.add_argument("--style-image", type=Path, help="take the style of this picture instead")
    parser.add_argument("--style-prompt", help="what that picture shows, and its style: worth writing")
    parser.add_argument("--style-reference", type=Path, help="take the style of a file that --save-style wrote")
    parser.add_argument("--save-style", type=Path, help="keep the style of this set in a file, to continue it later")
    parser.add_argument("--compare", action="store_true", help="also draw the prompts without sharing, as stock does")
    parser.add_argument("--seed", type=int, default=0, help="image k uses seed + k (default: %(default)s)")
    parser.add_argument("--steps", type=at_least_one, default=28, help="denoising steps (default: %(default)s)")
    pictures.add_output_options(parser, what="the images, a contact sheet, index.html and settings.json")
    pictures.add_model_options(
        parser, model="a FLUX.1, FLUX.1 Kontext, FLUX.2 or Qwen-Image checkpoint", dtype="bfloat16"
    )
    parser.set_defaults(func=run, parser=parser, words_of=pictures.WORDS)
    parser.later = _add_levers


def _add_levers(parser: Parser) -> None:
    from alignext import AlignedGenPipeline

    group = parser.add_argument_group("the method")
    add_fields(group, AlignedGenPipeline._levers)
    group.add_argument("--shared-noise", action="store_true", help="all images start from the noise of the first")
    group.add_argument("--true-cfg-scale", type=number, help="two calls a step, from 1 (off) up (default: 1)")
    group.add_argument("--max-sequence-length", type=at_least_one, help="text tokens (default: 512)")


def run(args: argparse.Namespace) -> None:
    """Make the images and their gallery."""
    picture = picture_in(args.style_image, name="--style-image") if args.style_image else None
    if args.style_reference is not None and not args.style_reference.is_file():
        raise FileNotFoundError(f"--style-reference {args.style_reference} is no file that --save-style wrote.")
    if len(args.prompt) == 1 and not (picture or args.style_reference or args.save_style):
        raise ValueError(
            "One prompt makes no set: pass a second one, or a style with --style-image or --style-reference."
        )
    if args.save_style is not None and args.save_style.is_dir():
        raise ValueError(f"--save-style {args.save_style} is a folder: pass the path of a file.")
    from alignext.demos.gallery import Figure, Section, claim_folder
    from alignext.diffusion.sheets import contact_sheet
    from alignext.files import check_output

    args.out = claim_folder(args.out, overwrite=args.overwrite)
    if args.save_style:
        check_output(args.save_style.parent, name="--save-style")
    import torch

    from alignext import AlignedGenPipeline, StyleReference, mini

    levers = AlignedGenPipeline._levers
    ours: dict[str, Any] = {n: v for n in levers.__dataclass_fields__ if (v := getattr(args, n)) is not None}
    levers(**ours)  # says what is wrong before a model is loaded
    pipe = pictures.load(args, "flux", _CLASSES)
    given = {name: getattr(args, name) for name in _STOCK if getattr(args, name) is not None}
    call = (mini.FLUX_CALL if args.model is None else {}) | given | pictures.size_of(args)
    pictures.check_negative_prompt(pipe, call)
    if "negative_prompt" in call or call.get("true_cfg_scale", 1) > 1:
        call["negative_prompt"] = [call.get("negative_prompt", "")] * len(args.prompt)
    ours |= {"shared_noise": args.shared_noise, "record_style": bool(args.save_style)}
    if picture:
        ours |= {"style_image": picture, "style_prompt": args.style_prompt or ""}
    elif args.style_prompt:
        ours["style_prompt"] = args.style_prompt  # the pipeline says what is wrong
    if args.style_reference:
        ours["style_reference"] = StyleReference.load(args.style_reference)

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(args.seed + k) for k in range(len(args.prompt))]

    call["num_inference_steps"] = args.steps
    result = pipe(args.prompt, generator=generators(), **call, **ours)
    made = {"aligned": result.images}
    if args.compare:
        made["stock"] = pipe(args.prompt, generator=generators(), share_end=0.0, **call).images

    settings = pictures.settings_of(args)
    rows, labels = [], []
    for start in range(0, len(args.prompt), _PER_ROW):
        for name in sorted(made, reverse=True):  # stock above
            rows.append([*([picture] if picture else []), *made[name][start : start + _PER_ROW]])
            labels.append(name)
    sheet = contact_sheet(rows, row_labels=labels if args.compare else ())
    figures = [
        Figure(f"{k:02d}{'' if name == 'aligned' else f'-{name}'}", images[k], prompt, f"{name}: {prompt}", settings)
        for k, prompt in enumerate(args.prompt)
        for name, images in made.items()
    ]
    first = Figure("contact-sheet", sheet, alt="All images of the set.", caption=", ".join(args.prompt))
    sections = [Section("The set", figures=[first]), Section("One by one", figures=figures)]
    if args.save_style:
        result.style_reference.save(args.save_style)
    made = pictures.count(len(result.images), "image")
    pictures.finish(args, sections, made, title="AlignedGen: " + ", ".join(args.prompt))


_STOCK = ("guidance_scale", "negative_prompt", "true_cfg_scale", "max_sequence_length")
_CLASSES = {
    "FluxPipeline": "AlignedGenPipeline",
    "FluxKontextPipeline": "AlignedGenKontextPipeline",
    "Flux2Pipeline": "AlignedGenFlux2Pipeline",
    "Flux2KleinPipeline": "AlignedGenFlux2KleinPipeline",
    "QwenImagePipeline": "AlignedGenQwenImagePipeline",
}
