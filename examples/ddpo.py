# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Train a small text-to-image model on a reward without a gradient: how small its pictures are as JPEG files.

Runs offline in about two minutes on a CPU, on the models that come with the package:

    python examples/ddpo.py
    python examples/ddpo.py --flow                  # mini-Flux: the SDE of Flow-GRPO in the place of DDIM's noise

Any function of pictures and prompts is a reward, and needs no gradient. With a pipeline of your own: `--model ...`.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from diffusers import DiffusionPipeline
from peft import LoraConfig
from PIL.Image import Image, fromarray

from alignext import DDPOConfig, DDPOTrainer, mini
from alignext.diffusion.sheets import contact_sheet
from alignext.rewards import compressibility


def pictures(images: torch.Tensor) -> list[Image]:
    return [fromarray((255 * image.permute(1, 2, 0)).round().byte().cpu().numpy()) for image in images]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="any pipeline of diffusers; mini-SD if not given")
    parser.add_argument("--flow", action="store_true", help="train mini-Flux")
    parser.add_argument("--prompts", nargs="+", default=["a red apple", "a crown", "a frog", "a cloud"])
    parser.add_argument(
        "--steps", type=int, default=20, help="updates of 4 prompts x 4 pictures (default: %(default)s)"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--out", default="ddpo", help="folder of the LoRA and the sheet")
    args = parser.parse_args()

    on_cpu = not torch.cuda.is_available()
    guidance = {} if args.flow or args.model else {"guidance_scale": 2.0}
    trainer = DDPOTrainer(
        model=DiffusionPipeline.from_pretrained(args.model or mini.path("flux" if args.flow else "sd")),
        reward_funcs=compressibility,
        args=DDPOConfig(
            args.out,
            max_steps=args.steps,
            per_device_train_batch_size=4,
            num_images_per_prompt=4,
            num_inference_steps=10,
            num_train_steps=5,  # half of the steps, others in each update
            learning_rate=args.learning_rate,
            activation_checkpointing=not on_cpu,  # a small model fits without
            use_cpu=on_cpu,
            bf16=not on_cpu,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            **guidance,
        ),
        train_dataset=Dataset.from_dict({"prompt": args.prompts * -(-4 // len(args.prompts))}),
        peft_config=LoraConfig(r=4, lora_alpha=4),
    )
    seeds = range(len(args.prompts))
    before = trainer.sample(args.prompts, seeds)
    trainer.train()
    trainer.save_model()

    rows = {"before": before, "after": trainer.sample(args.prompts, seeds)}
    for name, images in rows.items():
        print(f"size {name}: {-compressibility(images).mean().item():.3f} kB")
    sheet = contact_sheet(
        [pictures(r) for r in rows.values()], row_labels=list(rows), col_labels=args.prompts, cell=96
    )
    sheet.save(Path(args.out) / "before-after.png")
    print(f"The sheet is {args.out}/before-after.png. Load the LoRA: pipe.load_lora_weights({args.out!r})")


if __name__ == "__main__":
    main()
