# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Steering vector decoding: extrapolate what a fine-tuning has changed, while the stock `generate` runs. After
"Distribution-Aligned Decoding for Efficient LLM Task Adaptation"
([arXiv 2509.15888](https://huggingface.co/papers/2509.15888)).
"""

import inspect
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, LogitsProcessor, PreTrainedTokenizerBase
from transformers.utils import logging

from alignext.decoding.rows import cache_name
from alignext.functional.svdecode import (
    DIRECTIONS,
    Positions,
    fit_strength,
    kept_positions,
    mean_nll,
    plausible,
    steered_logits,
)
from alignext.rewards.process import prompt_ids


logger = logging.get_logger(__name__)


class BaseModel:
    """
    The model that a tuned one came from.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The tuned model.
        base (`PreTrainedModel`, *optional*): Another model with the same vocabulary; `None` turns the adapters off.

    Raises:
        ValueError: There is no adapter that can be turned off, or the vocabularies differ.
        NotImplementedError: The model is an encoder-decoder.
    """

    def __init__(self, model: Any, base: Any = None) -> None:
        for one in (model, base):
            if one is not None and one.config.is_encoder_decoder:
                raise NotImplementedError(f"{type(one).__name__} is an encoder-decoder. Pass causal language models.")
        if base is None and not is_peft_model(model):
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

    @contextmanager
    def __call__(self) -> Generator[Any]:
        with self.model.disable_adapter() if self.adapted else nullcontext():
            yield self.model


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
    """

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


@dataclass
class SVDecodeCalibration:
    """
    A strength, and what it was found from.

    Attributes:
        strength (`float`): For [`SVDecodeLogitsProcessor`].
        nll (`dict[float, float]`): Mean negative log-likelihood of the known tokens, by strength: at 0, at `strength`
            and on the grid.
        num_tokens (`int`): Known tokens that were used.
        num_excluded (`int`): Known tokens that the mask excludes.
    """

    strength: float
    nll: dict[float, float]
    num_tokens: int
    num_excluded: int


def calibrate_svdecode(
    model: Any,
    dataset: Iterable[Mapping[str, Any]],
    processing_class: PreTrainedTokenizerBase,
    *,
    base: Any = None,
    alpha: float = 0.1,
    direction: str = "kl_gradient",
    estimator: str = "newton",
    grid: Sequence[float] = (-1.0, 1.0, 2.0, 4.0, 8.0),
    batch_size: int = 8,
    max_length: int = 1024,
) -> SVDecodeCalibration:
    r"""
    Find the strength of [`SVDecodeLogitsProcessor`] under which held-out completions are likely. Data that the model
    was tuned on has a smaller residual, and gives a smaller strength.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The tuned model.
        dataset (`Dataset` or an iterable of `dict`):
            Rows with `prompt` and `completion`, texts or conversations, or with `messages`, of which the last is the
            completion. Only completions count.
        processing_class (`PreTrainedTokenizerBase`): The tokenizer.
        base, alpha, direction: As for [`SVDecodeLogitsProcessor`].
        estimator (`str`, *optional*, defaults to `"newton"`):
            `"newton"`, the minimum of the NLL; `"paper"`, a mean of ratios; `"grid"`, the best of `grid` and 0.
        grid (`Sequence[float]`, *optional*): Strengths whose NLL is in the result.
        batch_size (`int`, *optional*, defaults to 8): Rows per forward pass.
        max_length (`int`, *optional*, defaults to 1024): Longer rows are cut.

    Returns:
        [`SVDecodeCalibration`].

    Raises:
        ValueError: There is no known token, or an argument is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must be in [0, 1], received {alpha}.")
    before = BaseModel(model, base)
    rows = [_encoded(processing_class, row, i, max_length) for i, row in enumerate(dataset)]
    if not rows:
        raise ValueError("`dataset` must have rows, received none.")
    parts = []
    modes = [
        (module, module.training)
        for one in {id(model): model, id(before.model): before.model}.values()
        for module in one.modules()
    ]
    try:
        for module, _ in modes:
            module.training = False
        for start in range(0, len(rows), batch_size):
            parts.append(_positions(model, before, rows[start : start + batch_size], alpha, direction))
    finally:
        for module, training in modes:
            module.training = training
    positions = _together(parts)
    strength = fit_strength(positions, estimator, tuple(grid))
    if strength == 0 and not positions.steering.abs().max() > 1e-8:
        logger.warning("The tuned model and its base give the same distributions, so that there is nothing to steer.")
    nll = {float(s): mean_nll(positions, s) for s in sorted({0.0, strength, *grid})}
    return SVDecodeCalibration(strength, nll, len(positions.targets), positions.excluded)


def _encoded(tokenizer: Any, row: Mapping[str, Any], number: int, max_length: int) -> tuple[torch.Tensor, int]:
    """Token ids of a row, and the length of its prompt."""
    if "messages" in row:
        prompt, completion = row["messages"][:-1], row["messages"][-1:]
    elif "prompt" in row and "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
    else:
        raise ValueError(
            f"`dataset` must have 'prompt' and 'completion', or 'messages', received {list(row)} in row {number}."
        )
    start = prompt_ids(tokenizer, prompt)
    if isinstance(prompt, str):
        ids = tokenizer(prompt + completion)["input_ids"]
        ids = (
            ids if ids[: len(start)] == start else start + tokenizer(completion, add_special_tokens=False)["input_ids"]
        )
        eos = tokenizer.eos_token_id
        ids = ids if eos is None or ids[-1] == eos else [*ids, eos]
    else:
        ids = tokenizer.apply_chat_template([*prompt, *completion], tokenize=True, return_dict=True)["input_ids"]
    return torch.tensor(ids[:max_length]), len(start)


@torch.no_grad()
def _positions(model: Any, before: BaseModel, rows: list, alpha: float, direction: str) -> Positions:
    ids = pad_sequence([row for row, _ in rows], batch_first=True).to(model.device)
    mask = pad_sequence([torch.ones_like(row) for row, _ in rows], batch_first=True).to(model.device)
    known = mask.bool()
    for i, (_, start) in enumerate(rows):
        known[i, :start] = False
    tuned = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -ids.shape[1] :]
    with before() as base:
        given = base(input_ids=ids.to(base.device), attention_mask=mask.to(base.device), use_cache=False).logits
    read = known[:, 1:]
    args = tuned[:, :-1][read], given[:, :-1].to(tuned.device)[read], ids[:, 1:][read]
    found = kept_positions(*args, alpha, direction)
    return Positions(*(value.cpu() for value in found[:3]), found.excluded)


def _together(parts: list[Positions]) -> Positions:
    width = max(part.logits.shape[1] for part in parts)

    def padded(values: torch.Tensor, filler: float) -> torch.Tensor:
        return torch.nn.functional.pad(values, (0, width - values.shape[1]), value=filler)

    return Positions(
        torch.cat([padded(part.logits, -torch.inf) for part in parts]),
        torch.cat([padded(part.steering, 0.0) for part in parts]),
        torch.cat([part.targets for part in parts]),
        sum(part.excluded for part in parts),
    )
