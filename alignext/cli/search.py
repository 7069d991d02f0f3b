# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext search`: the picture or video that a reward likes best. And latent search's part of the demo."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignext.cli.arguments import at_least_one, device_of, function_of, stock_class
from alignext.methods import method


if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from alignext.cli.charts import Chart
    from alignext.cli.gallery import Section, Table

_REWARDS = ("aesthetic", "brightness", "clip", "compressibility", "concept", "dynamics", "pickscore", "style")
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
        help=f"{', '.join(_REWARDS)}, or FILE.py:FUNCTION or MODULE:FUNCTION, yours, `reward(images, prompts)`. "
        "concept and style are judges of the embedded model's captions; clip, pickscore and aesthetic load a CLIP "
        "checkpoint",
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
    # Without being told so, processes on the CPU would not know of each other.
    state = PartialState(cpu=device_of(args.device).startswith("cpu"))
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
    from alignext.rewards.protocol import CheckedReward

    seen: list[list[Image]] = []

    def watched(images: torch.Tensor, prompts: list[str] | None, **kwargs: Any) -> Any:
        seen.append([_picture(image) for image in images])
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

    from alignext.cli.gallery import Figure, Section, Table, write_gallery
    from alignext.diffusion.sheets import contact_sheet
    from alignext.files import replacing

    sections = []
    for k, result in enumerate(found):
        figures, names = [], [f"{k:02d}-{i:02d}" for i in range(len(result["winners"]))]
        for name, winner, value in zip(names, result["winners"], result["rewards"], strict=True):
            figures.append(Figure(name, winner, alt=result["prompt"], caption=f"{args.reward} {value:.4g}"))
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
    with replacing(args.out / "search.json") as part:
        part.write_text(json.dumps(document, indent=1) + "\n")
    page = write_gallery(args.out, sections, title=f"Latent search for {args.reward}")
    print(f"{sum(len(result['winners']) for result in found)} results. Open {page.resolve()}")


def _reward(args: argparse.Namespace) -> Callable[..., Any]:
    """The reward of a name, or a function of the user's."""
    from alignext import rewards

    name = args.reward
    if ":" in name or name.endswith(".py"):
        return function_of(name, name="--reward")
    if name not in _REWARDS:
        raise ValueError(f"--reward must be one of {', '.join(_REWARDS)}, or FILE.py:FUNCTION, received {name!r}.")
    device = device_of(args.device)
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
        raise ValueError(f"{type(pipe).__name__} takes no {', '.join(unknown)}: leave the options of that name out.")
    return call


def _load(model: str | None = None, device: str | None = None, dtype: str | None = None) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    from alignext import mini

    device = device_of(device)
    kind = getattr(torch, dtype or ("float16" if device.startswith("cuda") else "float32"))
    if model is not None:
        stock_class(model)
    return DiffusionPipeline.from_pretrained(model or mini.path("sd"), dtype=kind).to(device)


# -------------------------------------------------------------------------------------------------------------- demo


_METHODS: dict[str, dict[str, Any]] = {
    "one sample": {"num_beams": 1, "num_candidates": 1},
    "best of 8": {"num_beams": 8, "num_candidates": 1, "strategy": "best_of_n"},
    "beam search": {"num_beams": 4, "num_candidates": 2, "lookahead_steps": 1},
}
_CLIPS = ("a rocket, ink style, moving up", "a fish, glossy style, moving left")


def demo(*, seed: int, steps: int | None) -> list["Section"]:
    """The style that a caption asks for: one sample, the best of 8, and a beam search at as many evaluations."""
    from alignext import mini
    from alignext.cli.gallery import Figure, Section
    from alignext.diffusion.sheets import contact_sheet
    from alignext.rewards import JudgeReward

    call = {"num_inference_steps": steps or 12, "guidance_scale": 5.0}
    prompts = [picture.caption for picture in mini.pictures("unseen_drawing")][:3]
    judges = JudgeReward("style"), JudgeReward("concept")
    samples, measured, course = _compare(_load(device="cpu"), prompts, *judges, seed, call)
    sheet = contact_sheet(
        [[_picture(sample) for sample in row] for row in samples], row_labels=prompts, col_labels=list(_METHODS)
    )
    caption = "Log-probabilities by two judges, means over the captions; the search saw only the first."
    pictures = Section(
        "Latent search: the style that was asked for",
        "No training: partial drawings are tried, estimated and kept or dropped while the model draws. The best of 8 "
        "costs about as much as the beam search and looks at finished drawings only.",
        figures=[Figure("search", sheet, alt="Captions by row: one sample, best of 8, beam search.")],
        charts=_charts("style log-probability", measured, course),
        tables=[_table("style", "concept", measured, caption)],
    )
    return [pictures, _video_section(seed, steps)]


def _video_section(seed: int, steps: int | None) -> "Section":
    """The same for clips, by how much moves in them."""
    from alignext import mini
    from alignext.cli.gallery import Figure, Section
    from alignext.diffusion.sheets import contact_sheet
    from alignext.rewards import JudgeReward, dynamics

    concept = JudgeReward("concept")

    def of_the_middle(clips: "torch.Tensor", prompts: list[str]) -> "torch.Tensor":
        return concept(clips[:, clips.shape[1] // 2], prompts)

    pipe = _load(str(mini.path("video")), device="cpu")
    call = {"num_inference_steps": steps or 12, **mini.VIDEO_CALL}
    samples, measured, course = _compare(pipe, list(_CLIPS), dynamics, of_the_middle, seed, call)
    frames = [
        contact_sheet(
            [[_picture(clip[k]) for clip in row] for row in samples], row_labels=_CLIPS, col_labels=list(_METHODS)
        )
        for k in range(len(samples[0][0]))
    ]
    caption = "Mean change of a pixel from frame to frame, and the log-probability of what the caption names by the "
    caption += "embedded judge, which the search did not see. Means over the captions."
    return Section(
        "Latent search: clips with more motion in them",
        "The same search on a video model.",
        figures=[Figure("search-clips", frames, alt="Captions by row: one sample, best of 8, beam search.")],
        charts=_charts("change from frame to frame", measured, course),
        tables=[_table("motion", "concept", measured, caption)],
    )


def _compare(pipe: Any, prompts: list[str], reward: Any, held_out: Any, seed: int, call: dict) -> tuple:
    """
    The three ways to spend evaluations, with the same noise.

    Returns:
        `tuple`: Samples `[prompt][method]`, rows `(method, evaluations, reward, held_out)`, and how the estimates went
        in the beam search: per scored step `(step, best, mean)`. Rewards are means over the prompts.
    """
    import torch

    from alignext import LatentSearch, SearchConfig

    pipe.set_progress_bar_config(disable=True)
    samples: list[list[torch.Tensor]] = [[] for _ in prompts]
    measured, estimates = [], []
    for name, settings in _METHODS.items():
        found = []
        for k, prompt in enumerate(prompts):
            generator = torch.Generator().manual_seed(seed + k)
            search = LatentSearch(pipe, reward, SearchConfig(**settings))
            result = search(prompt, generator=generator, output_type="pt", **call)
            samples[k].append(result[0][0])
            other = held_out(result[0][:1], [prompt]).item()
            found.append([result.nfe, result.rewards[0, 0].item(), other])
            if name == "beam search":
                estimates.append([(entry["node"] + 1, entry["rewards"][0]) for entry in result.history])
        nfe, searched, other = torch.tensor(found, dtype=torch.float64).mean(0).tolist()
        measured.append((name, round(nfe), searched, other))
    course = []
    for scored in zip(*estimates, strict=True):  # the same step of every prompt
        rewards = torch.stack([values.float() for _, values in scored])
        course.append((scored[0][0], rewards.amax(1).mean().item(), rewards.mean().item()))
    return samples, measured, course


def _charts(of: str, measured: list[tuple], course: list[tuple]) -> "list[Chart]":
    from alignext.cli.charts import Chart

    series = {name: [(nfe, searched)] for name, nfe, searched, _ in measured}
    estimates = {
        "best": [(step, best) for step, best, _ in course],
        "mean": [(step, mean) for step, _, mean in course],
    }
    return [
        Chart("What the evaluations buy", "evaluations of the denoiser", of, series, lines=False),
        Chart(
            "The beam search as it goes",
            "denoising step",
            of,
            estimates,
            caption="What the candidates of a step are estimated to become: the best of them, and their mean.",
        ),
    ]


def _table(searched: str, held_out: str, measured: list[tuple], caption: str) -> "Table":
    from alignext.cli.gallery import Table, print_table

    table = Table(("", "evaluations", f"{searched} (searched)", f"{held_out} (held out)"), measured, caption)
    print_table(table)
    return table
