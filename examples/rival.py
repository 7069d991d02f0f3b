# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""RIVAL in three uses: variations of a picture, another subject in its look, and an edit. Runs offline as it is.

python examples/rival.py
python examples/rival.py --model stable-diffusion-v1-5/stable-diffusion-v1-5 --picture cat.png --prompt "a cat"
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from alignext import RIVALPipeline, mini


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=mini.path("sd"), help="a Stable Diffusion 1 or 2 checkpoint")
    parser.add_argument("--picture", type=Path, help="the reference (default: a held-out drawing)")
    parser.add_argument("--prompt", help="what the picture shows")
    parser.add_argument("--other", default="a red apple", help="what to draw in its look")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("rival-example"))
    args = parser.parse_args()

    drawing = next(p for p in mini.pictures("unseen_drawing") if p.concept == "frog")
    picture = Image.open(args.picture) if args.picture else drawing.image
    prompt = args.prompt or drawing.caption
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    pipe = RIVALPipeline.from_pretrained(args.model, dtype=dtype).to(device)

    def seeds(n: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(k) for k in range(n)]

    # One inversion per reference prompt, reused for any number of images.
    described = pipe.invert(picture, prompt, args.steps)
    variations = pipe(prompt, inversion=described, num_images_per_prompt=4, generator=seeds(4)).images
    null = pipe.invert(picture, "", args.steps)
    look = pipe(args.other, inversion=null, task="text2image", generator=seeds(1)).images
    edit = pipe(args.other, inversion=null, task="editing").images

    args.out.mkdir(parents=True, exist_ok=True)
    for name, images in {"variation": variations, "look": look, "edit": edit}.items():
        for k, image in enumerate(images):
            image.save(args.out / f"{name}-{k}.png")
    print(f"Wrote {len(variations) + 2} images to {args.out.resolve()}")


if __name__ == "__main__":
    main()
