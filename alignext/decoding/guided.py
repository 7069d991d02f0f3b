# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Decoding guided by process rewards, after "Simultaneous Multi-objective Alignment Across Verifiable and
Non-verifiable Rewards" ([arXiv 2510.01167](https://huggingface.co/papers/2510.01167)).

Again and again: sample `K` candidates for the next step of every text, score what each would make of the text, and go
on from the best with its key-value cache. Here the candidates of all prompts are one batch for the model and one for
the reward.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers import PreTrainedTokenizerBase

from alignext.decoding.rows import prompt_rows, refuse_shards
from alignext.decoding.steps import Candidate, GuidedStep, Steps, StepSampler, Text, check_candidates, steps_of
from alignext.loaded import check_loaded
from alignext.rewards.process import Prompt
from alignext.rewards.texts import TextRewards


@dataclass
class GuidedOutput:
    """
    The texts that guided decoding has written; every list has one entry per prompt.

    Attributes:
        texts (`list[str]`): The texts, `tokenizer.decode(token_ids, skip_special_tokens=True)`.
        token_ids (`list[list[int]]`): The tokens behind the prompt, the end-of-sequence token included.
        steps (`list[list[GuidedStep]]`): How each text came about.
        stop_reasons (`list[str]`): `"eos"`, `"stop_string"`, `"max_new_tokens"`, `"max_steps"` or
            `"no_valid_candidate"`.
    """

    texts: list[str]
    token_ids: list[list[int]]
    steps: list[list[GuidedStep]]
    stop_reasons: list[str]


# Arguments of `generate` that are ours to set, or make no sense with steps.
_NOT_FOR_GENERATE = {
    "attention_mask",
    "cache",
    "cache_implementation",
    "input_ids",
    "inputs",
    "inputs_embeds",
    "max_length",
    "num_beams",
    "num_return_sequences",
    "past_key_values",
    "return_dict_in_generate",
    "stopping_criteria",
    "streamer",
    "use_cache",
}


def guided_generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompt | Sequence[Prompt],
    reward_fn: Any,
    *,
    num_candidates: int = 5,
    boundary: str | Callable[[str], bool] = "sentence",
    reward_weights: Sequence[float] | torch.Tensor | None = None,
    objective_weights: Any = None,
    normalize_weights: bool = True,
    min_step_tokens: int | None = None,
    max_step_tokens: int | None = None,
    max_steps: int | None = None,
    max_new_tokens: int | None = None,
    stop_strings: str | Sequence[str] | None = None,
    is_valid: Callable[[str], bool] | None = None,
    max_attempts: int | None = None,
    do_sample: bool = True,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 50,
    generator: torch.Generator | None = None,
    **generate_kwargs: Any,
) -> GuidedOutput:
    r"""
    Decode with any causal language model, step by step, keeping of `K` sampled candidates the one whose text so far
    scores best (the first of equals). Scores are absolute: of the whole text, not of what the step adds to it.

    With one candidate this is sampling as `generate` does it, token for token. A candidate that only ends the text
    competes with the score of the text as it stands.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A causal language model, with objective heads or without.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        prompts (`str`, `list[dict]` or a sequence of them):
            Text or conversation, one or many. Many are decoded together.
        reward_fn (`Callable`, `PreTrainedModel`, `str` or a list of them):
            A function as TRL's trainers take them, here called as `reward_fn(prompts=..., completions=...,
            steps=...)`: `n` prompts, the `n` texts so far (behind a conversation, as the assistant's message) and the
            steps they are made of. It returns `n` numbers, or shape `(n, R)`. A token classifier is a process reward
            model, a sequence classifier scores texts as they stand, both with the tokenizer saved beside them, given
            as models, folders or Hub ids; see `ProcessReward` and `SequenceReward` for more control.
        num_candidates (`int`, *optional*, defaults to 5):
            `K`, candidates per step.
        boundary (`str` or `Callable[[str], bool]`, *optional*, defaults to `"sentence"`):
            Where a step ends, at the latest with the end-of-sequence token: `"sentence"` (or paragraph),
            `"paragraph"` (a blank line; for solutions that end in `\boxed{`), `"reply"` (best of `K` whole replies),
            or a function of the text of the step so far.
        reward_weights (sequence of `float`, *optional*):
            `v`, where there are several rewards: the score is `sum_r v_r s_r`. All 1 if not given.
        objective_weights (`dict`, `list`, `torch.Tensor` or `"base"`, *optional*):
            Weights of objective heads, as `generate` of such a model takes them; `[B, H]` has a row per prompt. If not
            given, those of `mixed_heads` around this call, else the model's own.
        normalize_weights (`bool`, *optional*, defaults to `True`):
            Divide them by their sum.
        min_step_tokens (`int`, *optional*):
            No boundary before so many tokens. By `boundary`: 8, 1, 1; and 1 for a function.
        max_step_tokens (`int`, *optional*):
            A step ends after so many tokens. By `boundary`: 256, 512, 300; and 256 for a function.
        max_steps (`int`, *optional*):
            By `boundary`: 100, 20, 1; and 100 for a function.
        max_new_tokens (`int`, *optional*):
            Length of the whole text. By `boundary`: 1024, 4000, 300; and 1024 for a function.
        stop_strings (`str` or `Sequence[str]`, *optional*):
            A kept step with one of them is the last. By `boundary`: none, `\boxed{`, none.
        is_valid (`Callable[[str], bool]`, *optional*):
            Tells which texts of candidates may be kept; others are sampled again. Not empty, if not given; behind
            `"paragraph"` also not starting with `Step 0` and not naming the `assistant` twice.
        max_attempts (`int`, *optional*):
            Candidates sampled for a step at most, valid or not; `3 K` if not given.
        do_sample (`bool`, *optional*, defaults to `True`):
            Sample, rather than take the most probable token.
        temperature (`float`, *optional*, defaults to 1.0):
            As for `generate`.
        top_p (`float`, *optional*, defaults to 1.0):
            As for `generate`.
        top_k (`int`, *optional*, defaults to 50):
            As for `generate`; 0 keeps all tokens.
        generator (`torch.Generator`, *optional*):
            Draws the candidates, on the device of the model; the global one if not given.
        **generate_kwargs:
            For `generate`, such as `repetition_penalty` and `logits_processor`.

    Returns:
        [`GuidedOutput`]: Texts, tokens, steps with all scores, and why each text ended.

    Raises:
        ValueError: An argument is out of range, or a reward returns NaN or not a number for each text.
    """
    if isinstance(stop_strings, str):
        stop_strings = [stop_strings]
    steps = steps_of(
        boundary,
        is_valid=is_valid,
        min_step_tokens=min_step_tokens,
        max_step_tokens=max_step_tokens,
        max_steps=max_steps,
        max_new_tokens=max_new_tokens,
        stop_strings=None if stop_strings is None else tuple(stop_strings),
    )
    max_attempts = check_candidates(num_candidates, max_attempts)
    if wrong := sorted(_NOT_FOR_GENERATE & set(generate_kwargs)):
        raise ValueError(f"`guided_generate` sets {', '.join(wrong)} itself. Leave it out.")
    check_loaded(model)
    if model.config.is_encoder_decoder:
        raise ValueError(f"`model` is a {type(model).__name__}, an encoder-decoder. Pass a causal language model.")
    refuse_shards(model, "guided_generate")
    if is_peft_model(model) and model.active_peft_config.is_prompt_learning:
        raise ValueError("`model` has a prompt-learning adapter, whose cache begins with virtual tokens. Use a LoRA.")
    generate_kwargs["do_sample"] = do_sample
    if do_sample:
        generate_kwargs |= {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    texts = decoded_by_steps(
        model,
        tokenizer,
        prompt_rows(tokenizer, prompts),
        TextRewards(reward_fn, reward_weights, model.device),
        steps,
        num_candidates=num_candidates,
        max_attempts=max_attempts,
        weights=objective_weights,
        normalize=normalize_weights,
        generator=generator,
        settings=generate_kwargs,
    )
    return GuidedOutput(
        texts=[tokenizer.decode(text.new_ids, skip_special_tokens=True) for text in texts],
        token_ids=[text.new_ids for text in texts],
        steps=[text.steps for text in texts],
        stop_reasons=[str(text.stop_reason) for text in texts],
    )


def decoded_by_steps(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[tuple[Prompt, list[int]]],
    reward: TextRewards,
    steps: Steps,
    *,
    num_candidates: int,
    max_attempts: int,
    weights: Any,
    normalize: bool,
    generator: torch.Generator | None,
    settings: dict[str, Any],
    of_texts: Callable[[list[Text]], dict[str, Any]] | None = None,
) -> list[Text]:
    """
    The loop of guided decoding.

    Args:
        model (`PreTrainedModel` or `PeftModel`): Writes.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        rows (`list[tuple]`): What the reward gets as prompt, and the prompt's token ids.
        reward (`TextRewards`): Scores texts.
        steps (`Steps`): Where steps and texts end.
        num_candidates, max_attempts, generator: As for [`guided_generate`].
        weights, normalize: Its `objective_weights` and `normalize_weights`.
        settings (`dict`): Further arguments of `generate`.
        of_texts (`Callable`, *optional*): Those of a step of given texts, one row each.

    Returns:
        `list[Text]`, one for each row.
    """
    texts = [Text(i, prompt, ids, len(ids)) for i, (prompt, ids) in enumerate(rows)]
    weights = _weights_of(weights, texts)
    with torch.no_grad(), _mixing(model, weights, normalize) as mixture:
        sampler = StepSampler(model, tokenizer, steps, mixture, generator, settings, of_texts)
        active, cache = texts, None
        while active:
            candidates = sampler.propose(active, cache, num_candidates, max_attempts)
            scores = _scores(reward, active, candidates)
            kept = []
            for text, options, values in zip(active, candidates, scores, strict=True):
                text.take(options, values, steps)
                if text.stop_reason is None:
                    kept.append((text, options[text.steps[-1].chosen]))
            active, cache = [text for text, _ in kept], sampler.carry(kept)
    return texts


def _weights_of(objective_weights: Any, texts: list[Text]) -> Any:
    """Weights as `generate` takes them; those of each prompt as a tensor that rows can be taken from."""
    if objective_weights is None or isinstance(objective_weights, (dict, str)):
        return objective_weights
    weights = torch.as_tensor(objective_weights)
    if weights.ndim == 2 and len(weights) != len(texts):
        raise ValueError(
            f"`objective_weights` has {len(weights)} rows for {len(texts)} prompts. Pass one row per prompt, or one "
            "vector for all."
        )
    return weights


def _scores(reward: TextRewards, texts: list[Text], candidates: list[list[Candidate]]) -> list[list[float]]:
    """The score of every candidate, all of them in one call of each reward."""
    pairs = [(text, candidate) for text, options in zip(texts, candidates, strict=True) for candidate in options]
    if not pairs:
        return [[] for _ in texts]
    steps = [text.parts(candidate) for text, candidate in pairs]
    values = reward(
        [text.prompt for text, _ in pairs],
        ["".join(parts) for parts in steps],
        completion_ids=[text.new_ids + candidate.ids for text, candidate in pairs],
        steps=steps,
    )
    rest = iter(values.tolist())
    return [[next(rest) for _ in options] for options in candidates]


@contextmanager
def _mixing(model: Any, weights: Any, normalize: bool) -> Generator[dict[str, Any]]:
    """The arguments of `generate` about objectives: none if heads can be folded once, here, for all steps."""
    base = model.get_base_model() if is_peft_model(model) else model
    by_row = isinstance(weights, torch.Tensor) and weights.ndim == 2
    if weights is None and getattr(base, "_mixing", False):
        yield {}  # the caller has folded them around this call
    elif hasattr(base, "mixed_heads") and not by_row:
        with base.mixed_heads(weights, normalize_weights=normalize):
            yield {}
    else:
        yield {} if weights is None else {"objective_weights": weights, "normalize_weights": normalize}
