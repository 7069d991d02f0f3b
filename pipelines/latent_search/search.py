# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latent search on a pipeline: what is around the loop. The loop that runs is the stock one."""

from collections.abc import Callable
from typing import Any

import torch

from alignext.diffusion.calls import (
    loop_latents,
    number_of_prompts,
    starting_from,
    take,
    watching_steps,
)
from alignext.diffusion.decoders import decoder, fixed_generator, initial_latents, only_decode
from alignext.diffusion.recording import DENOISERS
from alignext.logs import pipeline_logger
from alignext.methods import method
from alignext.pipelines.latent_search.attach import attached
from alignext.pipelines.latent_search.hooks import in_chunks
from alignext.pipelines.latent_search.refusals import check_call, check_pipeline, check_stepping
from alignext.pipelines.latent_search.reward import LatentReward
from alignext.pipelines.latent_search.stock import (
    as_unit_tensor,
    bind,
    count_of,
    extended,
    is_custom,
    stock_call,
    texts_of,
)
from alignext.rewards.protocol import CheckedReward, by_prompt
from alignext.search.config import SearchConfig
from alignext.search.noise_search import RandomNoiseSearch, ZeroOrderNoiseSearch, search_noise
from alignext.search.scheduler import SearchScheduler


logger = pipeline_logger(__name__)

PAPER = method("Latent search").paper


class LatentSearch:
    r"""
    Searches a diffusers pipeline for the sample that a reward likes best; no weights change and no gradient of the
    reward is needed. It runs the pipeline's own loop, with the search in the place of its scheduler.

    Method: "Inference-Time Text-to-Video Alignment with Diffusion Latent Beam Search",
    [arXiv 2501.19252](https://huggingface.co/papers/2501.19252), and with other strategies its siblings.

    Args:
        pipe (`DiffusionPipeline`): Any text-to-image or text-to-video pipeline.
        reward_fn (`Callable`): `reward_fn(images, prompts) -> n numbers`, larger is better; images `(n, 3, H, W)`
            or videos `(n, F, 3, H, W)`, float32 in [0, 1]; prompts a list of n texts, or None where only embeddings
            were given. It is also given `timestep_fraction`, `latents` (clean latents) and `is_final` if it takes
            them. With `reward_fn.input_type = "latent"` it is given clean latents in the place of images, and nothing
            is decoded.
        config ([`SearchConfig`], [`RandomNoiseSearch`] or [`ZeroOrderNoiseSearch`], *optional*): The settings; the
            last two search over the initial noise of the unchanged sampler instead, prompt by prompt.
        decode_fn (`Callable`, *optional*): `decode_fn(latents, pipe)` in the place of the pipeline's own decoding, for
            scoring only; for example a tiny autoencoder. `rewards` are those of what it decodes.
    """

    _paper = PAPER

    def __init__(
        self,
        pipe: Any,
        reward_fn: Callable[..., Any],
        config: SearchConfig | RandomNoiseSearch | ZeroOrderNoiseSearch | None = None,
        *,
        decode_fn: Callable[[torch.Tensor, Any], torch.Tensor] | None = None,
    ) -> None:
        self.pipe, self.reward_fn = pipe, CheckedReward(reward_fn).reward_fn
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
            `reward_evals` (evaluated and scored samples; a guidance pair counts once), and `interrupted`. With
            `return_dict=False` these come at the end of the tuple, `interrupted` only if it is True.

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
        call = bind(self.pipe, args, kwargs)
        stock_only = self.config.strategy == "none" or self.config.budget == 1
        if stock_only and not self.config.force_engine:
            return self._stock(call)
        check_call(call, self.config.lookahead_steps)
        check_pipeline(self.pipe)
        P, m = number_of_prompts(call), count_of(call)
        survivors = self.config.shape[0] if self.outer is None else 1
        if m > survivors:
            who, fix = f"`strategy={self.config.strategy!r}`", f"Raise `num_beams` (received {self.config.num_beams})."
            if self.outer is not None:
                who, fix = type(self.outer).__name__, "Ask for one."
            elif self.config.strategy == "greedy":
                who, fix = f"{who}, whatever the budget", "Take 'beam', or ask for one."
            raise ValueError(f"{m} outputs per prompt were asked for and {survivors} survive with {who}. {fix}")
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
        return extended(output, {"rewards": rewards, **extra})

    # ------------------------------------------------------------------------------------------------------- the runs

    def _stock(self, call: dict[str, Any]) -> Any:
        """The stock call, and the rewards of what it returns."""
        texts = texts_of(call)  # before the call, as some pipelines write into the list
        with watching_steps(self.pipe.scheduler) as steps:
            output = stock_call(self.pipe, **call)
        if call["output_type"] == "latent":
            samples, decode = loop_latents(output[0], steps, call), self._decode(call)
        else:
            samples, decode = as_unit_tensor(output[0]), lambda images: images
        P = number_of_prompts(call)
        m = len(samples) // P
        rewards = LatentReward(self.reward_fn, decode, texts, self.config)(samples)
        nfe = P * m * len(self.pipe.scheduler.timesteps)
        extra = {"history": [], "nfe": nfe, "reward_evals": P * m}
        return extended(output, {"rewards": rewards.unflatten(0, (P, m)).float().cpu(), **extra})

    def _best_of_n(self, call: dict[str, Any], P: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """n samples of the stock sampler, scored once."""
        if is_custom(self.pipe):  # it may step what cannot be decoded without a step: found out before, not after
            initial_latents(self.pipe, stock_call, take(call, [0]) | {"generator": fixed_generator()})
        latents = self._sampled(self._expand(call, P, self.config.budget))
        rewards = LatentReward(self.reward_fn, self._decode(call), texts_of(call), self.config)(latents)
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
            start = initial_latents(self.pipe, stock_call, one | {"generator": None})
            score = LatentReward(self.reward_fn, self._decode(call), texts_of(one), self.config)

            def evaluate(noise: torch.Tensor, p=p, like=start, score=score, generator=generator) -> tuple:
                inner = take(call, [p] * len(noise)) | {"output_type": "latent", "return_dict": False}
                inner |= {"latents": None, "generator": generator}
                with starting_from(self.pipe, noise.to(like)):
                    latents = self._sampled(inner)
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
        def prepared(x0: torch.Tensor) -> torch.Tensor:
            return self._layout(x0).to(scheduler.sample_dtype)

        def rows(batch: int) -> torch.Tensor | None:
            check_stepping(self.pipe, scheduler)
            return scheduler.same_rows(batch)

        self.scheduler = scheduler = SearchScheduler(
            self.pipe.scheduler,
            LatentReward(self.reward_fn, self._decode(call), texts_of(call), self.config, prepared),
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
            attached(self.pipe, scheduler),
            in_chunks(self._denoisers(), self.config.model_batch_size, rows),
            watching_steps(scheduler) as steps,
        ):
            try:
                latents = loop_latents(stock_call(self.pipe, **inner)[0], steps, call)
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

    def _sampled(self, call: dict[str, Any]) -> torch.Tensor:
        """What the stock sampler makes of a call, as latents of its loop."""
        scheduler, size = self.pipe.scheduler, self.config.model_batch_size
        with (
            in_chunks(self._denoisers(), size, lambda batch: check_stepping(self.pipe, scheduler)),
            watching_steps(scheduler) as steps,
        ):
            latents = loop_latents(stock_call(self.pipe, **call)[0], steps, call)
        check_stepping(self.pipe, scheduler, stepped=bool(steps))
        return latents

    def _denoisers(self) -> list[torch.nn.Module]:
        found = (getattr(self.pipe, name, None) for name in DENOISERS)
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
