# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Guided decoding as an object for the stock `generate`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from alignext.decoding.chains import padded_sequences
from alignext.decoding.custom import CustomGenerate, Scorer
from alignext.decoding.guided import decoded_by_steps
from alignext.decoding.steps import GuidedStep, Text, check_candidates, steps_of
from alignext.decoding.suffixes import AsDrawn
from alignext.methods import method
from alignext.rewards.process import Prompt


@dataclass
class GuidedDecodingOutput(ModelOutput):
    """
    What [`GuidedDecoding`] returns from `generate`.

    Attributes:
        sequences (`torch.Tensor` of shape `(B, P + N)`): Prompts and texts, padded on the right.
        steps (`list[list[GuidedStep]]`): How each text came about.
        stop_reasons (`list[str]`): Why each ended, as in `GuidedOutput`.
        reward_calls (`int`): Texts that were scored; none twice.
    """

    sequences: torch.Tensor | None = None
    steps: list[list[GuidedStep]] | None = None
    stop_reasons: list[str] | None = None
    reward_calls: int | None = None


class GuidedDecoding(CustomGenerate):
    """
    [`guided_generate`] for `generate(custom_generate=...)`, with the sampling arguments of that call. Logits
    processors see each row by itself, as in the stock method: the padded prompt and the text so far. `max_new_tokens`
    of the call is the length of a text.

    Args:
        reward_funcs (`Callable`, `PreTrainedModel`, `str` or a list of them): The `reward_fn` of [`guided_generate`].
        processing_class (`PreTrainedTokenizerBase`): The tokenizer of the model.
        num_candidates (`int`, *optional*, defaults to 5): For every step.
        boundary (`str` or `Callable[[str], bool]`, *optional*, defaults to `"sentence"`): Where a step ends.
        reward_weights (sequence of `float`, *optional*): Of several rewards.
        min_step_tokens, max_step_tokens, max_steps (`int`, *optional*): By `boundary`.
        stop_strings (`str` or `Sequence[str]`, *optional*): A kept step with one of them is the last. By `boundary`.
        is_valid (`Callable[[str], bool]`, *optional*): Tells which candidates may be kept.
        max_attempts (`int`, *optional*): Candidates sampled for a step at most; `3 num_candidates` if not given.
        generator (`torch.Generator`, *optional*): Draws candidates, on the model's device.

    Raises:
        ValueError: An argument is out of range.
    """

    _paper = method("Process rewards").paper

    def __init__(
        self,
        reward_funcs: Any,
        processing_class: PreTrainedTokenizerBase,
        *,
        num_candidates: int = 5,
        boundary: str | Callable[[str], bool] = "sentence",
        reward_weights: Sequence[float] | None = None,
        min_step_tokens: int | None = None,
        max_step_tokens: int | None = None,
        max_steps: int | None = None,
        stop_strings: str | Sequence[str] | None = None,
        is_valid: Callable[[str], bool] | None = None,
        max_attempts: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(reward_funcs, processing_class, reward_weights, stop_strings)
        self.num_candidates, self.boundary, self.is_valid = num_candidates, boundary, is_valid
        self.min_step_tokens, self.max_step_tokens, self.max_steps = min_step_tokens, max_step_tokens, max_steps
        self.max_attempts, self.generator = max_attempts, generator
        self._steps = steps_of(
            boundary,
            is_valid=is_valid,
            min_step_tokens=min_step_tokens,
            max_step_tokens=max_step_tokens,
            max_steps=max_steps,
            stop_strings=tuple(self.stop_strings) or None,
        )
        self._attempts = check_candidates(num_candidates, max_attempts)

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        prompts: Sequence[Prompt] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        **model_kwargs: Any,
    ) -> GuidedDecodingOutput:
        """
        Called by `generate`, which takes `prompts` as well.

        Args:
            model (`PreTrainedModel`): Generates, as do all arguments that are not named here.
            input_ids (`torch.Tensor` of shape `(B, P)`): The prompts, padded on the left.
            logits_processor (`LogitsProcessorList`): Prepared.
            stopping_criteria (`StoppingCriteriaList`): Prepared; steps have their own.
            generation_config (`GenerationConfig`): Prepared.
            prompts (`Sequence` of `str` or `list[dict]`, *optional*): What rewards get as prompts.
            columns (`Mapping[str, Sequence]`, *optional*): Not supported.

        Returns:
            [`GuidedDecodingOutput`].

        Raises:
            ValueError: A reward is not a number for each text.
            NotImplementedError: The model or an argument of `generate` is not supported.
        """
        self.check(model, input_ids, generation_config, model_kwargs)
        if not generation_config.do_sample and self.num_candidates > 1:  # the default of `generate`
            raise ValueError(
                "`do_sample` must be True for GuidedDecoding, received False: all candidates of a step would be the "
                "same, and the reward would choose nothing. With `num_candidates=1` it may be False."
            )
        if columns is not None:
            raise NotImplementedError("GuidedDecoding does not support `columns`. Leave them out.")
        reward = self.reward_of(self.reward_funcs, model.device)
        scorer = Scorer(self.processing_class, reward, input_ids, model_kwargs.get("attention_mask"), prompts)
        before = reward.calls
        eos, pad = generation_config._eos_token_tensor, generation_config._pad_token_tensor
        pad = 0 if pad is None else int(pad)
        texts = decoded_by_steps(
            model,
            self.processing_class,
            list(zip(scorer.prompts, scorer.ids, strict=True)),
            reward,
            self._steps._replace(max_new_tokens=generation_config.max_length - input_ids.shape[1]),
            num_candidates=self.num_candidates,
            max_attempts=self._attempts,
            weights=None,
            normalize=True,
            generator=self.generator,
            settings={
                "do_sample": generation_config.do_sample,
                "eos_token_id": None if eos is None else eos.tolist(),
                "pad_token_id": pad,
            },
            of_texts=lambda texts: {"custom_generate": _AsPrepared(logits_processor, input_ids, texts)},
        )
        return GuidedDecodingOutput(
            sequences=padded_sequences(input_ids, [text.new_ids for text in texts], pad),
            steps=[text.steps for text in texts],
            stop_reasons=[str(text.stop_reason) for text in texts],
            reward_calls=reward.calls - before,
        )


class _AsPrepared:
    """
    The stock loop with the processors of the call outside, which must not be prepared again, and see the ids that they
    would see there: the length of the padded prompt is in some of them.
    """

    def __init__(self, processors: Any, prompts: torch.Tensor, texts: Sequence[Text]) -> None:
        self.processors, self.prompts, self.texts = processors, prompts[[text.index for text in texts]], texts

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> torch.Tensor:
        as_drawn = AsDrawn(self.prompts, [text.new_ids for text in self.texts], input_ids.shape[1])
        return model._sample(
            input_ids,
            logits_processor=as_drawn.processors(self.processors),
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            **model_kwargs,
        )
