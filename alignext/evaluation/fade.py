# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""FADE: a distance between two generative models, by what each of them makes."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from diffusers import DiffusionPipeline

from alignext.checks import check_counts
from alignext.evaluation import fade_pictures, fade_texts
from alignext.functional.fade import Estimate, estimate
from alignext.loaded import check_loaded


@dataclass(frozen=True)
class FadeScore:
    """
    The distance of a model `q` from a reference `p`, in nats; `print` shows it as a table.

    Attributes:
        forward, reverse, total (`Estimate`): `KL(p || q)`, `KL(q || p)` and their sum: each with `mean`, `stderr` and
            `per_prompt`.
        per_token (`float`): For texts, both divergences divided by the mean number of tokens of their samples, added.
            For pictures, `total.mean`.
        num_tokens (`tuple[int, int]`): Tokens (or pictures) that the reference and the model made.
        settings (`dict`): How samples were drawn and compared. Numbers of other settings are other quantities.
        infinite (`list[tuple[str, int, int]]`): Direction, prompt and sample of every infinite term.
        near_share (`float`, *optional*): For pictures, the share that the ten noise levels next to the data have in
            `reverse`.
        baselines (`dict[str, FadeScore]`): Other models against the same reference.
    """

    forward: Estimate
    reverse: Estimate
    total: Estimate
    per_token: float
    num_tokens: tuple[int, int]
    settings: dict[str, Any]
    infinite: list[tuple[str, int, int]] = field(default_factory=list)
    near_share: float | None = None
    baselines: "dict[str, FadeScore]" = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [("model", self), *self.baselines.items()]
        width = max(len(name) for name, _ in rows)
        lines = [f"{'':{width}}  {'forward':>19}  {'reverse':>19}  {'FADE':>19}  {'per ' + self.settings['unit']:>10}"]
        for name, row in rows:
            cells = "  ".join(f"{e.mean:>10.4g} ± {e.stderr:<6.2g}" for e in (row.forward, row.reverse, row.total))
            lines.append(f"{name:{width}}  {cells}  {row.per_token:>10.4g}")
        lines.append(", ".join(f"{name} {value}" for name, value in self.settings.items() if name != "unit"))
        if self.infinite:
            lines.append(f"Infinite: {', '.join(f'{d} of prompt {i}, sample {j}' for d, i, j in self.infinite[:5])}")
        if not self.baselines:
            lines.append(
                "No yardstick: pass `baselines={'seed 2': ...}`, a second model trained like the reference, to know "
                "what is far."
            )
        return "\n".join(lines)


class Fade:
    """
    [`fade_score`] of several models against one reference, whose samples are made once.

    Args: those of [`fade_score`] but for `model` and `baselines`.
    """

    def __init__(
        self,
        reference: Any,
        prompts: Sequence[Any],
        processing_class: Any = None,
        *,
        num_samples: int | None = None,
        estimator: str | None = None,
        seed: int = 0,
        batch_size: int = 8,
        progress: bool = True,
        **settings: Any,
    ) -> None:
        self.reference = reference
        pictures = isinstance(reference, DiffusionPipeline)
        self.kind, module = ("pictures", fade_pictures) if pictures else ("texts", fade_texts)
        known: dict[str, Any] = (
            {"num_timesteps": 50, "weighting": "likelihood", "guidance_scale": 1.0, "embedded_guidance": None}
            if pictures
            else {"max_new_tokens": 200, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        )
        unknown = [name for name in settings if name not in known]
        if unknown and not pictures:  # a pipeline's call has arguments of its own
            raise TypeError(f"`{unknown[0]}` is no setting for {self.kind}. Take one of {', '.join(known)}.")
        estimator = module.ESTIMATORS[0] if estimator is None else estimator
        if estimator not in module.ESTIMATORS:
            raise ValueError(f"`estimator` must be one of {', '.join(module.ESTIMATORS)}, received {estimator!r}.")
        num_samples = (8 if pictures else 32) if num_samples is None else num_samples
        check_counts(num_samples=num_samples, batch_size=batch_size)
        if num_samples == 1:
            warnings.warn("`num_samples=1` has no standard error. Take 2 or more.", stacklevel=3)
        shared: dict[str, Any] = {"num_samples": num_samples, "estimator": estimator, "seed": seed}
        chosen = known | settings
        given: dict[str, Any] = {**shared, "progress": progress, **chosen}
        self.how: Any = (
            fade_pictures.PictureFade(prompts, **given)
            if pictures
            else fade_texts.TextFade(processing_class, prompts, batch_size=batch_size, **given)
        )
        self.settings = {"unit": self.how.unit, **shared, **{name: chosen[name] for name in known}}
        self._samples: Any = None

    def __call__(self, model: Any, name: str = "model") -> FadeScore:
        """The distance of a model."""
        if isinstance(self.reference, str):
            p, q = self.how.law(model, self.reference), self.how.law(model)
        elif isinstance(model, DiffusionPipeline) != (self.kind == "pictures"):
            raise ValueError(f"`{name}` is a {type(model).__name__}, but `reference` is for {self.kind}.")
        else:
            p, q = self.how.law(self.reference), self.how.law(model)
        self.how.check(p, q, name)
        if self._samples is None:
            self._samples = self.how.draw(p)
        forward = self.how.terms(p, self._samples, q)
        own = self.how.draw(q)
        reverse = self.how.terms(q, own, p)
        sizes = self.how.sizes(self._samples), self.how.sizes(own)
        S = forward.numel()
        per_token = sum(
            values.mean().item() / (size / S) for values, size in zip((forward, reverse), sizes, strict=True)
        )
        return FadeScore(
            estimate(forward),
            estimate(reverse),
            estimate(forward + reverse),
            per_token,
            sizes,
            self.settings,
            [
                (direction, int(i), int(j))
                for direction, values in (("forward", forward), ("reverse", reverse))
                for i, j in (values == math.inf).nonzero()
            ],
            self.how.near_share,
        )


def fade_score(
    model: Any,
    reference: Any,
    prompts: Sequence[Any],
    processing_class: Any = None,
    *,
    baselines: Mapping[str, Any] | None = None,
    num_samples: int | None = None,
    estimator: str | None = None,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool = True,
    **settings: Any,
) -> FadeScore:
    r"""
    How far a model `q` is from a reference `p`, by what each of them makes for the same prompts:
    `FADE = KL(p || q) + KL(q || p)`, 0 for models that cannot be told apart.

    For language models the divergence is taken along sampled texts, at every token exactly (`"rao_blackwell"`) or by
    log-ratios of the tokens drawn (`"mc"`). For pipelines it is that of the diffusion processes,
    `sum_k W_k E |x0_p(x_k) - x0_q(x_k)|^2` ([`alignext.functional.elbo`]), at noised samples of the first model
    (`"gap"`), from the bounds of both (`"elbo"`, noisier), or along the first model's random steps (`"path"`, exact
    for the grid of steps).

    Args:
        model (`PreTrainedModel`, `PeftModel` or `DiffusionPipeline`): `q`.
        reference (`PreTrainedModel`, `PeftModel`, `DiffusionPipeline` or `str`): `p`; `"base"` for a PEFT model
            without its adapters, or the name of one of its adapters.
        prompts (`Sequence`): Texts; conversations for language models; class labels for class-conditional pipelines.
        processing_class (`PreTrainedTokenizerBase`, *optional*): Tokenizer of language models.
        baselines (`Mapping[str, Any]`, *optional*): Further models, each against the same reference: the model before
            training, or a second one trained like the reference, without which a number is hard to read.
        num_samples (`int`, *optional*): Samples per prompt, 32 texts or 8 pictures.
        estimator (`str`, *optional*): See above; the first of each kind if not given.
        seed (`int`, *optional*, defaults to 0): Of all draws. The same seed gives the same number.
        batch_size (`int`, *optional*, defaults to 8): Texts per pass; which random numbers a text gets depends on it.
        progress (`bool`, *optional*, defaults to `True`): Show bars.
        settings: For language models `max_new_tokens` (200), `temperature` (1.0), `top_k` (0, off) and `top_p` (1.0).
            For pipelines `num_timesteps` (50 levels per sample), `weighting` (`"likelihood"`; `"uniform"` is a mean
            error of denoising), `guidance_scale` while sampling (1.0), `embedded_guidance`, and whatever the stock
            call takes, such as `num_inference_steps`, `height` and `width`.

    Returns:
        [`FadeScore`].

    Raises:
        ValueError: If an argument is out of range, the models differ in vocabulary, prediction, noise levels or shape
            of latents, are one, or give NaN.
        NotImplementedError: If a pipeline is of a kind that has no such distance here.

    Source: Cho et al., [arXiv 2510.12981](https://huggingface.co/papers/2510.12981). The Rao-Blackwell form, the gap
    and its weights are derived here.
    """
    if isinstance(reference, str) and isinstance(model, DiffusionPipeline):
        raise ValueError(f"`reference` must be a pipeline, received {reference!r}.")
    if baselines is not None and not isinstance(baselines, Mapping):
        raise ValueError(
            f"`baselines` must be a dictionary from names to models, such as {{'seed 2': model}}, received a "
            f"{type(baselines).__name__}."
        )
    others = dict(baselines or {})
    pictures = any(isinstance(one, DiffusionPipeline) for one in (model, reference))
    loader = "DiffusionPipeline" if pictures else "AutoModelForCausalLM"
    named = {"reference": reference} if not isinstance(reference, str) else {}  # a name is that of an adapter
    for name, one in ({"model": model} | named | others).items():
        check_loaded(one, name, loader)
    fade = Fade(
        reference,
        prompts,
        processing_class,
        num_samples=num_samples,
        estimator=estimator,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
        **settings,
    )
    fade.how.warn()
    found = fade(model)
    if others:
        found = replace(found, baselines={name: fade(other, name) for name, other in others.items()})
    return found
