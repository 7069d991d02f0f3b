# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Decoding guided by process rewards, after "Simultaneous Multi-objective Alignment Across Verifiable and
Non-verifiable Rewards" ([arXiv 2510.01167](https://huggingface.co/papers/2510.01167)).

Again and again: sample `K` candidates for the next step of every text, score what each would make of the text, and go
on from the best with its key-value cache. Here the candidates of all prompts are one batch for the model and one for
the reward.
"""

import copy
import inspect
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from accelerate.utils import is_peft_model
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import Cache, DynamicLayer

from alignext.decoding.boundaries import no_boundary, paragraph_boundary, sentence_boundary
from alignext.rewards.process import Prompt, as_reward, prompt_ids


@dataclass
class GuidedStep:
    """
    One step of a text.

    Attributes:
        text (`str`): The step that was kept, empty if it only ended the text.
        candidates (`list[str]`): All valid candidates for it, in the order in which they were sampled.
        scores (`list[float]`): What the reward made of the text with each of them.
        chosen (`int`): Which was kept: the first of the best.
        num_tokens (`int`): Length of the kept one.
    """

    text: str
    candidates: list[str]
    scores: list[float]
    chosen: int
    num_tokens: int


@dataclass
class GuidedOutput:
    """
    What guided decoding has written; every list has one entry per prompt.

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


def _not_empty(step: str) -> bool:
    return bool(step.strip())


def _solution_step(step: str) -> bool:
    return _not_empty(step) and not step.lstrip().startswith("Step 0") and step.count("assistant") <= 1


class _Steps(NamedTuple):
    """What a step is. The three below are the settings of the paper's three tasks."""

    ends: Callable[[str], bool]
    is_valid: Callable[[str], bool]
    min_step_tokens: int
    max_step_tokens: int
    max_steps: int
    max_new_tokens: int
    stop_strings: tuple[str, ...] = ()


_BOUNDARIES = {
    "sentence": _Steps(sentence_boundary, _not_empty, 8, 256, 100, 1024),
    "paragraph": _Steps(paragraph_boundary, _solution_step, 1, 512, 20, 4000, ("\\boxed{",)),
    "reply": _Steps(no_boundary, _not_empty, 1, 300, 1, 300),
}
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
# Whatever the model's own generation config says.
_ALWAYS = {"num_beams": 1, "num_return_sequences": 1, "cache_implementation": None, "use_cache": True}


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
    stop_strings: Sequence[str] | None = None,
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
            Of a model with objective heads, as its `generate` takes them; `[B, H]` has one row per prompt. If not
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
            Of the whole text. By `boundary`: 1024, 4000, 300; and 1024 for a function.
        stop_strings (`Sequence[str]`, *optional*):
            A kept step with one of them is the last. By `boundary`: none, `\boxed{`, none.
        is_valid (`Callable[[str], bool]`, *optional*):
            Whether the text of a candidate may be kept; others are sampled again. Not empty, if not given; behind
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
    steps = _steps_of(
        boundary,
        is_valid=is_valid,
        min_step_tokens=min_step_tokens,
        max_step_tokens=max_step_tokens,
        max_steps=max_steps,
        max_new_tokens=max_new_tokens,
        stop_strings=None if stop_strings is None else tuple(stop_strings),
    )
    max_attempts = 3 * num_candidates if max_attempts is None else max_attempts
    if not 1 <= num_candidates <= max_attempts:
        raise ValueError(
            f"`num_candidates` is {num_candidates} and `max_attempts` {max_attempts}, but at least 1 candidate is "
            "needed, and at least as many attempts."
        )
    if wrong := sorted(_NOT_FOR_GENERATE & set(generate_kwargs)):
        raise ValueError(f"`guided_generate` sets {', '.join(wrong)} itself. Leave it out.")
    if model.config.is_encoder_decoder:
        raise ValueError(f"`model` is a {type(model).__name__}, an encoder-decoder. Pass a causal language model.")
    if is_peft_model(model) and model.active_peft_config.is_prompt_learning:
        raise ValueError("`model` has a prompt-learning adapter, whose cache begins with virtual tokens. Use a LoRA.")
    texts = _texts_of(tokenizer, prompts)
    rewards = [
        as_reward(r, model.device) for r in (reward_fn if isinstance(reward_fn, (list, tuple)) else [reward_fn])
    ]
    generate_kwargs["do_sample"] = do_sample
    if do_sample:
        generate_kwargs |= {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    weights = _weights_of(objective_weights, texts)
    with torch.no_grad(), _mixing(model, weights, normalize_weights) as mixture:
        sampler = _Sampler(model, tokenizer, steps, mixture, generator, generate_kwargs)
        active, cache = texts, None
        while active:
            candidates = sampler.propose(active, cache, num_candidates, max_attempts)
            scores = _scores(rewards, reward_weights, active, candidates)
            kept = []
            for text, options, values in zip(active, candidates, scores, strict=True):
                text.take(options, values, steps)
                if text.stop_reason is None:
                    kept.append((text, options[text.steps[-1].chosen]))
            active, cache = [text for text, _ in kept], sampler.carry(kept)
    return GuidedOutput(
        texts=[tokenizer.decode(text.new_ids, skip_special_tokens=True) for text in texts],
        token_ids=[text.new_ids for text in texts],
        steps=[text.steps for text in texts],
        stop_reasons=[str(text.stop_reason) for text in texts],
    )


@dataclass
class _Candidate:
    """A sampled step, and where its keys and values are: in row `row` of `cache`, from position `start` on."""

    ids: list[int]
    text: str
    ended: bool
    cache: Cache | None
    row: int
    start: int

    @property
    def only_ends(self) -> bool:
        return self.ended and not self.text.strip()


@dataclass
class _Text:
    """A text in the making. `ids` are the truth: prompt and all steps so far."""

    index: int
    prompt: Prompt
    ids: list[int]
    prompt_length: int
    steps: list[GuidedStep] = field(default_factory=list)
    stop_reason: str | None = None

    @property
    def new_ids(self) -> list[int]:
        return self.ids[self.prompt_length :]

    def parts(self, candidate: _Candidate) -> list[str]:
        """The steps that the text would have with a candidate."""
        parts = [step.text for step in self.steps]
        return parts if candidate.only_ends else [*parts, candidate.text]

    def take(self, options: list[_Candidate], scores: list[float], limits: "_Steps") -> None:
        """Append the first of the best candidates and see whether the text ends with it."""
        if not options:
            self.stop_reason = "no_valid_candidate"
            return
        chosen = max(range(len(options)), key=scores.__getitem__)
        best = options[chosen]
        self.ids = self.ids + best.ids
        self.steps.append(GuidedStep(best.text, [option.text for option in options], scores, chosen, len(best.ids)))
        if best.ended:
            self.stop_reason = "eos"
        elif any(stop in best.text for stop in limits.stop_strings):
            self.stop_reason = "stop_string"
        elif len(self.new_ids) >= limits.max_new_tokens:
            self.stop_reason = "max_new_tokens"
        elif len(self.steps) >= limits.max_steps:
            self.stop_reason = "max_steps"


class _StepEnds(StoppingCriteria):
    """Ends each row of a batch where its step ends, and notes the length of the step."""

    def __init__(self, start: int, limits: list[int], ends: Callable[[list[int]], bool]) -> None:
        self.start, self.limits, self.ends = start, limits, ends
        self.lengths: list[int | None] = [None] * len(limits)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        length = input_ids.shape[1] - self.start
        for row, ids in enumerate(input_ids[:, self.start :].tolist()):
            if self.lengths[row] is None and (length >= self.limits[row] or self.ends(ids)):
                self.lengths[row] = length
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)


class _Sampler:
    """Samples steps, carrying the key-value cache from one to the next."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        steps: _Steps,
        mixture: dict[str, Any],
        generator: torch.Generator | None,
        settings: dict[str, Any],
    ) -> None:
        self.model, self.tokenizer, self.steps, self.generator = model, tokenizer, steps, generator
        self.mixture, self.settings, self.cache_name = mixture, settings, cache_name(model)
        eos = settings.get("eos_token_id", model.generation_config.eos_token_id)
        self.eos = set(eos if isinstance(eos, (list, tuple)) else [eos])
        filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(self.eos - {None}), 0)
        settings.setdefault("pad_token_id", filler)

    def propose(
        self, texts: list[_Text], cache: Cache | None, count: int, max_attempts: int
    ) -> list[list[_Candidate]]:
        """Up to `count` valid candidates for each text."""
        ids, mask = self._padded(texts)
        if cache is None:
            cache = self._read(texts, ids, mask)
        found: list[list[_Candidate]] = [[] for _ in texts]
        left = [max_attempts] * len(texts)
        while rows := [i for i, options in enumerate(found) for _ in range(min(count - len(options), left[i]))]:
            past = copy.deepcopy(cache)
            if past is not None:
                past.reorder_cache(torch.tensor(rows, device=ids.device))
            for i, candidate in zip(
                rows, self._sample([texts[i] for i in rows], ids[rows], mask[rows], past), strict=True
            ):
                left[i] -= 1
                if candidate.only_ends or self.steps.is_valid(candidate.text):
                    found[i].append(candidate)
        return found

    def carry(self, kept: list[tuple[_Text, _Candidate]]) -> Cache | None:
        """The cache of the texts with what was kept, padded on the left; None if they must be read again."""
        layers = [candidate.cache.layers for _, candidate in kept if candidate.cache is not None]
        # Windows and recurrent states have no positions that could be cut off or moved.
        if not layers or any(type(layer) is not DynamicLayer for row in layers for layer in row):
            return None
        width = (
            max(len(text.ids) for text, _ in kept) - 1
        )  # of the last token, keys and values come with the next step

        def aligned(states: torch.Tensor, text: _Text, candidate: _Candidate) -> torch.Tensor:
            length = len(text.ids) - 1
            own = states[candidate.row, None, :, candidate.start : candidate.start + length]
            return pad(own, (0, 0, width - length, 0))

        cache = DynamicCache(config=self.model.config)
        for i, same in enumerate(zip(*layers, strict=True)):
            if same[0].is_initialized:
                rows = list(zip(same, kept, strict=True))
                keys = torch.cat([aligned(layer.keys, *row) for layer, row in rows])
                cache.update(keys, torch.cat([aligned(layer.values, *row) for layer, row in rows]), i)
        return cache

    def _padded(self, texts: list[_Text]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, padded on the left."""
        width = max(len(text.ids) for text in texts)
        filler = self.settings["pad_token_id"]
        ids = [[filler] * (width - len(text.ids)) + text.ids for text in texts]
        mask = [[0] * (width - len(text.ids)) + [1] * len(text.ids) for text in texts]
        return torch.tensor(ids, device=self.model.device), torch.tensor(mask, device=self.model.device)

    def _read(self, texts: list[_Text], ids: torch.Tensor, mask: torch.Tensor) -> Cache | None:
        """The cache of all tokens but the last, by `generate`, which knows the positions of padded rows."""
        cache = DynamicCache(config=self.model.config)
        recurrent = cache.layers and not any(isinstance(layer, DynamicLayer) for layer in cache.layers)
        if recurrent or self.cache_name is None:
            return None  # purely recurrent: `generate` cannot go on from a state
        if ids.shape[1] > 1:
            unused = {"temperature": None, "top_p": None, "top_k": None}
            settings = {
                "do_sample": False,
                "max_new_tokens": 1,
                "pad_token_id": self.settings["pad_token_id"],
                **unused,
            }
            self._generate(texts, ids[:, :-1], mask[:, :-1], cache, settings)
        return cache

    def _sample(self, texts: list[_Text], ids: torch.Tensor, mask: torch.Tensor, past: Cache) -> Iterator[_Candidate]:
        """One candidate for each text; a text may come several times."""
        width = ids.shape[1]
        limits = [min(self.steps.max_step_tokens, self.steps.max_new_tokens - len(text.new_ids)) for text in texts]
        criterion = _StepEnds(width, limits, self._ends)
        settings = {
            **self.settings,
            "max_new_tokens": max(limits),
            "stopping_criteria": StoppingCriteriaList([criterion]),
        }
        with _drawing_from(self.generator, self.model.device):
            sequences = self._generate(texts, ids, mask, past, settings)
        for row, (text, new, length) in enumerate(
            zip(texts, sequences[:, width:].tolist(), criterion.lengths, strict=True)
        ):
            new = new[:length]
            added = self._decode(text.ids + new)[len(self._decode(text.ids)) :]
            yield _Candidate(new, added, new[-1] in self.eos, past, row, width - len(text.ids))

    def _generate(
        self,
        texts: list[_Text],
        ids: torch.Tensor,
        mask: torch.Tensor,
        past: Cache | None,
        settings: dict[str, Any],
    ) -> torch.Tensor:
        """Token ids from `generate`, which fills `past`."""
        settings = {**settings, **self.mixture}
        weights = self.mixture.get("objective_weights")
        if isinstance(weights, torch.Tensor) and weights.ndim == 2:
            settings["objective_weights"] = weights[[text.index for text in texts]]
        if past is not None and self.cache_name is not None:
            settings = {**settings, self.cache_name: past}
        return self.model.generate(input_ids=ids, attention_mask=mask, **_ALWAYS, **settings)

    def _ends(self, ids: list[int]) -> bool:
        if ids[-1] in self.eos:
            return True
        return len(ids) >= self.steps.min_step_tokens and self.steps.ends(self._decode(ids))

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def cache_name(model: Any) -> str | None:
    """What a model calls the argument for its cache, which transformers 5.24 gave another name; None without one."""
    base = model.get_base_model() if is_peft_model(model) else model
    names = inspect.signature(base.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in names), None)


def _steps_of(boundary: str | Callable[[str], bool], **given: Any) -> _Steps:
    """The settings of a boundary, with what the caller has given in their place."""
    if isinstance(boundary, str):
        if boundary not in _BOUNDARIES:
            raise ValueError(f"`boundary` is {boundary!r}. Choose {', '.join(_BOUNDARIES)}, or pass a function.")
        steps = _BOUNDARIES[boundary]
    else:
        steps = _BOUNDARIES["sentence"]._replace(ends=boundary, min_step_tokens=1)
    steps = steps._replace(**{name: value for name, value in given.items() if value is not None})
    for name in ("min_step_tokens", "max_step_tokens", "max_steps", "max_new_tokens"):
        if getattr(steps, name) < 1:
            raise ValueError(f"`{name}` is {getattr(steps, name)}, but it must be at least 1.")
    return steps


def _texts_of(tokenizer: PreTrainedTokenizerBase, prompts: Prompt | Sequence[Prompt]) -> list[_Text]:
    one = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], dict))
    several: Any = [prompts] if one else prompts
    texts = []
    for i, prompt in enumerate(several):
        ids = prompt_ids(tokenizer, prompt)
        if not ids:
            raise ValueError(f"`prompts[{i}]` is {prompt!r}, which has no tokens. Begin with at least one.")
        texts.append(_Text(i, prompt, list(ids), len(ids)))
    if not texts:
        raise ValueError("`prompts` is empty. Pass at least one prompt.")
    return texts


def _weights_of(objective_weights: Any, texts: list[_Text]) -> Any:
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


def _scores(
    rewards: list[Callable[..., Any]],
    reward_weights: Sequence[float] | torch.Tensor | None,
    texts: list[_Text],
    candidates: list[list[_Candidate]],
) -> list[list[float]]:
    """The score of every candidate, all of them in one call of each reward."""
    pairs = [(text, candidate) for text, options in zip(texts, candidates, strict=True) for candidate in options]
    if not pairs:
        return [[] for _ in texts]
    prompts = [text.prompt for text, _ in pairs]
    steps = [text.parts(candidate) for text, candidate in pairs]
    completions: list[Any] = ["".join(parts) for parts in steps]
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            completions[i] = [{"role": "assistant", "content": completions[i]}]
    columns = [
        _column(reward(prompts=prompts, completions=completions, steps=steps), len(pairs)) for reward in rewards
    ]
    values = torch.cat(columns, dim=1)
    weights = torch.ones(values.shape[1]) if reward_weights is None else torch.as_tensor(reward_weights)
    if weights.shape != values.shape[1:]:
        raise ValueError(
            f"`reward_weights` has the shape {tuple(weights.shape)}, but there are {values.shape[1]} rewards."
        )
    total = (values @ weights.double().cpu()).tolist()
    if any(map(math.isnan, total)):
        raise ValueError("`reward_fn` returned NaN, which is neither better nor worse than anything.")
    rest = iter(total)
    return [[next(rest) for _ in options] for options in candidates]


def _column(values: Any, count: int) -> torch.Tensor:
    """What a reward returned, as float64 of shape `(count, R)` on the CPU."""
    column = torch.as_tensor(values).detach().double().cpu()
    if column.ndim not in (1, 2) or len(column) != count:
        raise ValueError(
            f"`reward_fn` was given {count} texts and returned the shape {tuple(column.shape)}. Expected ({count},), "
            f"or ({count}, R) for R rewards."
        )
    return column.reshape(count, -1)


@contextmanager
def _mixing(model: Any, weights: Any, normalize: bool) -> Generator[dict[str, Any]]:
    """What `generate` needs to be told of objectives: nothing if heads can be folded once, here, for all steps."""
    base = model.get_base_model() if is_peft_model(model) else model
    by_row = isinstance(weights, torch.Tensor) and weights.ndim == 2
    if weights is None and getattr(base, "_mixing", False):
        yield {}  # the caller has folded them around this call
    elif hasattr(base, "mixed_heads") and not by_row:
        with base.mixed_heads(weights, normalize_weights=normalize):
            yield {}
    else:
        yield {} if weights is None else {"objective_weights": weights, "normalize_weights": normalize}


@contextmanager
def _drawing_from(generator: torch.Generator | None, device: torch.device) -> Generator[None]:
    """`generate` samples from the global generator of the device: lend it the state of ours, and take that back."""
    if generator is None:
        yield
        return
    if generator.device.type != device.type:
        raise ValueError(
            f"`generator` is on {generator.device}, but the model on {device}. Use torch.Generator({device.type!r})."
        )
    module: Any = torch if device.type == "cpu" else torch.get_device_module(device)
    before = module.get_rng_state()
    module.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(module.get_rng_state())
        module.set_rng_state(before)
