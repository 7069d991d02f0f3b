# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latent search as a mixin over any stock pipeline. The denoising loop that runs is the stock one."""

from collections.abc import Callable
from typing import Any

import torch

from alignext.hub import HubMixin
from alignext.pipelines.latent_search.search import PAPER, LatentSearch
from alignext.pipelines.latent_search.stock import stock_call
from alignext.search.config import SearchConfig
from alignext.signatures import show_stock_arguments


class SearchMixin(HubMixin):
    """
    Adds a reward to a stock pipeline's call, which then returns what a latent search finds for it; see
    [`LatentSearch`]. Everything else is inherited.

    Method: "Inference-Time Text-to-Video Alignment with Diffusion Latent Beam Search",
    [arXiv 2501.19252](https://huggingface.co/papers/2501.19252).
    """

    _name = "latent search"
    _tag_names = ["alignext", "latent-search"]
    _paper = PAPER
    _is_search = True

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        show_stock_arguments(cls, SearchMixin)

    @torch.no_grad()
    def __call__(
        self,
        *args,
        reward_fn: Callable[..., Any] | None = None,
        search_config: SearchConfig | None = None,
        noise_sampler: Callable[[int, torch.Size], torch.Tensor] | None = None,
        uniform_sampler: Callable[[int, tuple[int]], torch.Tensor] | None = None,
        **kwargs,
    ):
        r"""
        The stock call; with a reward, a latent search. All arguments of the stock pipeline are accepted and mean the
        same, but for these: `num_images_per_prompt` or `num_videos_per_prompt` is how many of the surviving beams
        come back, best first, and `generator` is one, or one per prompt.

        Args:
            reward_fn (`Callable`, *optional*):
                `reward_fn(images, prompts) -> n numbers`, larger is better, see [`LatentSearch`]. Without it this is
                the stock call.
            search_config ([`SearchConfig`], *optional*):
                The settings. With a budget of 1 it is the stock call, too, and its outputs are scored.
            noise_sampler, uniform_sampler (`Callable`, *optional*):
                Every random draw of the search, see [`SearchScheduler`].

        Returns:
            The stock output; with a reward also `rewards`, `history`, `nfe`, `reward_evals` and `interrupted`, see
            [`LatentSearch`].

        Example:

        ```py
        >>> import torch
        >>> from alignext import SearchConfig, StableDiffusionSearchPipeline, mini

        >>> pipe = StableDiffusionSearchPipeline.from_pretrained(mini.path("sd"))
        >>> out = pipe(
        ...     "a red fox, flat style",
        ...     reward_fn=lambda images, prompts: -images.mean((1, 2, 3)),
        ...     search_config=SearchConfig(num_beams=2, lookahead_steps=1),
        ...     num_inference_steps=10,
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> out.images[0].save("dark-fox.png")
        ```
        """
        if reward_fn is None:
            if search_config is not None:
                raise ValueError("`search_config` was given without `reward_fn`. Pass what the search is to look for.")
            return stock_call(self, *args, **kwargs)
        search = LatentSearch(self, reward_fn, search_config)
        return search(*args, noise_sampler=noise_sampler, uniform_sampler=uniform_sampler, **kwargs)
