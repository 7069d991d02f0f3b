# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""FADE of diffusers pipelines: pictures or clips of one, and where the denoisers of both disagree."""

import copy
import inspect
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers import DDPMScheduler
from tqdm.auto import tqdm

from alignext.checks import check_counts
from alignext.diffusion.calls import quiet_copy
from alignext.diffusion.denoiser import get_denoiser
from alignext.diffusion.levels import prediction_type, training_levels
from alignext.diffusion.recording import check_call_arguments, record_call, without_guidance
from alignext.diffusion.schedulers import rebuild_scheduler
from alignext.functional.elbo import elbo_difference, kl_gap, kl_weights, level_proposal, stratified_draws
from alignext.functional.predictions import add_noise
from alignext.wrapping import evaluating


ESTIMATORS = ("gap", "elbo", "path")


class PictureModel:
    """
    A pipeline as one of those that are compared.

    Args:
        pipe (`DiffusionPipeline`): A stock pipeline, or a subclass. It stays as it is.
        call (`dict`): Arguments of its call but for the prompts.
        embedded_guidance (`float`, *optional*): What a guidance-distilled denoiser is told.
        num_samples (`int`): Rows of a recorded call.
    """

    def __init__(self, pipe: Any, call: dict[str, Any], embedded_guidance: float | None, num_samples: int) -> None:
        self.pipe, self.call, self.S = pipe, call, num_samples
        self.embedded_guidance = embedded_guidance
        self.denoiser = get_denoiser(pipe)
        if getattr(pipe, "transformer_2", None) is not None:
            raise NotImplementedError(f"{type(pipe).__name__} with two denoisers has no distance here yet.")
        self.prediction_type = prediction_type(pipe.scheduler)
        self.known = inspect.signature(type(pipe).__call__).parameters
        self.prompt_name = "prompt" if "prompt" in self.known else "class_labels"
        self._recorded: tuple[Any, Any] = (None, None)

    def rows(self, prompt: Any) -> dict[str, Any]:
        """The call for `S` outputs of one prompt."""
        return self.call | {self.prompt_name: [prompt] * self.S}

    def predict(self, prompt: Any, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The denoiser's prediction for `S` rows, without guidance."""
        if self._recorded[0] != prompt:
            # The loop draws latents that nobody looks at, and not from the global generator.
            given: dict[str, Any] = {**self.rows(prompt), "generator": torch.Generator().manual_seed(0)}
            self._recorded = prompt, record_call(self.pipe, embedded_guidance=self.embedded_guidance, **given)
        call = self._recorded[1]
        if x.shape != call.shape:
            raise ValueError(
                f"`reference` and model must have latents of one shape, received {tuple(x.shape)} for a model of "
                f"{tuple(call.shape)}."
            )
        with evaluating(self.denoiser):
            return call(self.denoiser, x.to(call.dtype), t)


class PictureFade:
    """
    Samples of pipelines for given prompts, and divergences at them.

    Args:
        prompts (`Sequence[str]` or `Sequence[int]`): Texts, or class labels where a pipeline takes those.
        num_samples (`int`): Outputs per prompt.
        estimator (`str`): `"gap"`, `"elbo"` or `"path"`.
        seed (`int`): Of samples, levels and noise.
        progress (`bool`): Show bars.
        num_timesteps (`int`): Levels at which a sample is looked at.
        weighting (`str`): `"likelihood"` or `"uniform"`.
        guidance_scale (`float`): While sampling.
        embedded_guidance (`float`, *optional*): What a guidance-distilled denoiser is told.
        call: Further arguments of the stock call.
    """

    def __init__(
        self,
        prompts: Sequence[Any],
        *,
        num_samples: int,
        estimator: str,
        seed: int,
        progress: bool,
        num_timesteps: int,
        weighting: str,
        guidance_scale: float,
        embedded_guidance: float | None,
        **call: Any,
    ) -> None:
        if weighting not in ("likelihood", "uniform"):
            raise ValueError(f"`weighting` must be 'likelihood' or 'uniform', received {weighting!r}.")
        check_counts(num_timesteps=num_timesteps)
        if isinstance(prompts, str) or not len(prompts):
            raise ValueError(f"`prompts` must be a list with at least one prompt, received {prompts!r}.")
        if isinstance(prompts[0], dict):
            raise ValueError(
                f"`prompts` must be texts or class labels, received a row with the columns {list(prompts[0])}. Pass "
                "one column, such as `dataset['prompt']`."
            )
        self.prompts, self.S, self.estimator, self.seed = list(prompts), num_samples, estimator, seed
        self.K, self.weighting, self.guidance_scale = num_timesteps, weighting, guidance_scale
        self.embedded_guidance, self.progress, self.call = embedded_guidance, progress, call
        self.unit = "sample"
        self._near = self._total = 0.0

    def law(self, model: Any, adapter: str | None = None) -> PictureModel:
        """The pipeline as one of those that are compared."""
        if adapter is not None:
            raise ValueError(f"`reference` must be a pipeline, received {adapter!r}.")
        check_call_arguments(self.call, type(model), "Settings")
        found = PictureModel(model, self.call, self.embedded_guidance, self.S)
        if self.estimator == "path" and found.prediction_type == "flow_prediction":
            raise NotImplementedError("`estimator='path'` is for diffusion models; a flow has no random steps.")
        return found

    def check(self, p: PictureModel, q: PictureModel, name: str) -> None:
        """
        Raises:
            ValueError: If the two differ in what is predicted or in their noise levels, or are one.
        """
        if p.pipe is q.pipe or p.denoiser is q.denoiser:
            raise ValueError(f"`{name}` is `reference`, or has its denoiser: their distance is 0. Pass another one.")
        if p.prediction_type != q.prediction_type:
            raise ValueError(
                f"`{name}` predicts {q.prediction_type!r}, but `reference` {p.prediction_type!r}: compare models of "
                "one kind."
            )
        names = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "rescale_betas_zero_snr")
        of = [{k: law.pipe.scheduler.config.get(k) for k in names} for law in (p, q)]
        if p.prediction_type != "flow_prediction" and of[0] != of[1]:
            raise ValueError(f"`{name}` and `reference` must have one noise schedule, received {of[1]} and {of[0]}.")

    def draw(self, law: PictureModel) -> list[list[tuple[float, torch.Tensor]]]:
        """Of each prompt the steps of its sampling: timestep and latents before it, `(S, ...)`; the result last."""
        return [self._steps(law, i) for i in self._bar(range(len(self.prompts)), "Sampling")]

    @torch.no_grad()
    def _steps(self, law: PictureModel, i: int) -> list[tuple[float, torch.Tensor]]:
        twin = quiet_copy(law.pipe)
        if self.estimator == "path":
            twin.scheduler = rebuild_scheduler(
                law.pipe.scheduler, DDPMScheduler, variance_type="fixed_small", clip_sample=False, thresholding=False
            )
        else:
            twin.scheduler = copy.deepcopy(law.pipe.scheduler)
        own, steps, result = twin.scheduler.step, [], []

        def step(model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            after = own(model_output, timestep, sample, *args, **kwargs)
            if self.estimator == "path":
                steps.append((float(timestep), sample))
            result[:] = [after[0] if isinstance(after, tuple) else after.prev_sample]
            return after

        twin.scheduler.step = step
        settings: dict[str, Any] = {"output_type": "latent", "return_dict": False}
        settings |= without_guidance(law.pipe, law.known, self.embedded_guidance)
        if self.guidance_scale != 1.0:
            settings["true_cfg_scale" if "true_cfg_scale" in law.known else "guidance_scale"] = self.guidance_scale
        seeds = [self.seed + i * self.S + j for j in range(self.S)]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        call = law.rows(self.prompts[i]) | {k: v for k, v in settings.items() if k in law.known}
        with evaluating(law.denoiser):
            twin(**call, generator=generators)
        if not result[0].isfinite().all():
            raise ValueError(f"{type(law.pipe).__name__} sampled latents that are not finite.")
        return [*steps, (-1.0, result[0])]

    def terms(self, p: PictureModel, samples: list[Any], q: PictureModel) -> torch.Tensor:
        """`(P, S)` estimates whose mean is about `KL(p || q)`, from samples of `p`."""
        of = self._path_terms if self.estimator == "path" else self._level_terms
        self._near = self._total = 0.0
        return torch.stack([of(p, samples[i], q, i) for i in self._bar(range(len(self.prompts)), "Comparing")])

    @torch.no_grad()
    def _level_terms(self, p: PictureModel, steps: list[Any], q: PictureModel, i: int) -> torch.Tensor:
        x0 = steps[-1][1].float()
        # Where latents are packed, `(S, tokens, C)`, a schedule depends on the number of tokens, four pixels each.
        h, w = (2, 2 * x0.shape[1]) if x0.ndim == 3 else x0.shape[-2:]
        levels = training_levels(p.pipe, (int(h), int(w)))
        weights = kl_weights(levels.a, levels.s)
        chances = level_proposal(weights, levels.a, levels.s, p.prediction_type)
        generators = [torch.Generator().manual_seed(self.seed + i * self.S + j) for j in range(self.S)]
        uniform = torch.stack([torch.rand(self.K, generator=g, dtype=torch.float64) for g in generators])
        drawn = stratified_draws(chances, uniform)  # (S, K), of levels 2..N
        if self.weighting == "uniform":  # the mean over levels of |n_p - n_q|^2
            weights = (levels.a[2:] / levels.s[2:]).double().square() / len(weights)
        total = torch.zeros(self.S, dtype=torch.float64)
        for k in range(self.K):
            at = drawn[:, k] + 2
            a, s = (level[at].to(x0.device) for level in (levels.a, levels.s))
            noise = torch.stack([torch.randn(x0.shape[1:], generator=g) for g in generators]).to(x0)
            x = add_noise(x0, noise, a.float(), s.float())
            t = levels.timesteps[at - 1].to(x0.device)
            outputs = [law.predict(self.prompts[i], x, t) for law in (p, q)]
            if self.estimator == "gap":
                term = kl_gap(*outputs, x, a, s, p.prediction_type)
            else:
                term = elbo_difference(*outputs, x0, x, a, s, p.prediction_type)
            term = term.cpu() * (weights / chances)[drawn[:, k]] / self.K
            total += term
            self._near += term[drawn[:, k] < 10].sum().item()
        self._total += total.sum().item()
        if total.isnan().any():
            raise ValueError("A denoiser's output is NaN. Load it in float32 or bfloat16.")
        return total

    @torch.no_grad()
    def _path_terms(self, p: PictureModel, steps: list[Any], q: PictureModel, i: int) -> torch.Tensor:
        abar = p.pipe.scheduler.alphas_cumprod.double()
        total = torch.zeros(self.S, dtype=torch.float64)
        # The last step has no noise, and so no density.
        for (t, x), (t_next, _) in pairwise(steps[:-1]):
            now, then = abar[int(t)], abar[int(t_next)]
            weight = (then / (1 - then) - now / (1 - now)) / 2
            rows = torch.full((self.S,), int(t), device=x.device)
            outputs = [law.predict(self.prompts[i], x, rows) for law in (p, q)]
            a, s = now.sqrt().to(x.device), (1 - now).sqrt().to(x.device)
            total += weight * kl_gap(*outputs, x, a, s, p.prediction_type).cpu()
        return total

    @property
    def near_share(self) -> float | None:
        """The share of the ten levels next to the data in the last divergence."""
        return self._near / self._total if self._total else None

    def sizes(self, samples: list[Any]) -> int:
        """Number of samples."""
        return len(samples) * self.S

    def warn(self) -> None:
        """A word about settings under which the number is no divergence."""
        if self.guidance_scale != 1.0:
            warnings.warn(
                f"Samples are drawn with `guidance_scale={self.guidance_scale}`, but scored without guidance: the "
                "result is no divergence of the two. Compare it with results of the same settings only.",
                stacklevel=4,
            )
        if self.weighting == "uniform":
            warnings.warn("`weighting='uniform'` is a mean error of denoising, and no likelihood.", stacklevel=4)

    def _bar(self, items: Any, name: str) -> Any:
        return tqdm(items, desc=name, disable=not self.progress)
