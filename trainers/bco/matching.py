# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Underlying distribution matching (UDM): the weight of undesirable rows, from embeddings of their prompts."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import PreTrainedModel
from trl.trainer.utils import pad

from alignext.functional.bco import DensityRatio, fit_density_ratio
from alignext.training import door
from alignext.wrapping import evaluating


def prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    """The text of a prompt. Of a conversation: the texts of its messages, an empty line between two."""
    if isinstance(prompt, str):
        return prompt
    texts = []
    for message in prompt:
        parts = message.get("content") or []  # a call of a tool has none
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        texts += [part["text"] for part in parts if part.get("type") == "text" and part.get("text")]
    return "\n\n".join(texts)


@torch.no_grad()
def embed_with_policy(model: PreTrainedModel, prompt_ids: Iterable[Sequence[int]], batch_size: int) -> torch.Tensor:
    """
    The mean of the last hidden states over each prompt, adapters switched off.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The policy.
        prompt_ids (`Iterable[Sequence[int]]`): Token ids of `n` prompts.
        batch_size (`int`): Prompts per forward pass.

    Returns:
        `torch.Tensor` of shape `(n, d)`, float32, on the CPU.
    """
    if is_peft_model(model):
        with model.disable_adapter():
            return embed_with_policy(model.get_base_model(), prompt_ids, batch_size)
    prompts = [torch.tensor(ids) for ids in prompt_ids]
    embeddings = []
    with evaluating(model):
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            ids = pad(batch, padding_value=0, padding_side="right").to(model.device)
            mask = pad([torch.ones_like(row) for row in batch], padding_value=0, padding_side="right").to(model.device)
            hidden = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.float()
            embeddings.append(((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).cpu())
    return torch.cat(embeddings)


class PromptWeights:
    """
    Density ratios of prompts: fitted to one dataset, then given for any. A prompt is embedded once per dataset.

    Args:
        embed (`Callable[[list], torch.Tensor]`): Turns `n` prompts, as `key` gives them, into `(n, d)` embeddings.
        key (`Callable[[dict], Hashable]`): The prompt of a row.
        bounds (`tuple[float, float]`): Density ratios are clipped to them.
    """

    def __init__(
        self, embed: Callable[[list], torch.Tensor], key: Callable[[dict], Any], bounds: tuple[float, float]
    ) -> None:
        self.embed, self.key, self.bounds = embed, key, bounds
        self.ratio: DensityRatio | None = None

    def fit(self, dataset: Dataset, sample_size: int, regularization: float | None, seed: int) -> DensityRatio:
        """Fit the classifier to at most `sample_size` rows of each class, drawn without replacement."""
        labels = torch.tensor([bool(label) for label in dataset["label"]])
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for desirable in (True, False):
            of_class = (labels == desirable).nonzero()[:, 0]
            rows.append(of_class[torch.randperm(len(of_class), generator=generator)[:sample_size]])
        sample = torch.cat(rows)
        embeddings, groups = self._embeddings(dataset.select(sample.tolist()))
        self.ratio = fit_density_ratio(
            embeddings, labels[sample], regularization=regularization, groups=groups, generator=generator
        )
        return self.ratio

    def of(self, dataset: Dataset) -> list[float]:
        """The weight of each row: 1 for desirable ones."""
        assert self.ratio is not None, "call `fit` first"
        undesirable = [i for i, label in enumerate(dataset["label"]) if not label]
        weights = [1.0] * len(dataset)
        if undesirable:
            embeddings, _ = self._embeddings(dataset.select(undesirable))
            for i, weight in zip(undesirable, self.ratio.weights(embeddings, *self.bounds).tolist(), strict=True):
                weights[i] = weight
        return weights

    def _embeddings(self, dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of shape `(n, d)` and the number of the prompt of each row."""
        numbers: dict[Any, int] = {}
        groups = torch.tensor([numbers.setdefault(self.key(row), len(numbers)) for row in dataset])
        prompts = list(numbers)
        with door.users_function(
            f"`prompt_embedder`, given {len(prompts)} prompts, the first {str(prompts[0])[:80]!r},"
        ):
            embeddings = torch.as_tensor(self.embed(prompts))
        if embeddings.ndim != 2 or len(embeddings) != len(numbers) or not embeddings.isfinite().all():
            raise ValueError(
                f"`prompt_embedder` was given {len(numbers)} prompts and returned an array of shape "
                f"{tuple(embeddings.shape)}, finite: {bool(embeddings.isfinite().all())}. Expected finite numbers of "
                f"shape ({len(numbers)}, d)."
            )
        return embeddings[groups], groups
