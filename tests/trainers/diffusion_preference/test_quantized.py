# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Optimizers in 8 bits and quantized weights, where their packages are installed: they are no requirement of ours."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from diffusers import DiffusionPipeline, FluxPipeline, FluxTransformer2DModel, TorchAoConfig
from peft import LoraConfig

from alignext import mini
from alignext.trainers.diffusion_preference import DiffusionDPOConfig, DiffusionDPOTrainer

from ..contract import SHORT_RUN
from ..contract import weights as weights_of


def needs(package: str) -> Any:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}")


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
OPTIMIZERS = pytest.mark.parametrize(
    "name",
    [
        pytest.param("adamw_torch_8bit", marks=needs("torchao")),
        pytest.param("adamw_torch_4bit", marks=needs("torchao")),
        pytest.param("adamw_8bit", marks=needs("bitsandbytes")),
    ],
)


def start(pipe: Any, folder: Path, lora: bool, **settings: Any) -> DiffusionDPOTrainer:
    pictures = mini.pictures("train")[:4]
    rows = [
        {"prompt": "a crown", "image_chosen": pictures[i].image, "image_rejected": pictures[i + 1].image}
        for i in (0, 2)
    ]
    given = SHORT_RUN | {"output_dir": str(folder), "resolution": 64, "per_device_train_batch_size": 2}
    return DiffusionDPOTrainer(
        pipe,
        args=DiffusionDPOConfig(**given | {"max_steps": 2, "prompt_dropout": 0.0} | settings),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=4) if lora else None,
    )


def learns(trainer: DiffusionDPOTrainer) -> None:
    before = weights_of(trainer.denoiser)
    trainer.train()
    first, second = (log for log in trainer.state.log_history if "loss" in log)
    assert first["rewards/margins"] == 0 and second["rewards/margins"] != 0
    trained = [name for name, weight in trainer.denoiser.named_parameters() if weight.requires_grad]
    after = dict(trainer.denoiser.named_parameters())
    assert trained and all(after[name].isfinite().all() for name in trained)
    assert not any(torch.equal(before[name], after[name]) for name in trained)


@OPTIMIZERS
def test_small_optimizer_states(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)  # torchao compiles one for each shape of a weight
    trainer = start(DiffusionPipeline.from_pretrained(mini.path("sd")), tmp_path, lora=False, optim=name)
    learns(trainer)
    states = {
        f"{type(value).__name__} {getattr(value, 'dtype', '')}"
        for state in trainer.optimizer.optimizer.state.values()
        for value in state.values()
    }
    assert any("8bit" in state or "4bit" in state or "uint8" in state for state in states)


@needs("torchao")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_lora_beside_weights_in_8_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    from torchao.quantization import Int8WeightOnlyConfig

    config = TorchAoConfig(Int8WeightOnlyConfig())
    transformer = FluxTransformer2DModel.from_pretrained(
        mini.path("flux") / "transformer", torch_dtype=dtype, quantization_config=config
    )
    pipe = DiffusionPipeline.from_pretrained(mini.path("flux"), transformer=transformer)
    with pytest.raises(ValueError, match="The denoiser is quantized, and its weights cannot be trained"):
        start(pipe, tmp_path, lora=False, max_sequence_length=16)
    trainer = start(pipe, tmp_path, lora=True, max_sequence_length=16, learning_rate=1e-2)
    learns(trainer)
    trainer.save_model()
    stock = FluxPipeline.from_pretrained(mini.path("flux"))
    stock.load_lora_weights(tmp_path)
    assert stock.get_active_adapters()
