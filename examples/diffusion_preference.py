# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Teach a small text-to-image model to prefer one drawing style, from pairs of real drawings.

Runs offline in about a minute on a CPU, on the model and the drawings that come with the package:

    python examples/diffusion_preference.py
    python examples/diffusion_preference.py --method smpo --style ink

A pair is the same thing drawn twice: in the style we want, and in another one. The prompt names no style. Afterwards
the model draws things that were in no pair, from the same noise before and after. With pictures of your own, train any
checkpoint with `--model ... --pairs pairs.jsonl`, one line a pair:

    {"prompt": "a red fox", "chosen": "fox-1.png", "rejected": "fox-2.png"}
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from diffusers import DiffusionPipeline
from peft import LoraConfig
from PIL.Image import Image

from alignext import (
    DiffusionDPOConfig,
    DiffusionDPOTrainer,
    DiffusionKTOConfig,
    DiffusionKTOTrainer,
    InversionDPOConfig,
    InversionDPOTrainer,
    SmPOConfig,
    SmPOTrainer,
    mini,
)
from alignext.diffusion.sheets import contact_sheet
from alignext.mini.judges import Judge


STYLES = ("noto", "blob", "flat", "glossy", "ink")
PROMPTS = ["a crown", "a frog", "a cloud", "a bee", "a bear", "a violin", "a camera", "a red apple"]
METHODS = {
    "diffusion-dpo": (DiffusionDPOTrainer, DiffusionDPOConfig, {}),
    # Takes the pairs apart: a thumb up for the winner, one down for the loser.
    "diffusion-kto": (DiffusionKTOTrainer, DiffusionKTOConfig, {}),
    # Without soft labels and re-noising, SmPO is InPO.
    "inpo": (SmPOTrainer, SmPOConfig, {"num_renoise_steps": 0, "label_sharpness": None}),
    "smpo": (SmPOTrainer, SmPOConfig, {}),
    "inversion-dpo": (InversionDPOTrainer, InversionDPOConfig, {"num_inversion_steps": 20}),
}


def drawn_pairs(style: str) -> Dataset:
    """Everything that is drawn in all five styles: the drawing in `style` beside each of the four others."""
    drawings: dict[str, dict[str, mini.Picture]] = {}
    for picture in mini.pictures():
        drawings.setdefault(picture.concept, {})[picture.style] = picture
    rows = [
        {
            "prompt": styles[style].caption.partition(",")[0],  # "a red fox, flat style" -> "a red fox"
            "image_chosen": styles[style].image,
            "image_rejected": styles[other].image,
            "preference_prob": 0.75,  # how sure we are; SmPO reads it, the others do not
        }
        for styles in drawings.values()
        if set(STYLES) <= set(styles)
        for other in STYLES
        if other != style
    ]
    return Dataset.from_list(rows)


def draw(pipe: DiffusionPipeline, prompts: list[str]) -> list[Image]:
    """One picture of each prompt, always from the same noise."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    return pipe(prompts, num_inference_steps=20, guidance_scale=3.0, generator=generators).images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(mini.path("sd")), help="a pipeline of SD 1, 2, XL, 3 or Flux")
    parser.add_argument("--pairs", help="a JSON lines file of your own pairs")
    parser.add_argument("--style", choices=STYLES, default="glossy", help="the style we prefer (default: %(default)s)")
    parser.add_argument("--method", choices=METHODS, default="diffusion-dpo")
    parser.add_argument("--steps", type=int, default=40, help="updates of 12 pairs (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="small models take large ones")
    parser.add_argument(
        "--prompts", nargs="+", default=["a crown", "a frog", "a cloud", "a bee", "a bear", "a violin"]
    )
    parser.add_argument("--out", default="diffusion-preference", help="folder of the LoRA and the sheet")
    args = parser.parse_args()

    pipe = DiffusionPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    pairs = load_dataset("json", data_files=args.pairs, split="train") if args.pairs else drawn_pairs(args.style)
    print(f"{len(pairs)} pairs")
    before = draw(pipe, args.prompts)

    trainer_class, config_class, settings = METHODS[args.method]
    on_cpu = not torch.cuda.is_available()
    trainer = trainer_class(
        model=pipe,
        args=config_class(
            args.out,
            max_steps=args.steps,
            per_device_train_batch_size=12,
            learning_rate=args.learning_rate,
            precompute_latents=True,
            activation_checkpointing=not on_cpu,  # a small model fits without
            use_cpu=on_cpu,
            bf16=not on_cpu,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            **settings,
        ),
        train_dataset=pairs,
        peft_config=LoraConfig(r=16, lora_alpha=16),
    )
    trainer.train()
    trainer.save_model()

    after = draw(pipe, args.prompts)
    sheet = contact_sheet([before, after], row_labels=["before", "after"], col_labels=args.prompts, cell=96)
    sheet.save(Path(args.out) / "before-after.png")
    if not args.pairs:
        judge = Judge("style")
        for name, images in (("before", before), ("after", after)):
            print(f"{judge.name(images).count(args.style)} of {len(images)} new samples are {args.style} {name}")
    print(f"The sheet is {args.out}/before-after.png. Load the LoRA: pipe.load_lora_weights({args.out!r})")


if __name__ == "__main__":
    main()
