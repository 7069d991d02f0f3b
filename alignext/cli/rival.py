# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext rival`: variations of a picture, pictures in its look, edits, inpainting. And RIVAL's part of the demo."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from alignext.cli.arguments import at_least_one, device_of, picture_in, stock_class
from alignext.methods import method


if TYPE_CHECKING:
    from PIL.Image import Image

    from alignext.cli.gallery import Section
    from alignext.mini import Picture

_TASKS = ("variation", "text2image", "editing", "inpainting", "dreambooth", "controlnet")
_INITS = ("shuffle", "gaussian", "inverted", "noise")


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
        "--out", type=Path, required=True, help="folder for the images, a contact sheet and index.html"
    )
    parser.add_argument(
        "--model", help="a Stable Diffusion 1, 2 or XL checkpoint: folder or Hub id (default: embedded)"
    )
    parser.add_argument(
        "--task", choices=_TASKS, help="what to make (default: variation; controlnet with --controlnet)"
    )
    parser.add_argument("--controlnet", help="a ControlNet for that checkpoint: folder or Hub id")
    parser.add_argument("--control-image", type=Path, help="what the ControlNet follows, for example an edge map")
    parser.add_argument(
        "--reference-prompt", help="what the picture shows (default: --prompt for variation, else none)"
    )
    parser.add_argument("--negative-prompt", help="what not to draw")
    parser.add_argument(
        "-n", "--images", type=at_least_one, default=4, help="images per picture (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="image k of a picture uses seed + k (default: %(default)s)"
    )
    parser.add_argument("--steps", type=at_least_one, default=50, help="denoising steps (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, help="default: 5 for variation, else 7")
    parser.add_argument("--t-align", type=float, help="smaller is closer to the picture's content (default: 600)")
    parser.add_argument("--t-early", type=float, help="smaller is closer to the picture's colours (default: 600)")
    parser.add_argument("--t-inject", type=float, help="smaller couples layout and content less (default: by task)")
    parser.add_argument("--init", choices=_INITS, help="where generation starts (default: by task)")
    parser.add_argument("--mask", type=Path, help="inpainting: white is repainted, black kept")
    parser.add_argument("--keep-pixels", action="store_true", help="inpainting: paste the kept pixels over the result")
    parser.add_argument("--height", type=at_least_one, help="pixels (default: as the model was trained)")
    parser.add_argument("--width", type=at_least_one, help="pixels (default: as the model was trained)")
    parser.add_argument("--device", help="for example cuda (default: cuda where there is one, else cpu)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: float16 on cuda")
    parser.add_argument("--overwrite", action="store_true", help="also write into a folder with other files in it")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    """Make the images and their gallery."""
    pictures = [picture_in(path, name="picture") for path in args.picture]
    mask = picture_in(args.mask, name="--mask") if args.mask else None
    control = picture_in(args.control_image, name="--control-image") if args.control_image else None
    if (args.controlnet is None) != (args.control_image is None):
        raise ValueError("--controlnet and --control-image belong together: pass both, or none.")
    from alignext.cli.gallery import Figure, Section, claim_folder, write_gallery
    from alignext.diffusion.sheets import contact_sheet

    out = claim_folder(args.out, overwrite=args.overwrite)
    import torch

    pipe = _load(args.model, args.controlnet, args.device, args.dtype)
    task = args.task or pipe.default_task
    settings = {
        "task": task,
        "reference_prompt": args.reference_prompt,
        "negative_prompt": args.negative_prompt,
        "num_images_per_prompt": args.images,
        "num_inference_steps": args.steps,
        "t_align": args.t_align,
        "t_early": args.t_early,
        "t_inject": args.t_inject,
        "init": args.init,
        "mask_image": mask,
        "keep_pixels": args.keep_pixels,
        "height": args.height,
        "width": args.width,
    }
    if args.guidance_scale is not None:
        settings["guidance_scale"] = args.guidance_scale
    if control:
        settings["image"] = control.convert("RGB")
    generators = [torch.Generator().manual_seed(args.seed + k) for _ in pictures for k in range(args.images)]
    images = pipe(args.prompt, reference_image=pictures, generator=generators, **settings).images

    rows, figures = [], []
    for i, (path, picture) in enumerate(zip(args.picture, pictures, strict=True)):
        mine = images[i * args.images : (i + 1) * args.images]
        rows.append([picture, *mine])
        for k, image in enumerate(mine):
            name = f"{i:02d}-{k:02d}"
            figures.append(
                Figure(name, image, alt=f"{task} of {path.name}: {args.prompt}", caption=f"seed {args.seed + k}")
            )
    sheet = contact_sheet(
        rows,
        row_labels=[path.stem for path in args.picture],
        col_labels=["picture", *(f"seed {args.seed + k}" for k in range(args.images))],
    )
    first = Figure("contact-sheet", sheet, alt=f"Each picture beside its {args.images} images.", caption=args.prompt)
    page = write_gallery(
        out,
        [Section("All of it", figures=[first]), Section("One by one", figures=figures)],
        title=f"RIVAL {task}: {args.prompt}",
    )
    print(f"{len(images)} images. Open {page.resolve()}")


def _load(
    model: str | None = None, controlnet: str | None = None, device: str | None = None, dtype: str | None = None
):
    """The pipeline that fits the checkpoint, on its device: the embedded model where none is named."""
    import torch
    from diffusers import ControlNetModel

    import alignext
    from alignext import mini

    model = model or str(mini.path("sd"))
    device = device_of(device)
    xl = "StableDiffusionXL" in stock_class(model)
    name = f"RIVAL{'XL' if xl else ''}{'ControlNet' if controlnet else ''}Pipeline"
    dtype = getattr(torch, dtype or ("float16" if device.startswith("cuda") else "float32"))
    parts = {"controlnet": ControlNetModel.from_pretrained(controlnet, dtype=dtype)} if controlnet else {}
    return getattr(alignext, name).from_pretrained(model, dtype=dtype, **parts).to(device)


# ------------------------------------------------------------------------------------------------------------- demo

# Drawings that the embedded model has never seen: known things in a known style, and in an unknown one.
_EXEMPLARS = {"unseen_drawing": ("frog", "house"), "unseen_style": ("box of fries", "rose")}
_IMAGES = 4


def demo(*, seed: int, steps: int | None) -> list["Section"]:
    """RIVAL on held-out drawings, against what stock diffusers makes of the same prompt and picture."""
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

    from alignext.cli.gallery import Figure, Section, Table, print_table
    from alignext.diffusion.sheets import contact_sheet

    steps = steps or 50
    pictures = _exemplars()
    pipe = _load(device="cpu")
    shared = pipe.components | {"requires_safety_checker": False}
    stock, img2img = StableDiffusionPipeline(**shared), StableDiffusionImg2ImgPipeline(**shared)
    for each in (pipe, stock, img2img):
        each.set_progress_bar_config(desc=type(each).__name__, leave=False)

    def common(n: int = _IMAGES) -> dict:
        import torch

        generators = [torch.Generator().manual_seed(seed + k) for k in range(n)]
        return {"generator": generators, "num_images_per_prompt": n, "num_inference_steps": steps}

    made: dict[str, list[list[Image]]] = {name: [] for name in ("RIVAL", "img2img 0.6", "text-to-image")}
    restyled: list[list[Image]] = []
    others = ("a red apple", "a frog", "a house")
    for index, picture in enumerate(pictures, start=1):
        print(f"RIVAL {index}/{len(pictures)}: {picture.caption}", flush=True)
        made["RIVAL"].append(pipe(picture.caption, reference_image=picture.image, **common()).images)
        made["text-to-image"].append(stock(picture.caption, guidance_scale=5.0, **common()).images)
        made["img2img 0.6"].append(
            img2img(
                picture.caption, image=picture.image, strength=max(0.6, 1 / steps), guidance_scale=5.0, **common()
            ).images
        )
        inversion = pipe.invert(picture.image, "", steps)
        restyled.append([pipe(p, inversion=inversion, task="text2image", **common(1)).images[0] for p in others])

    labels = [picture.caption for picture in pictures]
    sheet = contact_sheet(
        [
            [picture.image, *made["RIVAL"][i], made["img2img 0.6"][i][0], made["text-to-image"][i][0]]
            for i, picture in enumerate(pictures)
        ],
        row_labels=labels,
        col_labels=["picture", *(f"variation {k + 1}" for k in range(_IMAGES)), "img2img 0.6", "text-to-image"],
        cell=128,
    )
    looks = contact_sheet(
        [[picture.image, *restyled[i]] for i, picture in enumerate(pictures)],
        row_labels=labels,
        col_labels=["picture", *others],
        cell=128,
    )
    table = Table(
        ["made by", "concept features", "style features", "palette", "is the concept"],
        [[name, *_measure(pictures, images)] for name, images in made.items()],
        caption=f"Means over {len(pictures)} pictures x {_IMAGES} images. Concept and style features: cosine to "
        "the picture under the two embedded judges. Palette: overlap of the colour histograms, white left out. The "
        "last column: share of images in which the concept judge sees the concept that the prompt names.",
    )
    print_table(table)
    return [
        Section(
            "RIVAL: variations of a picture",
            "Each drawing on the left was held out: the model never saw it. It is inverted once; the variations read "
            "its self-attention keys and take over the statistics of its noise. Beside them is what stock diffusers "
            "makes with the same seeds.\n\n"
            "These four drawings were picked to show the method at work, so the table flatters it: the documentation "
            "has figures for 18 drawings, where img2img at low strength is closer to the picture.",
            figures=[
                Figure(
                    "rival-variations",
                    sheet,
                    alt="Held-out drawings, four variations of each, and stock results.",
                    caption="Four variations of each held-out drawing, and one stock result of each kind.",
                ),
                Figure(
                    "rival-looks",
                    looks,
                    alt="Each drawing beside other things drawn in its look.",
                    caption="Something else in its look: the same inversions, prompts without any style in them.",
                ),
            ],
            tables=[table],
        )
    ]


def _exemplars() -> "list[Picture]":
    from alignext import mini

    return [
        next(p for p in mini.pictures(split) if p.concept == concept)
        for split, concepts in _EXEMPLARS.items()
        for concept in concepts
    ]


def _measure(pictures: "list[Picture]", made: "list[list[Image]]") -> list[float]:
    """Similarity to the picture (concept features, style features, palette), and the share that is the concept."""
    import torch

    from alignext.mini.judges import Judge, palette_overlap

    scores: list[list[float]] = []
    judges = [Judge("concept"), Judge("style")]
    with torch.no_grad():
        for picture, images in zip(pictures, made, strict=True):
            row = []
            for judge in judges:
                features = judge([picture.image, *images]).features
                row.append((features[1:] @ features[0]).mean().item())
            row.append(sum(palette_overlap(picture.image, image) for image in images) / len(images))
            names = judges[0].name(images)
            row.append(names.count(picture.concept) / len(names))
            scores.append(row)
    return torch.tensor(scores).mean(0).tolist()
