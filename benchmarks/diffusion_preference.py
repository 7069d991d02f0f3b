# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What an update of the diffusion preference trainers costs, against Diffusion-DPO as one would write it down.

    python benchmarks/diffusion_preference.py                  # the embedded model, about 8 minutes on one CPU core
    python benchmarks/diffusion_preference.py --device cuda --model-shape sdxl --dtype bfloat16 --batch 1

The shapes `sd15` and `sdxl` are U-Nets of those architectures with random weights. Data are latents and embeddings, so
that what is timed is the denoiser, the loss and the optimizer. Rows that the denoiser sees are counted, not computed:
1 F is one forward of one picture, and a backward counts 2 F, which is too much for a LoRA. Results go to
`results/diffusion-preference-cost*`. What the methods do to samples is in `diffusion_preference_effect.py`.
"""

import argparse
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig
from transformers import TrainerCallback

import alignext
from alignext import mini
from common import about, clock_of, median, now, parser, table_of, write
from shapes import random_pipeline


TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]

# Contender -> trainer, settings, and the forwards without and with gradient that one pair should cost.
CACHED = {"num_inversion_steps": 20, "precompute_inversion": True, "guidance_scale": 1.0}
CONTENDERS: dict[str, tuple[str, dict]] = {
    "Diffusion-DPO": ("DiffusionDPO", {}),
    "InPO, 10 steps": ("SmPO", {"num_renoise_steps": 0, "label_sharpness": None}),
    "SmPO, 10 steps, one round of re-noising": ("SmPO", {}),
    "Inversion-DPO, kept inversions": ("InversionDPO", CACHED),
    "Inversion-DPO, kept inversions, guidance 2": ("InversionDPO", CACHED | {"guidance_scale": 2.0}),
    "Inversion-DPO, `trajectory`, kept inversions": ("InversionDPO", CACHED | {"target": "trajectory"}),
    "Inversion-DPO, inverting anew, 20 steps": ("InversionDPO", CACHED | {"precompute_inversion": False}),
}
RELEASED = "Inversion-DPO as released: all of 80 steps, guidance 2, inverting anew"


class Workload:
    """Random latents and embeddings of the model's shapes."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.dtype = args, getattr(torch, args.dtype)
        config = self.pipeline().unet.config
        length = 24 if args.model_shape == "mini" else 77
        side, generator = args.latent_size or config.sample_size, np.random.default_rng(0)

        def randn(*shape: int) -> list[np.ndarray]:
            return list(generator.standard_normal((args.batch, *shape), dtype=np.float32))

        columns = {
            "chosen_latents": randn(config.in_channels, side, side),
            "rejected_latents": randn(config.in_channels, side, side),
            "prompt_embeds": randn(length, config.cross_attention_dim),
            "preference_prob": [0.7] * args.batch,
        }
        if args.model_shape == "sdxl":
            columns["pooled_prompt_embeds"] = randn(1280)
        self.dataset = Dataset.from_dict(columns)

    def pipeline(self) -> DiffusionPipeline:
        if self.args.model_shape == "mini":
            return StableDiffusionPipeline.from_pretrained(mini.path("sd"), dtype=self.dtype)
        cls = StableDiffusionXLPipeline if self.args.model_shape == "sdxl" else StableDiffusionPipeline
        return random_pipeline(cls, self.args.model_shape, self.dtype)


class Counter:
    """Rows that the U-Net sees without and with gradient, and seconds, of every update but the first two."""

    def __init__(self, unet: torch.nn.Module, device: str) -> None:
        self.device, self.rows, self.updates = device, [0, 0], []
        unet.register_forward_pre_hook(self._count)

    def _count(self, module: torch.nn.Module, args: tuple) -> None:
        self.rows[torch.is_grad_enabled()] += len(args[0])

    def begin(self) -> None:
        self.rows, self._start = [0, 0], now(self.device)

    def end(self) -> None:
        self.updates.append((now(self.device) - self._start, *self.rows))


class Watch(TrainerCallback):
    def __init__(self, counter: Counter) -> None:
        self.counter = counter

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        self.counter.begin()

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.counter.end()


def with_trainer(work: Workload, kind: str, settings: dict, updates: int) -> Counter:
    args, pipe = work.args, work.pipeline()
    counter = Counter(pipe.unet, args.device)
    with tempfile.TemporaryDirectory() as folder:
        config = getattr(alignext, f"{kind}Config")(
            output_dir=folder,
            max_steps=updates,
            per_device_train_batch_size=args.batch,
            per_device_eval_batch_size=args.batch,
            prompt_dropout=0.0,
            activation_checkpointing=args.checkpointing,
            bf16=args.dtype == "bfloat16",
            use_cpu=args.device == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings,
        )
        trainer = getattr(alignext, f"{kind}Trainer")(
            model=pipe,
            args=config,
            train_dataset=work.dataset,
            peft_config=LoraConfig(r=16, lora_alpha=16),
            callbacks=[Watch(counter)],
        )
        trainer.train()
    return counter


def written_down(work: Workload, updates: int) -> Counter:
    """Diffusion-DPO in one loop, as in the scripts there are."""
    args, unet = work.args, work.pipeline().unet.to(work.args.device)
    pipe_alphas = work.pipeline().scheduler.alphas_cumprod.to(args.device)
    counter = Counter(unet, args.device)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS))
    if args.checkpointing:
        unet.enable_gradient_checkpointing()
    weights = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    optimizer = torch.optim.AdamW(weights, lr=1e-5)
    rows = work.dataset.with_format("torch", device=args.device)[:]
    x0 = torch.cat([rows["chosen_latents"], rows["rejected_latents"]])
    embeds = rows["prompt_embeds"].repeat(2, 1, 1).to(work.dtype)
    added = {}
    if "pooled_prompt_embeds" in rows:
        side = 8 * x0.shape[-1]
        ids = torch.tensor([[side, side, 0, 0, side, side]], device=args.device, dtype=work.dtype)
        pooled = rows["pooled_prompt_embeds"].repeat(2, 1).to(work.dtype)
        added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids.repeat(len(x0), 1)}}

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.dtype == "bfloat16"):
            return unet(x.to(work.dtype), t, embeds, **added).sample.float()

    unet.train()
    for _ in range(updates):
        counter.begin()
        t = torch.randint(1000, (args.batch,), device=args.device).repeat(2)
        noise = torch.randn_like(x0[: args.batch]).repeat(2, 1, 1, 1)
        abar = pipe_alphas[t].view(-1, 1, 1, 1)
        x = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
        unet.disable_adapters()
        with torch.no_grad():
            reference = (predict(x, t) - noise).square().mean((1, 2, 3))
        unet.enable_adapters()
        winner, loser = ((predict(x, t) - noise).square().mean((1, 2, 3)) - reference).chunk(2)
        loss = -F.logsigmoid(-0.5 * 2000 * (winner - loser)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        counter.end()
    return counter


def measure(work: Workload, name: str, updates: int) -> Counter:
    if name == "Diffusion-DPO, one loop":
        return written_down(work, updates)
    if name == RELEASED:
        settings = {"num_inversion_steps": 80, "num_train_steps_per_pair": None, "guidance_scale": 2.0}
        return with_trainer(work, "InversionDPO", settings, updates)
    return with_trainer(work, *CONTENDERS[name], updates)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument("--model-shape", choices=["mini", "sd15", "sdxl"], default="mini")
    options.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options.add_argument("--latent-size", type=int, help="side of the latents; the architecture's by default")
    options.add_argument("--batch", type=int, default=4, help="pairs per update (default: %(default)s)")
    options.add_argument("--updates", type=int, default=8, help="timed updates per round (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=3, help="rounds, contenders by turns (default: %(default)s)")
    options.add_argument("--checkpointing", action="store_true", help="recompute activations")
    args = options.parse_args()
    work = Workload(args)
    names = ["Diffusion-DPO, one loop", *CONTENDERS, RELEASED]
    if args.model_shape == "sd15":  # guidance needs text encoders there
        names = [name for name in names if "guidance 2" not in name]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    forwards: dict[str, tuple[float, float]] = {}
    memory: dict[str, float] = {}
    for turn in range(args.rounds):
        for name in names:
            released = name == RELEASED
            if released and turn:
                continue
            if args.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            counter = measure(work, name, 1 if released else args.updates + 2)
            timed = counter.updates if released else counter.updates[2:]
            seconds[name] += [update[0] for update in timed]
            rows = np.array([update[1:] for update in timed]).mean(0) / args.batch
            forwards[name] = tuple(rows.tolist()) if name not in forwards else forwards[name]
            if args.device == "cuda":
                memory[name] = torch.cuda.max_memory_allocated() / 2**30
            print(f"{name}: {rows.tolist()} rows a pair, {median(seconds[name]):.3f} s", flush=True)
    base = median(seconds[names[0]])
    table = []
    for name in names:
        without, with_gradient = forwards[name]
        table.append(
            {
                "what": name,
                "forwards_without_gradient": round(without, 2),
                "forwards_with_gradient": round(with_gradient, 2),
                "F": round(without + 3 * with_gradient, 1),
                "seconds": round(median(seconds[name]), 4),
                "ratio": round(median(seconds[name]) / base, 2),
                **({"peak_GiB": round(memory[name], 2)} if memory else {}),
            }
        )
    text = (
        f"Model: {args.model_shape}, {args.dtype}, LoRA of rank 16 on the attention projections, {args.batch} pairs "
        f"per update. Rows the denoiser saw, per pair; F counts a backward as two forwards. Seconds an update: "
        f"{clock_of(args.device)}, median of {args.rounds} rounds of {args.updates} updates by turns; of the last "
        f"row, one update.\n\n{table_of(table)}"
    )
    name = "diffusion-preference-cost"
    name += "" if args.model_shape == "mini" else f"-{args.model_shape}-{args.device}"
    document = {"settings": vars(args), "table": table}
    write(name, "Diffusion preference: cost", about(args.device, "diffusers"), document, text)


if __name__ == "__main__":
    main()
