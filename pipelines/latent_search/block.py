# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latent search around the blocks of a modular pipeline."""

from alignext.diffusion.blocks import MethodBlocks
from alignext.pipelines.latent_search.mixin import SearchMixin


class LatentSearchBlocks(MethodBlocks):
    """
    A modular preset that searches for what a reward likes best: `LatentSearchBlocks(Flux3AutoBlocks())`. It takes the
    preset's inputs and those of [`SearchMixin`]; see there for what they mean.
    """

    _name, _tag_names, _paper = SearchMixin._name, SearchMixin._tag_names, SearchMixin._paper
    pipelines = {"": SearchMixin}
    own = SearchMixin, None
    own_outputs = {
        "rewards": "Rewards, prompts x samples, best first.",
        "history": "Rewards and parents of each scored node.",
        "nfe": "Evaluated samples.",
        "reward_evals": "Scored samples.",
        "interrupted": "True after an interrupt.",
    }
