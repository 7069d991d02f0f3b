# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Steering vector decoding: extrapolate what a fine-tuning has changed, while the stock `generate` runs. After
"Distribution-Aligned Decoding for Efficient LLM Task Adaptation"
([arXiv 2509.15888](https://huggingface.co/papers/2509.15888)).
"""

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers import DynamicCache, LogitsProcessor

from alignext.decoding.hub import write_custom_generate
from alignext.decoding.rows import cache_name, refuse_shards
from alignext.functional.svdecode import DIRECTIONS, plausible, steered_logits
from alignext.loaded import check_loaded
from alignext.methods import method


class BaseModel:
    """
    The model that a tuned one came from.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The tuned model; a plain one may have adapters inside.
        base (`PreTrainedModel`, *optional*): Another model with the same vocabulary; `None` turns the adapters off.

    Raises:
        ValueError: There is no adapter that can be turned off, or the vocabularies differ.
        NotImplementedError: The model is an encoder-decoder.
    """

    def __init__(self, model: Any, base: Any = None) -> None:
        for name, one in (("model", model), ("base", base)):
            check_loaded(one, name)
            if one is not None and one.config.is_encoder_decoder:
                raise NotImplementedError(f"{type(one).__name__} is an encoder-decoder. Pass causal language models.")
        # An adapter that `AutoModelForCausalLM` has loaded is inside the model.
        inside = [module for module in model.modules() if isinstance(getattr(module, "_disable_adapters", None), bool)]
        if base is None and not is_peft_model(model) and not inside:
            raise ValueError(
                f"`base` must be given for a {type(model).__name__}: without adapters nothing can be turned off. Pass "
                "the model that was fine-tuned."
            )
        if base is None and any(getattr(module, "merged", False) is True for module in model.modules()):
            raise ValueError("`model` has merged adapters, which cannot be turned off. Unmerge them, or pass `base`.")
        sizes = [one.get_output_embeddings().weight.shape[0] for one in (model, base) if one is not None]
        if len(set(sizes)) > 1:
            raise ValueError(
                f"`base` must have the vocabulary of `model`, received {sizes[1]} tokens for {sizes[0]}. Resize one "
                "with `resize_token_embeddings`."
            )
        self.model, self.adapted = model if base is None else base, base is None
        self.inside = inside if base is None and not is_peft_model(model) else []

    @contextmanager
    def __call__(self) -> Generator[Any]:
        if self.adapted and not self.inside:
            with self.model.disable_adapter():
                yield self.model
            return
        before = [module._disable_adapters for module in self.inside]
        try:
            for module in self.inside:
                module._disable_adapters = True
            yield self.model
        finally:
            for module, off in zip(self.inside, before, strict=True):
                module._disable_adapters = off


class SVDecodeLogitsProcessor(LogitsProcessor):
    """
    Moves the logits of a fine-tuned model away from the model it came from, by a multiple of their difference, on
    tokens that the tuned model finds plausible. Put into `generate`; it works with sampling, beams and prompt lookup.

    With `direction="logit_difference"` and `base` it is contrastive decoding, or proxy tuning. It runs the base model
    once per token, with a cache of its own. With several active adapters all are turned off.

    Example:

    ```python
    >>> processor = SVDecodeLogitsProcessor(model, strength=2.0, prompt_attention_mask=inputs["attention_mask"])
    >>> model.generate(**inputs, logits_processor=LogitsProcessorList([processor]))
    ```

    Args:
        model (`PreTrainedModel` or `PeftModel`): The tuned model, which generates.
        strength (`float`): Positive leads away from the base model; 0 is off. `calibrate_svdecode` finds it.
        base (`PreTrainedModel`, *optional*): The base model; the model without its adapters if not given.
        alpha (`float`, *optional*, defaults to 0.1):
            Tokens with less than this times the largest probability are excluded; 0 excludes none.
        direction (`str`, *optional*, defaults to `"kl_gradient"`): Or `"logit_difference"`.
        prompt_attention_mask (`torch.Tensor` of shape `(B, P)`, *optional*):
            Of the prompts; needed where they are padded, since `generate` does not tell a processor.
        allow_penalties (`bool`, *optional*, defaults to `False`):
            Run though the generation config has a `repetition_penalty`, which changes the tuned logits only.

    Raises:
        ValueError: An argument is out of range, or the base model does not fit.
        NotImplementedError: The model is an encoder-decoder, or several processes share its weights.
    """

    _paper = method("SVDecode").paper

    def __init__(
        self,
        model: Any,
        strength: float,
        *,
        base: Any = None,
        alpha: float = 0.1,
        direction: str = "kl_gradient",
        prompt_attention_mask: torch.Tensor | None = None,
        allow_penalties: bool = False,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"`alpha` must be in [0, 1], received {alpha}.")
        if not abs(strength) < torch.inf:
            raise ValueError(f"`strength` must be finite, received {strength}.")
        if direction not in DIRECTIONS:
            raise ValueError(f"`direction` must be one of {', '.join(DIRECTIONS)}, received {direction!r}.")
        penalty = getattr(getattr(model, "generation_config", None), "repetition_penalty", None)
        if penalty not in (None, 1.0) and not allow_penalties:
            raise ValueError(
                f"`repetition_penalty` of the generation config must be 1, received {penalty}: the base model knows "
                "nothing of it, so it would be extrapolated. Set it to 1, or `allow_penalties=True`."
            )
        refuse_shards(model, type(self).__name__)
        self.base, self.strength, self.alpha, self.direction = BaseModel(model, base), strength, alpha, direction
        self.mask = prompt_attention_mask
        self._seen: torch.Tensor | None = None
        self._cache: Any = None

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        """Steered logits of shape `(B, V)`, of ids of shape `(B, T)` and logits of shape `(B, V)`."""
        # Where one token is plausible in every row, the base model cannot change anything. It reads the tokens later.
        forced = self.alpha > 0 and bool((plausible(scores, self.alpha).sum(-1) == 1).all())
        base = scores if self.strength == 0 or forced else self._base_logits(input_ids).to(scores.device)
        return steered_logits(scores, base, self.strength, self.alpha, self.direction)

    def _base_logits(self, ids: torch.Tensor) -> torch.Tensor:
        seen = 0 if self._seen is None else self._seen.shape[1]
        # Beams change places, assistants take tokens back, and a processor may be used again.
        if not 0 < seen < ids.shape[1] or not torch.equal(self._seen, ids[:, :seen]):
            seen, self._cache = 0, None
        mask = self._mask(ids)
        with self.base() as model:
            named = cache_name(model)
            if named is None:
                seen = 0
            elif self._cache is None:
                self._cache = DynamicCache(config=model.config)
            of_call: dict[str, Any] = {} if named is None else {named: self._cache, "use_cache": True}
            inner = model.get_base_model() if is_peft_model(model) else model
            if "position_ids" in inspect.signature(inner.forward).parameters:
                of_call["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, seen:]
            logits = model(input_ids=ids[:, seen:], attention_mask=mask, logits_to_keep=1, **of_call).logits
        self._seen = ids.clone()
        return logits[:, -1]

    def _mask(self, ids: torch.Tensor) -> torch.Tensor:
        if self.mask is None:
            return torch.ones_like(ids)
        rows, prompt = self.mask.shape
        if len(ids) % rows or ids.shape[1] < prompt:
            raise ValueError(
                f"`prompt_attention_mask` must be that of the prompts, received shape {tuple(self.mask.shape)} for "
                f"ids of shape {tuple(ids.shape)}. Make a new processor for other prompts."
            )
        mask = self.mask.to(ids).repeat_interleave(len(ids) // rows, 0)
        return torch.cat([mask, mask.new_ones(len(ids), ids.shape[1] - prompt)], 1)

    def save_custom_generate(self, folder: str | Path) -> None:
        """
        Write a folder, or the checkout of a repository, that plain transformers decodes with:
        `model.generate(**inputs, custom_generate=folder, trust_remote_code=True)`.

        Args:
            folder (`str` or `Path`): It gets `custom_generate/generate.py`; what else it holds stays.

        Raises:
            ValueError: The base model has no id that it could be loaded by.
        """
        settings = {"strength": self.strength, "alpha": self.alpha, "direction": self.direction}
        if not self.base.adapted:
            settings["base"] = self.base.model.config._name_or_path
            if not settings["base"]:
                raise ValueError("`base` must have an id or a folder to be saved by, received one without. Save it.")
        write_custom_generate(folder, "SVDecode", settings)
