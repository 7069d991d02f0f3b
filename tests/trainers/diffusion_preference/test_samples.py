# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Sheets of samples on the way, which training does not notice."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from peft import LoraConfig

from alignext import DiffusionDPOConfig, DiffusionDPOTrainer, SampleGridCallback

from .test_data import pairs
from .tiny import PIPELINES, SIZE, sd


def start(folder: Path, pipe: object, **settings: object) -> DiffusionDPOTrainer:
    config = DiffusionDPOConfig(
        str(folder),
        per_device_train_batch_size=2,
        max_steps=3,
        learning_rate=1e-2,
        resolution=SIZE,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        activation_checkpointing=False,
        **{"save_strategy": "no", **settings},
    )
    lora = LoraConfig(r=2, lora_alpha=2, init_lora_weights="gaussian")
    return DiffusionDPOTrainer(pipe, args=config, train_dataset=pairs(4), eval_dataset=pairs(2), peft_config=lora)


def sheets(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "samples").iterdir())}


@pytest.mark.parametrize("family", PIPELINES)
def test_draws_what_the_pipeline_draws(family: str, tmp_path: Path) -> None:
    pipe = PIPELINES[family]()
    trainer = start(tmp_path, pipe)
    guidance = 3.0
    callback = SampleGridCallback(trainer, ["a fox", "an owl"], num_inference_steps=2, guidance_scale=guidance)
    random, config = torch.get_rng_state(), pipe.scheduler.config
    trainer.model.train()
    images = callback.draw()
    assert torch.equal(torch.get_rng_state(), random)
    assert trainer.model.training and trainer.denoiser.training
    assert pipe.scheduler.config == config and pipe.text_encoder is not None
    pipe.set_progress_bar_config(disable=True)
    trainer.model.eval()
    expected = pipe(
        ["a fox", "an owl"],
        num_inference_steps=2,
        guidance_scale=guidance,
        height=SIZE,
        width=SIZE,
        generator=[torch.Generator().manual_seed(i) for i in range(2)],
    ).images
    for image, other in zip(images, expected, strict=True):
        assert np.abs(np.asarray(image, dtype=int) - np.asarray(other, dtype=int)).max() <= 1


def test_sheets_before_at_evaluations_and_at_the_end(tmp_path: Path) -> None:
    trainer = start(tmp_path, sd(), eval_strategy="steps", eval_steps=2)
    trainer.add_callback(SampleGridCallback(trainer, ["a fox"], num_inference_steps=2))
    trainer.train()
    found = sheets(tmp_path)
    assert list(found) == ["step-000000.png", "step-000002.png", "step-000003.png"]
    assert len(set(found.values())) == 3  # the model moved
    with PIL.Image.open(tmp_path / "samples" / "step-000000.png") as sheet:
        assert sheet.size > (SIZE, SIZE)


def test_sheets_at_saves_without_evaluations(tmp_path: Path) -> None:
    trainer = start(tmp_path, sd(), save_strategy="steps", save_steps=2)
    trainer.add_callback(SampleGridCallback(trainer, ["a fox"], num_inference_steps=2))
    trainer.train()
    assert list(sheets(tmp_path)) == ["step-000000.png", "step-000002.png", "step-000003.png"]


def test_training_does_not_notice(tmp_path: Path) -> None:
    runs = []
    for name in ("without", "with"):
        trainer = start(tmp_path / name, sd(), logging_steps=1)
        if name == "with":
            trainer.add_callback(SampleGridCallback(trainer, ["a fox"], num_inference_steps=2))
        trainer.train()
        runs.append([(log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "loss" in log])
    assert runs[0] == runs[1] and len(runs[0]) == 3


def test_sheets_go_to_the_trackers(tmp_path: Path) -> None:
    trainer = start(tmp_path, sd())
    callback = SampleGridCallback(trainer, ["a fox", "an owl"], num_inference_steps=1)
    board, wandb = [], []
    tensorboard = type("TensorBoardCallback", (), {})()
    tensorboard.tb_writer = SimpleNamespace(add_images=lambda *args, **kwargs: board.append((args, kwargs)))
    weights_and_biases = type("WandbCallback", (), {})()
    weights_and_biases._wandb = SimpleNamespace(Image=lambda image, caption: caption, log=wandb.append)
    trainer.callback_handler.callbacks += [tensorboard, weights_and_biases]
    callback._show(trainer.args, trainer.state)
    (name, pixels, step), kwargs = board[0]
    assert (name, pixels.shape, step, kwargs) == ("samples", (2, SIZE, SIZE, 3), 0, {"dataformats": "NHWC"})
    assert wandb == [{"samples": ["a fox", "an owl"], "train/global_step": 0}]
