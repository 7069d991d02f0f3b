# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Trainers on rewards with tiny random pipelines, rewards, and what they leave in memory."""

from pathlib import Path
from typing import Any

import torch

from alignext.trainers.diffusion_reward import AlignPropConfig, AlignPropTrainer, DDPOConfig, DDPOTrainer

from ..contract import SHORT_RUN
from ..diffusion import rewarded_prompts
from ..diffusion_preference.tiny import PIPELINES, SIZE


STEPS = 3


def near_grey(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """How near all pixels are to a fixed pattern. Its gradients are not small beside 1e-6."""
    pattern = torch.linspace(0.2, 0.8, images.shape[-1])
    return -100 * ((images - pattern) ** 2).flatten(1).mean(1)


near_grey.differentiable = True  # ty: ignore[unresolved-attribute]


def left_is_dark(images: torch.Tensor, prompts: list[str]) -> list[float]:
    """A reward without a gradient."""
    return [-float(image[..., : image.shape[-1] // 2].mean()) for image in images]


def trainer(folder: Path, kind: str = "alignprop", pipe: Any = "sd", **settings: Any) -> Any:
    """A trainer that is ready to train."""
    cls, config, reward = {
        "alignprop": (AlignPropTrainer, AlignPropConfig, near_grey),
        "ddpo": (DDPOTrainer, DDPOConfig, left_is_dark),
    }[kind]
    arguments = {
        name: settings.pop(name) for name in ("peft_config", "train_dataset", "eval_dataset") if name in settings
    }
    reward = settings.pop("reward_funcs", reward)
    given = SHORT_RUN | {"output_dir": str(folder), "resolution": SIZE, "max_sequence_length": 16}
    given |= {"num_inference_steps": STEPS, "per_device_train_batch_size": 2} | settings
    made = PIPELINES[pipe]() if isinstance(pipe, str) else pipe
    made.set_progress_bar_config(disable=True)
    return cls(made, reward, config(**given), **{"train_dataset": rewarded_prompts()} | arguments)


def first_batch(trainer: Any, rows: int = 2) -> Any:
    """The batch of the first rows, as in the first update."""
    trainer.model.train()
    return trainer.batch(trainer.data_collator([trainer.train_dataset[i] for i in range(rows)]))


def gradient(trainer: Any, batch: Any = None) -> torch.Tensor:
    """Of the trainer's loss, in all that is trained."""
    trainer.model.zero_grad()
    trainer.training_loss(trainer.model, first_batch(trainer) if batch is None else batch).backward()
    return flat_gradient(trainer.denoiser)


def flat_gradient(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.requires_grad and p.grad is not None])


class Saved:
    """Within it, how many bytes autograd keeps for the backward pass; a tensor that is kept twice counts once."""

    def __enter__(self) -> "Saved":
        self.bytes, seen = 0, set()

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen and not isinstance(tensor, torch.nn.Parameter):
                seen.add(storage.data_ptr())
                self.bytes += storage.nbytes()
                self.held.append(tensor)  # so that no address is given out twice
            return tensor

        self.held: list[torch.Tensor] = []
        self._hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        self.held.clear()
