# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Causal language models with one output head per objective, of any architecture of transformers.

`objective_heads_class(LlamaForCausalLM)` is a subclass of `LlamaForCausalLM`, made once, whose own `lm_head` stays as
the head of the reference policy.
"""

import copy
import functools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import find_adapter_config_file

from .mixin import ObjectiveHeadsMixin
from .settings import HeadSettings


_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")


class AutoModelForCausalLMWithObjectiveHeads:
    """
    Loads a causal language model with one output head per objective: a plain checkpoint, whose head they start from,
    one that was saved with them, or the folder of an adapter that was trained with them.

    Example:

    ```python
    >>> from alignext import AutoModelForCausalLMWithObjectiveHeads as AutoModel

    >>> model = AutoModel.from_pretrained("Qwen/Qwen2.5-0.5B-Instruct", objectives=["honest", "helpful"])
    >>> ids = model.generate(**inputs, objective_weights={"honest": 0.7, "helpful": 0.3})
    ```
    """

    def __init__(self) -> None:
        raise OSError(f"Make a {type(self).__name__} with `from_pretrained` or `from_config`.")

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        objectives: Sequence[str] | None = None,
        *,
        head_type: str | None = None,
        head_rank: int | None = None,
        head_alpha: float | None = None,
        head_init_std: float = 0.0,
        head_init_seed: int = 42,
        head_dtype: str | None = None,
        default_weights: Mapping[str, float] | Sequence[float] | None = None,
        is_trainable: bool = False,
        config: PreTrainedConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Args:
            path (`str` or `os.PathLike`): A folder or an id on the Hub.
            objectives (`Sequence[str]`, *optional*):
                Names of the objectives, in the order of the heads. A checkpoint with heads has its own; then these,
                if given, must be the same.
            head_type (`str`, *optional*, defaults to `"full"`):
                `"full"`, or `"low_rank"` for heads that add a product of low rank to the base head.
            head_rank (`int`, *optional*, defaults to 64): Rank of the latter.
            head_alpha (`float`, *optional*): The product is scaled by `head_alpha / head_rank`; the rank if not given.
            head_init_std (`float`, *optional*, defaults to 0.0): Noise on new full heads, 1e-3 with the authors.
            head_init_seed (`int`, *optional*, defaults to 42): Head `k` draws with this seed plus `100 k`.
            head_dtype (`str`, *optional*, defaults to `"float32"`):
                Type of the heads. In bfloat16, updates of a small learning rate are lost.
            default_weights (`Mapping[str, float]` or `Sequence[float]`, *optional*):
                Weights of calls that give none; equal ones if not given.
            is_trainable (`bool`, *optional*, defaults to `False`): Whether an adapter is to be trained on.
            config (`PreTrainedConfig`, *optional*): Instead of the checkpoint's.
            **kwargs: As for `AutoModelForCausalLM.from_pretrained`, among them `dtype` and `device_map`.

        Returns:
            `PreTrainedModel`, a subclass of the checkpoint's own class; a `PeftModel` around one for an adapter.

        Raises:
            ValueError: Objectives are missing, repeated or not the checkpoint's, or the checkpoint does not fit.
        """
        hub = {key: kwargs[key] for key in _HUB if kwargs.get(key) is not None}
        adapter = find_adapter_config_file(path, **{k: v for k, v in hub.items() if k != "trust_remote_code"})
        if adapter is not None:
            base = json.loads(Path(adapter).read_text())["base_model_name_or_path"]
            return cls._with_adapter(path, base, objectives, is_trainable, kwargs)
        if config is None:
            config = AutoConfig.from_pretrained(path, **hub)
        given = {
            "objectives": objectives,
            "head_type": head_type,
            "head_rank": head_rank,
            "head_alpha": head_alpha,
            "head_dtype": head_dtype,
            "default_weights": default_weights,
        }
        config, heads = _with_heads(config, given)
        return heads.from_pretrained(
            path, config=config, head_init_std=head_init_std, head_init_seed=head_init_seed, **kwargs
        )

    @classmethod
    def from_config(
        cls,
        config: PreTrainedConfig,
        objectives: Sequence[str] | None = None,
        *,
        head_type: str | None = None,
        head_rank: int | None = None,
        head_alpha: float | None = None,
        head_dtype: str | None = None,
        default_weights: Mapping[str, float] | Sequence[float] | None = None,
    ) -> Any:
        """
        A model with random weights.

        Args:
            config (`PreTrainedConfig`): Of a causal language model.
            objectives, head_type, head_rank, head_alpha, head_dtype, default_weights: As for `from_pretrained`.
        """
        given = {
            "objectives": objectives,
            "head_type": head_type,
            "head_rank": head_rank,
            "head_alpha": head_alpha,
            "head_dtype": head_dtype,
            "default_weights": default_weights,
        }
        config, heads = _with_heads(config, given)
        return heads(config)

    @classmethod
    def _with_adapter(
        cls, path: Any, base: str, objectives: Sequence[str] | None, trainable: bool, kwargs: dict
    ) -> Any:
        from peft import PeftModel

        # The trainer leaves the config, with its objectives, beside the adapter.
        settings = getattr(AutoConfig.from_pretrained(path), "objective_heads", None)
        if settings is None:
            raise ValueError(f"{path!r} is an adapter without objective heads. Load it with peft.")
        config = AutoConfig.from_pretrained(base)
        config.objective_heads = settings
        model = cls.from_pretrained(base, objectives, config=config, **kwargs)
        return PeftModel.from_pretrained(model, path, is_trainable=trainable)


def objective_heads_class(base: type[PreTrainedModel]) -> Any:
    """
    The class `MultiObjective...` with objective heads of a causal language model class, always the same one.

    Args:
        base (`type[PreTrainedModel]`): For example `LlamaForCausalLM`.

    Returns:
        `type`.
    """
    name = f"MultiObjective{base.__name__}"
    module = sys.modules[__name__]
    if name not in vars(module):

        @functools.wraps(base.forward)  # `generate` and the trainer read the arguments of a model from its signature
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return ObjectiveHeadsMixin.forward(self, *args, **kwargs)

        strict = {*(base._keep_in_fp32_modules_strict or ()), "objective_heads"}
        attributes = {"__module__": __name__, "forward": forward, "_keep_in_fp32_modules_strict": strict}
        attributes["_keys_to_ignore_on_load_missing"] = [
            *(base._keys_to_ignore_on_load_missing or ()),
            r"objective_heads\.",  # a plain checkpoint is no reason for a warning
        ]
        setattr(module, name, type(name, (ObjectiveHeadsMixin, base), attributes))
    return vars(module)[name]


def __getattr__(name: str) -> Any:
    """Another process, which unpickles a model, finds its class here."""
    base = getattr(transformers, name.removeprefix("MultiObjective"), None)
    if not name.startswith("MultiObjective") or base is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return objective_heads_class(base)


def _with_heads(config: PreTrainedConfig, given: dict[str, Any]) -> tuple[PreTrainedConfig, Any]:
    """A copy of the config that has the heads' settings, and the class for it."""
    config = copy.deepcopy(config)
    config.objective_heads = HeadSettings.of(getattr(config, "objective_heads", None), given).to_dict()
    if config.is_encoder_decoder:
        raise ValueError(f"{type(config).__name__} is of an encoder-decoder model. Only decoders can have heads.")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{type(config).__name__} is of no causal language model that transformers has.")
    return config, objective_heads_class(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
