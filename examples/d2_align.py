# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Take a reward's own taste out of it, train a model on what is left, and see what became of its diversity.

Runs offline in a few minutes on a CPU, on the models that come with the package:

    python examples/d2_align.py
    python examples/d2_align.py --model stable-diffusion-v1-5/stable-diffusion-v1-5 --clip yuvalkirstain/PickScore_v1
"""

import argparse

from datasets import Dataset
from diffusers import DiffusionPipeline
from peft import LoraConfig

from alignext import (
    AlignPropConfig,
    AlignPropTrainer,
    DirectionalReward,
    DiversityEvaluator,
    RewardHackingCallback,
    mini,
    reward_vs_scale,
)
from alignext.rewards import CLIPReward


PROMPTS = ["a red fox", "a rocket", "a crown", "a frog", "a tractor", "a violin", "an umbrella", "a snail"]


def main() -> None:
    """Fit the direction, train with it, and sweep the weight of the LoRA."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(mini.path("sd")))
    parser.add_argument("--clip", default=str(mini.path("clip")), help="the reward's checkpoint")
    parser.add_argument("--steps", type=int, default=12, help="updates (default: %(default)s)")
    parser.add_argument("--inference-steps", type=int, default=8)
    parser.add_argument("--plain", action="store_true", help="train on the plain reward")
    parser.add_argument("--output-dir", default="d2-align")
    args = parser.parse_args()

    pipe = DiffusionPipeline.from_pretrained(args.model)
    clip = CLIPReward(args.clip)
    reward = DirectionalReward(clip)
    if not args.plain:
        found = reward.fit(pipe, PROMPTS, num_inference_steps=args.inference_steps)
        print(f"Cosine of all pictures {found.plain_reward:.3f} -> {found.reward:.3f}, ", end="")
        print(f"margin between prompts {found.plain_margin:.3f} -> {found.margin:.3f} after {found.steps} steps")
        reward.save_pretrained(args.output_dir)

    trainer = AlignPropTrainer(
        pipe,
        reward_funcs=reward,
        args=AlignPropConfig(
            output_dir=args.output_dir,
            max_steps=args.steps,
            num_inference_steps=args.inference_steps,
            backprop_steps=1,
            learning_rate=3e-3,
            logging_steps=4,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        peft_config=LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]),
    )
    # The plain reward is the one to watch: both trainings can be compared by it.
    seen = {
        "prompts": PROMPTS[:4],
        "reward": clip,
        "evaluator": DiversityEvaluator(clip.encode_image),
        "num_images": 3,
    }
    trainer.add_callback(RewardHackingCallback(trainer, **seen, every=max(1, args.steps // 2)))
    trainer.train()
    print(reward_vs_scale(trainer, **seen, scales=(0.0, 0.5, 1.0)))


if __name__ == "__main__":
    main()
