# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext alignedgen`: a set of pictures in one style. And AlignedGen's part of the demo."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from alignext.cli.arguments import at_least_one, device_of, picture_in, stock_class
from alignext.methods import method


if TYPE_CHECKING:
    from PIL.Image import Image

    from alignext.cli.gallery import Section

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
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the images, a contact sheet and index.html"
    )
    parser.add_argument(
        "--model",
        help="a FLUX.1, FLUX.1 Kontext, FLUX.2 or Qwen-Image checkpoint: folder or Hub id (default: embedded)",
    )
    parser.add_argument("--style-image", type=Path, help="take the style of this picture instead")
    parser.add_argument("--style-prompt", help="what that picture shows, and its style: worth writing")
    parser.add_argument("--style-reference", type=Path, help="take the style of a file that --save-style wrote")
    parser.add_argument("--save-style", type=Path, help="keep the style of this set in a file, to continue it later")
    parser.add_argument("--compare", action="store_true", help="also draw the prompts without sharing, as stock does")
    parser.add_argument("--seed", type=int, default=0, help="image k uses seed + k (default: %(default)s)")
    parser.add_argument("--steps", type=at_least_one, default=28, help="denoising steps (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, help="of guidance-distilled checkpoints (default: 3.5)")
    parser.add_argument("--negative-prompt", help="what not to draw, with --true-cfg-scale")
    parser.add_argument("--true-cfg-scale", type=float, help="two calls a step, from 1 (off) up (default: 1)")
    parser.add_argument("--style-lambda", type=float, help="weight of the shared keys (default: 1.1)")
    parser.add_argument(
        "--lambda-schedule", choices=("constant", "sigma_squared"), help="over the steps (default: constant)"
    )
    parser.add_argument(
        "--share-blocks", type=_blocks, metavar="{single,double,all,LO:HI}", help="which layers (default: single)"
    )
    parser.add_argument("--share-start", type=float, help="share from this fraction of the steps on (default: 0)")
    parser.add_argument("--share-end", type=float, help="and up to this one (default: 1)")
    parser.add_argument("--shift", choices=("width", "height", "none"), help="where the anchor lies (default: width)")
    parser.add_argument("--no-adain", action="store_true", help="leave the statistics of queries and keys alone")
    parser.add_argument("--anchor-index", type=int, help="which prompt sets the style, from 0 (default: 0)")
    parser.add_argument("--shared-noise", action="store_true", help="all images start from the noise of the first")
    parser.add_argument("--target-batch-size", type=at_least_one, help="images at once, to save memory (default: all)")
    parser.add_argument("--max-sequence-length", type=at_least_one, help="text tokens (default: 512)")
    parser.add_argument("--height", type=at_least_one, help="pixels (default: as the pipeline has it)")
    parser.add_argument("--width", type=at_least_one, help="pixels (default: as the pipeline has it)")
    parser.add_argument("--device", help="for example cuda (default: cuda where there is one, else cpu)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: bfloat16 on cuda")
    parser.add_argument(
        "--offload", choices=("model", "sequential"), help="keep the weights in main memory until they are needed"
    )
    parser.add_argument("--overwrite", action="store_true", help="also write into a folder with other files in it")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    """Make the images and their gallery."""
    picture = picture_in(args.style_image, name="--style-image").convert("RGB") if args.style_image else None
    if args.style_reference is not None and not args.style_reference.is_file():
        raise FileNotFoundError(f"--style-reference {args.style_reference} is no file that --save-style wrote.")
    if args.save_style is not None and args.save_style.is_dir():
        raise ValueError(f"--save-style {args.save_style} is a folder: pass the path of a file.")
    from alignext.cli.gallery import Figure, Section, claim_folder, write_gallery
    from alignext.diffusion.sheets import contact_sheet
    from alignext.files import check_output

    out = claim_folder(args.out, overwrite=args.overwrite)
    if args.save_style:
        check_output(args.save_style.parent, name="--save-style")
    import torch

    from alignext import StyleReference, mini

    pipe = _load(args.model, args.device, args.dtype, args.offload)
    given = {name: getattr(args, name) for name in (*_STOCK, *_LEVERS) if getattr(args, name) is not None}
    settings = (mini.FLUX_CALL if args.model is None else {}) | given
    if "negative_prompt" in settings or settings.get("true_cfg_scale", 1) > 1:
        settings["negative_prompt"] = [settings.get("negative_prompt", "")] * len(args.prompt)
    ours = {name: settings.pop(name) for name in _LEVERS if name in settings}
    ours |= {"adain": not args.no_adain, "shared_noise": args.shared_noise, "record_style": bool(args.save_style)}
    if picture:
        ours |= {"style_image": picture, "style_prompt": args.style_prompt or ""}
    elif args.style_prompt:
        ours["style_prompt"] = args.style_prompt  # the pipeline says what is wrong
    if args.style_reference:
        ours["style_reference"] = StyleReference.load(args.style_reference)

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(args.seed + k) for k in range(len(args.prompt))]

    settings["num_inference_steps"] = args.steps
    result = pipe(args.prompt, generator=generators(), **settings, **ours)
    made = {"aligned": result.images}
    if args.compare:
        made["stock"] = pipe(args.prompt, generator=generators(), share_end=0.0, **settings).images

    rows, labels = [], []
    for start in range(0, len(args.prompt), _PER_ROW):
        for name in sorted(made, reverse=True):  # stock above
            rows.append([*([picture] if picture else []), *made[name][start : start + _PER_ROW]])
            labels.append(name)
    sheet = contact_sheet(rows, row_labels=labels if args.compare else ())
    figures = [
        Figure(f"{k:02d}{'' if name == 'aligned' else f'-{name}'}", images[k], alt=prompt, caption=f"{name}: {prompt}")
        for k, prompt in enumerate(args.prompt)
        for name, images in made.items()
    ]
    first = Figure("contact-sheet", sheet, alt="All images of the set.", caption=", ".join(args.prompt))
    sections = [Section("The set", figures=[first]), Section("One by one", figures=figures)]
    page = write_gallery(out, sections, title="AlignedGen: " + ", ".join(args.prompt))
    if args.save_style:
        result.style_reference.save(args.save_style)
    print(f"{len(result.images)} images. Open {page.resolve()}")


_STOCK = ("guidance_scale", "negative_prompt", "true_cfg_scale", "max_sequence_length", "height", "width")
_CLASSES = {
    "FluxPipeline": "AlignedGenPipeline",
    "FluxKontextPipeline": "AlignedGenKontextPipeline",
    "Flux2Pipeline": "AlignedGenFlux2Pipeline",
    "Flux2KleinPipeline": "AlignedGenFlux2KleinPipeline",
    "QwenImagePipeline": "AlignedGenQwenImagePipeline",
}
_LEVERS = (
    "style_lambda",
    "lambda_schedule",
    "share_blocks",
    "share_start",
    "share_end",
    "shift",
    "anchor_index",
    "target_batch_size",
)


def _load(model: str | None, device: str | None = None, dtype: str | None = None, offload: str | None = None):
    """The pipeline that fits the checkpoint, on its device: the embedded model where none is named."""
    import torch

    import alignext
    from alignext import mini

    model = model or str(mini.path("flux"))
    device = device_of(device)
    stock = stock_class(model)
    if stock not in _CLASSES:
        raise ValueError(f"--model {model} is a {stock}, expected one of {', '.join(_CLASSES)}.")
    dtype = getattr(torch, dtype or ("bfloat16" if device.startswith("cuda") else "float32"))
    pipe = getattr(alignext, _CLASSES[stock]).from_pretrained(model, dtype=dtype)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    return pipe


def _blocks(text: str) -> str | tuple[int, int]:
    if text in ("single", "double", "all"):
        return text
    try:
        low, high = (int(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be single, double, all or LO:HI such as 3:7, got {text!r}") from None
    return low, high


# ------------------------------------------------------------------------------------------------------------- demo

_SETS = (
    ("a red fox", "an owl", "a house", "a rocket"),
    ("a hamburger", "a cat", "a red car", "a mushroom"),
    ("a sunflower", "a ghost", "a bell", "a penguin"),
)
_PICTURES = (("snail", "ink"), ("panda", "flat"), ("guitar", "glossy"))  # concepts that the model has never seen


def demo(*, seed: int, steps: int | None) -> list["Section"]:
    """AlignedGen on prompts that leave the style open, against stock, and with held-out drawings as the style."""
    import torch

    from alignext import mini
    from alignext.cli.gallery import Figure, Section, Table, print_table
    from alignext.diffusion.sheets import contact_sheet

    pipe = _load(None, device="cpu")
    pipe.set_progress_bar_config(desc="AlignedGenPipeline", leave=False)

    def draw(prompts: "tuple[str, ...]", k: int, **levers) -> "list[Image]":
        generators = [torch.Generator().manual_seed(seed + 100 * k + i) for i in range(len(prompts))]
        settings = mini.FLUX_CALL | {"negative_prompt": [""] * len(prompts), "num_inference_steps": steps or 28}
        return pipe(list(prompts), generator=generators, **settings, **levers).images

    made: dict[str, list[list[Image]]] = {"stock": [], "AlignedGen": []}
    for k, prompts in enumerate(_SETS, start=1):
        print(f"AlignedGen {k}/{len(_SETS)}: {', '.join(prompts)}", flush=True)
        made["stock"].append(draw(prompts, k, share_end=0.0))
        made["AlignedGen"].append(draw(prompts, k, share_blocks="all"))
    pairs = list(zip(made["stock"], made["AlignedGen"], strict=True))
    sheet = contact_sheet(
        [row for pair in pairs for row in pair], row_labels=["stock", "AlignedGen"] * len(pairs), cell=128
    )

    pictures = [p for p in mini.pictures("unseen_concept") if (p.concept, p.style) in _PICTURES]
    looks = []
    for k, picture in enumerate(pictures, start=1):
        print(f"AlignedGen, picture {k}/{len(pictures)}: {picture.caption}", flush=True)
        style = {"style_image": picture.image, "style_prompt": picture.caption, "share_blocks": "all"}
        looks.append([picture.image, *draw(_SETS[0], k, **style)])
    shown = contact_sheet(looks, row_labels=[p.caption for p in pictures], col_labels=["picture", *_SETS[0]], cell=128)

    table = Table(
        ["made by", "style features", "same style", "palette", "is the subject"],
        [[name, *_measure(images)] for name, images in made.items()],
        caption=f"Means over {len(_SETS)} sets. Over the pairs of a set: cosine of the style judge's features, share "
        "that it gives one style, overlap of the colour histograms, white left out. The last column: share of images "
        "in which the concept judge sees what the prompt names.",
    )
    print_table(table)
    return [
        Section(
            "AlignedGen: a set in one style",
            "None of these prompts names a style, so the stock pipeline draws each image in any of the five that the "
            "model knows. With AlignedGen the first image of a row is the same, and the others take over its style: "
            "they also attend to its tokens, which seem to lie to their right, in all layers of this small model. "
            "Three sets are few: the documentation measures 24.",
            figures=[
                Figure(
                    "alignedgen-sets",
                    sheet,
                    alt="Three sets of four drawings, by stock and by AlignedGen.",
                    caption="Three sets, each drawn by stock diffusers and by AlignedGen with the same noise.",
                ),
                Figure(
                    "alignedgen-pictures",
                    shown,
                    alt="Each drawing beside four images in its style.",
                    caption="The style of a picture: it comes from the drawing on the left, which the model has never "
                    "seen.",
                ),
            ],
            tables=[table],
        )
    ]


def _measure(sets: "list[list[Image]]") -> list[float]:
    """Likeness within the sets, and the share of images that are what their prompt names."""
    import torch

    from alignext.mini.judges import Judge, likeness

    concept, style = Judge("concept"), Judge("style")
    rows = []
    for prompts, images in zip(_SETS, sets, strict=True):
        names = concept.name(images)
        right = [prompt.split(" ", 1)[1] == name for prompt, name in zip(prompts, names, strict=True)]
        rows.append([*likeness(images, style).values(), sum(right) / len(right)])
    return torch.tensor(rows).mean(0).tolist()
