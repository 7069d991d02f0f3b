# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
# More than 300 lines: a script, read from top to bottom.
r"""Latent search: what it costs beside a straightforward beam loop, and what it finds on the embedded model.

    python benchmarks/latent_search.py                    # both parts, about an hour on one CPU core
    python benchmarks/latent_search.py --part cost
    python benchmarks/latent_search.py --part effect --reward style --steps 30 --prompts 16 --methods "best of 8" \
        "beam 4 x 2" "beam 4 x 2, eta 0.6" "one path with eta 1" --suffix=-30-steps
    python benchmarks/latent_search.py --part effect --reward compressibility --steps 50 --prompts 32 --group 8 \
        --first-seed 2000 --methods "best of 8" "beam 4 x 2" "beam 2 x 2, lookahead 2" --suffix=-50-steps
    python benchmarks/latent_search.py --part cost --device cuda

Results go to `results/latent-search-*`, as JSON with a Markdown table beside it.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from alignext import LatentSearch, SearchConfig, mini
from alignext.diffusion.sheets import contact_sheet
from alignext.rewards import JudgeReward, compressibility
from common import (
    RESULTS,
    about,
    by_turns,
    clock_of,
    interval,
    median,
    parser,
    ratios,
    seconds,
    shown,
    table,
    write,
)


GUIDANCE = 5.0


def load(device: str) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(mini.path("sd")).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Rows:
    """Counts the rows that the U-Net computes, two per evaluation with guidance."""

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        self.total, forward = 0, pipe.unet.forward

        def counted(sample, *args, **kwargs):
            self.total += len(sample)
            return forward(sample, *args, **kwargs)

        pipe.unet.forward = counted


def judge(name: str, device: str) -> JudgeReward:
    reward = JudgeReward(name)
    reward.judge.model.to(device)
    return reward


REWARDS = {"style": lambda device: judge("style", device), "compressibility": lambda device: compressibility}


# -------------------------------------------------------------------------------------------------------------- cost


@torch.no_grad()
def straightforward(
    pipe: StableDiffusionPipeline, reward: Callable, prompt: str, config: SearchConfig, steps: int, z, noise
) -> tuple[float, list[list[int]]]:
    """The paper's pseudo-code: a loop over beams and candidates, each evaluated, decoded and scored by itself."""
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps, device=pipe.device)
    embeds = torch.cat(pipe.encode_prompt(prompt, pipe.device, 1, True)[::-1])
    B, K, ahead = config.num_beams, config.num_candidates, config.lookahead_steps

    def model(z, t):
        uncond, cond = pipe.unet(torch.cat([z, z]), t, encoder_hidden_states=embeds).sample.chunk(2)
        return uncond + GUIDANCE * (cond - uncond)

    def clean_and_noise(z, t):
        abar, eps = scheduler.alphas_cumprod[t], model(z, t)
        return (z - (1 - abar).sqrt() * eps) / abar.sqrt(), eps

    def score(x0):
        image = pipe.vae.decode(x0 / pipe.vae.config.scaling_factor).sample
        return reward(pipe.image_processor.postprocess(image, output_type="pt"), [prompt])[0].item()

    def look(z, t):
        points = [t * j // ahead for j in range(ahead, 0, -1)]
        for following in [*points[1:], None]:
            x0, eps = clean_and_noise(z, t)
            if following is not None:
                abar = scheduler.alphas_cumprod[following]
                z, t = abar.sqrt() * x0 + (1 - abar).sqrt() * eps, following
        return score(x0)

    beams, chosen, times = [z[b : b + 1] for b in range(B)], [], scheduler.timesteps.tolist()
    for i, t in enumerate(times[:-1]):
        candidates = []
        for b, z in enumerate(beams):
            m = model(z, t)
            for k in range(K):
                fresh = noise[i, b * K + k][None]
                candidates.append(scheduler.step(m, t, z, eta=config.eta, variance_noise=fresh).prev_sample)
        scores = [look(z, times[i + 1]) for z in candidates]
        best = sorted(range(B * K), key=lambda c: -scores[c])[:B]
        beams = [candidates[c] for c in best]
        chosen.append(best)
    return max(score(clean_and_noise(z, times[-1])[0]) for z in beams), chosen


def cost(args: argparse.Namespace) -> None:
    """Counted evaluations and seconds, by turns: ours, the straightforward loop, best-of-N at as many evaluations."""
    pipe, reward = load(args.device), judge("style", args.device)
    rows, prompt, T = Rows(pipe), mini.pictures("unseen_drawing")[0].caption, args.cost_steps
    shape, entries = (pipe.unet.config.in_channels, 8, 8), []
    for ahead in (1, 6):
        config = SearchConfig(lookahead_steps=ahead)
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(config.num_beams, *shape, generator=generator).to(args.device)
        noise = torch.randn(T, config.budget, *shape, generator=generator).to(args.device)
        call = dict(num_inference_steps=T, guidance_scale=GUIDANCE, output_type="pt", latents=z)

        def ours(config=config, call=call, noise=noise):
            search = LatentSearch(pipe, reward, config)
            return search(prompt, noise_sampler=lambda node, shape: noise[node].view(shape), **call)

        out = ours()
        evaluations = out.nfe
        tries = round(evaluations / T)

        def best_of_n(tries=tries):
            config = SearchConfig(num_beams=tries, num_candidates=1, strategy="best_of_n", model_batch_size=16)
            g = torch.Generator().manual_seed(0)
            return LatentSearch(pipe, reward, config)(
                prompt, num_inference_steps=T, guidance_scale=GUIDANCE, output_type="pt", generator=g
            )

        def loop(config=config, z=z, noise=noise):
            return straightforward(pipe, reward, prompt, config, T, z, noise)

        found, chosen = loop()
        same = chosen == [entry["parents"][0, :: config.num_candidates].tolist() for entry in out.history]
        contenders = {"alignext": ours, "straightforward loop": loop, f"best of {tries}": best_of_n}

        def turn(run: Callable) -> tuple[float, int]:
            rows.total = 0
            return seconds(run, args.device), rows.total // 2

        found_by = by_turns({name: partial(turn, run) for name, run in contenders.items()}, args.repeats)
        base = [took for took, _ in found_by["straightforward loop"]]
        for name, turns in found_by.items():
            took = [each for each, _ in turns]
            entry = {"lookahead": ahead, "what": name, "evaluations": turns[-1][1], "seconds": took}
            entries.append(entry | {"median": median(took), "over_loop": median(ratios(took, base))})
        entries[-3] |= {"same_beams_as_loop": same, "reward": out.rewards.item(), "reward_of_loop": found}
    checks = ", ".join(
        "the same" if r["same_beams_as_loop"] else "other" for r in entries if "same_beams_as_loop" in r
    )
    text = (
        f"mini-SD with guidance, {T} steps, 4 beams of 2 candidates, style judge as reward, {clock_of(args.device)}, "
        f"median of {args.repeats} runs by turns, ratios within a turn. With the same noise ours keeps, for "
        f"T' = 1 and 6, {checks} beams as the loop.\n\n"
    )
    text += table(
        ["T'", "what runs", "evaluations", "median s", "of the loop"],
        (
            [r["lookahead"], r["what"], r["evaluations"], f"{r['median']:.2f}", f"{r['over_loop']:.2f}"]
            for r in entries
        ),
    )
    name = "latent-search-cost" + ("" if args.device == "cpu" else "-cuda")
    write(name, "Latent search: cost", about(args.device, "diffusers"), {"steps": T, "rows": entries}, text)


# ------------------------------------------------------------------------------------------------------------ effect


def settings() -> dict[str, SearchConfig]:
    """As many evaluations each, within a few per cent."""
    wide = {"num_beams": 4, "num_candidates": 2, "lookahead_steps": 1}
    return {
        "best of 8": SearchConfig(**wide, strategy="best_of_n"),
        "beam 4 x 2": SearchConfig(**wide),
        "beam 4 x 2, eta 0.6": SearchConfig(**wide, eta=0.6),
        "beam 2 x 2, lookahead 2": SearchConfig(num_beams=2, num_candidates=2, lookahead_steps=2),
        "greedy 1 x 8": SearchConfig(**wide, strategy="greedy"),
        "local 4 x 2": SearchConfig(**wide, strategy="local"),
        "SMC 8": SearchConfig(**wide, strategy="smc"),
        "one path with eta 1": SearchConfig(num_beams=1, num_candidates=1, force_engine=True),
    }


@torch.no_grad()
def effect(args: argparse.Namespace, name: str) -> None:
    """Each prompt with a seed of its own: single sample, best-of-N and searches; the reward searched, and another."""
    pipe, reward, concept = load(args.device), REWARDS[name](args.device), judge("concept", args.device)
    prompts = [picture.caption for picture in mini.pictures("unseen_drawing")][: args.prompts]
    call = dict(num_inference_steps=args.steps, guidance_scale=GUIDANCE, output_type="pt")
    scores: list[dict] = []
    sheet: list[list] = [[] for _ in prompts]
    done = 0
    methods = [m for m in settings() if args.methods is None or m in args.methods]

    def record(method: str, group: range, images: torch.Tensor, nfe: int) -> None:
        texts = [prompts[i] for i in group]
        searched, shown = reward(images, texts).tolist(), concept(images, texts).exp().tolist()
        pictures = pipe.image_processor.postprocess(images * 2 - 1, output_type="pil")
        for k, i in enumerate(group):
            values = {"searched": searched[k], "concept": shown[k]}
            scores.append({"method": method, "prompt": prompts[i], "nfe": nfe / len(group)} | values)
            sheet[i].append(pictures[k])

    def run(group: range) -> None:
        """All methods on some prompts at once; a prompt's search depends on its own seed only."""

        def more() -> dict:
            seeds = [torch.Generator().manual_seed(args.first_seed + i) for i in group]
            return call | {"prompt": [prompts[i] for i in group], "generator": seeds}

        record("single sample", group, pipe(**more()).images, args.steps * len(group))
        for method in methods:
            out = LatentSearch(pipe, reward, settings()[method])(**more())
            record(method, group, out.images, out.nfe)

    start = time.perf_counter()
    for first in range(0, len(prompts), args.group):
        if args.minutes is not None and time.perf_counter() - start > 60 * args.minutes:
            break  # what is done is written, and the table says of how many prompts
        run(range(first, min(first + args.group, len(prompts))))
        done = min(first + args.group, len(prompts))
        print(f"{done} of {len(prompts)}", flush=True)
    prompts = prompts[:done]

    columns = {"searched": f"{name} (searched)", "concept": "concept (held out)"}
    names = ["single sample", *methods]

    def values(method: str, column: str) -> np.ndarray:
        return np.array([s[column] for s in scores if s["method"] == method])

    summary = {m: {c: interval(values(m, c)) for c in columns} for m in names}
    gain = {m: {c: interval(values(m, c) - values("best of 8", c)) for c in columns} for m in names}

    def lines(found: dict, of: list[str]) -> str:
        rows = ([m, f"{values(m, 'nfe').mean():.0f}", *(shown(each, ".3f") for each in found[m].values())] for m in of)
        return table(["", "evaluations", *columns.values()], rows)

    note = (
        f"mini-SD, {len(prompts)} held-out captions, one seed each, {args.steps} steps, guidance {GUIDANCE:g}, eta 1 "
        f"unless said; mean and 95 % interval of a bootstrap over prompts. Searched: {REWARD_TEXT[name]}. Held out: "
        "probability of the concept that the prompt names, by the concept judge, which no search saw. "
    )
    text = f"{note}\n\n{lines(summary, names)}\nMinus best of 8, paired by prompt:\n\n"
    text += lines(gain, [m for m in names if m != "best of 8"])
    document = {"steps": args.steps, "summary": summary, "minus_best_of_8": gain, "scores": scores}
    label = f"latent-search-effect-{name}" + args.suffix
    write(label, "Latent search: effect", about(args.device, "diffusers"), document, text)
    picture = contact_sheet(sheet[: min(done, 8)], row_labels=prompts[:8], col_labels=names, cell=96)
    picture.quantize(128).save(RESULTS / f"{label}.png", optimize=True)


REWARD_TEXT = {
    "style": "log-probability of the style that the prompt names, by the style judge",
    "compressibility": "minus the size as a JPEG, in kB",
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--part", choices=("cost", "effect"), help="default: both")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--cost-steps", type=int, default=6, help="cost only")
    options.add_argument("--repeats", type=int, default=3, help="cost only")
    options.add_argument("--reward", choices=sorted(REWARDS), help="effect only; default: both")
    options.add_argument("--steps", type=int, default=10, help="effect only")
    options.add_argument("--prompts", type=int, default=32, help="effect only: how many captions")
    options.add_argument("--group", type=int, default=4, help="effect only: captions in one batch")
    options.add_argument("--minutes", type=float, help="effect only: begin no further batch after so many")
    options.add_argument("--first-seed", type=int, default=1000, help="effect only: prompt i has this seed + i")
    options.add_argument("--methods", nargs="+", help="effect only: some of the methods")
    options.add_argument("--suffix", default="", help="effect only: ending of the result's name")
    args = options.parse_args()
    if args.part != "effect":
        cost(args)
    if args.part != "cost":
        for name in [args.reward] if args.reward else sorted(REWARDS):
            effect(args, name)


if __name__ == "__main__":
    main()
