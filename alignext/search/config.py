# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What a latent search is told to do, checked at the door."""

import math
from dataclasses import dataclass
from typing import Any, Self

from alignext.checks import check_counts, check_kinds, is_count


STRATEGIES = ("beam", "greedy", "best_of_n", "local", "smc", "none")
NOISES = ("ddpm", "rf_ancestral", "cps", "renoise", "flow_grpo")
POTENTIALS = ("diff", "max", "add", "rt")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    r"""
    Settings of a latent search. The defaults are diffusion latent beam search with lookahead,
    [arXiv 2501.19252](https://huggingface.co/papers/2501.19252): 4 beams of 2 candidates, 6 lookahead steps.

    Args:
        num_beams (`int`, *optional*, defaults to 4):
            B, how many partial samples survive each selection. With K = 1 nothing can be pruned: best of B.
        num_candidates (`int`, *optional*, defaults to 2):
            K, how many noises are tried per beam and step. The budget is `n = B * K`; `n = 1` is the stock pipeline.
        lookahead_steps (`int`, *optional*, defaults to 6):
            T', how many deterministic model evaluations estimate the final sample of a candidate. 1 is the one-step
            (Tweedie) estimate.
        strategy (`str`, *optional*, defaults to `"beam"`):
            `"beam"` (the B best of all n), `"greedy"` (the best one of all n), `"local"` (SVDD: the best of each
            beam's own K), `"smc"` (Feynman-Kac steering of n particles), `"best_of_n"` (n samples of the stock
            scheduler, no pruning), `"none"` (the stock pipeline).
        eta (`float`, *optional*, defaults to 1.0):
            How much noise a step adds, in [0, 1]; 0 adds none, so that all candidates would be equal. With
            `noise="flow_grpo"` it is that method's noise level `a` (0.7 there).
        noise (`str`, *optional*, defaults to `"ddpm"`):
            The stochastic step, see [`~alignext.functional.latent_search.transition`]. `"rf_ancestral"` and
            `"flow_grpo"` are for flow models only.
        score_every (`int`, *optional*, defaults to 1):
            Score and select at nodes whose number is a multiple of it. The final samples are always scored.
        search_range (`tuple[float, float]`, *optional*, defaults to `(0.0, 1.0)`):
            Score and select at nodes `i` with `lo <= i / T < hi` only.
        init_selection (`bool`, *optional*, defaults to `False`):
            Start from n different latents and select among them, too (not in the paper).
        max_children_per_beam (`int`, *optional*):
            With `"beam"`: no beam may keep more than so many of its candidates (not in the paper).
        smc_lambda (`float`, *optional*, defaults to 10.0): `lambda`, the weight of the reward in the SMC target
            `p(x) exp(lambda r(x))`.
        smc_potential (`str`, *optional*, defaults to `"diff"`): `"diff"`, `"max"`, `"add"` or `"rt"`, see
            [`~alignext.functional.latent_search.smc_gain`].
        smc_threshold (`float`, *optional*, defaults to 0.5): Resample when the effective sample size is below this
            fraction of n, in [0, 1].
        decode_batch_size (`int`, *optional*): Samples decoded at once for scoring; by default as many as make up a
            picture of 1024 x 1024, frames of a video counted one by one, and at least one.
        reward_batch_size (`int`, *optional*): Samples given to the reward at once; all by default.
        model_batch_size (`int`, *optional*): Rows of one denoiser call; all at once by default.
        force_engine (`bool`, *optional*, defaults to `False`): Run the search's own stochastic sampler also where the
            stock pipeline would be called (`n = 1` and `"best_of_n"`), as a baseline with the same noise.

    Raises:
        ValueError: For values out of range or that contradict each other.
    """

    num_beams: int = 4
    num_candidates: int = 2
    lookahead_steps: int = 6
    strategy: str = "beam"
    eta: float = 1.0
    noise: str = "ddpm"
    score_every: int = 1
    search_range: tuple[float, float] = (0.0, 1.0)
    init_selection: bool = False
    max_children_per_beam: int | None = None
    smc_lambda: float = 10.0
    smc_potential: str = "diff"
    smc_threshold: float = 0.5
    decode_batch_size: int | None = None
    reward_batch_size: int | None = None
    model_batch_size: int | None = None
    force_engine: bool = False

    def __post_init__(self) -> None:
        optional = ("max_children_per_beam", "decode_batch_size", "reward_batch_size", "model_batch_size")
        counts = ("num_beams", "num_candidates", "lookahead_steps", "score_every")
        given = {name: getattr(self, name) for name in (*counts, *optional)}
        check_counts(**{name: value for name, value in given.items() if not (value is None and name in optional)})
        for name, known in (("strategy", STRATEGIES), ("noise", NOISES), ("smc_potential", POTENTIALS)):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, received {getattr(self, name)!r}.")
        check_kinds(self)
        between = self.search_range
        if not (isinstance(between, tuple | list) and len(between) == 2 and 0 <= between[0] < between[1] <= 1):
            raise ValueError(f"`search_range` must be (lo, hi) with 0 <= lo < hi <= 1, received {between!r}.")
        for name in ("eta", "smc_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], received {getattr(self, name)!r}.")
        if not 0 <= self.smc_lambda < math.inf:
            raise ValueError(f"`smc_lambda` must be finite and not negative, received {self.smc_lambda!r}.")
        if self.eta == 0 and (self.shape[1] > 1 or self.strategy == "smc"):
            raise ValueError(
                "`eta=0` adds no noise, so all candidates of a beam would be equal. Choose `eta` in (0, 1], or "
                f"`num_candidates=1` (received {self.num_candidates}, strategy {self.strategy!r})."
            )

    @classmethod
    def from_budget(cls, n: int, **settings: Any) -> Self:
        """
        The settings for a budget of `n` candidates per step: two per beam, which is `num_beams = n / 2`. `n = 1` is
        the stock pipeline.

        Args:
            n (`int`): B times K; 1 or an even number.
            settings: All other arguments of [`SearchConfig`].

        Raises:
            ValueError: If `n` is odd, greater than 1, and so cannot be shared out.
        """
        if not is_count(n) or (n != 1 and n % 2):
            raise ValueError(f"`n` must be 1 or an even number, received {n!r}. Set `num_beams` and `num_candidates`.")
        return cls(num_beams=max(1, n // 2), num_candidates=min(n, 2), **settings)

    @property
    def budget(self) -> int:
        """`n = B * K`, the number of slots per prompt."""
        return self.num_beams * self.num_candidates

    @property
    def shape(self) -> tuple[int, int]:
        """Beams and candidates as the strategy lays out its n slots; slot = beam * candidates + candidate."""
        if self.strategy == "greedy":
            return 1, self.budget
        if self.strategy in ("smc", "best_of_n"):
            return self.budget, 1
        return self.num_beams, self.num_candidates
