# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
# More than 300 lines: one loop over one state; plan, levels, draws and choices have files of their own.
"""The search as a scheduler: a stock denoising loop that steps with it runs the whole search."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from alignext.diffusion.schedulers import SchedulerShell
from alignext.functional.latent_search import transition
from alignext.functional.predictions import clean_and_noise
from alignext.logs import pipeline_logger, warn_once
from alignext.rewards.protocol import CheckedReward, by_prompt
from alignext.search.config import SearchConfig
from alignext.search.draws import SearchDraws
from alignext.search.plan import Levels, Node, Point, make_plan
from alignext.search.strategies import SMC, select


logger = pipeline_logger(__name__)


class SearchScheduler(SchedulerShell):
    r"""
    Runs a latent search inside any loop of the form `x = scheduler.step(model(x, t), t, x)[0]` over
    `scheduler.timesteps`. The search is flattened into one list of evaluations; `step` decides which latents come
    back next. Everything is computed in the dtype of the samples, at least float32.

    It needs no diffusers pipeline. On a plain denoiser function `out = f(x, t)` and any scheduler:

    ```python
    scheduler = SearchScheduler(DDIMScheduler(...), reward_fn=lambda x0: -x0.square().sum(1))
    scheduler.set_timesteps(10)
    scheduler.run(f, torch.randn(scheduler.starts, 8))  # or the three lines of the loop above
    scheduler.rewards, scheduler.latents  # best first, [P, m] and [P, m, ...]; scheduler.history, scheduler.nfe
    ```

    The batch is `P * n` throughout, prompt-major, slot = beam * K + candidate; only at the first node may there be
    `P * starts` rows, the different initial latents (B, with `init_selection` or SMC n). `nfe` then is
    `B + (T - 1) K B T'`.

    Args:
        base (scheduler): Where timesteps and levels come from, see [`~alignext.search.plan.level_source`]. It is not
            changed or stepped.
        reward_fn (`Callable`): `reward_fn(x0)` for clean latents `[rows, ...]`, prompt-major, the same number of rows
            for every prompt; returns `rows` numbers, larger is better. Is also given `timestep_fraction` (timestep
            over the number of training timesteps) and `is_final` if it takes them.
        config ([`SearchConfig`], *optional*): The settings; `"best_of_n"` runs n samples of the search's own sampler.
        num_prompts (`int`, *optional*, defaults to 1): P; searches do not mix.
        generator (`torch.Generator` or list of P, *optional*): For the noise: one draw of `[P * n, ...]` per node, or
            one of `[n, ...]` per prompt.
        noise_sampler (`Callable`, *optional*): `noise_sampler(node, shape) -> float32 tensor` in the place of the
            generator: the noise that leads from node `node` to the next, for all slots after selection.
        uniform_sampler (`Callable`, *optional*): `uniform_sampler(node, (P,))`, the same for the one other random
            draw, the `u` in [0, 1) of systematic resampling.
        on_step (`Callable`, *optional*): Called with the scheduler after each evaluation.

    Attributes:
        plan (`list[Point]`): Per evaluation its node, timestep, levels and whether it only looks ahead.
        history (`list[dict]`): Per scored node `node`, `timestep`, `rewards [P, n]`, `parents [P, n]`.
        rewards, latents, slots: The last population, best first: rewards `[P, m]`, clean latents `[P, m, ...]` (or
            `[P, m * f, ...]` in loops with f rows per sample), and their slots at the last node `[P, m]`. While the
            search runs, those of the last scored node.
        nfe, reward_evals (`int`): Evaluated and scored samples so far.
        leading_starts (`bool`): Set it where a pipeline draws n initial latents per prompt: the first `starts` of them
            count, and beam b starts from the b-th.
        log_weights (`torch.Tensor` of shape `(P, n)`): SMC only, by slot: the weights of the last population.
    """

    def __init__(
        self,
        base: Any,
        reward_fn: Callable[..., Any],
        config: SearchConfig | None = None,
        *,
        num_prompts: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        noise_sampler: Callable[[int, torch.Size], torch.Tensor] | None = None,
        uniform_sampler: Callable[[int, tuple[int]], torch.Tensor] | None = None,
        on_step: Callable[["SearchScheduler"], Any] | None = None,
    ) -> None:
        self.levels = Levels(base)
        super().__init__(self.levels.source)
        self.search, self.num_prompts = config or SearchConfig(), num_prompts
        self.reward_fn = CheckedReward.of(reward_fn)
        self.draws = SearchDraws(num_prompts, self.search.budget, generator, noise_sampler, uniform_sampler)
        self.on_step = on_step
        self.is_flow = self.levels.is_flow
        self.leading_starts = False
        if not self.is_flow and self.search.noise in ("rf_ancestral", "flow_grpo"):
            raise ValueError(f"`noise={self.search.noise!r}` is for flow models, not {type(self.base).__name__}.")
        self._reset()

    # ------------------------------------------------------------------------------------------------- schedule

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, timesteps=None, mu=None) -> None:
        """As the base scheduler's, and plans the search."""
        nodes = self.levels.nodes(num_inference_steps, device, sigmas=sigmas, timesteps=timesteps, mu=mu)
        self._reset()
        self.num_inference_steps = len(nodes)
        self.nodes = make_plan(self.levels, nodes, self.search)
        self.plan = [point for node in self.nodes for point in node.points]
        one_step = self.search.lookahead_steps == 1 or not self.is_flow
        dtype = self.base.timesteps.dtype if one_step else torch.float32
        self.timesteps = torch.tensor([p.timestep for p in self.plan], dtype=dtype, device=device)
        self.sigmas = torch.tensor([*(p.sigma for p in self.plan), 0.0], dtype=torch.float32, device=device)
        distilled = self.levels.is_distilled
        if self.search.eta == 1 and self.search.noise == "ddpm" and 1 < len(nodes) < 20 and not distilled:
            warn_once(logger, "eta=1 with fewer than 20 steps loses variance; a smaller eta loses less.")
        if distilled and self.search.noise != "renoise":
            name = type(self.base).__name__
            warn_once(logger, f"Models for {name} are distilled to be noised anew: noise='renoise'.")

    @property
    def starts(self) -> int:
        """How many different initial latents there are per prompt."""
        beams, candidates = self.search.shape
        single = self.search.init_selection or self.num_inference_steps == 1
        return beams * candidates if single else beams

    def _reset(self) -> None:
        self.nodes: list[Node] = []
        self.plan: list[Point] = []
        self.history: list[dict[str, Any]] = []
        self.rewards: Any = None  # tensors, once something is scored
        self.latents: Any = None
        self.slots: Any = None
        self.nfe = self.reward_evals = self._index = 0
        self._smc = SMC(self.search.smc_lambda, self.search.smc_potential, self.search.smc_threshold)

    # ------------------------------------------------------------------------------------------------- the loop

    @torch.no_grad()
    def run(self, denoiser: Callable[[torch.Tensor, Any], torch.Tensor], latents: torch.Tensor) -> torch.Tensor:
        """
        The whole search on a plain function.

        Args:
            denoiser (`Callable`): `denoiser(x, t)`, the model output for noisy samples `x` at timestep `t`.
            latents (`torch.Tensor`): Initial latents, `P * starts` rows (or `P * n`, in slot order).

        Returns:
            `torch.Tensor`: The best clean latents of each prompt, `[P, ...]`.
        """
        for t in self.timesteps:
            latents = self.step(denoiser(latents, t), t, latents)[0]
        return self.latents[:, 0]

    @property
    def finished(self) -> bool:
        """Whether every evaluation of the plan is made; without a plan nothing is."""
        return 0 < len(self.plan) == self._index

    @torch.no_grad()
    def step(self, model_output, timestep, sample, generator=None, return_dict=True, **ignored):
        """
        The next latents to evaluate. All arguments but the first three are those of stock schedulers and only
        `return_dict` counts; `eta` among them is the pipeline's and is ignored.

        Raises:
            ValueError: When it is not called once per timestep, in order, with `P * n` rows.
        """
        if self._index >= len(self.plan) or float(timestep) != float(self.timesteps[self._index]):
            raise ValueError(
                f"The search expects timestep number {self._index} of `scheduler.timesteps`, received {timestep}. "
                "Pipelines that leave out timesteps or step more than once per timestep cannot be searched."
            )
        shape, self.sample_dtype = sample.shape, sample.dtype
        point = self.plan[self._index]
        node = self.nodes[point.node]
        x0, eps = self._predict(model_output, sample, point)
        first = point.node == 0 and self.leading_starts
        self.nfe += self.num_prompts * self.starts if first else len(x0)
        if self._index == 0:
            x0, eps = self._spread(x0), self._spread(eps)
        if not point.is_lookahead:
            self._x0, self._eps = x0, eps
        self._index += 1
        if point is not node.points[-1]:
            following = self.plan[self._index]
            latents = following.alpha * x0 + following.sigma * eps
        elif self.finished:
            latents = self._finish(node, x0)
        else:
            latents = self._move(point.node, self._select(node, x0) if node.scored else None)
        if latents.shape[1:] != shape[1:]:  # rows of one sample, such as frames, were kept together
            latents = latents.flatten(0, 1)
        latents = latents.to(self.sample_dtype)
        if self.on_step is not None:
            self.on_step(self)
        return SchedulerOutput(prev_sample=latents) if return_dict else (latents,)

    def __deepcopy__(self, memo: dict) -> Any:
        raise NotImplementedError(
            "The pipeline copies its scheduler, to step more than once per evaluation. It cannot be searched."
        )

    def _predict(self, m: torch.Tensor, z: torch.Tensor, point: Point) -> tuple[torch.Tensor, torch.Tensor]:
        for dim, (ours, theirs) in enumerate(zip(z.shape, m.shape, strict=True)):
            if theirs == 2 * ours:  # the second half is a learned variance
                m = m.narrow(dim, 0, ours)
        dtype = torch.promote_types(z.dtype, torch.float32)
        z, m = self._group(z.to(dtype)), self._group(m.to(dtype))
        if self.levels.inverted:
            m = -m
        x0, eps = clean_and_noise(m, z, point.alpha, point.sigma, self.levels.prediction)
        if not self.is_flow and self.config.get("thresholding"):
            x0 = self.base._threshold_sample(x0)
        elif not self.is_flow and self.config.get("clip_sample"):
            x0 = x0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return x0, eps

    def _group(self, x: torch.Tensor) -> torch.Tensor:
        """One row per slot: loops over frames step on `[P * n * f, ...]`, which becomes `[P * n, f, ...]`."""
        rows, slots = len(x), self.num_prompts * self.search.budget
        if rows == slots or (self._index == 0 and rows == self.num_prompts * self.starts):
            return x
        if rows % slots:
            raise ValueError(
                f"The search expects {slots} rows, {self.num_prompts} prompts x {self.search.budget} slots, or a "
                f"multiple of it, received {rows}."
            )
        return x.unflatten(0, (slots, rows // slots))

    def _spread(self, x: torch.Tensor) -> torch.Tensor:
        """From the different initial latents to all slots."""
        slots = self.num_prompts * self.search.budget
        if len(x) == slots:
            return x[self.start_rows(len(x)).to(x.device)] if self.leading_starts else x
        return x.repeat_interleave(slots // len(x), dim=0)

    def same_rows(self, batch: int) -> torch.Tensor | None:
        """
        For each row of a denoiser batch (a multiple of `P * n`), the row it may be taken from: at the first node, only
        the leading ones of each prompt count.
        """
        n = self.search.budget
        if self._index > 0 or not self.leading_starts or self.starts == n or batch % (self.num_prompts * n):
            return None
        row = torch.arange(batch)
        return row // n * n + (row % n).clamp(max=self.starts - 1)

    def stop(self) -> bool:
        """End the search here: scores what there is if nothing was scored yet; False if there is nothing."""
        if self.latents is None and self._index:
            slots = torch.arange(self.search.budget, device=self._x0.device).expand(self.num_prompts, -1)
            self._keep(self._x0, self._score(self._x0, 0, True), slots)
        return self.latents is not None

    def start_rows(self, rows: int) -> torch.Tensor:
        """Of `rows` initial latents, n per prompt, the row that each slot starts from: beam b from the b-th."""
        n = self.search.budget
        row = torch.arange(rows)
        return row // n * n + row % n // (n // self.starts)

    # ---------------------------------------------------------------------------------------------- the choices

    def _score(self, x0: torch.Tensor, node: int, is_final: bool) -> torch.Tensor:
        """Rewards `[P, rows / P]` of clean latents."""
        fraction = float(self.nodes[node].points[0].timestep) / self.config.get("num_train_timesteps", 1000)
        kwargs = {"timestep_fraction": fraction, "is_final": is_final}
        rewards = self.reward_fn(x0, **kwargs).to(x0.device)
        self.reward_evals += len(x0)
        return by_prompt(rewards, self.num_prompts)

    def _select(self, node: Node, x0: torch.Tensor, last: bool = False) -> torch.Tensor:
        i = node.points[0].node
        rewards = self._score(x0, i, last)
        if self.search.strategy == "smc":
            parents = self._smc.select(rewards, self.draws.uniform(i).to(rewards.device), last)
        else:
            parents = select(self.search, rewards)
        entry = {"node": i, "timestep": node.points[0].timestep, "rewards": rewards.cpu(), "parents": parents.cpu()}
        self.history.append(entry)
        self._keep(x0, rewards, torch.arange(rewards.shape[1], device=rewards.device).expand_as(parents))
        return parents

    def _keep(self, x0: torch.Tensor, rewards: torch.Tensor, slots: torch.Tensor) -> None:
        """Remember the population, best first."""
        order = rewards.sort(dim=1, descending=True, stable=True).indices
        self.rewards, self.slots = rewards.gather(1, order), slots.gather(1, order)
        rows = order + rewards.shape[1] * torch.arange(self.num_prompts, device=order.device)[:, None]
        self.latents = x0[rows.flatten()].unflatten(0, order.shape)

    def _take(self, x: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Rows of `[P * n, ...]` by slot `[P, m]`, as `[P * m, ...]`."""
        offsets = self.search.budget * torch.arange(self.num_prompts, device=slots.device)[:, None]
        return x[(slots + offsets).flatten()]

    def _move(self, i: int, parents: torch.Tensor | None) -> torch.Tensor:
        """Children of the parents, each with noise of its own, at the node after `i`."""
        x0, eps = self._x0, self._eps
        if parents is not None:
            x0, eps = self._take(x0, parents), self._take(eps, parents)
        here, there = self.nodes[i].points[0], self.nodes[i + 1].points[0]
        levels = here.alpha, here.sigma, there.alpha, there.sigma
        return transition(self.search.noise, x0, eps, self.draws.noise(i, x0), *levels, eta=self.search.eta)

    def _finish(self, node: Node, x0: torch.Tensor) -> torch.Tensor:
        """Rank the last population by its clean samples, which are the model's, without a further step."""
        n = self.search.budget
        every = torch.arange(n, device=x0.device).expand(self.num_prompts, n)
        looked_ahead = len(node.points) > 1
        survivors = every
        if node.scored:
            parents = self._select(node, x0, last=not looked_ahead)
            if self.search.strategy != "smc":  # its particles all count, with their weights
                survivors = parents[:, :: self.search.shape[1]]
        if node.scored and not looked_ahead:
            final = self.history[-1]["rewards"].to(x0.device).gather(1, survivors)
        else:
            final = self._score(self._take(self._x0, survivors), node.points[0].node, True)
        self._keep(self._take(self._x0, survivors), final, survivors)
        return self._take(self._x0, self.slots[:, every[0] % survivors.shape[1]])

    @property
    def log_weights(self) -> torch.Tensor:
        return self._smc.log_weights
