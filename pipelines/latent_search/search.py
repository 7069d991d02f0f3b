# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latent search on a pipeline: what is around the loop. The loop that runs is the stock one."""

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging
from tqdm.auto import tqdm

from alignext.diffusion.calls import check_call, number_of_prompts, take
from alignext.diffusion.decoders import decoder, only_decode
from alignext.methods import method
from alignext.rewards.protocol import by_prompt
from alignext.search.config import SearchConfig
from alignext.search.hooks import in_chunks
from alignext.search.noise_search import RandomNoiseSearch, ZeroOrderNoiseSearch, search_noise
from alignext.search.rewarding import LatentReward
from alignext.search.scheduler import SearchScheduler


logger = logging.get_logger(__name__)

_DENOISERS = ("unet", "transformer", "transformer_2")
PAPER = method("Latent search").paper


class LatentSearch:
    r"""
    Searches a diffusers pipeline for the sample that a reward likes best; no weights change and no gradient of the
    reward is needed. It runs the pipeline's own loop, with the search in the place of its scheduler.

    Method: "Inference-Time Text-to-Video Alignment with Diffusion Latent Beam Search",
    [arXiv 2501.19252](https://huggingface.co/papers/2501.19252), and with other strategies its siblings.

    Args:
        pipe (`DiffusionPipeline`): Any text-to-image or text-to-video pipeline.
        reward (`Callable`): `reward(images, prompts) -> n numbers`, larger is better; images `(n, 3, H, W)` or videos
            `(n, F, 3, H, W)`, float32 in [0, 1]; prompts a list of n texts, or None where only embeddings were given.
            It is also given `timestep_fraction`, `latents` (clean latents) and `is_final` if it takes them. With
            `reward.input_type = "latent"` it is given clean latents in the place of images, and nothing is decoded.
        config ([`SearchConfig`], [`RandomNoiseSearch`] or [`ZeroOrderNoiseSearch`], *optional*): The settings; the
            last two search over the initial noise of the unchanged sampler instead, prompt by prompt.
        decode_fn (`Callable`, *optional*): `decode_fn(latents, pipe)` in the place of the pipeline's own decoding, for
            scoring only; for example a tiny autoencoder. `rewards` are those of what it decodes.
    """

    _paper = PAPER

    def __init__(
        self,
        pipe: Any,
        reward: Callable[..., Any],
        config: SearchConfig | RandomNoiseSearch | ZeroOrderNoiseSearch | None = None,
        *,
        decode_fn: Callable[[torch.Tensor, Any], torch.Tensor] | None = None,
    ) -> None:
        if not callable(reward):
            raise ValueError(f"`reward` must be callable as `reward(images, prompts)`, received {reward!r}.")
        self.pipe, self.reward = pipe, reward
        self.outer = None if config is None or isinstance(config, SearchConfig) else config
        self.config = config if isinstance(config, SearchConfig) else SearchConfig()
        self.decode_fn = decode_fn
        self.scheduler: SearchScheduler | None = None

    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        noise_sampler: Callable[[int, torch.Size], torch.Tensor] | None = None,
        uniform_sampler: Callable[[int, tuple[int]], torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        r"""
        One search per prompt, all in one batch of prompts x beams x candidates. With a budget of 1 it is the stock
        call, bit for bit. An interrupt (Ctrl-C, or `pipe._interrupt`) returns the best of the last scored node.

        Args:
            args, kwargs: The arguments of the pipeline, with these meanings: `num_images_per_prompt` or
                `num_videos_per_prompt` is how many of the surviving beams come back, best first; `generator` is one,
                or one per prompt; `latents` are one start per prompt, one per beam, or one per slot.
            noise_sampler, uniform_sampler (`Callable`, *optional*): Every random draw of the search, see
                [`SearchScheduler`].

        Returns:
            The pipeline's own output for prompts x m samples, with `rewards` (`torch.Tensor` of shape `(P, m)`, best
            first), `history` (per scored node `node`, `timestep`, `rewards [P, n]`, `parents [P, n]`), `nfe` and
            `reward_evals` (evaluated and scored samples; a guidance pair counts once). With `return_dict=False` these
            come at the end of the tuple.

        Raises:
            ValueError: For arguments, pipelines or schedulers that a search cannot run with.

        Example:

        ```py
        >>> import torch
        >>> from diffusers import StableDiffusionPipeline
        >>> from alignext import LatentSearch, SearchConfig, mini

        >>> pipe = StableDiffusionPipeline.from_pretrained(mini.path("sd"))
        >>> darkness = lambda images, prompts: -images.mean((1, 2, 3))
        >>> search = LatentSearch(pipe, darkness, SearchConfig(lookahead_steps=1))
        >>> out = search("a red fox, flat style", num_inference_steps=25, generator=torch.Generator().manual_seed(0))
        >>> out.images[0].save("dark-fox.png")
        ```
        """
        call = self._bind(args, kwargs)
        stock_only = self.config.strategy == "none" or self.config.budget == 1
        if stock_only and not self.config.force_engine:
            return self._stock(call)
        check_call(call, self.config.lookahead_steps)
        self._check_pipeline()
        P, m = number_of_prompts(call), _count(call)
        survivors = self.config.shape[0] if self.outer is None else 1
        if m > survivors:
            raise ValueError(
                f"{m} outputs per prompt were asked for and {survivors} survive with strategy "
                f"{self.config.strategy!r}. Raise `num_beams` (received {self.config.num_beams})."
            )
        generator = call.get("generator")
        if isinstance(generator, list) and len(generator) != P:
            raise ValueError(f"`generator` must be one, or one for each of {P} prompts, received {len(generator)}.")
        if self.outer is not None:
            latents, rewards, extra = self._noise_search(self.outer, call, P)
        elif self.config.strategy == "best_of_n" and not self.config.force_engine:
            latents, rewards, extra = self._best_of_n(call, P)
        else:
            latents, rewards, extra = self._search(call, P, noise_sampler, uniform_sampler)
        rewards = rewards[:, :m].float().cpu()
        latents = latents[:, :m].flatten(0, 1)
        final = take(call, [p for p in range(P) for _ in range(m)])
        output = only_decode(self.pipe, stock_call, final, latents, call["output_type"])
        return _with(output, {"rewards": rewards, **extra})

    # ------------------------------------------------------------------------------------------------------- the runs

    def _stock(self, call: dict[str, Any]) -> Any:
        """The stock call, and the rewards of what it returns."""
        output = stock_call(self.pipe, **call)
        samples, decode = output[0], self._decode(call)
        if call["output_type"] != "latent":
            samples, decode = as_unit_tensor(samples), lambda images: images
        P = number_of_prompts(call)
        m = len(samples) // P
        rewards = LatentReward(self.reward, decode, _texts(call), self.config)(samples)
        nfe = P * m * len(self.pipe.scheduler.timesteps)
        extra = {"history": [], "nfe": nfe, "reward_evals": P * m}
        return _with(output, {"rewards": rewards.unflatten(0, (P, m)).float().cpu(), **extra})

    def _best_of_n(self, call: dict[str, Any], P: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """n samples of the stock sampler, scored once."""
        inner = self._expand(call, P, self.config.budget)
        with in_chunks(self._denoisers(), self.config.model_batch_size):
            latents = stock_call(self.pipe, **inner)[0]
        rewards = LatentReward(self.reward, self._decode(call), _texts(call), self.config)(latents)
        rewards, order = by_prompt(rewards, P).sort(dim=1, descending=True, stable=True)
        latents = latents.unflatten(0, (P, -1))
        latents = torch.stack([row[i] for row, i in zip(latents, order, strict=True)])
        rows = P * self.config.budget
        nfe = rows * len(self.pipe.scheduler.timesteps)
        return latents, rewards, {"history": [], "nfe": nfe, "reward_evals": rows}

    def _noise_search(
        self, method: RandomNoiseSearch | ZeroOrderNoiseSearch, call: dict[str, Any], P: int
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """The stock sampler again and again, each prompt from its own initial latents."""
        if call.get("latents") is not None:
            raise ValueError("`latents` are what this search is over. Leave them out.")
        found, history, counts = [], [], {"nfe": 0, "reward_evals": 0}
        for p in range(P):
            one = take(call, [p])
            generator = call["generator"][p] if isinstance(call.get("generator"), list) else call.get("generator")
            probe = one | {"return_dict": False, "generator": None}
            start = only_decode(self.pipe, stock_call, probe, None, "latent")[0]
            score = LatentReward(self.reward, self._decode(call), _texts(one), self.config)

            def evaluate(noise: torch.Tensor, p=p, like=start, score=score, generator=generator) -> tuple:
                inner = take(call, [p] * len(noise)) | {"output_type": "latent", "return_dict": False}
                inner |= {"latents": noise.to(like), "generator": generator}
                with in_chunks(self._denoisers(), self.config.model_batch_size):
                    latents = stock_call(self.pipe, **inner)[0]
                counts["nfe"] += len(noise) * len(self.pipe.scheduler.timesteps)
                counts["reward_evals"] += len(noise)
                return latents, score(latents)

            *best, rounds = search_noise(method, evaluate, start.shape[1:], generator, start.device)
            found.append(best)
            history += [{"prompt": p, **entry} for entry in rounds]
        latents, rewards = (torch.stack(parts) for parts in zip(*found, strict=True))
        return latents[:, None], by_prompt(rewards, P), {"history": history, **counts}

    def _search(
        self, call: dict[str, Any], P: int, noise_sampler: Any, uniform_sampler: Any
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        reward = LatentReward(self.reward, self._decode(call), _texts(call), self.config)

        def score(x0: torch.Tensor, timestep_fraction: float, is_final: bool) -> torch.Tensor:
            return reward(self._layout(x0).to(scheduler.sample_dtype), timestep_fraction, is_final)

        self.scheduler = scheduler = SearchScheduler(
            self.pipe.scheduler,
            score,
            self.config,
            num_prompts=P,
            generator=call.get("generator"),
            noise_sampler=noise_sampler,
            uniform_sampler=uniform_sampler,
        )
        given = call.get("latents")
        scheduler.leading_starts = given is None or len(given) != P * self.config.budget
        inner = self._expand(call, P, self.config.budget)
        interrupted = False
        with (
            self._attached(scheduler),
            in_chunks(self._denoisers(), self.config.model_batch_size, scheduler.same_rows),
        ):
            try:
                latents = stock_call(self.pipe, **inner)[0]
            except KeyboardInterrupt:
                if not scheduler.stop():
                    raise
                interrupted = True
        if not interrupted and scheduler.finished:
            # The loop returns the winners, best first; a callback may have changed them after the last step.
            latents = latents.unflatten(0, (P, -1))
        else:
            if not (interrupted or scheduler.stop()):
                raise RuntimeError("The pipeline's loop did not run a single step of the search.")
            interrupted = True
            logger.warning(f"Interrupted after {scheduler.nfe} evaluations; this is the best so far.")
            latents = self._layout(scheduler.latents.flatten(0, 1)).to(scheduler.sample_dtype).unflatten(0, (P, -1))
        extra = {"history": scheduler.history, "nfe": scheduler.nfe, "reward_evals": scheduler.reward_evals}
        return latents, scheduler.rewards, extra | ({"interrupted": True} if interrupted else {})

    # ------------------------------------------------------------------------------------------------------ the pieces

    def _bind(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = inspect.signature(_stock_method(self.pipe)).bind(self.pipe, *args, **kwargs)
        bound.apply_defaults()
        call = dict(bound.arguments)
        call.pop("self")
        return call | call.pop("kwargs", {})

    def _check_pipeline(self) -> None:
        for name in _DENOISERS:
            if getattr(getattr(self.pipe, name, None), "is_cache_enabled", False):
                raise ValueError(
                    f"`pipe.{name}` has a cache that expects one smooth path. Call `pipe.{name}.disable_cache()`."
                )
        if getattr(self.pipe, "free_init_enabled", False):
            raise ValueError("FreeInit runs the loop several times. Call `pipe.disable_free_init()`.")

    def _denoisers(self) -> list[torch.nn.Module]:
        found = (getattr(self.pipe, name, None) for name in _DENOISERS)
        return [module for module in found if isinstance(module, torch.nn.Module)]

    def _decode(self, call: dict[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
        decode_fn = self.decode_fn
        if decode_fn is not None:
            return lambda latents: decode_fn(latents, self.pipe)
        return decoder(self.pipe, stock_call, call)

    def _layout(self, x0: torch.Tensor) -> torch.Tensor:
        """From rows of the loop to the latents of the call: text-to-video-SD steps on frames as rows."""
        if any(c.__name__ == "TextToVideoSDPipeline" for c in type(self.pipe).__mro__):
            return x0.transpose(1, 2) if x0.ndim == 5 else x0.unsqueeze(2)
        return x0

    def _expand(self, call: dict[str, Any], P: int, n: int) -> dict[str, Any]:
        """The call with n rows per prompt, to latents."""
        inner = take(call, [p for p in range(P) for _ in range(n)]) | {"output_type": "latent", "return_dict": False}
        if isinstance(call.get("generator"), list):
            inner["generator"] = [g for g in call["generator"] for _ in range(n)]
        if (given := call.get("latents")) is not None:
            each = len(given) // P
            if len(given) % P or each not in (1, self.config.shape[0], n):
                raise ValueError(
                    f"`latents` must have {P}, {P * self.config.shape[0]} or {P * n} rows (one start per prompt, beam "
                    f"or slot), received {len(given)}."
                )
            rows = [p * each + min(slot, each - 1) for p in range(P) for slot in range(n)]
            inner["latents"] = given[torch.tensor(rows, device=given.device)]
        return inner

    @contextmanager
    def _attached(self, scheduler: SearchScheduler) -> Generator[None]:
        """The search in the place of the pipeline's scheduler, and one progress bar in the place of the stock one."""
        pipe, original = self.pipe, self.pipe.scheduler
        settings = vars(pipe).get("_progress_bar_config")
        bar = tqdm(**{"desc": "search", **(settings or {})})

        def advance(scheduler: SearchScheduler) -> None:
            bar.total = len(scheduler.plan)
            best = "" if scheduler.rewards is None else f"{scheduler.rewards[:, 0].mean().item():.4g}"
            bar.set_postfix(nfe=scheduler.nfe, best=best, refresh=False)
            bar.update()

        scheduler.on_step = advance
        try:
            pipe._progress_bar_config = {**(settings or {}), "disable": True}
            pipe.scheduler = scheduler
            yield
        finally:
            # Assigning it also puts the pipeline's config back, or `save_pretrained` would name the search.
            pipe.scheduler = original
            del pipe._progress_bar_config
            if settings is not None:
                pipe._progress_bar_config = settings
            bar.close()


def _stock_method(pipe: Any) -> Callable[..., Any]:
    """The `__call__` below ours, if the pipeline is one of ours."""
    for cls in type(pipe).__mro__:
        if "__call__" in vars(cls) and issubclass(cls, DiffusionPipeline) and not hasattr(cls, "_is_search"):
            return vars(cls)["__call__"]
    raise TypeError(f"`pipe` must be a diffusers pipeline, received {type(pipe).__name__}.")


def stock_call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
    """The call of the pipeline without ours."""
    return _stock_method(pipe)(pipe, *args, **kwargs)


def _count(call: dict[str, Any]) -> int:
    return call.get("num_images_per_prompt") or call.get("num_videos_per_prompt") or 1


def _texts(call: dict[str, Any]) -> list[str] | None:
    prompt = call.get("prompt")
    return [prompt] if isinstance(prompt, str) else None if prompt is None else list(prompt)


def _with(output: Any, extra: dict[str, Any]) -> Any:
    """The stock output, an ordered dictionary with attributes, with our fields after its own."""
    if isinstance(output, tuple):
        return (*output, *extra.values())
    for name, value in extra.items():
        output[name] = value
    return output


def as_unit_tensor(samples: Any) -> torch.Tensor:
    """Images or videos as pipelines return them (PIL, NumPy, tensors) as `(n, [F,] 3, H, W)`, float32 in [0, 1]."""
    if isinstance(samples, torch.Tensor):
        return samples.float()
    if isinstance(samples, np.ndarray):
        return torch.from_numpy(samples).float().movedim(-1, -3)
    if isinstance(samples[0], (list, torch.Tensor, np.ndarray)):
        return torch.stack([as_unit_tensor(frames) for frames in samples])
    arrays = [np.asarray(image.convert("RGB"), dtype=np.float32) / 255 for image in samples]
    return torch.from_numpy(np.stack(arrays)).movedim(-1, -3)
