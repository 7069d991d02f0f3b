# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The shared parts of objects for `model.generate(custom_generate=...)`: what they refuse, the texts that they score,
and the cache that they fill.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers import DynamicCache, PreTrainedTokenizerBase, StaticCache, StopStringCriteria
from transformers.cache_utils import Cache

from alignext.decoding.hub import write_custom_generate
from alignext.decoding.rows import added_text, refuse_shards, whole_text
from alignext.rewards.process import Prompt
from alignext.rewards.texts import TextRewards


# What the loops below know how to carry from one row to another.
_CARRIED = {"attention_mask", "position_ids"}


class CustomGenerate:
    """
    The base of decoding methods that `model.generate` runs.

    Args:
        reward_funcs (`Callable`, `PreTrainedModel`, `str` or a list of them): As [`guided_generate`] takes them.
        processing_class (`PreTrainedTokenizerBase`): The tokenizer.
        reward_weights (sequence of `float`, *optional*): Of several rewards, whose weighted sum counts.
        stop_strings (`str` or `Sequence[str]`, *optional*): A completion ends behind one of them.
    """

    def __init__(
        self,
        reward_funcs: Any,
        processing_class: PreTrainedTokenizerBase,
        reward_weights: Sequence[float] | None = None,
        stop_strings: str | Sequence[str] | None = None,
    ) -> None:
        if not hasattr(processing_class, "decode"):
            raise ValueError(
                f"`processing_class` must be the tokenizer of the model, received a {type(processing_class).__name__}."
            )
        self.reward_funcs, self.processing_class, self.reward_weights = reward_funcs, processing_class, reward_weights
        self.stop_strings = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings or ())
        # A model's id is loaded at the first call, which knows the device.
        self._rewards: dict[str, TextRewards] = {}
        functions = reward_funcs if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
        if not functions:
            raise ValueError("`reward_funcs` must have a reward, received an empty list.")
        for function in functions:
            if not (callable(function) or isinstance(function, str) or hasattr(function, "__fspath__")):
                raise ValueError(
                    "`reward_funcs` must be functions of `prompts`, `completions` and `**kwargs`, reward models or "
                    f"their ids, received a {type(function).__name__}."
                )

    def reward_of(self, funcs: Any, device: torch.device, key: str = "reward_funcs") -> TextRewards:
        """The rewards as one, which forgets what it has seen before."""
        if key not in self._rewards:
            weights = self.reward_weights if key == "reward_funcs" else None
            self._rewards[key] = TextRewards(funcs, weights, device, remember=True)
        self._rewards[key].seen = {}
        return self._rewards[key]

    def check(self, model: Any, input_ids: torch.Tensor, generation_config: Any, model_kwargs: dict[str, Any]) -> None:
        """
        Refuse what a callable cannot do, by name and before any forward pass.

        Raises:
            NotImplementedError: The model or an argument of `generate` is not supported.
            ValueError: A cache holds something already, or a time limit is set.
        """
        name = type(self).__name__
        refuse_shards(model, name)
        if model.config.is_encoder_decoder:
            raise NotImplementedError(
                f"{name} does not support encoder-decoders, received a {type(model).__name__}. Pass a causal language "
                "model."
            )
        owner = getattr(vars(model).get("prepare_inputs_for_generation"), "__self__", None)
        if owner is not None and is_peft_model(owner) and owner.active_peft_config.is_prompt_learning:
            raise NotImplementedError(
                f"{name} does not support prompt-learning adapters, whose cache begins with virtual tokens. Use "
                "a LoRA."
            )
        if generation_config.num_beams > 1:
            raise NotImplementedError(f"{name} does not support `num_beams`, received {generation_config.num_beams}.")
        if generation_config.prompt_lookup_num_tokens is not None:
            raise NotImplementedError(f"{name} does not support `prompt_lookup_num_tokens`. Leave it out.")
        if generation_config.max_time is not None:
            raise ValueError(f"{name} has no use for `max_time`, which would cut texts by the clock. Leave it out.")
        given = dropped_arguments(inspect.currentframe())
        if given.get("synced_gpus"):
            raise NotImplementedError(f"{name} does not support `synced_gpus`, as FSDP and ZeRO-3 need. Leave it out.")
        if given.get("streamer") is not None:
            raise NotImplementedError(
                f"`generate` does not hand a `streamer` to {name}, so that it would never end. Leave it out"
                + (f", and pass it to {name}." if hasattr(self, "streamer") else ".")
            )
        if given.get("assistant_model") is not None:
            raise NotImplementedError(f"`generate` does not hand an `assistant_model` to {name}. Leave it out.")
        tensors = sorted(k for k, v in model_kwargs.items() if torch.is_tensor(v) and k not in _CARRIED)
        if tensors:
            raise NotImplementedError(f"{name} supports input ids alone, received {', '.join(tensors)}.")
        past = model_kwargs.get(cache_key(model_kwargs) or "")
        if past is not None and past.is_initialized and not isinstance(past, StaticCache):
            raise ValueError(f"{name} fills the cache itself, received one with tokens in it. Leave it out.")
        if input_ids.shape[1] == 0:
            raise ValueError(f"{name} needs at least one token in each prompt, received none.")

    @classmethod
    def settings(cls) -> set[str]:
        """The names of its arguments, without the tokenizer."""
        return set(inspect.signature(cls).parameters) - {"processing_class"}

    def save_custom_generate(self, folder: str | Path) -> None:
        """
        Write a folder, or the checkout of a repository, that plain transformers decodes with:
        `model.generate(**inputs, custom_generate=folder, trust_remote_code=True)`.

        Args:
            folder (`str` or `Path`): It gets `custom_generate/generate.py`; what else it holds stays.

        Raises:
            ValueError: A reward is a function or a model: only ids and folders can be saved.
        """
        given = {
            name: getattr(self, name) for name in inspect.signature(type(self)).parameters if name in self.settings()
        }
        defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
        changed = {name: value for name, value in given.items() if value != defaults[name] and value != []}
        write_custom_generate(folder, type(self).__name__, changed)

    def criteria(self, stopping_criteria: Any) -> Any:
        """The stopping criteria with those of the object."""
        stopping_criteria = copy.copy(stopping_criteria)
        if self.stop_strings:
            stopping_criteria.append(StopStringCriteria(self.processing_class, self.stop_strings))
        return stopping_criteria


def dropped_arguments(frame: FrameType | None) -> Mapping[str, Any]:
    """
    The arguments of the `generate` that has called us, of which it hands a callable only some: `streamer` and
    `assistant_model` are left out without a word.
    """
    while frame is not None and not (frame.f_code.co_name == "generate" and "custom_generate" in frame.f_locals):
        frame = frame.f_back
    return {} if frame is None else frame.f_locals


def cache_key(model_kwargs: Mapping[str, Any]) -> str | None:
    """The name of the argument that is a cache, which `generate` has made; None without one."""
    return next((name for name, value in model_kwargs.items() if isinstance(value, Cache)), None)


def own_cache(model: Any, model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of forward passes with a new and plain cache, in the place of a static or quantized one, too."""
    name = cache_key(model_kwargs)
    if name is None:
        return dict(model_kwargs)
    if not model_kwargs.get("use_cache", True):
        return {key: value for key, value in model_kwargs.items() if key != name}
    return {**model_kwargs, name: DynamicCache(config=model.config.get_text_config())}


class Scorer:
    """
    Scores completions of the prompts of one call.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Of the model.
        reward (`TextRewards`): Scores texts.
        ids (`torch.Tensor` of shape `(B, P)`): The prompts, padded on the left.
        mask (`torch.Tensor` of shape `(B, P)`, *optional*): 0 where they are padded.
        prompts (`Sequence` of `str` or `list[dict]`, *optional*):
            What rewards get as prompts, one for each row, or one for several that follow each other; decoded from the
            ids if not given.
        columns (`Mapping[str, Sequence]`, *optional*): Further columns of rewards, in the same way.

    Raises:
        ValueError: There are not as many prompts or cells as prompts in the batch.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        reward: TextRewards,
        ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        prompts: Sequence[Prompt] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self.tokenizer, self.reward = tokenizer, reward
        mask = torch.ones_like(ids) if mask is None else mask
        self.ids = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
        self.starts = [whole_text(tokenizer, row) for row in self.ids]
        self.prompts = self.starts if prompts is None else _spread("prompts", prompts, len(ids))
        self.columns = {
            name: _spread(f"columns[{name!r}]", cells, len(ids)) for name, cells in (columns or {}).items()
        }

    def text(self, row: int, completion: Sequence[int]) -> str:
        """What tokens add to the text of a prompt, special tokens left out."""
        return added_text(self.tokenizer, self.ids[row], completion, self.starts[row])

    def __call__(self, rows: Sequence[int], completions: Sequence[Sequence[int]]) -> torch.Tensor:
        """
        The rewards of completions, float64 of shape `(n,)`.

        Args:
            rows (`Sequence[int]`): The prompt of each.
            completions (`Sequence[Sequence[int]]`): Token ids.

        Raises:
            ValueError: A reward is not finite.
        """
        texts = [self.text(row, ids) for row, ids in zip(rows, completions, strict=True)]
        columns = {name: [cells[row] for row in rows] for name, cells in self.columns.items()}
        values = self.reward([self.prompts[row] for row in rows], texts, [list(ids) for ids in completions], **columns)
        if not values.isfinite().all():
            i = int((~values.isfinite()).nonzero()[0])
            raise ValueError(
                f"`reward_funcs` must return finite numbers, received {values[i].item()} for prompt {rows[i]}, "
                f"completion {texts[i][:200]!r}."
            )
        return values


def _spread(name: str, given: Sequence[Any], count: int) -> list[Any]:
    if isinstance(given, str) or not len(given) or count % len(given):
        raise ValueError(f"`{name}` must have one entry for each of {count} rows, received {len(given)}.")
    return [entry for entry in given for _ in range(count // len(given))]
