# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Find two drawings on one canvas by their names, with a text-to-image model that was never trained for it.

Runs offline in seconds on a CPU, on the model that comes with the package:

    python examples/elbo_align.py
    python examples/elbo_align.py --model stabilityai/sdxl-turbo --picture mine.png --classes cat cup --out found
"""

import argparse
from pathlib import Path

from PIL import Image

from alignext import ELBOAlignPipeline, mini
from alignext.diffusion.pictures import to_pil
from alignext.diffusion.sheets import contact_sheet, heat_overlay, label_overlay


def canvas(names: list[str]) -> Image.Image:
    """Drawings of these names side by side, which no model has seen."""
    drawings = {p.concept: p.image.convert("RGB") for p in mini.pictures("unseen_drawing") if p.style == "glossy"}
    sheet = Image.new("RGB", (64 * len(names), 64), "white")
    for k, name in enumerate(names):
        sheet.paste(drawings[name], (64 * k, 0))
    return sheet


def main() -> None:
    """Segment, and write one sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(mini.path("flux")))
    parser.add_argument("--picture", type=Path, help="a picture of yours (default: two embedded drawings)")
    parser.add_argument("--classes", nargs="+", default=["balloon", "frog"])
    parser.add_argument("--steps", type=int, default=10, help="noise levels of the maps (default: 10)")
    parser.add_argument("--out", type=Path, default=Path("elbo-align"))
    args = parser.parse_args()

    align = ELBOAlignPipeline.from_pretrained(args.model)
    if args.picture is None:
        picture = canvas(args.classes)
        # The small model knows captions such as "a balloon and a frog, glossy style", and no photos.
        prompts = [f"a {name}" for name in args.classes]
        how = {"prompt": f"{' and '.join(prompts)}, glossy style", "class_prompts": prompts}
        how |= {"height": picture.height, "width": picture.width, "max_sequence_length": 16}
    else:
        picture, how = to_pil(args.picture), {"keep_aspect": True}
    levels = [200 * (k + 1) // args.steps for k in range(args.steps)]
    found = align(picture, args.classes, attention_timesteps=levels, **how)
    row = [picture, *(heat_overlay(picture, heat) for heat in found.heatmaps)]
    args.out.mkdir(parents=True, exist_ok=True)
    contact_sheet([row], col_labels=["picture", *args.classes]).save(args.out / "heat.png")
    label_overlay(picture, found.label_map, args.classes).save(args.out / "labels.png")
    print(f"Temperatures {[round(t, 2) for t in found.temperatures.tolist()]}. See {args.out}")


if __name__ == "__main__":
    main()
