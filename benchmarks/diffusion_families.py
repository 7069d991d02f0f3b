# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Diffusion-DPO beside a plain LoRA step of the same model, and what today's models take in memory.

    python benchmarks/diffusion_families.py

Time is processor time of one thread on the embedded models, both updates by turns on the same pairs: "plain" trains
the same LoRA to denoise the same two pictures, without a reference. Memory is counted on torch's meta device from the
shapes of checkpoints: weights in 16 bits, LoRA and its optimizer in 32 bits, no activations. Caches are
`precompute_latents=True, precompute_prompts=True`.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from diffusers import (
    DiffusionPipeline,
    Flux2Transformer2DModel,
    QwenImageTransformer2DModel,
    WanTransformer3DModel,
)
from peft import LoraConfig

from alignext import DiffusionDPOConfig, DiffusionDPOTrainer, mini
from alignext.functional.predictions import add_noise, prediction_target
from alignext.training.lora import add_lora
from common import about, compared, parser, table, timed, write


NAME = "diffusion-families-cost"
GIB = 2**30
VAE = 0.13e9  # parameters, about those of all three
# Denoiser, and parameters of the text encoder of its checkpoint.
SHAPES: dict[str, tuple[Callable[[], torch.nn.Module], float, str]] = {
    "FLUX.2 klein 4B": (
        lambda: Flux2Transformer2DModel(
            num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
        ),
        4.0e9,
        "Qwen3-4B",
    ),
    "Qwen-Image": (QwenImageTransformer2DModel, 8.3e9, "Qwen2.5-VL-7B"),
    "Wan 2.1 1.3B": (
        lambda: WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30), 5.7e9, "UMT5-XXL encoder",
    ),
}  # fmt: skip


def memory() -> list[list[object]]:
    rows = []
    for name, (make, encoder, of) in SHAPES.items():
        with torch.device("meta"):
            model = make().requires_grad_(False)
            add_lora(model, LoraConfig(r=16))
        lora = sum(p.numel() for p in model.parameters() if p.requires_grad)
        weights = sum(p.numel() for p in model.parameters()) - lora
        trained = 16 * lora  # weight, gradient and both moments of Adam in 32 bits
        full, cached = 2 * (weights + encoder + VAE) + trained, 2 * weights + trained
        copies = 20 * weights  # weight, gradient, two moments, and the reference
        cells = [f"{x / GIB:.1f}" for x in (2 * weights, full, cached, copies)]
        rows.append([name, f"{weights / 1e9:.2f} B", f"{lora / 1e6:.0f} M", of, *cells])
    return rows


def update(model: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """An update of Diffusion-DPO with one pair, and one of a plain LoRA on its two pictures."""
    pictures = mini.pictures("train")[:2]
    rows = [{"prompt": "a crown", "image_chosen": pictures[0].image, "image_rejected": pictures[1].image}]
    trainer = DiffusionDPOTrainer(
        DiffusionPipeline.from_pretrained(mini.path(model)),
        args=DiffusionDPOConfig(
            tempfile.mkdtemp(), resolution=64, max_sequence_length=16 if model == "flux" else None, use_cpu=True,
            report_to="none", activation_checkpointing=False, precompute_latents=True, prompt_dropout=0.0,
        ),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=16),
    )  # fmt: skip
    inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[0]]))
    batch = trainer.get_batch(inputs)
    levels = trainer.levels(batch.x0)

    def preference() -> None:
        trainer.compute_loss(trainer.model, inputs).backward()
        trainer.model.zero_grad()

    def plain() -> None:
        noise, k = torch.randn_like(batch.x0), torch.randint(1, levels.num_steps, (2,))
        x = add_noise(batch.x0, noise, levels.a[k], levels.s[k])
        target = prediction_target(batch.x0, noise, levels.a[k], levels.s[k], trainer.prediction_type)
        predicted = trainer.model(x, levels.timesteps[k - 1], **batch.conditioning)
        (predicted - target).square().mean().backward()
        trainer.model.zero_grad()

    return preference, plain


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=8)
    args: Any = arguments.parse_args()
    document: dict[str, Any] = about("cpu", "diffusers", "peft")
    speed = []
    for model in ("sd", "flux"):
        preference, plain = update(model)
        found = timed({"plain": plain, "Diffusion-DPO": preference}, args.rounds, "cpu", warm_up=1)
        result = compared(found["Diffusion-DPO"], found["plain"])
        document[f"mini-{model}"] = found
        speed.append([f"mini-{model}", f"{sorted(found['plain'])[args.rounds // 2]:.4f}", *result.values()])
    document["memory"] = memory()
    heads = ["model", "plain, seconds", "Diffusion-DPO, seconds", "ratio", "range"]
    places = ["denoiser alone", "with a LoRA", "with a LoRA and caches", "all weights in 32 bits, and a reference"]
    text = (
        f"{table(heads, speed)}\nGiB, of denoisers of these shapes; the text encoder's size is that of its "
        "checkpoint, not counted here:\n\n"
        f"{table(['model', 'denoiser', 'LoRA of rank 16', 'text encoder', *places], document['memory'])}"
    )
    made = {key: value for key, value in document.items() if isinstance(value, str)}
    write(NAME, "Preference training of today's families: cost", made, document, text)


if __name__ == "__main__":
    main()
