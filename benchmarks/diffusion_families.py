# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Diffusion-DPO beside a plain LoRA step of the same model, and what today's models take in memory.

    python benchmarks/diffusion_families.py                       # about five minutes
    python benchmarks/diffusion_families.py --family flux sana    # some of the tiny models

Time is processor time of one thread, both updates by turns on the same pair: "plain" trains the same LoRA to denoise
the same two pictures, without a reference. That is done on the embedded models, and on the tiny random model of every
family that the tests have, where it shows what our own code adds and not what a large network takes; MiB there are
what is alive at most in an update, beside the weights. GiB are counted on torch's meta device from the shapes of
checkpoints: weights in 16 bits, LoRA and its optimizer in 32 bits, no activations. Caches are
`precompute_latents=True, precompute_prompts=True`.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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
from common import ROOT, PeakBytes, about, compared, parser, table, timed, write


sys.path.insert(0, str(ROOT))
from tests.diffusion import families
from tests.trainers.diffusion_preference.test_families import NAMES, NO_LORA, start


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


KEPT: dict[str, Any] = {
    "precompute_latents": True, "precompute_prompts": True, "activation_checkpointing": False, "prompt_dropout": 0.0,
}  # fmt: skip


def of_mini(model: str) -> DiffusionDPOTrainer:
    pictures = mini.pictures("train")[:2]
    rows = [{"prompt": "a crown", "image_chosen": pictures[0].image, "image_rejected": pictures[1].image}]
    return DiffusionDPOTrainer(
        DiffusionPipeline.from_pretrained(mini.path(model)),
        args=DiffusionDPOConfig(
            tempfile.mkdtemp(), resolution=64, max_sequence_length=16 if model == "flux" else None, use_cpu=True,
            report_to="none", **KEPT,
        ),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=16),
    )  # fmt: skip


def of_family(name: str) -> DiffusionDPOTrainer:
    """The tests' tiny random model."""
    return start(name, Path(tempfile.mkdtemp()), **KEPT)


def updates(trainer: DiffusionDPOTrainer) -> dict[str, Callable[[], None]]:
    """An update of a plain LoRA on two pictures, and one of Diffusion-DPO with the pair that they make."""
    inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[0]]))

    def preference() -> None:
        trainer.compute_loss(trainer.model, inputs).backward()
        trainer.model.zero_grad()

    def plain() -> None:
        batch = trainer.get_batch(inputs)
        levels = trainer.levels(batch.x0)
        noise, k = torch.randn_like(batch.x0), trainer.drawn_steps(batch.draws, levels)[0].repeat(2)
        a, s = levels.a[k], levels.s[k]
        target = prediction_target(batch.x0, noise, a, s, trainer.prediction_type)
        predicted = trainer.model(add_noise(batch.x0, noise, a, s), levels.timesteps[k - 1], **batch.conditioning)
        (predicted - target).square().mean().backward()
        trainer.model.zero_grad()

    return {"plain": plain, "Diffusion-DPO": preference}


def peak(run: Callable[[], None]) -> float:
    with PeakBytes() as counted:
        run()
    return counted.peak / 2**20


def measured(name: str, trainer: DiffusionDPOTrainer, rounds: int, document: dict[str, Any]) -> list[object]:
    """A row of the table: seconds of both, their ratio and its range, MiB of both."""
    contenders = updates(trainer)
    found = timed(contenders, rounds, "cpu", warm_up=1)
    result = compared(found["Diffusion-DPO"], found["plain"])
    seconds = sorted(found["plain"])[rounds // 2]
    memory = [f"{peak(run):.2f}" for run in contenders.values()]
    document[name] = found | {"MiB": memory}
    return [name, f"{seconds:.4f}", f"{result['median']:.4f}", result["ratio"], result["range"], *memory]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=8)
    arguments.add_argument("--family", nargs="*", choices=NAMES, default=NAMES, help="tiny models (default: all)")
    args: Any = arguments.parse_args()
    document: dict[str, Any] = about("cpu", "diffusers", "peft")
    minis = [measured(f"mini-{model}", of_mini(model), args.rounds, document) for model in ("sd", "flux")]
    tiny = []
    with pytest.MonkeyPatch.context() as patch:
        families.small_pictures(patch)
        for name in args.family:
            named = f"{name} (all weights)" if name in NO_LORA else name
            tiny.append(measured(named, of_family(name), args.rounds, document))
    document["memory"] = memory()
    heads = ["model", "plain, seconds", "Diffusion-DPO, seconds", "ratio", "range", "plain, MiB", "Diffusion-DPO, MiB"]
    places = ["denoiser alone", "with a LoRA", "with a LoRA and caches", "all weights in 32 bits, and a reference"]
    text = (
        f"{table(heads, minis)}\nTiny random models of the tests, {args.rounds} rounds:\n\n{table(heads, tiny)}\n"
        "GiB, of denoisers of these shapes; the text encoder's size is that of its checkpoint, not counted here:\n\n"
        f"{table(['model', 'denoiser', 'LoRA of rank 16', 'text encoder', *places], document['memory'])}"
    )
    made = {key: value for key, value in document.items() if isinstance(value, str)}
    write(NAME, "Preference training of today's families: cost", made, document, text)


if __name__ == "__main__":
    main()
