# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latent search: what it costs beside a straightforward beam loop, and what it finds on the embedded model.

    python benchmarks/latent_search.py                    # both parts, about 30 minutes on one CPU core
    python benchmarks/latent_search.py --part cost
    python benchmarks/latent_search.py --part effect --reward style
    python benchmarks/latent_search.py --part cost --device cuda

Results go to `results/latent-search-*`, as JSON with a Markdown table beside it.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

import alignext
from alignext import LatentSearch, SearchConfig, mini
from alignext.cli.gallery import contact_sheet
from alignext.rewards import JudgeReward, compressibility


RESULTS = Path(__file__).parent / "results"
GUIDANCE = 5.0


def about(args: argparse.Namespace) -> dict:
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU, 1 thread"
    return {
        "date": date.today().isoformat(),
        "device": device,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "alignext": alignext.__version__,
    }


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
    clock = time.perf_counter if args.device == "cuda" else time.process_time
    shape, table = (pipe.unet.config.in_channels, 8, 8), []
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
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        counted = {}
        for _ in range(args.repeats):
            for name, run in contenders.items():
                rows.total = 0
                start = clock()
                run()
                seconds[name].append(clock() - start)
                counted[name] = rows.total // 2
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name in contenders:
            entry = {"lookahead": ahead, "what": name, "evaluations": counted[name], "seconds": seconds[name]}
            entry |= {"median": medians[name], "over_loop": medians[name] / medians["straightforward loop"]}
            table.append(entry)
            print(entry, flush=True)
        table[-3] |= {"same_beams_as_loop": same, "reward": out.rewards.item(), "reward_of_loop": found}
    lines = [
        "| T' | what runs | evaluations | median s | of the loop |",
        "|---|---|---|---|---|",
        *(
            f"| {r['lookahead']} | {r['what']} | {r['evaluations']} | {r['median']:.2f} | {r['over_loop']:.2f} |"
            for r in table
        ),
    ]
    what = "wall time" if args.device == "cuda" else "processor time of one thread"
    checks = ", ".join("the same" if r["same_beams_as_loop"] else "other" for r in table if "same_beams_as_loop" in r)
    note = (
        f"mini-SD with guidance, {T} steps, 4 beams of 2 candidates, style judge as reward, {what}, median of "
        f"{args.repeats} runs by turns. With the same noise ours keeps, for T' = 1 and 6, {checks} beams as the loop. "
    )
    write("latent-search-cost" + ("" if args.device == "cpu" else "-cuda"), "Latent search: cost",
          about(args) | {"steps": T, "rows": table}, note, lines)  # fmt: skip


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


def interval(values: np.ndarray, draws: int = 10_000) -> tuple[float, float, float]:
    """Mean and 95 % interval of a bootstrap over prompts."""
    picks = np.random.default_rng(0).integers(0, len(values), (draws, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return values.mean().item(), low.item(), high.item()


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

    def shown(triple: tuple[float, float, float]) -> str:
        return "{:.3f} ({:.3f} to {:.3f})".format(*triple)

    summary = {m: {c: interval(values(m, c)) for c in columns} for m in names}
    gain = {m: {c: interval(values(m, c) - values("best of 8", c)) for c in columns} for m in names}
    head = ["| | evaluations | " + " | ".join(columns.values()) + " |", "|---|---|" + "---|" * len(columns)]

    def lines(table: dict, of: list[str]) -> list[str]:
        return [
            f"| {m} | {values(m, 'nfe').mean():.0f} | " + " | ".join(map(shown, table[m].values())) + " |" for m in of
        ]

    table = [*head, *lines(summary, names), "", "Minus best of 8, paired by prompt:", "", *head]
    table += lines(gain, [m for m in names if m != "best of 8"])
    note = (
        f"mini-SD, {len(prompts)} held-out captions, one seed each, {args.steps} steps, guidance {GUIDANCE:g}, eta 1 "
        f"unless said; mean and 95 % interval of a bootstrap over prompts. Searched: {REWARD_TEXT[name]}. Held out: "
        "probability of the concept that the prompt names, by the concept judge, which no search saw. "
    )
    document = about(args) | {"steps": args.steps, "summary": summary, "minus_best_of_8": gain}
    label = f"latent-search-effect-{name}" + args.suffix
    write(label, "Latent search: effect", document | {"scores": scores}, note, table)
    picture = contact_sheet(sheet[: min(done, 8)], row_labels=prompts[:8], col_labels=names, cell=96)
    picture.quantize(128).save(RESULTS / f"{label}.png", optimize=True)


REWARD_TEXT = {
    "style": "log-probability of the style that the prompt names, by the style judge",
    "compressibility": "minus the size as a JPEG, in kB",
}


def write(name: str, title: str, document: dict, note: str, table: list[str]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    made = ", ".join(f"{key} {document[key]}" for key in ("device", "torch", "diffusers", "alignext", "date"))
    text = "\n".join([f"# {title}", "", note + made + ".", "", *table, ""])
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("cost", "effect"), help="default: both")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cost-steps", type=int, default=10, help="cost only")
    parser.add_argument("--repeats", type=int, default=3, help="cost only")
    parser.add_argument("--reward", choices=sorted(REWARDS), help="effect only; default: both")
    parser.add_argument("--steps", type=int, default=20, help="effect only")
    parser.add_argument("--prompts", type=int, default=40, help="effect only: how many captions")
    parser.add_argument("--group", type=int, default=4, help="effect only: captions in one batch")
    parser.add_argument("--minutes", type=float, help="effect only: begin no further batch after so many")
    parser.add_argument("--first-seed", type=int, default=1000, help="effect only: prompt i has this seed + i")
    parser.add_argument("--methods", nargs="+", help="effect only: some of the methods")
    parser.add_argument("--suffix", default="", help="effect only: ending of the result's name")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.part != "effect":
        cost(args)
    if args.part != "cost":
        for name in [args.reward] if args.reward else sorted(REWARDS):
            effect(args, name)


if __name__ == "__main__":
    main()
