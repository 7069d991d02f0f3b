# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Objective heads left behind: a mixture of them as a stock model, or as an adapter."""

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from alignext.files import replacing

from .heads import ObjectiveHeads
from .settings import ObjectiveWeights


if TYPE_CHECKING:
    _Model = PreTrainedModel
else:
    _Model = object


class MergingMixin(_Model):
    """The part of [`ObjectiveHeadsMixin`][alignext.heads.mixin.ObjectiveHeadsMixin] that leaves the heads behind."""

    objective_heads: ObjectiveHeads

    if TYPE_CHECKING:

        def mixing_weights(self, weights: ObjectiveWeights, *, normalize: bool = True) -> torch.Tensor: ...

    def merge_heads(self, weights: ObjectiveWeights = None, *, normalize_weights: bool = True) -> PreTrainedModel:
        """
        The mixture as a model of the stock class, with one head, which any server runs.

        Args:
            weights (`Mapping[str, float]`, `Sequence[float]` or `torch.Tensor`, *optional*):
                One weight per objective; equal ones if not given.
            normalize_weights (`bool`, *optional*, defaults to `True`): Divide them by their sum.

        Returns:
            `PreTrainedModel`: A copy. Its head is not tied to its embeddings.

        Raises:
            ValueError: Adapters are in the model that are not merged into its weights, or its weights are not those
                of its stock class.
        """
        if any(hasattr(module, "base_layer") for module in self.modules()):  # what PEFT calls the layer it wraps
            raise ValueError(
                "`merge_heads` makes a model of the stock class, which has no place for an adapter, and this one has "
                "adapters. Merge them into its weights first: `model = model.merge_and_unload()`."
            )
        weight, bias = self._fold(weights, normalize_weights)
        base_class = stock_class(type(self))
        config = copy.deepcopy(self.config)
        del config.objective_heads
        config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
        config.architectures = [base_class.__name__]
        head = next(name for name, module in self.named_modules() if module is self.get_output_embeddings())
        state = {
            name: value.detach().clone()
            for name, value in self.state_dict().items()
            if not name.startswith(("objective_heads.", f"{head}."))
        }
        state |= {f"{head}.weight": weight} | ({} if bias is None else {f"{head}.bias": bias})
        model, info = base_class.from_pretrained(
            None, config=config, state_dict=state, dtype=self.dtype, output_loading_info=True
        )
        # What is missing would start from random numbers.
        if info["missing_keys"] or info["unexpected_keys"]:
            raise ValueError(
                f"The weights of this model are not those of {base_class.__name__}: missing are "
                f"{sorted(info['missing_keys'])[:3]}, too many {sorted(info['unexpected_keys'])[:3]}. Take off what "
                "was put around its layers, as `unload()` does for adapters."
            )
        model.generation_config = copy.deepcopy(self.generation_config)
        return model.to(self.device).train(self.training)

    def save_mixture_adapter(
        self, folder: str | os.PathLike, weights: ObjectiveWeights = None, *, normalize_weights: bool = True
    ) -> None:
        """
        Write a mixture of low-rank heads as a LoRA adapter on the output head of this model's base class: rank `H r`,
        a few megabytes per mixture beside one shared backbone.

        Args:
            folder (`str` or `os.PathLike`): Where `adapter_config.json` and `adapter_model.safetensors` go.
            weights (`Mapping[str, float]`, `Sequence[float]` or `torch.Tensor`, *optional*):
                One weight per objective; equal ones if not given.
            normalize_weights (`bool`, *optional*, defaults to `True`): Divide them by their sum.

        Raises:
            ValueError: The heads are full, or the weights do not sum to 1.
        """
        from peft import LoraConfig  # only this method needs it

        heads, chosen = self.objective_heads, self.mixing_weights(weights, normalize=normalize_weights)
        if not heads.low_rank:
            raise ValueError("Full heads are no adapter: use `merge_heads`, or train with `head_type='low_rank'`.")
        if chosen.ndim != 1 or abs(float(chosen.sum()) - 1) > 1e-6:
            raise ValueError(f"`weights` are {chosen.tolist()}, but an adapter needs one mixture with a sum of 1.")
        down = torch.cat([a.detach() for a in heads.all("A")])
        up = torch.cat(
            [w * heads.scale * b.detach() for w, b in zip(chosen.tolist(), heads.all("B"), strict=True)], -1
        )
        head = next(name for name, module in self.named_modules() if module is self.get_output_embeddings())
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        LoraConfig(
            task_type="CAUSAL_LM",
            r=len(down),
            lora_alpha=len(down),
            target_modules=[head],
            base_model_name_or_path=self.name_or_path,
            inference_mode=True,
        ).save_pretrained(str(path))
        state = {f"base_model.model.{head}.lora_A.weight": down, f"base_model.model.{head}.lora_B.weight": up}
        with replacing(path / "adapter_model.safetensors") as part:
            save_file({k: v.contiguous().cpu() for k, v in state.items()}, part)

    @torch.no_grad()
    def _fold(self, weights: ObjectiveWeights, normalize: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        chosen = self.mixing_weights(weights, normalize=normalize)
        if chosen.ndim != 1:
            raise ValueError(f"`weights` has shape {tuple(chosen.shape)}, but one model has one weight per objective.")
        weight, bias = self.objective_heads.folded(self.get_output_embeddings(), chosen)
        return weight.clone(), None if bias is None else bias.clone()


def stock_class(cls: type) -> type[PreTrainedModel]:
    """The stock class behind a class with objective heads."""
    return next(c for c in cls.__mro__ if issubclass(c, PreTrainedModel) and not issubclass(c, MergingMixin))
