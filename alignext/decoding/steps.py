# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The steps of guided decoding: what a step is, how one is sampled, and a text that grows by them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.cache_utils import Cache, DynamicLayer

from alignext.checks import check_counts, is_count
from alignext.decoding.boundaries import no_boundary, paragraph_boundary, sentence_boundary
from alignext.decoding.rows import (
    CachedRow,
    cache_name,
    drawing_from,
    forked,
    joined,
    left_padded,
    whole_text,
)
from alignext.decoding.stops import NoEndYet, StepEnds
from alignext.rewards.process import Prompt


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


def _not_empty(step: str) -> bool:
    return bool(step.strip())


def _solution_step(step: str) -> bool:
    return _not_empty(step) and not step.lstrip().startswith("Step 0") and step.count("assistant") <= 1


class Steps(NamedTuple):
    """The settings of a step. Those below are of the paper's three tasks."""

    ends: Callable[[str], bool]
    is_valid: Callable[[str], bool]
    min_step_tokens: int
    max_step_tokens: int
    max_steps: int
    max_new_tokens: int
    stop_strings: tuple[str, ...] = ()


_BOUNDARIES = {
    "sentence": Steps(sentence_boundary, _not_empty, 8, 256, 100, 1024),
    "paragraph": Steps(paragraph_boundary, _solution_step, 1, 512, 20, 4000, ("\\boxed{",)),
    "reply": Steps(no_boundary, _not_empty, 1, 300, 1, 300),
}
# Whatever the model's own generation config says.
_ALWAYS = {"num_beams": 1, "num_return_sequences": 1, "cache_implementation": None, "use_cache": True}


def steps_of(boundary: str | Callable[[str], bool], **given: Any) -> Steps:
    """The settings of a boundary, with what the caller has given in their place."""
    if isinstance(boundary, str):
        if boundary not in _BOUNDARIES:
            raise ValueError(f"`boundary` is {boundary!r}. Choose {', '.join(_BOUNDARIES)}, or pass a function.")
        steps = _BOUNDARIES[boundary]
    else:
        steps = _BOUNDARIES["sentence"]._replace(ends=boundary, min_step_tokens=1)
    steps = steps._replace(**{name: value for name, value in given.items() if value is not None})
    names = ("min_step_tokens", "max_step_tokens", "max_steps", "max_new_tokens")
    check_counts(**{name: getattr(steps, name) for name in names})
    return steps


def check_candidates(num_candidates: int, max_attempts: int | None) -> int:
    """`max_attempts`, in the place of None what is sampled at most by default."""
    check_counts(num_candidates=num_candidates)
    max_attempts = 3 * num_candidates if max_attempts is None else max_attempts
    if not is_count(max_attempts, num_candidates):
        raise ValueError(
            f"`max_attempts` must be an integer of at least `num_candidates`, {num_candidates}, received "
            f"{max_attempts!r}."
        )
    return max_attempts


@dataclass
class Candidate:
    """A sampled step, and where its keys and values are: in row `row` of `cache`, from position `start` on."""

    ids: list[int]
    text: str
    ended: bool
    cache: Cache | None
    row: int
    start: int
    cut: bool = False  # within a character, which the text of the next step shows

    @property
    def only_ends(self) -> bool:
        return self.ended and not self.text.strip()


@dataclass
class Text:
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

    def parts(self, candidate: Candidate) -> list[str]:
        """The steps that the text would have with a candidate."""
        parts = [step.text for step in self.steps]
        parts = parts if candidate.only_ends else [*parts, candidate.text]
        return [part for part in parts if part]  # a step may be bytes of a character that is not whole yet

    def take(self, options: list[Candidate], scores: list[float], limits: Steps) -> None:
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


class StepSampler:
    """Samples steps, carrying the key-value cache from one to the next."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        steps: Steps,
        mixture: dict[str, Any],
        generator: torch.Generator | None,
        settings: dict[str, Any],
        of_texts: Callable[[list[Text]], dict[str, Any]] | None = None,
    ) -> None:
        self.of_texts = of_texts or (lambda texts: {})
        self.model, self.tokenizer, self.steps, self.generator = model, tokenizer, steps, generator
        self.mixture, self.settings, self.cache_name = mixture, settings, cache_name(model)
        # In the order of `generate`: its arguments, the config among them, the model's own.
        configs = settings.get("generation_config"), model.generation_config
        given = (settings.get("eos_token_id"), *(getattr(config, "eos_token_id", None) for config in configs))
        eos = next((ids for ids in given if ids is not None), None)
        self.eos = set(eos if isinstance(eos, (list, tuple)) else [eos])
        filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(self.eos - {None}), 0)
        settings.setdefault("pad_token_id", filler)
        self.least = settings.pop("min_new_tokens", None) or 0  # of a text; `generate` would ask it of every step

    def propose(self, texts: list[Text], cache: Cache | None, count: int, max_attempts: int) -> list[list[Candidate]]:
        """Up to `count` valid candidates for each text."""
        ids, mask = left_padded([text.ids for text in texts], self.settings["pad_token_id"], self.model.device)
        if cache is None:
            cache = self._read(texts, ids, mask)
        found: list[list[Candidate]] = [[] for _ in texts]
        left = [max_attempts] * len(texts)
        while rows := [i for i, options in enumerate(found) for _ in range(min(count - len(options), left[i]))]:
            past = forked(cache, torch.tensor(rows, device=ids.device))
            for i, candidate in zip(
                rows, self._sample([texts[i] for i in rows], ids[rows], mask[rows], past), strict=True
            ):
                left[i] -= 1
                nothing_yet = candidate.cut and not candidate.text
                if candidate.only_ends or nothing_yet or self.steps.is_valid(candidate.text):
                    found[i].append(candidate)
        return found

    def carry(self, kept: list[tuple[Text, Candidate]]) -> Cache | None:
        """The cache of the texts with what was kept, padded on the left; None if they must be read again."""
        # The keys and values of the last token come with the next step.
        parts = [
            CachedRow(candidate.cache, candidate.row, candidate.start, len(text.ids) - 1) for text, candidate in kept
        ]
        return joined(parts, self.model.config)

    def _read(self, texts: list[Text], ids: torch.Tensor, mask: torch.Tensor) -> Cache | None:
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

    def _sample(self, texts: list[Text], ids: torch.Tensor, mask: torch.Tensor, past: Cache) -> Iterator[Candidate]:
        """One candidate for each text; a text may come several times."""
        width = ids.shape[1]
        limits = [min(self.steps.max_step_tokens, self.steps.max_new_tokens - len(text.new_ids)) for text in texts]
        criterion = StepEnds(width, limits, self._ends)
        settings: dict[str, Any] = {
            **self.settings,
            **self.of_texts(texts),
            "max_new_tokens": max(limits),
            "stopping_criteria": StoppingCriteriaList([criterion]),
        }
        least = [self.least - len(text.new_ids) for text in texts]
        ends = [token for token in self.eos if token is not None]
        if ends and max(least) > 0:
            own = settings.get("logits_processor") or ()
            settings["logits_processor"] = LogitsProcessorList([*own, NoEndYet(width, least, ends)])
        with drawing_from(self.generator, self.model.device):
            sequences = self._generate(texts, ids, mask, past, settings)
        for row, (text, new, length) in enumerate(
            zip(texts, sequences[:, width:].tolist(), criterion.lengths, strict=True)
        ):
            new = new[:length]
            start = whole_text(self.tokenizer, text.ids[: text.prompt_length])
            start += "".join(step.text for step in text.steps)
            ids, ended = text.ids + new, new[-1] in self.eos
            told = self._decode(ids)
            # A character that is not whole waits for the step that has its other bytes.
            whole = told if ended else whole_text(self.tokenizer, ids)
            added = whole[len(start) :] if whole.startswith(start) else self._decode(new)
            yield Candidate(new, added, ended, past, row, width - len(text.ids), cut=whole != told)

    def _generate(
        self,
        texts: list[Text],
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
