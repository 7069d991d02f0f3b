# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Objective heads on a model class: loading, mixing and training."""

import functools
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig

from alignext.functional.mah_dpo import normalize_weights

from .heads import ObjectiveHeads, linear
from .merging import MergingMixin, stock_class
from .scoring import score, score_objectives
from .settings import HeadSettings, ObjectiveWeights, weights_tensor


if TYPE_CHECKING:
    from trl.trainer.utils import FusedCausalLMOutput


class ObjectiveHeadsMixin(MergingMixin):
    """
    Adds objective heads to the model class it is put before. The base head `lm_head` stays what it was: it is the
    reference policy's, and what a stock class finds in the checkpoint. Everything else is inherited.

    Calls that mix heads put a function in the place of `lm_head.forward` for as long as they run, so that whatever the
    architecture does with logits (scales, soft caps) it does with mixed ones, too. Two threads can therefore not share
    a model with different weights; [`~ObjectiveHeadsMixin.merge_heads`] makes a model that can be shared.

    Attributes:
        objectives (`list[str]`): Names, in the order of the heads.
        fresh_heads (`bool`): Whether the heads came from the base head rather than from a checkpoint.
    """

    objective_heads: ObjectiveHeads
    fresh_heads: bool = False
    _mixing: bool = False

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        base = self.get_output_embeddings()
        if not isinstance(base, nn.Linear):
            raise ValueError(f"{stock_class(type(self)).__name__} has no linear output head, which objectives need.")
        vocabulary, width = base.weight.shape
        self.add_model_tags(["alignext", "objective-heads"])  # of the card that `push_to_hub` writes
        self.objective_heads = ObjectiveHeads(
            HeadSettings(**config.objective_heads), vocabulary, width, base.bias is not None
        )
        if base.weight.device.type != "meta":
            self.init_objective_heads()
            self._freeze_base_head()

    def init_objective_heads(self, *, std: float = 0.0, seed: int = 42) -> None:
        """
        Make every head a copy of the base head.

        Args:
            std (`float`, *optional*, defaults to 0.0):
                Noise on full heads. The authors use 1e-3, whatever the scale of the head.
            seed (`int`, *optional*, defaults to 42):
                Head `k` draws with seed `seed + 100 k`, from a generator of its own.
        """
        base = self.get_output_embeddings()
        if self.config.get_text_config().tie_word_embeddings:
            base = SimpleNamespace(weight=self.get_input_embeddings().weight, bias=base.bias)
        self.objective_heads.to(getattr(torch, self.config.objective_heads["dtype"]))
        self.objective_heads.init_from(base, std=std, seed=seed)
        self.fresh_heads = True

    def _freeze_base_head(self) -> None:
        """Take the base head out of training: DDP refuses parameters without gradient. Tied, it is the embeddings."""
        base = self.get_output_embeddings()
        if base.weight is not self.get_input_embeddings().weight:
            base.requires_grad_(False)

    @property
    def objectives(self) -> list[str]:
        return self.config.objective_heads["objectives"]

    # Loading

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ObjectiveHeads):  # called for a module that the checkpoint does not have, or not whole
            module.missing = [
                name for name, weight in module.named_parameters() if not getattr(weight, "_is_hf_initialized", False)
            ]
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, head_init_std: float = 0.0, head_init_seed: int = 42, **kwargs):
        report = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        own = {name for name, _ in model.named_parameters() if not name.startswith("objective_heads.")}
        if own and own <= set(info["missing_keys"]):
            raise ValueError(
                f"No weight of {path!r} fits {cls.__name__}: it would start from random numbers. Found "
                f"{sorted(info['unexpected_keys'])[:3]}, expected {sorted(own)[:3]}."
            )
        heads, missing = model.objective_heads, model.objective_heads.missing
        if missing and len(missing) < len(list(heads.parameters())):
            raise ValueError(
                f"{path!r} has some of its objective heads only: {', '.join(sorted(missing))} are missing."
            )
        if missing:
            model.init_objective_heads(std=head_init_std, seed=head_init_seed)
        else:
            heads.to(getattr(torch, model.config.objective_heads["dtype"]))
        model._freeze_base_head()
        return (model, info) if report else model

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize as the stock method does; the new rows of every head are those of the base head."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.objective_heads.resize(self.get_output_embeddings())
        self._freeze_base_head()
        return embeddings

    # Mixing

    def mixing_weights(self, weights: ObjectiveWeights, *, normalize: bool = True) -> torch.Tensor:
        """
        Weights as a tensor: names that a mapping does not have count 0; `None` are the config's `default_weights`, or
        equal ones.

        Args:
            weights (`Mapping[str, float]`, `Sequence[float]`, `torch.Tensor` or `None`): As given to `generate`.
            normalize (`bool`, *optional*, defaults to `True`): Divide them by their sum.

        Returns:
            `torch.Tensor` of shape `(H,)` or `(B, H)`.

        Raises:
            ValueError: A name that is no objective, another number of weights than of objectives, or a wrong number.
        """
        if weights is None:
            weights = self.config.objective_heads.get("default_weights") or [1.0] * len(self.objectives)
        weights = weights_tensor(weights, self.objectives, "objective_weights")
        return normalize_weights(weights, normalize=normalize)

    @contextmanager
    def mixed_heads(self, weights: ObjectiveWeights = None, *, normalize_weights: bool = True) -> Generator[None]:
        """
        Within this context the model is the mixture: heads are folded into one once, and every call that gives no
        weights of its own uses it. Use it around many calls with the same weights.

        Args:
            weights (`Mapping[str, float]`, `Sequence[float]`, `torch.Tensor` or `"base"`, *optional*):
                Per objective. A tensor of shape `(B, H)` has one row per prompt, shared by its beams and samples.
                `"base"` is the untouched base head.
            normalize_weights (`bool`, *optional*, defaults to `True`): Divide them by their sum.
        """
        base, heads = self.get_output_embeddings(), self.objective_heads
        before, mixing = vars(base).get("forward"), self._mixing
        if isinstance(weights, str) and weights == "base":
            mixed = type(base).forward.__get__(base)
        else:
            chosen = self.mixing_weights(weights, normalize=normalize_weights)
            if chosen.ndim == 1:
                mixed = functools.partial(
                    linear, **dict(zip(("weight", "bias"), heads.folded(base, chosen), strict=True))
                )
            else:
                mixed = heads.by_row(base, chosen)
        try:
            base.forward, self._mixing = mixed, True
            yield
        finally:
            self._mixing = mixing
            del base.forward
            if before is not None:
                base.forward = before

    def generate(
        self, *args: Any, objective_weights: ObjectiveWeights = None, normalize_weights: bool = True, **kwargs: Any
    ) -> Any:
        """
        As the stock method, from the mixture of the heads `sum_k w_k z_k` of raw logits.

        Args:
            *args: As for the stock method.
            objective_weights (`Mapping[str, float]`, `Sequence[float]`, `torch.Tensor` or `"base"`, *optional*):
                Weight of each objective; names left out count 0. One row of them per prompt as a tensor of shape `(B,
                H)`. Equal weights if not given. `"base"` is the untouched base head.
            normalize_weights (`bool`, *optional*, defaults to `True`):
                Divide them by their sum. Off, they may be negative.
            **kwargs: As for the stock method.
        """
        if objective_weights is None and self._mixing:
            return super().generate(*args, **kwargs)
        _check_rows(objective_weights, args, kwargs)
        with torch.no_grad(), self.mixed_heads(objective_weights, normalize_weights=normalize_weights):
            return super().generate(*args, **kwargs)

    def objective_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits `z_k = W_k h` of all heads, shape `(H, ..., V)`, before any scale or cap of the architecture."""
        return self.objective_heads(hidden, self.get_output_embeddings())

    # Training

    def forward(
        self,
        *args: Any,
        objective_weights: ObjectiveWeights = None,
        objective_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        fused_lm_head: bool = False,
        **kwargs: Any,
    ) -> Any:
        """
        As the stock method, with mixed heads.

        Args:
            *args: As for the stock method.
            objective_weights (`Mapping[str, float]`, `Sequence[float]`, `torch.Tensor` or `"base"`, *optional*):
                As for `generate`.
            objective_ids (`torch.Tensor` of shape `(B,)`, *optional*):
                Give each row the head of its objective. With `labels`, the output then has no logits but `log_probs`
                of shape `(B, T - 1)` (0 where the label is -100), `entropy`, `mean_logits` and `is_top1`: the
                training path, for which full logits never exist.
            labels (`torch.Tensor` of shape `(B, T)`, *optional*): As for the stock method.
            fused_lm_head (`bool`, *optional*, defaults to `False`):
                With `labels` and no `objective_ids`, the same output of the base head.
            **kwargs: As for the stock method.
        """
        if labels is not None and (fused_lm_head or objective_ids is not None):
            return self._log_probs(*args, labels=labels, objective_ids=objective_ids, **kwargs)
        if labels is not None:
            kwargs["labels"] = labels
        if objective_ids is not None and objective_weights is not None:
            raise ValueError("`objective_ids` and `objective_weights` are both given. Leave one out.")
        if objective_ids is not None:
            objective_weights = F.one_hot(objective_ids, len(self.objectives))
        if objective_weights is None and self._mixing:
            return super().forward(*args, **kwargs)
        _check_rows(objective_weights, args, kwargs)
        with self.mixed_heads(objective_weights):
            return super().forward(*args, **kwargs)

    def _log_probs(
        self, *args: Any, labels: torch.Tensor, objective_ids: torch.Tensor | None, **kwargs: Any
    ) -> "FusedCausalLMOutput":
        """One pass of the backbone, then each head on its own rows."""
        base, heads = self.get_output_embeddings(), self.objective_heads
        kwargs["use_cache"] = False
        if getattr(self.config.get_text_config(), "output_router_logits", False):
            kwargs.setdefault("output_router_logits", True)
        backbone = self.base_model(*args, **kwargs)
        seen = {key: kwargs[key] for key in ("attention_mask", "output_router_logits") if key in kwargs}
        if objective_ids is None:
            return score(self.config, backbone, slice(None), labels, base.weight, base.bias, **seen)
        return score_objectives(heads, base, self.config, backbone, labels, objective_ids, **seen)


def _check_rows(weights: ObjectiveWeights, args: tuple, kwargs: dict[str, Any]) -> None:
    """Rows of weights are one per prompt: otherwise a prompt would get somebody else's."""
    if weights is None or isinstance(weights, (str, Mapping)) or torch.as_tensor(weights).ndim != 2:
        return
    given = (*args[:1], *(kwargs.get(name) for name in ("input_ids", "inputs", "inputs_embeds")))
    batch = next((len(value) for value in given if value is not None), len(weights))
    if len(weights) != batch:
        raise ValueError(f"`objective_weights` has {len(weights)} rows and the batch {batch}: give one per prompt.")
