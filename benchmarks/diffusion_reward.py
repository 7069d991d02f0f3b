# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What an update of AlignProp and DDPO costs, against drawing the same pictures, and what autograd keeps for it.

    python benchmarks/diffusion_reward.py                    # the embedded model, about 15 minutes on one CPU core
    python benchmarks/diffusion_reward.py --part memory      # counted, SD 1.5 and SDXL on the meta device
    python benchmarks/diffusion_reward.py --part cost --device cuda --model-shape sdxl --dtype bfloat16 --steps 50

Rows of the denoiser are counted as the loop makes them, those with a graph apart; their recomputation in the backward
pass and the calls of the base model come on top. The shapes `sd15` and `sdxl` are U-Nets of those architectures with
random weights. Writes `results/diffusion-reward-*`. What the
methods do to pictures is in `diffusion_reward_effect.py`.
"""

import argparse
import tempfile
from typing import Any

import torch
from datasets import Dataset
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from alignext import AlignPropConfig, AlignPropTrainer, DDPOConfig, DDPOTrainer, mini
from alignext.rewards import brightness
from alignext.training.lora import add_lora
from common import about, by_turns, clock_of, compared, parser, seconds, table_of, write
from shapes import SD15, SDXL, random_pipeline


MIB = 2**20
LORA = LoraConfig(r=4, lora_alpha=4)
PROMPTS = ["a red fox", "a crown", "a frog", "a cloud", "a bee", "a bear", "a violin", "a camera"]


class Saved:
    """Within it, the bytes that autograd keeps for the backward pass, each storage once, without parameters."""

    def __enter__(self) -> "Saved":
        self.bytes, self._held = 0, {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = StorageWeakRef(tensor.untyped_storage())
        if storage not in self._held and not isinstance(tensor, torch.nn.Parameter):
            self._held[storage] = tensor
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        self._held.clear()


# Cost


def pipeline(args: argparse.Namespace) -> DiffusionPipeline:
    if args.model_shape == "mini":
        return DiffusionPipeline.from_pretrained(mini.path("sd"))
    xl = args.model_shape == "sdxl"
    pipe = random_pipeline(
        StableDiffusionXLPipeline if xl else StableDiffusionPipeline, args.model_shape, getattr(torch, args.dtype)
    )
    width = pipe.unet.config.cross_attention_dim

    def encode_prompt(prompt: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
        made = {"device": pipe.unet.device, "dtype": pipe.unet.dtype}
        texts = torch.zeros(len(prompt), 77, width, **made)
        return (texts, texts, *(torch.zeros(2, len(prompt), 1280, **made) if xl else ()))

    pipe.encode_prompt = encode_prompt  # there are no text encoders
    return pipe


def trainer(args: argparse.Namespace, kind: str, folder: str, **settings: Any) -> Any:
    cls, config = (DDPOTrainer, DDPOConfig) if kind == "ddpo" else (AlignPropTrainer, AlignPropConfig)
    shared = {
        "max_steps": 1, "num_inference_steps": args.steps, "guidance_scale": 3.0, "report_to": "none",
        "save_strategy": "no", "use_cpu": args.device == "cpu", "activation_checkpointing": args.model_shape != "mini",
        "vae_decode_batch_size": 8 if args.model_shape == "mini" else 1, "learning_rate": 1e-5, "disable_tqdm": True,
    }  # fmt: skip
    prompts = Dataset.from_dict({"prompt": PROMPTS[: args.batch]})
    pipe = pipeline(args)
    pipe.set_progress_bar_config(disable=True)
    return cls(pipe, brightness, config(folder, **shared | settings), prompts, peft_config=LORA)


CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "AlignProp, K = 1": ("alignprop", {"backprop_steps": 1}),
    "AlignProp, K = 1, KL": ("alignprop", {"backprop_steps": 1, "kl_coef": 0.1}),
    "AlignProp, K = a sixth": ("alignprop", {"backprop_steps": "sixth"}),
    "AlignProp, K = T": ("alignprop", {"backprop_steps": "all"}),
    "AlignProp, K = T, nothing recomputed": ("alignprop", {"backprop_steps": "all", "step_checkpointing": False}),
    "Direct-Align": ("alignprop", {"reward_gradient": "direct_align"}),
    "DDPO": ("ddpo", {}),
    "DDPO, half of the steps": ("ddpo", {"num_train_steps": "half"}),
}


class Update:
    """An update of a trainer: rewards, loss, gradient. With no kind, the drawing of its pictures alone."""

    def __init__(self, args: argparse.Namespace, folder: str, kind: str | None, settings: dict[str, Any]) -> None:
        places = {"sixth": max(1, round(args.steps / 6)), "half": args.steps // 2}
        settings = {name: places.get(value, value) for name, value in settings.items()}
        shape = {"per_device_train_batch_size": args.batch}
        if kind == "ddpo":  # as many pictures, two of each prompt
            shape = {"per_device_train_batch_size": args.batch // 2, "num_images_per_prompt": 2}
        self.trainer = trainer(args, kind or "alignprop", folder, **shape | settings)
        self.kind, self.rows = kind, {False: 0, True: 0}
        made = self.trainer
        made.create_optimizer()
        made.model.train()
        made.model.to(made.accelerator.device)
        if made.args.activation_checkpointing:
            made.denoiser.enable_gradient_checkpointing()
        rows = args.batch // 2 if kind == "ddpo" else args.batch
        self.batch = made.batch(made.data_collator([made.train_dataset[i] for i in range(rows)]))
        made.denoiser.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.rows[torch.is_grad_enabled()] += len(args[0] if args else kwargs["sample"])

    def __call__(self) -> None:
        made = self.trainer
        if self.kind is None:
            with torch.no_grad():
                made.decode(made.rollout(self.batch.prompts, self.batch.generators("start")).latents, "a")
            return
        made.training_loss(made.model, self.batch).backward()
        made.optimizer.zero_grad()


def cost(args: argparse.Namespace) -> None:
    """Seconds and rows of an update, by turns with drawing as many pictures."""
    with tempfile.TemporaryDirectory() as folder:
        updates = {"drawing": Update(args, folder, None, {})}
        updates |= {name: Update(args, folder, *contender) for name, contender in CONTENDERS.items()}
        found = by_turns(
            {name: lambda update=update: seconds(update, args.device) for name, update in updates.items()},
            args.rounds,
            warm_up=1,
        )
        rows, turns = [], args.rounds + 1
        for name, update in updates.items():
            plain, graph = (update.rows[key] // turns for key in (False, True))
            row = {"update": name, "rows without a graph": plain, "rows with one": graph}
            rows.append(row | {f"{key} of time": v for key, v in compared(found[name], found["drawing"]).items()})
            if args.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                update()
                rows[-1]["peak, MiB"] = round(torch.cuda.max_memory_allocated() / MIB)
    of = {"model": args.model_shape, "steps": args.steps, "pictures": args.batch, "rounds": args.rounds}
    text = (
        f"Median {clock_of(args.device)} in seconds; ratio to drawing the pictures with the VAE, by round. Guidance "
        f"3, so that each picture has two rows. {', '.join(f'{k} {v}' for k, v in of.items())}.\n\n{table_of(rows)}"
    )
    suffix = "" if args.model_shape == "mini" and args.device == "cpu" else f"-{args.model_shape}-{args.device}"
    write(
        f"diffusion-reward-cost{suffix}",
        "AlignProp and DDPO, cost",
        about(args.device, "diffusers"),
        {"rows": rows} | of,
        text,
    )


# Memory


def over_steps(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What autograd keeps of the embedded model's calls when all steps carry the gradient."""
    rows = []
    for steps in (5, 10, 20):
        row: dict[str, Any] = {"steps, all with the gradient": steps}
        for name, step, block in (
            ("nothing recomputed", False, False), ("blocks", False, True),
            ("steps", True, False), ("both", True, True),
        ):  # fmt: skip
            with tempfile.TemporaryDirectory() as folder:
                settings = {"backprop_steps": "all", "step_checkpointing": step, "num_inference_steps": steps}
                update = Update(args, folder, "alignprop", settings)
            made = update.trainer
            (made.denoiser.enable_gradient_checkpointing if block else made.denoiser.disable_gradient_checkpointing)()
            with made._around(checkpointing=step), Saved() as saved:
                made._latents(update.batch)
            row[f"{name}, MiB"] = round(saved.bytes / MIB, 2)
        rows.append(row)
        print(row, flush=True)
    return rows


def of_one_step(name: str, shape: dict[str, Any], side: int) -> dict[str, Any]:
    """What a step of a model of this shape keeps, on the meta device: bfloat16, guidance, a LoRA of rank 4."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**shape).to(torch.bfloat16)
        add_lora(unet, LORA)
        x, t = torch.empty(2, 4, side, side, dtype=torch.bfloat16), torch.empty(2)
        text = torch.empty(2, 77, shape["cross_attention_dim"], dtype=torch.bfloat16)
        added = {"text_embeds": torch.empty(2, 1280).bfloat16(), "time_ids": torch.empty(2, 6).bfloat16()}
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ).requires_grad_(False)  # fmt: skip
        latents = torch.empty(1, 4, side, side, requires_grad=True)
    unet.train()
    more = {"added_cond_kwargs": added} if name == "SDXL" else {}
    row: dict[str, Any] = {"model": name}
    for mode in ("nothing recomputed", "blocks", "steps"):
        (unet.enable_gradient_checkpointing if mode == "blocks" else unet.disable_gradient_checkpointing)()
        with Saved() as saved:
            if mode == "steps":
                checkpoint(unet, x, t, text, use_reentrant=False, **more)
            else:
                unet(x, t, text, **more)
        row[f"{mode}, MiB"] = round(saved.bytes / MIB, 2 if mode == "steps" else None)
    with Saved() as saved:
        vae.decode(latents)
    row["VAE of one picture in float32, MiB"] = round(saved.bytes / MIB)
    with Saved() as saved:
        checkpoint(lambda z: vae.decode(z, return_dict=False)[0], latents, use_reentrant=False)
    row["VAE recomputed, MiB"] = round(saved.bytes / MIB, 2)
    return row


def memory(args: argparse.Namespace) -> None:
    """Write both tables."""
    large = [of_one_step("SD 1.5", SD15, 64), of_one_step("SDXL", SDXL, 128)]
    print(*large, sep="\n", flush=True)
    small = over_steps(args)
    text = (
        "Bytes that autograd keeps for the backward pass, parameters left out, each storage once.\n\n"
        f"The embedded model, {args.batch} pictures with guidance:\n\n{table_of(small)}\n"
        f"One step of one picture with guidance in bfloat16, a LoRA of rank 4, counted:\n\n{table_of(large)}"
    )
    write(
        "diffusion-reward-memory",
        "AlignProp, memory",
        about("meta", "diffusers"),
        {"small": small, "large": large},
        text,
    )


def main() -> None:
    """Measure what was asked for."""
    options = parser(__doc__)
    options.add_argument("--part", choices=["cost", "memory", "all"], default="all")
    options.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options.add_argument("--model-shape", default="mini", choices=["mini", "sd15", "sdxl"])
    options.add_argument("--dtype", default="float32")
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--rounds", type=int, default=5)
    args = options.parse_args()
    if args.part in ("cost", "all"):
        cost(args)
    if args.part in ("memory", "all"):
        memory(args)


if __name__ == "__main__":
    main()
