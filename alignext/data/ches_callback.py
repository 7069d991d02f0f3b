# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Watch the likelihood of chosen answers fall or rise, by their CHES score, while DPO trains."""

import math
from typing import Any

import torch
from transformers import TrainerCallback

from alignext.data.core import numbers
from alignext.logs import log_beside
from alignext.wrapping import evaluating


class CHESCallback(TrainerCallback):
    """
    Logs the change of the chosen answers' log-probability since the start of training, for quantiles of the score:
    `ches/chosen_change_1` is that of the lowest scores. Rows of the trainer's own data stand for each.

    Example:

    ```python
    >>> trainer = DPOTrainer(model, args=args, train_dataset=add_ches_scores(model, pairs, processing_class=tokenizer))
    >>> trainer.add_callback(CHESCallback(trainer))
    ```

    Args:
        trainer (`DPOTrainer`): Its training data has the column of scores.
        column (`str`, *optional*, defaults to `"ln_ches"`): The score.
        quantiles (`int`, *optional*, defaults to 4): Into how many the rows are cut.
        rows (`int`, *optional*, defaults to 64): How many are looked at in all.
        every (`int`, *optional*): Steps between two looks; as the trainer logs if not given.

    Raises:
        ValueError: If there is no such column, or there are fewer scored rows than quantiles.
    """

    def __init__(
        self, trainer: Any, column: str = "ln_ches", quantiles: int = 4, rows: int = 64, every: int | None = None
    ) -> None:
        scores = numbers(trainer.train_dataset, column)
        order = sorted((i for i, score in enumerate(scores) if math.isfinite(score)), key=lambda i: scores[i])
        if not 1 <= quantiles <= min(len(order), rows):
            raise ValueError(
                f"`quantiles` must be between 1 and the number of rows, received {quantiles} for "
                f"{min(len(order), rows)} rows with a score."
            )
        self.trainer, self.every = trainer, every
        self.groups: list[list[int]] = []
        for q in range(quantiles):
            group = order[q * len(order) // quantiles : (q + 1) * len(order) // quantiles]
            stride = max(1, math.ceil(len(group) * quantiles / rows))
            self.groups.append(group[::stride])
        self._start: list[torch.Tensor] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = [self._logps(group) for group in self.groups]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        every = self.every or max(1, int(args.logging_steps))
        if self._start is None or state.global_step % every:
            return
        changes = [
            float((self._logps(group) - start).mean()) for group, start in zip(self.groups, self._start, strict=True)
        ]
        found = {f"ches/chosen_change_{q}": change for q, change in enumerate(changes, start=1)}
        log_beside(self.trainer, control, found)

    @torch.no_grad()
    def _logps(self, rows: list[int]) -> torch.Tensor:
        """Log-probabilities of the chosen answers."""
        trainer = self.trainer
        model, size = trainer.accelerator.unwrap_model(trainer.model), trainer.args.per_device_eval_batch_size
        found = []
        with evaluating(model):
            for start in range(0, len(rows), size):
                batch = trainer.data_collator([trainer.train_dataset[i] for i in rows[start : start + size]])
                half = len(batch["input_ids"]) // 2  # chosen first, then rejected
                ids, attention, mask = (
                    batch[name][:half].to(model.device) for name in ("input_ids", "attention_mask", "completion_mask")
                )
                logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1].float()
                logps = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
                found.append((logps * mask[:, 1:]).sum(1).cpu())
        return torch.cat(found)
