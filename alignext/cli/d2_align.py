# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext d2-align fit`: the direction that takes a reward's own taste out of it."""

import argparse
from pathlib import Path

from alignext.cli.arguments import at_least_one, device_of, file_of, number
from alignext.cli.inputs import prompts_of
from alignext.files import check_output
from alignext.methods import method


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext d2-align`."""
    parser = subparsers.add_parser(
        "d2-align",
        help=method("D²-Align").task,
        description="Find the direction in a reward's text space along which it likes all pictures of a generator. "
        "The reward without it then trains the generator: `alignext alignprop`, or AlignPropTrainer.",
        epilog="Example: alignext d2-align fit --prompts prompts.txt --steps 20 --out unbiased",
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    fit = actions.add_parser("fit", help="draw a picture of each prompt, fit the direction, and write it")
    fit.add_argument("--model", help="folder or Hub id of the generator (default: the embedded one)")
    fit.add_argument("--reward", choices=("clip", "pickscore", "hps"), default="clip", help="(default: %(default)s)")
    fit.add_argument("--clip", help="checkpoint of the reward (default: its paper's; embedded with no --model)")
    fit.add_argument("--prompts", required=True, type=Path, help="a file with one prompt per line, 1000 to 2000")
    fit.add_argument("--guidance-scale", type=number, default=1.5, help="of the direction (default: %(default)s)")
    fit.add_argument("--fit-steps", type=at_least_one, default=2000, help="of the fit (default: %(default)s)")
    fit.add_argument("--max-norm", type=number, default=0.3, help="of the direction, 0 for no bound (default: 0.3)")
    fit.add_argument("--steps", type=at_least_one, help="of sampling a picture (default: the pipeline's)")
    fit.add_argument("--batch-size", type=at_least_one, default=8, help="pictures at once (default: %(default)s)")
    fit.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    fit.add_argument("--out", required=True, type=Path, help="folder for directional_reward.safetensors")
    fit.add_argument("--device", help="(default: cuda if there is one, else cpu)")
    fit.set_defaults(func=run_fit)


def run_fit(args: argparse.Namespace) -> None:
    """Fit, write the direction, and print what it keeps of the margin between prompts."""
    prompts = [line.strip() for line in prompts_of(args.prompts)]
    if len(set(prompts)) < 2:
        raise ValueError(
            f"--prompts {args.prompts} must have two different prompts or more, found {len(set(prompts))}."
        )
    from alignext import mini

    model, clip = args.model, args.clip
    if model is None:
        model, clip = str(mini.path("sd")), clip or (str(mini.path("clip")) if args.reward == "clip" else None)
    file_of(model, "model_index.json", name="--model", what="pipeline")
    check_output(args.out, name="--out")
    from diffusers import DiffusionPipeline

    from alignext.rewards import DirectionalReward
    from alignext.rewards.by_name import reward_of

    device = device_of(args.device)
    reward = DirectionalReward(reward_of(args.reward, clip=clip, device=device), args.guidance_scale)
    pipe = DiffusionPipeline.from_pretrained(model).to(device)
    call = {} if args.steps is None else {"num_inference_steps": args.steps}
    found = reward.fit(
        pipe,
        prompts,
        args.fit_steps,
        args.max_norm or None,
        image_batch_size=args.batch_size,
        seed=args.seed,
        **call,
    )
    reward.save_pretrained(args.out)
    print(f"cosine {found.plain_reward:.4f} -> {found.reward:.4f}: how much of the reward any prompt gets")
    print(f"margin {found.plain_margin:.4f} -> {found.margin:.4f}: own prompt less others, after {found.steps} steps")
    if found.stopped:
        print("The margin ended the fit: with more steps the reward would forget the prompts.")
    print(f'Load it: DirectionalReward.from_pretrained("{args.out}", base_reward)')
