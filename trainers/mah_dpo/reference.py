# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The policy and its reference: which of them has heads, and how TRL comes to load them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from accelerate.utils import is_peft_model
from transformers import AutoModelForCausalLM

from alignext.heads.auto import AutoModelForCausalLMWithObjectiveHeads
from alignext.heads.mixin import ObjectiveHeadsMixin

from .config import MAHDPOConfig


@dataclass
class Loaders:
    """Stands where TRL expects the class of a model: the policy is loaded first, then, if at all, the reference."""

    policy: Callable[..., Any]
    reference: Callable[[Any], Callable[..., Any]]
    loaded: Any = None

    def from_pretrained(self, path: str, **kwargs: Any) -> Any:
        if self.loaded is not None:
            return self.reference(self.loaded)(path, **kwargs)
        self.loaded = self.policy(path, **kwargs)
        return self.loaded


_HEAD_SETTINGS = ("head_type", "head_rank", "head_alpha", "head_init_std", "head_init_seed", "head_dtype")


def loader(args: MAHDPOConfig, objectives: list[str], *, fresh: bool) -> Callable[..., Any]:
    """The function that loads a model with heads. A checkpoint that has some keeps them as they are."""
    settings = {name: getattr(args, name) for name in _HEAD_SETTINGS} if fresh else {}
    return partial(
        AutoModelForCausalLMWithObjectiveHeads.from_pretrained, objectives=objectives, is_trainable=True, **settings
    )


def check_model(model: Any) -> None:
    """Refuse a model that has no heads to train."""
    inner = model.get_base_model() if is_peft_model(model) else model
    if not isinstance(inner, ObjectiveHeadsMixin):
        raise ValueError(
            f"`model` is a {type(inner).__name__} without objective heads. Pass its name or folder, or load it "
            "with `AutoModelForCausalLMWithObjectiveHeads.from_pretrained`."
        )
    if not any(weight.requires_grad for weight in inner.objective_heads.parameters()):
        raise ValueError(
            "The objective heads of `model` are frozen. Make the adapter with "
            "`modules_to_save=['objective_heads']`, or load it with `is_trainable=True`."
        )


def reference_loader(args: MAHDPOConfig, load: Callable[..., Any], policy: Any) -> Callable[..., Any]:
    """The function that loads the reference of a policy, with its heads or without."""
    if args.reference_heads == "base" or (args.reference_heads == "auto" and policy.fresh_heads):
        return AutoModelForCausalLM.from_pretrained
    return load


def needs_own_reference(model: Any, args: MAHDPOConfig, peft_config: Any) -> bool:
    """Whether the reference has heads that TRL would not load."""
    if is_peft_model(model) or peft_config is not None or (args.precompute_ref_log_probs and not args.fsdp):
        return False
    return args.reference_heads == "objective" or (args.reference_heads == "auto" and not model.fresh_heads)


def routes_reference(args: MAHDPOConfig, policy: Any, reference: Any) -> bool:
    """Whether a pair's reference is the head of its objective rather than the base head."""
    if args.reference_heads != "auto":
        return args.reference_heads == "objective"
    if is_peft_model(policy) and "ref" in policy.peft_config:
        return True  # TRL's copy of the adapter that training starts from, heads included
    reference = reference.get_base_model() if is_peft_model(reference) else reference
    return isinstance(reference, ObjectiveHeadsMixin) and not reference.fresh_heads


def with_heads(peft_config: Any) -> Any:
    """The adapter, with the heads trained and saved beside it."""
    if not hasattr(peft_config, "modules_to_save"):
        raise ValueError(f"`peft_config` is a {type(peft_config).__name__}, which cannot train the heads beside it.")
    peft_config = copy.deepcopy(peft_config)
    peft_config.modules_to_save = [*(peft_config.modules_to_save or []), "objective_heads"]
    return peft_config
