# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext rival`: variations of a picture, pictures in its look, edits, inpainting."""

import argparse
from pathlib import Path

from alignext.cli import pictures
from alignext.cli.arguments import at_least_one, file_of, number, picture_in
from alignext.methods import method


_TASKS = ("variation", "text2image", "editing", "inpainting", "dreambooth", "controlnet")
_INITS = ("shuffle", "gaussian", "inverted", "noise")
# What is loaded from checkpoints of these classes; with --controlnet, its sibling.
_CLASSES = {
    "StableDiffusionPipeline": "RIVALPipeline",
    "StableDiffusionImg2ImgPipeline": "RIVALPipeline",
    "StableDiffusionXLPipeline": "RIVALXLPipeline",
    "StableDiffusionXLImg2ImgPipeline": "RIVALXLPipeline",
}
_LEVERS = ("reference_prompt", "negative_prompt", "t_align", "t_early", "t_inject", "init", "keep_pixels")


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext rival`."""
    parser = subparsers.add_parser(
        "rival",
        help=method("RIVAL").task,
        description="Turn a picture into new ones: variations of it, something else in its look, an edit, or an "
        "inpainting. Needs no training. Runs on the embedded model (64x64 drawings) unless --model names a Stable "
        "Diffusion checkpoint.",
        epilog="Example: alignext rival fox.png --prompt 'a red fox, flat style' --out foxes",
    )
    parser.add_argument("picture", type=Path, nargs="+", help="the reference picture(s)")
    parser.add_argument("--prompt", required=True, help="what to draw")
    parser.add_argument(
        "--task", choices=_TASKS, help="what to make (default: variation; controlnet with --controlnet)"
    )
    parser.add_argument(
        "-n", "--images", type=at_least_one, default=4, help="images per picture (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="image k of a picture uses seed + k (default: %(default)s)"
    )
    parser.add_argument("--steps", type=at_least_one, default=50, help="denoising steps (default: %(default)s)")
    pictures.add_output_options(parser, what="the images, a contact sheet, index.html and settings.json")
    group = parser.add_argument_group("the method")
    group.add_argument(
        "--reference-prompt", help="what the picture shows (default: --prompt for variation, else none)"
    )
    group.add_argument("--t-align", type=number, help="smaller is closer to the picture's content (default: 600)")
    group.add_argument("--t-early", type=number, help="smaller is closer to the picture's colours (default: 600)")
    group.add_argument("--t-inject", type=number, help="smaller couples layout and content less (default: by task)")
    group.add_argument("--init", choices=_INITS, help="where generation starts (default: by task)")
    group.add_argument("--mask", type=Path, help="inpainting: white is repainted, black kept")
    group.add_argument("--keep-pixels", action="store_true", help="inpainting: paste the kept pixels over the result")
    group.add_argument("--controlnet", help="a ControlNet for that checkpoint: folder or Hub id")
    group.add_argument("--control-image", type=Path, help="what the ControlNet follows, for example an edge map")
    pictures.add_model_options(parser, model="a Stable Diffusion 1, 2 or XL checkpoint", dtype="float16")
    parser.set_defaults(func=run, parser=parser, words_of=pictures.WORDS)


def run(args: argparse.Namespace) -> None:
    """Make the images and their gallery."""
    references = [picture_in(path, name="picture") for path in args.picture]
    mask = picture_in(args.mask, name="--mask") if args.mask else None
    control = picture_in(args.control_image, name="--control-image") if args.control_image else None
    if (args.controlnet is None) != (args.control_image is None):
        raise ValueError("--controlnet and --control-image belong together: pass both, or none.")
    from alignext.demos.gallery import Figure, Section, claim_folder
    from alignext.diffusion.pictures import to_pil
    from alignext.diffusion.sheets import contact_sheet

    args.out = claim_folder(args.out, overwrite=args.overwrite)
    import torch

    pipe = _load(args)
    task = args.task or pipe.default_task
    call = {name: getattr(args, name) for name in _LEVERS} | pictures.size_of(args) | {"mask_image": mask}
    call |= {"task": task, "num_images_per_prompt": args.images, "num_inference_steps": args.steps}
    if args.guidance_scale is not None:
        call["guidance_scale"] = args.guidance_scale
    pictures.check_negative_prompt(pipe, call)
    if control:
        call["image"] = to_pil(control)
    generators = [torch.Generator().manual_seed(args.seed + k) for _ in references for k in range(args.images)]
    images = pipe(args.prompt, reference_image=references, generator=generators, **call).images

    settings = pictures.settings_of(args)
    rows, figures = [], []
    for i, (path, picture) in enumerate(zip(args.picture, references, strict=True)):
        mine = images[i * args.images : (i + 1) * args.images]
        rows.append([picture, *mine])
        for k, image in enumerate(mine):
            alt, caption = f"{task} of {path.name}: {args.prompt}", f"seed {args.seed + k}"
            figures.append(Figure(f"{i:02d}-{k:02d}", image, alt, caption, settings))
    sheet = contact_sheet(
        rows,
        row_labels=[path.stem for path in args.picture],
        col_labels=["picture", *(f"seed {args.seed + k}" for k in range(args.images))],
    )
    first = Figure("contact-sheet", sheet, alt=f"Each picture beside its {args.images} images.", caption=args.prompt)
    sections = [Section("All of it", figures=[first]), Section("One by one", figures=figures)]
    pictures.finish(args, sections, pictures.count(len(images), "image"), title=f"RIVAL {task}: {args.prompt}")


def _load(args: argparse.Namespace):
    if args.controlnet is None:
        return pictures.load(args, "sd", _CLASSES)
    from diffusers import ControlNetModel

    file_of(args.controlnet, "config.json", name="--controlnet", what="ControlNet")
    controlnet = ControlNetModel.from_pretrained(args.controlnet, dtype=pictures.dtype_of(args))
    classes = {stock: ours.replace("Pipeline", "ControlNetPipeline") for stock, ours in _CLASSES.items()}
    return pictures.load(args, "sd", classes, controlnet=controlnet)
