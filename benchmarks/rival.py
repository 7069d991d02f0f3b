# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
# More than 300 lines: a script, read from top to bottom.
"""RIVAL: what it costs, and what it does to held-out drawings on the embedded model.

    python benchmarks/rival.py                    # all parts, about 20 minutes on one CPU core
    python benchmarks/rival.py --part cost
    python benchmarks/rival.py --part effect --guidance 2
    python benchmarks/rival.py --part cost --device cuda --model-shape sdxl --dtype float16

The shapes `sd15` and `sdxl` are U-Nets of those architectures with random weights: they tell the cost, not the effect.
Results go to `results/rival-cost*` and `results/rival-effect*`, as JSON with a Markdown table beside it; the picture
of the three thresholds is `docs/assets/rival-knobs.png`.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.models.attention_processor import Attention

import alignext
from alignext import RIVALPipeline, RIVALXLPipeline, hub, mini
from alignext.diffusion.sheets import contact_sheet
from alignext.mini.judges import Judge, palette_overlap
from common import ASSETS, RESULTS, about, clock_of, interval, median, parser, ratios, shown, table, timed, write
from shapes import random_pipeline


GUIDANCE = 5.0  # the preset's


# -------------------------------------------------------------------------------------------------------------- cost


class Workload:
    """Embeddings and a clean latent, so that what is timed is the U-Net's loop and nothing else."""

    def __init__(self, args: argparse.Namespace) -> None:
        dtype = getattr(torch, args.dtype)
        if args.model_shape == "mini":
            self.pipe = RIVALPipeline.from_pretrained(mini.path("sd"), dtype=dtype)
        else:
            cls = RIVALXLPipeline if args.model_shape == "sdxl" else RIVALPipeline
            self.pipe = random_pipeline(cls, args.model_shape, dtype)
        self.pipe.to(args.device)
        self.pipe.set_progress_bar_config(disable=True)
        self.stock = hub.stock_class(self.pipe)(**self.pipe.components, **self._flags())
        self.stock.set_progress_bar_config(disable=True)
        config, self.steps = self.pipe.unet.config, args.steps
        generator = torch.Generator().manual_seed(0)

        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(args.device, dtype)

        side = (args.size or config.sample_size * self.pipe.vae_scale_factor) // self.pipe.vae_scale_factor
        self.clean = randn(1, config.in_channels, side, side)
        length = 77 if args.model_shape != "mini" else self.pipe.tokenizer.model_max_length
        names = ["prompt_embeds", "negative_prompt_embeds"]
        self.embeds = {name: randn(1, length, config.cross_attention_dim) for name in names}
        if args.model_shape == "sdxl":
            self.embeds |= {f"{name.replace('prompt', 'pooled_prompt')}": randn(1, 1280) for name in names}
        self.rows = 0
        self.pipe.unet.conv_in.register_forward_pre_hook(self._count)

    def _flags(self) -> dict:
        return {} if isinstance(self.pipe, RIVALXLPipeline) else {"requires_safety_checker": False}

    def _count(self, layer: torch.nn.Module, args: tuple) -> None:
        self.rows += len(args[0])

    def null(self) -> dict:
        """Embeddings with which the reference's prompt is the null prompt."""
        names = {name: f"negative_{name}" for name in self.embeds if not name.startswith("negative")}
        return self.embeds | {name: self.embeds[negative] for name, negative in names.items()}

    def invert(self, embeds: dict) -> alignext.RIVALInversion:
        return self.pipe.invert(None, None, self.steps, latents=self.clean, **embeds)

    def call(self, n: int) -> dict:
        return dict(
            prompt=None,
            num_images_per_prompt=n,
            num_inference_steps=self.steps,
            guidance_scale=GUIDANCE,
            height=self.clean.shape[-2] * self.pipe.vae_scale_factor,
            width=self.clean.shape[-1] * self.pipe.vae_scale_factor,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
            **self.embeds,
        )

    def contenders(self, n: int) -> dict[str, Callable[[], object]]:
        ready = self.invert(self.null())
        return {
            "stock text-to-image": lambda: self.stock(**self.call(n)),
            "ours, null reference prompt": lambda: self.pipe(inversion=self.invert(self.null()), **self.call(n)),
            "ours, reference prompt": lambda: self.pipe(inversion=self.invert(self.embeds), **self.call(n)),
            "ours, inversion reused": lambda: self.pipe(inversion=ready, **self.call(n)),
            "joint batch": lambda: joint_batch(self, self.invert(self.embeds), n),
        }

    def expected_rows(self, name: str, n: int) -> int:
        t = self.steps
        return {
            "stock text-to-image": 2 * n * t,
            "ours, null reference prompt": t + (1 + 2 * n) * t,
            "ours, reference prompt": t + (2 + 2 * n) * t,
            "ours, inversion reused": (1 + 2 * n) * t,
            "joint batch": t + (2 + 2 * n) * t,
        }[name]


class JointAttention:
    """The straightforward way: rows [R, G_1 .. G_N] per branch in one batch, every key and value of it computed."""

    def __init__(self, branch: int) -> None:
        self.branch, self.mode = branch, "plain"

    def __call__(self, attn: Attention, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        q, k, v = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        reference = torch.arange(len(q), device=q.device) // self.branch * self.branch
        k_R, v_R = k[reference], v[reference]
        if self.mode == "concat":
            k, v = torch.cat([k_R, k], 2), torch.cat([v_R, v], 2)
        elif self.mode == "replace":
            k, v = k_R, v_R
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


@torch.no_grad()
def joint_batch(work: Workload, inversion: alignext.RIVALInversion, n: int) -> torch.Tensor:
    """RIVAL as one would write it down: its own loop over a joint batch."""
    pipe, embeds = work.pipe, work.embeds
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(work.steps)
    generator = torch.Generator().manual_seed(0)
    z_T = inversion.latents[-1]
    side = z_T.shape[-2:]
    x = [z_T[0].flatten(1)[:, torch.randperm(side[0] * side[1], generator=generator).to(z_T.device)] for _ in range(n)]
    x = torch.stack(x).view(n, -1, *side).to(pipe.unet.dtype)

    def rows(name: str) -> torch.Tensor:
        return torch.cat([embeds[f"negative_{name}"]] * (1 + n) + [embeds[name]] * (1 + n))

    conditions = {"encoder_hidden_states": rows("prompt_embeds")}
    if "pooled_prompt_embeds" in embeds:
        pixels = [s * pipe.vae_scale_factor for s in side]
        ids = torch.tensor([[*pixels, 0, 0, *pixels]], device=x.device, dtype=x.dtype).repeat(2 * (1 + n), 1)
        conditions["added_cond_kwargs"] = {"text_embeds": rows("pooled_prompt_embeds"), "time_ids": ids}
    processor = JointAttention(1 + n)
    layers = {m: m.processor for name, m in pipe.unet.named_modules() if name.endswith("attn1")}
    for layer in layers:
        layer.set_processor(processor)
    for i, t in enumerate(scheduler.timesteps):
        processor.mode = "concat" if t - 1 <= 600 else "replace"
        batch = torch.cat([inversion.latents[work.steps - i].to(x.dtype), x])
        uncond, cond = pipe.unet(torch.cat([batch, batch]), t, **conditions).sample.chunk(2)
        e_R, e_G = cond[:1].float(), (uncond + GUIDANCE * (cond - uncond))[1:].float()
        if t > 600:
            var_G, mu_G = torch.var_mean(e_G, (2, 3), keepdim=True)
            var_R, mu_R = torch.var_mean(e_R, (2, 3), keepdim=True)
            e_G = (e_G - mu_G) * ((var_R + 1e-5) / (var_G + 1e-5)).sqrt() + mu_R
        x = scheduler.step(e_G.to(x.dtype), t, x).prev_sample
    for layer, kept in layers.items():
        layer.set_processor(kept)
    return x


def cost(args: argparse.Namespace) -> None:
    """Counted rows of the U-Net, and seconds, by turns: ours, stock, and the joint batch."""
    work, rows = Workload(args), []
    for n in args.images:
        contenders = work.contenders(n)
        counted, agreement = {}, None
        for name, run in contenders.items():  # which also warms up
            work.rows = 0
            result = run()
            counted[name] = work.rows
            assert work.rows == work.expected_rows(name, n), f"{name}, N = {n}: {work.rows} rows"
            if name == "ours, reference prompt":
                agreement = result.images
        difference = (result - agreement).abs().max().item()  # the joint batch came last
        times = timed(contenders, args.repeats, args.device)
        for name, values in times.items():
            rows.append(
                {
                    "images": n,
                    "what": name,
                    "unet_rows": counted[name],
                    "seconds": values,
                    "median": median(values),
                    "over_stock": median(ratios(values, times["stock text-to-image"])),
                    "over_joint_batch": median(ratios(values, times["joint batch"])),
                }
            )
        rows[-1]["largest_difference_to_ours"] = difference
    text = (
        f"Model: {args.model_shape}; {args.steps} steps; {clock_of(args.device)}, the median of {args.repeats} runs "
        "taken by turns, from latents and embeddings to latents; ratios are medians of those within a turn. Ours and "
        "the joint batch invert the picture first, unless the inversion is reused.\n\n"
    )
    text += table(
        ["images", "what runs", "U-Net rows", "median s", "of stock", "of joint batch"],
        (
            [
                r["images"],
                r["what"],
                r["unet_rows"],
                *(f"{r[k]:.2f}" for k in ("median", "over_stock", "over_joint_batch")),
            ]
            for r in rows
        ),
    )
    name = "rival-cost" + ("" if args.model_shape == "mini" else f"-{args.model_shape}-{args.device}")
    made = about(args.device, "diffusers", dtype=args.dtype)
    write(name, "RIVAL: cost", made, {"model": args.model_shape, "steps": args.steps, "rows": rows}, text)


# ------------------------------------------------------------------------------------------------------------ effect

PER_SPLIT = {"unseen_drawing": 6, "unseen_concept": 6, "unseen_style": 6}
SPLITS = {
    "unseen_drawing": "known concept, known style",
    "unseen_concept": "unknown concept",
    "unseen_style": "unknown style",
}
METRICS = {
    "concept": "similar, concept judge",
    "style": "similar, style judge",
    "palette": "same palette",
    "adherence": "is the concept",
    "diversity": "diversity",
}


def exemplars(per_split: int | None) -> list[mini.Picture]:
    """Held-out drawings, spread evenly over each split's fixed order."""
    chosen = []
    for split, count in PER_SPLIT.items():
        pictures, count = mini.pictures(split), per_split or count
        chosen += [pictures[(2 * i + 1) * len(pictures) // (2 * count)] for i in range(count)]
    return chosen


def methods(steps: int, guidance: float) -> dict[str, Callable[[mini.Picture, list[torch.Generator]], list]]:
    pipe = RIVALPipeline.from_pretrained(mini.path("sd"))
    parts = pipe.components | {"requires_safety_checker": False}
    stock, img2img = StableDiffusionPipeline(**parts), StableDiffusionImg2ImgPipeline(**parts)
    for each in (pipe, stock, img2img):
        each.set_progress_bar_config(disable=True)

    def common(generators: list[torch.Generator]) -> dict:
        return dict(
            generator=generators,
            num_images_per_prompt=len(generators),
            num_inference_steps=steps,
            guidance_scale=guidance,
        )

    def rival(**knobs: float) -> Callable:
        return lambda picture, g: pipe(picture.caption, reference_image=picture.image, **knobs, **common(g)).images

    def from_picture(strength: float) -> Callable:
        return lambda p, g: img2img(p.caption, image=p.image, strength=strength, **common(g)).images

    return {
        "RIVAL": rival(),
        "RIVAL without attention injection": rival(t_inject=-1, t_align=-1),
        "RIVAL without noise alignment": rival(t_early=1000),
        "text-to-image": lambda picture, g: stock(picture.caption, **common(g)).images,
        "img2img 0.4": from_picture(0.4),
        "img2img 0.6": from_picture(0.6),
        "img2img 0.8": from_picture(0.8),
    }


@torch.no_grad()
def judged(picture: mini.Picture, images: list, judges: dict[str, Judge]) -> dict[str, float]:
    """Of the images made from one picture: similarity to it, share that is the concept, and how they differ."""
    scores = {}
    for name, judge in judges.items():
        features = judge([picture.image, *images]).features
        scores[name] = (features[1:] @ features[0]).mean().item()
        if name == "concept":
            alike = features[1:] @ features[1:].T
            pairs = alike[~torch.eye(len(images), dtype=torch.bool)]
            scores["diversity"] = 1 - pairs.mean().item()
    scores["palette"] = np.mean([palette_overlap(picture.image, image) for image in images]).item()
    scores["adherence"] = np.mean([name == picture.concept for name in judges["concept"].name(images)]).item()
    return scores


def effect(args: argparse.Namespace) -> None:
    """Variations of held-out drawings by RIVAL, its two ablations, text-to-image and img2img."""
    pictures, judges = exemplars(args.per_split), {name: Judge(name) for name in ("concept", "style")}
    scores: list[dict] = []
    sheet: list[list] = [[picture.image] for picture in pictures]
    names = list(made_by := methods(args.steps, args.guidance))
    for name, make in made_by.items():
        start = time.perf_counter()
        for row, picture in zip(sheet, pictures, strict=True):
            images = make(picture, [torch.Generator().manual_seed(seed) for seed in range(args.seeds)])
            row += images[:2] if name == "RIVAL" else images[:1]
            about_it = {"method": name, "picture": picture.path.name, "split": picture.split}
            scores.append(about_it | judged(picture, images, judges))
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)

    def mean(method: str, metric: str, split: str | None = None) -> tuple[float, float, float]:
        rows = [s for s in scores if s["method"] == method and split in (None, s["split"])]
        return interval(np.array([row[metric] for row in rows]))

    def differences(method: str, metric: str) -> tuple[float, float, float]:
        ours, theirs = ([s[metric] for s in scores if s["method"] == m] for m in ("RIVAL", method))
        return interval(np.array(ours) - np.array(theirs))

    def lines(rows: dict[str, dict]) -> str:
        return table(["made by", *METRICS.values()], ([m, *map(shown, row.values())] for m, row in rows.items()))

    summary = {m: {metric: mean(m, metric) for metric in METRICS} for m in names}
    against = {m: {metric: differences(m, metric) for metric in METRICS} for m in names if m != "RIVAL"}
    tables = f"{lines(summary)}\nRIVAL minus each, paired by picture:\n\n{lines(against)}"
    by_split = {}
    for split, label in SPLITS.items():
        by_split[split] = {m: {metric: mean(m, metric, split) for metric in METRICS} for m in names}
        tables += f"\n`{split}` ({label}) alone:\n\n{lines(by_split[split])}"
    note = (
        f"{len(pictures)} held-out drawings x {args.seeds} seeds, {args.steps} steps, guidance {args.guidance:g}, the "
        "prompt is the drawing's caption; mean and 95 % interval of a bootstrap over drawings. Similar: cosine to the "
        "drawing in the features of the two embedded judges. Same palette: overlap of the colour histograms, white "
        "left out. Is the concept: share of images in which the concept judge's first guess is what the prompt names. "
        "Diversity: 1 minus the mean cosine between images of one drawing, concept features.\n\n"
    )
    document = {
        "steps": args.steps,
        "seeds": args.seeds,
        "guidance": args.guidance,
        "summary": summary,
        "rival_minus": against,
        "by_split": by_split,
        "scores": scores,
    }
    name = "rival-effect" if args.guidance == GUIDANCE else f"rival-effect-guidance-{args.guidance:g}"
    write(name, "RIVAL: effect", about(args.device, "diffusers", dtype=args.dtype), document, note + tables)
    labels = ["drawing", "RIVAL", "RIVAL", *(name.replace("RIVAL ", "") for name in names[1:])]
    picture = contact_sheet(sheet, row_labels=[p.caption for p in pictures], col_labels=labels, cell=96)
    picture.quantize(128).save(RESULTS / f"{name}.png", optimize=True)


def knobs(args: argparse.Namespace) -> None:
    """The first held-out drawing of the unseen style under five values of each threshold, one seed."""
    picture, values = mini.pictures("unseen_style")[0], (200, 400, 600, 800, 1000)
    valid = {"t_align": values, "t_early": values, "t_inject": (600, 700, 800, 900, 1000)}  # not below the other's 600
    pipe = RIVALPipeline.from_pretrained(mini.path("sd"))
    pipe.set_progress_bar_config(disable=True)
    rows = {f"{knob} {', '.join(map(str, tried))}": [picture.image] for knob, tried in valid.items()}
    for (knob, tried), row in zip(valid.items(), rows.values(), strict=True):
        for value in tried:
            row += pipe(
                picture.caption,
                reference_image=picture.image,
                generator=torch.Generator().manual_seed(0),
                num_inference_steps=args.steps,
                **{knob: value},
            ).images
    labels = ["picture", "smallest", "", "", "", "largest"]
    sheet = contact_sheet(list(rows.values()), row_labels=list(rows), col_labels=labels, cell=96)
    sheet.quantize(128).save(ASSETS / "rival-knobs.png", optimize=True)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--part", choices=("cost", "effect", "knobs"), help="default: all")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    options.add_argument("--model-shape", choices=("mini", "sd15", "sdxl"), default="mini", help="cost only")
    options.add_argument("--size", type=int, help="cost only: pixels (default: the architecture's own)")
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--images", type=int, nargs="+", default=[1, 8], help="cost only: N")
    options.add_argument("--repeats", type=int, default=5, help="cost only")
    options.add_argument("--guidance", type=float, default=GUIDANCE, help="effect only")
    options.add_argument("--seeds", type=int, default=4, help="effect only: images per drawing")
    options.add_argument("--per-split", type=int, help="effect only: drawings of each of the three held-out splits")
    args = options.parse_args()
    if args.part in (None, "cost"):
        cost(args)
    if args.model_shape != "mini":
        return
    if args.part in (None, "effect"):
        effect(args)
    if args.part in (None, "knobs"):
        knobs(args)


if __name__ == "__main__":
    main()
