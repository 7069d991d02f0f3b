# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Train a small text-to-image model on a reward with a gradient: how warm its pictures are.

Runs offline in about a minute on a CPU, on the model that comes with the package:

    python examples/alignprop.py
    python examples/alignprop.py --reward style --prompts "a crown, ink style" "a frog, ink style"
    python examples/alignprop.py --gradient direct_align

Any function of pictures is a reward here as long as gradients pass. With a pipeline of your own: `--model ...`. A
reward that is followed for long eats the pictures: look at the sheet, and at `diversity` in the log.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from diffusers import DiffusionPipeline
from peft import LoraConfig
from PIL.Image import Image, fromarray

from alignext import AlignPropConfig, AlignPropTrainer, mini
from alignext.diffusion.sheets import contact_sheet
from alignext.rewards import JudgeReward


def warmth(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Red minus blue, the mean over the pixels."""
    return (images[:, 0] - images[:, 2]).mean((1, 2))


warmth.differentiable = True  # gradients flow from the result to the pictures


def pictures(images: torch.Tensor) -> list[Image]:
    return [fromarray((255 * image.permute(1, 2, 0)).round().byte().cpu().numpy()) for image in images]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(mini.path("sd")), help="any pipeline of diffusers")
    parser.add_argument("--prompts", nargs="+", default=["a red apple", "a crown", "a frog", "a cloud"])
    parser.add_argument("--reward", choices=["warmth", "style", "concept"], default="warmth")
    parser.add_argument("--gradient", choices=["last_k", "direct_align"], default="last_k")
    parser.add_argument("--steps", type=int, default=20, help="updates of 4 pictures (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--out", default="alignprop", help="folder of the LoRA and the sheet")
    args = parser.parse_args()

    on_cpu = not torch.cuda.is_available()
    trainer = AlignPropTrainer(
        model=DiffusionPipeline.from_pretrained(args.model),
        reward_funcs=warmth if args.reward == "warmth" else JudgeReward(args.reward),
        args=AlignPropConfig(
            args.out,
            max_steps=args.steps,
            per_device_train_batch_size=4,
            num_inference_steps=10,
            guidance_scale=2.0,
            backprop_steps=2,  # the last two steps carry the gradient
            reward_gradient=args.gradient,
            learning_rate=args.learning_rate,
            activation_checkpointing=not on_cpu,  # a small model fits without
            use_cpu=on_cpu,
            bf16=not on_cpu,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=Dataset.from_dict({"prompt": args.prompts * -(-4 // len(args.prompts))}),
        peft_config=LoraConfig(r=4, lora_alpha=4),
    )
    seeds = range(len(args.prompts))
    before = trainer.sample(args.prompts, seeds)
    trainer.train()
    trainer.save_model()

    half, after = (trainer.sample(args.prompts, seeds, scale=scale) for scale in (0.5, 1.0))
    rows = {"before": before, "half": half, "after": after}
    for name, images in rows.items():
        rewards, _ = trainer.rewards(images, args.prompts, {})
        print(f"reward {name}: {rewards.mean().item():.3f}")
    sheet = contact_sheet(
        [pictures(r) for r in rows.values()], row_labels=list(rows), col_labels=args.prompts, cell=96
    )
    sheet.save(Path(args.out) / "before-after.png")
    print(f"The sheet is {args.out}/before-after.png. Load the LoRA: pipe.load_lora_weights({args.out!r})")


if __name__ == "__main__":
    main()
