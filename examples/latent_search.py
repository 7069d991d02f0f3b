# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latent search: a reward of one's own, a video or picture model, and the best of what the beams found. Runs offline.

python examples/latent_search.py
python examples/latent_search.py --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --prompt "a cat runs" --reward dynamics
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from alignext import LatentSearch, SearchConfig, WeightedReward, mini, rewards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=mini.path("sd"), help="a text-to-image or text-to-video checkpoint")
    parser.add_argument("--prompt", default="a red fox, flat style")
    parser.add_argument("--reward", choices=("compressibility", "dynamics"), default="compressibility")
    parser.add_argument("--beams", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=2)
    parser.add_argument("--lookahead", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="50 or so for a picture worth looking at")
    parser.add_argument("--out", type=Path, default=Path("search-example"))
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    pipe = DiffusionPipeline.from_pretrained(args.model, dtype=dtype).to(device)

    # Any function `(images or videos in [0, 1], prompts) -> one number each` is a reward; larger is better.
    def darkness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return -rewards.brightness(images)

    reward = WeightedReward(
        {args.reward: getattr(rewards, args.reward), "darkness": darkness}, {args.reward: 1.0, "darkness": 0.5}
    )
    config = SearchConfig(num_beams=args.beams, num_candidates=args.candidates, lookahead_steps=args.lookahead)
    search = LatentSearch(pipe, reward, config)
    result = search(args.prompt, num_inference_steps=args.steps, generator=torch.Generator().manual_seed(0))

    args.out.mkdir(parents=True, exist_ok=True)
    best = result[0][0]
    if isinstance(best, list):  # the frames of a video
        best[0].save(args.out / "best.gif", save_all=True, append_images=best[1:], duration=125, loop=0)
    else:
        best.save(args.out / "best.png")
    first, last = (entry["rewards"].max().item() for entry in (result.history[0], result.history[-1]))
    print(f"Reward {result.rewards.item():.3f} after {result.nfe} evaluations (estimates: {first:.3f}, {last:.3f})")
    print(f"Wrote the best to {args.out.resolve()}")


if __name__ == "__main__":
    main()
