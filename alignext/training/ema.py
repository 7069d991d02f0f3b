# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""A running mean of what is trained, by diffusers' `EMAModel`, saved in the place of the last weights."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignext.files import replacing


FILE = "ema.pt"


class RunningMean(TrainerCallback):
    """
    Keeps the running mean of the trainable weights of a denoiser, a step of it for each update.

    Args:
        denoiser (`torch.nn.Module`): What is trained.
        decay (`float`): Factor of the past; less in the first updates, see `EMAModel`.
    """

    def __init__(self, denoiser: torch.nn.Module, decay: float) -> None:
        self.denoiser = denoiser
        self.mean = EMAModel(self._weights(), decay=decay)

    def _weights(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.denoiser.parameters() if parameter.requires_grad]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.mean.to(self._weights()[0].device)
        self.mean.step(self._weights())

    @contextmanager
    def in_place(self) -> Generator[None]:
        """Within it, the denoiser has the running mean of its weights."""
        self.mean.store(self._weights())
        self.mean.copy_to(self._weights())
        try:
            yield
        finally:
            self.mean.restore(self._weights())

    def save(self, folder: Path) -> None:
        """Into a checkpoint, beside the last weights."""
        with replacing(folder / FILE) as part:
            torch.save(self.mean.state_dict(), part)

    def load(self, folder: Path) -> None:
        """From a checkpoint; one without a mean starts it anew at its weights."""
        if (folder / FILE).is_file():
            self.mean.load_state_dict(torch.load(folder / FILE, weights_only=True))
        else:
            self.mean = EMAModel(self._weights(), decay=self.mean.decay)
