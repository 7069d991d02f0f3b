# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""FADE of causal language models: texts of one, and how likely both find them."""

import inspect
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import is_peft_model
from tqdm.auto import tqdm
from transformers import GenerationConfig

from alignext.checks import check_counts
from alignext.decoding.rows import drawing_from, end_tokens, left_padded, prompt_rows
from alignext.functional.fade import token_kl, token_log_ratios
from alignext.wrapping import evaluating


ESTIMATORS = ("rao_blackwell", "mc")
# Positions whose distributions over the vocabulary are in memory in float32 at a time.
_POSITIONS = 64


class TextModel:
    """
    A causal language model, or one with an adapter of its own.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The model.
        adapter (`str`, *optional*): Name of a PEFT adapter; `"base"` for none of them; what is active if not given.

    Raises:
        ValueError: If there is no such adapter, or the model is an encoder-decoder.
    """

    def __init__(self, model: Any, adapter: str | None = None) -> None:
        if model.config.is_encoder_decoder:
            raise ValueError(f"`model` must be a causal language model, received the encoder-decoder {type(model)}.")
        if adapter is not None:
            known = [*getattr(model, "peft_config", {})]
            if not is_peft_model(model) or adapter not in ("base", *known):
                raise ValueError(
                    "`reference` must be a model, 'base', or an adapter of `model` "
                    f"({', '.join(known) or 'it has none'}), received {adapter!r}."
                )
        self.model, self.adapter = model, adapter
        self.base = model.get_base_model() if is_peft_model(model) else model
        self.vocabulary = model.config.get_text_config(decoder=True).vocab_size
        self.context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        self._arguments = inspect.signature(self.base.forward).parameters

    @contextmanager
    def active(self) -> Generator[None]:
        """Within it, the model is this one: its adapter is on, nothing is dropped out."""
        with evaluating(self.model):
            if self.adapter is None:
                yield
                return
            # PEFT also sets what is trained whenever it sets what is active.
            flags = [(p, p.requires_grad) for p in self.model.parameters()]
            before, several = self.model.active_adapter, list(self.model.active_adapters)
            try:
                if self.adapter == "base":
                    with self.model.disable_adapter():
                        yield
                else:
                    self.model.set_adapter(self.adapter)
                    yield
            finally:
                self.model.set_adapter(before)
                if several != [before]:
                    self.model.base_model.set_adapter(several)  # the method of a PeftModel knows one only
                for parameter, flag in flags:
                    parameter.requires_grad_(flag)

    @contextmanager
    def plain(self, eos: list[int], pad: int) -> Generator[GenerationConfig]:
        """Within it, `generate` knows nothing of the checkpoint's own settings, which would warp the samples."""
        own = self.base.generation_config
        self.base.generation_config = GenerationConfig(eos_token_id=eos or None, pad_token_id=pad)
        try:
            yield self.base.generation_config
        finally:
            self.base.generation_config = own

    def logits(self, ids: torch.Tensor, mask: torch.Tensor, keep: int) -> torch.Tensor:
        """Logits `(B, keep, V)` of the last `keep` tokens, each from what stands before it."""
        known: dict[str, Any] = {"use_cache": False}
        if "position_ids" in self._arguments:
            known["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        if "logits_to_keep" in self._arguments:
            known["logits_to_keep"] = keep + 1
        device = self.model.device
        found = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), **known).logits
        return found[:, -keep - 1 : -1]


class TextFade:
    """
    Samples of models for given prompts, and divergences along them.

    Args:
        processing_class (`PreTrainedTokenizerBase`): Tokenizer of all models.
        prompts (`Sequence[str]` or `Sequence[list[dict]]`): Texts or conversations.
        num_samples (`int`): Texts per prompt.
        estimator (`str`): `"rao_blackwell"` or `"mc"`.
        seed (`int`): Of the samples.
        batch_size (`int`): Texts per pass.
        progress (`bool`): Show bars.
        max_new_tokens (`int`): Length at which texts are cut.
        temperature, top_k, top_p: How texts are drawn.
    """

    def __init__(
        self,
        processing_class: Any,
        prompts: Sequence[Any],
        *,
        num_samples: int,
        estimator: str,
        seed: int,
        batch_size: int,
        progress: bool,
        max_new_tokens: int,
        temperature: float,
        top_k: int,
        top_p: float,
    ) -> None:
        if processing_class is None:
            raise ValueError("`processing_class` must be the tokenizer of the models, received None.")
        check_counts(max_new_tokens=max_new_tokens)
        check_counts(0, top_k=top_k)
        if not temperature > 0 or not 0 < top_p <= 1:
            raise ValueError(
                f"`temperature` must be above 0 and `top_p` in (0, 1], received {temperature} and {top_p}."
            )
        self.prompts = [ids for _, ids in prompt_rows(processing_class, prompts)]
        self.pad = processing_class.pad_token_id or 0
        self.tokenizer = processing_class
        self.S, self.estimator, self.seed, self.batch_size = num_samples, estimator, seed, batch_size
        self.progress, self.max_new_tokens = progress, max_new_tokens
        self.warping = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        self.pure = self.warping == {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        self.unit = "token"

    def law(self, model: Any, adapter: str | None = None) -> TextModel:
        """The model as one of those that are compared."""
        found = TextModel(model, adapter)
        longest = max(map(len, self.prompts)) + self.max_new_tokens
        if found.context is not None and longest > found.context:
            raise ValueError(
                f"The longest of `prompts` and `max_new_tokens` are {longest} tokens together, but the context of "
                f"{type(model).__name__} is {found.context}."
            )
        return found

    def check(self, p: TextModel, q: TextModel, name: str) -> None:
        """
        Raises:
            ValueError: If the two have different vocabularies or are one.
        """
        if p.vocabulary != q.vocabulary:
            raise ValueError(f"`{name}` has {q.vocabulary} tokens in its vocabulary, but `reference` {p.vocabulary}.")
        if p.model is q.model and p.adapter == q.adapter:
            raise ValueError(f"`{name}` is `reference`: their distance is 0. Pass another model, or 'base'.")

    def draw(self, law: TextModel) -> list[list[int]]:
        """`P S` texts as tokens, the end-of-text token among them; the samples of a prompt side by side."""
        rows = [ids for ids in self.prompts for _ in range(self.S)]
        device, found = law.model.device, []
        eos = end_tokens(law.model, self.tokenizer)
        generator = torch.Generator(device).manual_seed(self.seed)
        starts = range(0, len(rows), self.batch_size)
        with torch.no_grad(), law.active(), law.plain(eos, self.pad), drawing_from(generator, device):
            for start in tqdm(starts, desc="Writing", disable=not self.progress):
                ids, mask = left_padded(rows[start : start + self.batch_size], self.pad, device)
                written = law.model.generate(
                    input_ids=ids, attention_mask=mask, do_sample=True, max_new_tokens=self.max_new_tokens,
                    **self.warping,
                )  # fmt: skip
                # The padding token may be that of the end: places count, not ids.
                found += [_until_end(row, eos) for row in written[:, ids.shape[1] :].tolist()]
        return found

    def terms(self, p: TextModel, samples: list[list[int]], q: TextModel) -> torch.Tensor:
        """`(P, S)` estimates whose mean is `KL(p || q)`, from samples of `p`."""
        rows = [ids for ids in self.prompts for _ in range(self.S)]
        values = []
        starts = range(0, len(rows), self.batch_size)
        for start in tqdm(starts, desc="Scoring", disable=not self.progress):
            batch = slice(start, start + self.batch_size)
            ids, mask = left_padded(rows[batch], self.pad)
            length = max(len(text) for text in samples[batch])
            text = torch.tensor([t + [self.pad] * (length - len(t)) for t in samples[batch]])
            real = torch.tensor([[1] * len(t) + [0] * (length - len(t)) for t in samples[batch]])
            ids, mask = torch.cat([ids, text], 1), torch.cat([mask, real], 1)
            logits = []
            for law in (p, q):
                with torch.no_grad(), law.active():
                    logits.append(law.logits(ids, mask, length))
            text, real = text.to(logits[0].device), real.to(logits[0].device)
            values.append(self._sums(logits[0], logits[1].to(logits[0].device), text, real))
        found = torch.cat(values).view(len(self.prompts), self.S).cpu()
        if found.isnan().any():
            raise ValueError("A model's logits are NaN. Load it in float32 or bfloat16.")
        return found

    def _sums(self, p: torch.Tensor, q: torch.Tensor, text: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(len(text), dtype=torch.float64, device=text.device)
        for part in range(0, text.shape[1], _POSITIONS):
            at = slice(part, part + _POSITIONS)
            if self.estimator == "rao_blackwell":
                total = total + torch.where(real[:, at].bool(), token_kl(p[:, at], q[:, at]).double(), 0.0).sum(1)
            else:
                of = [
                    l[:, at].float().log_softmax(-1).gather(-1, text[:, at, None])[..., 0]
                    for l in (p, q)  # noqa: E741
                ]
                total = total + token_log_ratios(*of, real[:, at])
        return total

    near_share = None

    def sizes(self, samples: list[list[int]]) -> int:
        """Number of tokens."""
        return sum(map(len, samples))

    def warn(self) -> None:
        """A word about settings under which the number is no divergence."""
        if not self.pure:
            warnings.warn(
                f"Texts are drawn with {self.warping}, but scored as the models are: the result is no divergence of "
                "the two. Compare it with results of the same settings only.",
                stacklevel=4,
            )


def _until_end(row: list[int], eos: list[int]) -> list[int]:
    end = next((i for i, token in enumerate(row) if token in eos), len(row) - 1)
    return row[: end + 1]
