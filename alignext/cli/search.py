# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext search`: the picture or video that a reward likes best. And latent search's part of the demo."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignext.cli.arguments import at_least_one


if TYPE_CHECKING:
    from PIL.Image import Image

    from alignext.cli.gallery import Section

_REWARDS = ("aesthetic", "brightness", "clip", "compressibility", "concept", "dynamics", "pickscore", "style")
_STRATEGIES = ("beam", "greedy", "local", "smc", "best_of_n")


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext search`."""
    parser = subparsers.add_parser(
        "search",
        help="find the picture or video that a reward likes best",
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
        help=f"{', '.join(_REWARDS)}, or MODULE:NAME of a function of your own, `reward(images, prompts)`. concept "
        "and style are judges of the embedded model's captions; clip, pickscore and aesthetic load a CLIP checkpoint",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, index.html and search.json")
    parser.add_argument("--model", help="a checkpoint of diffusers: folder or Hub id (default: embedded)")
    parser.add_argument("--clip", help="checkpoint for --reward clip, pickscore or aesthetic (default: the paper's)")
    parser.add_argument("--head", type=Path, help="weights of the head for --reward aesthetic")
    parser.add_argument("--strategy", choices=_STRATEGIES, default="beam", help="default: %(default)s")
    parser.add_argument("--beams", type=at_least_one, default=4, help="samples kept per step (default: %(default)s)")
    parser.add_argument(
        "--candidates", type=at_least_one, default=2, help="noises tried per beam and step (default: %(default)s)"
    )
    parser.add_argument(
        "--lookahead", type=at_least_one, default=6, help="evaluations that estimate a result (default: %(default)s)"
    )
    parser.add_argument("--eta", type=float, default=1.0, help="noise of a step, 0 to 1 (default: %(default)s)")
    parser.add_argument("--noise", default="ddpm", help="kind of step, see the documentation (default: %(default)s)")
    parser.add_argument("--score-every", type=at_least_one, default=1, help="steps (default: every one)")
    parser.add_argument(
        "-n", "--outputs", type=at_least_one, default=1, help="results per prompt, at most --beams (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="prompt k uses seed + k (default: %(default)s)")
    parser.add_argument("--steps", type=at_least_one, default=50, help="denoising steps (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, help="default: the pipeline's; 5 for the embedded model")
    parser.add_argument("--negative-prompt", help="what not to make")
    parser.add_argument("--height", type=at_least_one, help="pixels (default: as the model was trained)")
    parser.add_argument("--width", type=at_least_one, help="pixels (default: as the model was trained)")
    parser.add_argument("--frames", type=at_least_one, help="videos: how many (default: the pipeline's)")
    parser.add_argument("--model-batch-size", type=at_least_one, help="rows of one model call, to save memory")
    parser.add_argument("--device", help="for example cuda (default: cuda where there is one, else cpu)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: float16 on cuda")
    parser.add_argument("--overwrite", action="store_true", help="also write into a folder with other files in it")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    """Search, and write winners, the beams over time, and the history."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    from alignext import SearchConfig
    from alignext.cli.gallery import claim_folder

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
    state = PartialState(cpu=args.device == "cpu")
    if state.is_main_process:
        claim_folder(args.out, overwrite=args.overwrite)
    reward = _reward(args)
    pipe = _load(args.model, args.device, args.dtype)
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
    from alignext.search.rewarding import call as call_reward

    seen: list[list[Image]] = []

    def watched(images: torch.Tensor, prompts: list[str] | None, **kwargs: Any) -> Any:
        seen.append([_picture(image) for image in images])
        return call_reward(reward, images, prompts, **kwargs)

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
        "interrupted": bool(out.get("interrupted", False)),
        "history": history,
        "winners": list(out[0]),
        "kept": kept,
    }


def _picture(image: Any) -> "Image":
    """A picture, or the middle frame of a video, from a tensor in [0, 1]."""
    from PIL import Image

    frame = image if image.ndim == 3 else image[len(image) // 2]
    if frame.shape[0] != 3:  # a reward of latents
        frame = frame[:1].expand(3, -1, -1).sigmoid()
    return Image.fromarray((frame.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def _write(args: argparse.Namespace, config: Any, found: list[dict[str, Any]]) -> None:
    from dataclasses import asdict

    from alignext.cli.gallery import Figure, Section, Table, contact_sheet, write_gallery

    sections = []
    for k, result in enumerate(found):
        figures, names = [], [f"{k:02d}-{i:02d}" for i in range(len(result["winners"]))]
        for name, winner, value in zip(names, result["winners"], result["rewards"], strict=True):
            video = isinstance(winner, list)
            if video:
                winner[0].save(args.out / f"{name}.gif", save_all=True, append_images=winner[1:], duration=125, loop=0)
            still = winner[len(winner) // 2] if video else winner
            note = f"; the video is {name}.gif" if video else ""
            figures.append(Figure(name, still, alt=result["prompt"], caption=f"{args.reward} {value:.4g}{note}"))
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
        sections.append(Section(result["prompt"], text, figures, [table]))
    document = {"config": asdict(config), "reward": args.reward, "steps": args.steps, "results": []}
    document["results"] = [{k: v for k, v in r.items() if k not in ("winners", "kept", "number")} for r in found]
    (args.out / "search.json").write_text(json.dumps(document, indent=1) + "\n")
    page = write_gallery(args.out, sections, title=f"Latent search for {args.reward}")
    print(f"{sum(len(result['winners']) for result in found)} results. Open {page.resolve()}")


def _reward(args: argparse.Namespace) -> Callable[..., Any]:
    """The reward of a name, or of MODULE:NAME."""
    from importlib import import_module

    from alignext import rewards

    name = args.reward
    if ":" in name:
        module, _, attribute = name.partition(":")
        return getattr(import_module(module), attribute)
    if name not in _REWARDS:
        raise ValueError(f"--reward must be one of {', '.join(_REWARDS)}, or MODULE:NAME, received {name!r}.")
    device = args.device or _default_device()
    clip = {"model": args.clip} if args.clip else {}
    if name == "clip":
        return rewards.CLIPReward(**clip, device=device)
    if name == "pickscore":
        return rewards.PickScoreReward(**clip, device=device)
    if name == "aesthetic":
        if args.head is None:
            raise ValueError("--reward aesthetic needs --head: the file with the weights of the linear head.")
        return rewards.AestheticReward(args.head, *clip.values())
    if name in ("concept", "style"):
        reward = rewards.JudgeReward(name)
        for prompt in args.prompt:
            reward.label(prompt)
        return reward
    return getattr(rewards, name)


def _call(args: argparse.Namespace, pipe: Any) -> dict[str, Any]:
    """The arguments of the pipeline's call that were given."""
    import inspect

    taken = inspect.signature(pipe.__call__).parameters
    guidance = 5.0 if args.model is None else None
    count = next((name for name in ("num_images_per_prompt", "num_videos_per_prompt") if name in taken), None)
    call = {
        "num_inference_steps": args.steps,
        "guidance_scale": guidance if args.guidance_scale is None else args.guidance_scale,
        "negative_prompt": args.negative_prompt,
        "height": args.height,
        "width": args.width,
        next((name for name in ("num_frames", "video_length") if name in taken), "num_frames"): args.frames,
    }
    call = {name: value for name, value in call.items() if value is not None}
    if args.outputs > 1:
        if count is None:
            raise ValueError(f"{type(pipe).__name__} returns one result per prompt: leave --outputs out.")
        call[count] = args.outputs
    if unknown := sorted(call.keys() - taken.keys()):
        raise ValueError(f"{type(pipe).__name__} takes no {', '.join(unknown)}.")
    return call


def _load(model: str | None = None, device: str | None = None, dtype: str | None = None) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    from alignext import mini

    device = device or _default_device()
    kind = getattr(torch, dtype or ("float16" if device.startswith("cuda") else "float32"))
    return DiffusionPipeline.from_pretrained(model or mini.path("sd"), dtype=kind).to(device)


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# -------------------------------------------------------------------------------------------------------------- demo


def demo(out: Path, *, seed: int, steps: int | None) -> "list[Section]":
    """The style that a caption asks for: one sample, the best of 8, and a beam search at as many evaluations."""
    import torch

    from alignext import LatentSearch, SearchConfig, mini
    from alignext.cli.gallery import Figure, Section, Table, contact_sheet
    from alignext.rewards import JudgeReward

    steps = steps or 12
    pipe = _load(device="cpu")
    pipe.set_progress_bar_config(disable=True)
    reward, held_out = JudgeReward("style"), JudgeReward("concept")
    prompts = [picture.caption for picture in mini.pictures("unseen_drawing")][:3]
    methods = {
        "one sample": SearchConfig(num_beams=1, num_candidates=1),
        "best of 8": SearchConfig(num_beams=8, num_candidates=1, strategy="best_of_n"),
        "beam search": SearchConfig(num_beams=4, num_candidates=2, lookahead_steps=1),
    }
    rows: list[list[Image]] = [[] for _ in prompts]
    measured = []
    for name, config in methods.items():
        searched = other = nfe = 0.0
        for k, prompt in enumerate(prompts):
            generator = torch.Generator().manual_seed(seed + k)
            result = LatentSearch(pipe, reward, config)(
                prompt, num_inference_steps=steps, guidance_scale=5.0, generator=generator, output_type="pt"
            )
            rows[k].append(_picture(result.images[0]))
            searched += result.rewards.item() / len(prompts)
            other += held_out(result.images, [prompt]).item() / len(prompts)
            nfe += result.nfe / len(prompts)
        measured.append((name, round(nfe), searched, other))
        print(f"search, {name}: style {searched:.3f}, concept {other:.3f}, {nfe:.0f} evaluations")
    sheet = contact_sheet(rows, row_labels=prompts, col_labels=list(methods))
    table = Table(
        ("", "evaluations", "style (searched)", "concept (held out)"),
        measured,
        "Log-probabilities by two judges, means over the captions; the search saw only the first.",
    )
    return [
        Section(
            "Latent search: the style that was asked for",
            "No training: partial drawings are tried, estimated and kept or dropped while the model draws.",
            figures=[Figure("search", sheet, alt="Captions by row: one sample, best of 8, beam search.")],
            tables=[table],
            commands=[f"alignext demo search --seed {seed} --steps {steps}"],
        )
    ]
