# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext search`: the picture or video that a reward likes best."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignext.cli import pictures
from alignext.cli.arguments import at_least_one, between, device_of, number
from alignext.methods import method


if TYPE_CHECKING:
    from PIL.Image import Image

_STRATEGIES = ("beam", "greedy", "local", "smc", "best_of_n")


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext search`."""
    parser = subparsers.add_parser(
        "search",
        help=method("Latent search").task,
        description="Search a pipeline for the sample that a reward likes best, while it is being generated. Needs no "
        "training. Runs on the embedded model (64x64 drawings) unless --model names a text-to-image or text-to-video "
        "checkpoint. Ctrl-C ends a search and writes the best so far. Under `accelerate launch -m alignext search` "
        "the prompts are shared out among the processes.",
        epilog="Example: alignext search 'a red fox, flat style' --reward style --beams 4 --candidates 2 "
        "--lookahead 1 --steps 20 --out foxes",
    )
    parser.add_argument("prompt", nargs="+", help="what to make; each prompt is a search of its own")
    parser.add_argument(
        "--reward",
        required=True,
        help="aesthetic, brightness, clip, compressibility, concept, dynamics, hps, incompressibility, pickscore or "
        "style, or "
        "FILE.py:FUNCTION or MODULE:FUNCTION, yours, `reward(images, prompts)`. "
        "concept and style are judges of the embedded model's captions; clip, pickscore and aesthetic load a CLIP "
        "checkpoint",
    )
    parser.add_argument("--beams", type=at_least_one, default=4, help="samples kept per step (default: %(default)s)")
    parser.add_argument(
        "--candidates", type=at_least_one, default=2, help="noises tried per beam and step (default: %(default)s)"
    )
    parser.add_argument(
        "-n", "--outputs", type=at_least_one, default=1, help="results per prompt, at most --beams (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="prompt k uses seed + k (default: %(default)s)")
    parser.add_argument("--steps", type=at_least_one, default=50, help="denoising steps (default: %(default)s)")
    pictures.add_output_options(parser, what="the results, index.html, settings.json and search.json")
    group = parser.add_argument_group("the method")
    group.add_argument("--clip", help="checkpoint for --reward clip, pickscore or aesthetic (default: the paper's)")
    group.add_argument("--head", type=Path, help="weights of the head for --reward aesthetic")
    group.add_argument("--strategy", choices=_STRATEGIES, default="beam", help="default: %(default)s")
    group.add_argument(
        "--lookahead", type=at_least_one, default=6, help="evaluations that estimate a result (default: %(default)s)"
    )
    group.add_argument("--eta", type=between(0, 1), default=1.0, help="noise of a step, 0 to 1 (default: %(default)s)")
    group.add_argument("--noise", default="ddpm", help="kind of step, see the documentation (default: %(default)s)")
    group.add_argument("--score-every", type=at_least_one, default=1, help="steps (default: every one)")
    group.add_argument(
        "--true-cfg-scale", type=number, help="Flux, Qwen-Image: two calls a step, from 1 (off) up (default: by model)"
    )
    group.add_argument("--frames", type=at_least_one, help="videos: how many (default: the pipeline's)")
    group.add_argument("--model-batch-size", type=at_least_one, help="rows of one model call, to save memory")
    group.add_argument("--scheduler", help="such as ddim or lcm, if it goes with the model (default: its own)")
    pictures.add_model_options(parser, model="a text-to-image or text-to-video checkpoint", dtype="float16")
    parser.set_defaults(func=run, parser=parser, words_of=pictures.WORDS)


def run(args: argparse.Namespace) -> None:
    """Search, and write winners, the beams over time, and the history."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    from alignext import SearchConfig
    from alignext.demos.gallery import claim_folder
    from alignext.rewards.by_name import reward_of

    config = SearchConfig(
        num_beams=args.beams,
        num_candidates=args.candidates,
        lookahead_steps=args.lookahead,
        strategy=args.strategy,
        eta=args.eta,
        noise=args.noise,
        score_every=args.score_every,
        model_batch_size=args.model_batch_size,
    )
    # Without being told so, processes on the CPU would not know of each other.
    state = PartialState(cpu=device_of(args.device).startswith("cpu"))
    if state.is_main_process:
        args.out = claim_folder(args.out, overwrite=args.overwrite)
    device = device_of(args.device)
    reward = reward_of(args.reward, prompts=args.prompt, clip=args.clip, head=args.head, device=device)
    pipe = pictures.load(args, "sd")
    pictures.set_scheduler(pipe, args.scheduler)
    call = _call(args, pipe)
    with state.split_between_processes(list(enumerate(args.prompt))) as mine:
        found = [_search(pipe, reward, config, prompt, args.seed + k, call) | {"number": k} for k, prompt in mine]
    found = sorted(gather_object(found), key=lambda result: result["number"])
    if state.is_main_process:
        _write(args, config, found)


def _search(pipe: Any, reward: Callable[..., Any], config: Any, prompt: str, seed: int, call: dict) -> dict[str, Any]:
    """One prompt: its winners, the history, and per scored node the survivors' pictures."""
    import torch

    from alignext import LatentSearch
    from alignext.demos.gallery import middle_frame
    from alignext.rewards.protocol import CheckedReward

    seen: list[list[Image]] = []

    def watched(images: torch.Tensor, prompts: list[str] | None, **kwargs: Any) -> Any:
        seen.append([middle_frame(image) for image in images])
        return CheckedReward.of(reward)(images, prompts, **kwargs)

    watched.input_type = getattr(reward, "input_type", "image")  # ty: ignore[missing-attribute]
    search = LatentSearch(pipe, watched, config)
    out = search(prompt, generator=torch.Generator().manual_seed(seed), **call)
    candidates = config.shape[1]
    kept = [
        [pictures[i] for i in dict.fromkeys(entry["parents"][0, ::candidates].tolist())]
        for pictures, entry in zip(seen, out.history, strict=False)
    ]
    history = [entry | {key: entry[key][0].tolist() for key in ("rewards", "parents")} for entry in out.history]
    return {
        "prompt": prompt,
        "seed": seed,
        "rewards": out.rewards[0].tolist(),
        "nfe": out.nfe,
        "reward_evals": out.reward_evals,
        "interrupted": out.interrupted,
        "history": history,
        "winners": list(out[0]),
        "kept": kept,
    }


def _write(args: argparse.Namespace, config: Any, found: list[dict[str, Any]]) -> None:
    from dataclasses import asdict

    from alignext.demos.gallery import Figure, Section, Table
    from alignext.diffusion.sheets import contact_sheet
    from alignext.files import write_json

    sections, settings = [], pictures.settings_of(args)
    for k, result in enumerate(found):
        figures, names = [], [f"{k:02d}-{i:02d}" for i in range(len(result["winners"]))]
        for name, winner, value in zip(names, result["winners"], result["rewards"], strict=True):
            figures.append(Figure(name, winner, result["prompt"], f"{args.reward} {value:.4g}", settings))
        if result["kept"]:
            step = -(-len(result["kept"]) // 8)
            rows = list(range(len(result["kept"])))[::-step][::-1]
            sheet = contact_sheet(
                [result["kept"][i] for i in rows],
                row_labels=[f"step {result['history'][i]['node'] + 1}" for i in rows],
                cell=96,
            )
            caption = "What the survivors of each step were estimated to become, best first."
            figures.append(Figure(f"{k:02d}-beams", sheet, alt="The beams over time.", caption=caption))
        text = "Interrupted: the best so far." if result["interrupted"] else ""
        table = Table(
            ("evaluations", "samples scored", args.reward),
            [(result["nfe"], result["reward_evals"], result["rewards"][0])],
        )
        sections.append(Section(result["prompt"], text, figures, tables=[table]))
    document = {"config": asdict(config), "reward": args.reward, "steps": args.steps, "results": []}
    document["results"] = [{k: v for k, v in r.items() if k not in ("winners", "kept", "number")} for r in found]
    write_json(args.out / "search.json", document)
    made = pictures.count(sum(len(result["winners"]) for result in found), "result")
    pictures.finish(args, sections, made, title=f"Latent search for {args.reward}")


def _call(args: argparse.Namespace, pipe: Any) -> dict[str, Any]:
    """The arguments of the pipeline's call that were given."""
    import inspect

    taken = inspect.signature(pipe.__call__).parameters
    guidance = 5.0 if args.model is None else None
    count = next((name for name in ("num_images_per_prompt", "num_videos_per_prompt") if name in taken), None)
    call = {
        "num_inference_steps": args.steps,
        "guidance_scale": guidance if args.guidance_scale is None else args.guidance_scale,
        "true_cfg_scale": args.true_cfg_scale,
        "negative_prompt": args.negative_prompt,
        **pictures.size_of(args),
        next((name for name in ("num_frames", "video_length") if name in taken), "num_frames"): args.frames,
    }
    call = {name: value for name, value in call.items() if value is not None}
    if args.outputs > 1:
        if count is None:
            raise ValueError(f"{type(pipe).__name__} returns one result per prompt: leave --outputs out.")
        call[count] = args.outputs
    if unknown := sorted(call.keys() - taken.keys()):
        raise ValueError(f"{type(pipe).__name__} takes no {', '.join(unknown)}: leave the options of that name out.")
    pictures.check_negative_prompt(pipe, call)
    if call.get("true_cfg_scale", 1) > 1:
        call.setdefault("negative_prompt", "")  # without one, stock calls leave that guidance out
    return call
