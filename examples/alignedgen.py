# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""AlignedGen in three uses: a set in one style, the set continued, and a set in the style of a picture.

python examples/alignedgen.py
python examples/alignedgen.py --model black-forest-labs/FLUX.1-dev --prompts "a fox, watercolor" "a clock, watercolor"
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from alignext import AlignedGenPipeline, StyleReference, mini


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a Flux.1 checkpoint (default: the embedded model)")
    parser.add_argument("--prompts", nargs="+", default=["a red fox", "an owl", "a house", "a rocket"])
    parser.add_argument("--more", nargs="+", default=["a mushroom", "a bell"], help="what the set is continued with")
    parser.add_argument("--picture", type=Path, help="a picture with a style (default: a held-out drawing)")
    parser.add_argument("--picture-prompt", default="", help="what it shows, and its style")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("alignedgen-example"))
    args = parser.parse_args()

    drawing = next(p for p in mini.pictures("unseen_concept") if (p.concept, p.style) == ("snail", "ink"))
    picture = Image.open(args.picture) if args.picture else drawing.image
    picture_prompt = args.picture_prompt or ("" if args.picture else drawing.caption)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    pipe = AlignedGenPipeline.from_pretrained(args.model or mini.path("flux"), dtype=dtype).to(device)

    def call(prompts: list[str], seed: int) -> dict:
        embedded = {} if args.model else mini.FLUX_CALL | {"negative_prompt": [""] * len(prompts)}
        generators = [torch.Generator().manual_seed(seed + k) for k in range(len(prompts))]
        return {"prompt": prompts, "generator": generators, "num_inference_steps": args.steps} | embedded

    args.out.mkdir(parents=True, exist_ok=True)
    # The first image sets the style, and is kept as a style: later calls continue the set.
    first = pipe(**call(args.prompts, args.seed), record_style=True)
    first.style_reference.save(args.out / "style.safetensors")
    style = StyleReference.load(args.out / "style.safetensors")
    continued = pipe(**call(args.more, args.seed + 100), style_reference=style)

    # A picture as the style goes with any number of steps and any size.
    restyled = pipe(**call(args.prompts, args.seed), style_image=picture, style_prompt=picture_prompt)

    made = {"set": first.images, "continued": continued.images, "picture": restyled.images}
    for name, images in made.items():
        for k, image in enumerate(images):
            image.save(args.out / f"{name}-{k}.png")
    print(f"Wrote {sum(map(len, made.values()))} images to {args.out.resolve()}")


if __name__ == "__main__":
    main()
