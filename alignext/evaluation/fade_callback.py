# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""FADE while a model trains."""

from collections.abc import Sequence
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignext.checks import check_counts
from alignext.evaluation.fade import Fade
from alignext.logs import log_beside
from alignext.methods import method


class FADECallback(TrainerCallback):
    """
    Logs `fade/forward` and `fade/reverse` of the model in training every so many steps and at the end: how far it has
    moved from a reference. The reference's samples are made once. Training draws the same random numbers with it and
    without.

    Args:
        trainer (`Trainer`): Whose model is compared, and whose log is written: of transformers, TRL or this library.
        reference (`PreTrainedModel`, `DiffusionPipeline` or `str`): As of [`fade_score`]; `"base"` for what a LoRA
            started from.
        prompts (`Sequence`): As of [`fade_score`].
        every (`int`): Steps between two measurements.
        settings: Further arguments of [`fade_score`].

    Raises:
        ValueError: If `every` is less than 1.

    Example:

    ```python
    >>> trainer.add_callback(FADECallback(trainer, reference="base", prompts=["Once upon a time"], every=100))
    ```
    """

    _paper = method("FADE").paper

    def __init__(self, trainer: Trainer, reference: Any, prompts: Sequence[Any], every: int, **settings: Any) -> None:
        check_counts(every=every)
        self.trainer, self.every, self._last = trainer, every, -1
        self._pipe = getattr(trainer, "pipe", None)  # of trainers of diffusion models
        tokenizer = None if self._pipe is not None else trainer.processing_class
        quiet: dict[str, Any] = {"progress": False, **settings}
        self._fade = Fade(reference, prompts, tokenizer, **quiet)
        self._fade.how.warn()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step % self.every == 0:
            self._log(state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._log(state, control)

    def _log(self, state: TrainerState, control: TrainerControl) -> None:
        if state.global_step == self._last:
            return
        self._last = state.global_step
        model = self._pipe
        if model is None:
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        with self.trainer.accelerator.autocast():
            found = self._fade(model)
        log_beside(self.trainer, control, {"fade/forward": found.forward.mean, "fade/reverse": found.reverse.mean})
