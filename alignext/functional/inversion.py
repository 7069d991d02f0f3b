# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Noise levels, and the walk from data to noise along a network's own trajectory.

The notation is that of [`~alignext.functional.predictions`]: levels `(a, s)`, `R` rows, a denoiser, a
`prediction_type`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from alignext.functional.predictions import Denoiser, add_noise, clean_and_noise


@dataclass(frozen=True)
class Levels:
    """
    The noise levels of a chain of `N` steps, clean side first. Step `k = 1..N` leads from level `k - 1` to level `k`
    and shows the network the timestep `timesteps[k - 1]`.

    Attributes:
        timesteps (`torch.Tensor` of shape `(N,)`): What the network is told.
        a, s (`torch.Tensor` of shape `(N + 1,)`): The levels; number 0 is where data is taken to be.
    """

    timesteps: torch.Tensor
    a: torch.Tensor
    s: torch.Tensor

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    def to(self, device: torch.device | str) -> "Levels":
        return Levels(self.timesteps.to(device), self.a.to(device), self.s.to(device))


def ddim_levels(
    alphas_cumprod: torch.Tensor,  # (T,)
    num_steps: int,
    *,
    offset: int = 0,
) -> Levels:
    """
    The levels of DDIM inversion, "leading" spacing: `t_k = (k - 1) D + offset` with `D = T // N`, level `k` at
    `abar[t_k]`, level 0 at `abar[0]`. With `offset=0` the first step has length zero.

    Args:
        alphas_cumprod (`torch.Tensor` of shape `(T,)`): `abar`.
        num_steps (`int`): `N`.
        offset (`int`, *optional*, defaults to 0): Of the timesteps, `steps_offset` of the schedulers.

    Raises:
        ValueError: `num_steps` is not between 1 and `T`, or the grid ends beyond `T`.
    """
    T = len(alphas_cumprod)
    if not 1 <= num_steps <= T:
        raise ValueError(f"`num_steps` is {num_steps}, but it must be between 1 and the {T} timesteps of training.")
    spacing = T // num_steps
    timesteps = torch.arange(num_steps, device=alphas_cumprod.device) * spacing + offset
    if not 0 <= offset <= timesteps[-1] < T:
        raise ValueError(f"`num_steps={num_steps}` with an `offset` of {offset} ends beyond the {T} timesteps.")
    abar = torch.cat([alphas_cumprod[:1], alphas_cumprod[timesteps]])
    return Levels(timesteps, abar.sqrt(), (1 - abar).sqrt())


def flow_levels(sigmas: torch.Tensor, num_train_timesteps: int = 1000) -> Levels:
    """
    The levels of flow inversion: `sigma_0 = 0 < sigma_1 < ... < sigma_N`, the network is told `1000 sigma_k`.

    Args:
        sigmas (`torch.Tensor` of shape `(N + 1,)`): As schedulers have them: descending, the last one 0.
        num_train_timesteps (`int`, *optional*, defaults to 1000): Factor of the timesteps.

    Raises:
        ValueError: `sigmas` does not descend to 0.
    """
    if len(sigmas) < 2 or sigmas[-1] != 0 or not (sigmas.diff() < 0).all():
        raise ValueError(f"`sigmas` must descend to 0, but is {sigmas}.")
    sigmas = sigmas.flip(0)
    return Levels(sigmas[1:] * num_train_timesteps, 1 - sigmas, sigmas)


@dataclass(frozen=True)
class InversionStep:
    """
    Step `k` of an inversion, of those rows that take it.

    Attributes:
        k (`int`): 1 to `N`.
        rows (`torch.Tensor` of shape `(R,)`): Which rows of the batch these are.
        source, x (`torch.Tensor` of shape `(R, C, h, w)`): Before and after the step, at levels `k - 1` and `k`.
        prediction (`torch.Tensor` of shape `(R, C, h, w)`): The network's output that leads from one to the other.
    """

    k: int
    rows: torch.Tensor
    source: torch.Tensor
    prediction: torch.Tensor
    x: torch.Tensor


@torch.no_grad()
def invert(
    denoiser: Denoiser,
    x0: torch.Tensor,  # (R, C, h, w)
    levels: Levels,
    conditioning: Mapping[str, torch.Tensor] | None = None,
    *,
    prediction_type: str = "epsilon",
    num_renoise_steps: int = 0,
    last: torch.Tensor | None = None,  # (R,)
    eta: float = 0.0,
    noise: Callable[[int], torch.Tensor] | None = None,
) -> Iterator[InversionStep]:
    r"""
    Walk from data to noise along the network's own trajectory, one step of the probability-flow ODE at a time:

        p_k = f(x_{k-1}, t_k);   (x0_k, n_k) = what p_k stands for at level k - 1;   x_k = a_k x0_k + s_k n_k

    For an epsilon network this is DDIM inversion, for a flow network `x_k = x_{k-1} + (sigma_k - sigma_{k-1}) p_k`.
    `r` rounds of re-noising (SmPO: one) evaluate the network again at the point reached, told the same timestep, and
    step with the mean of all predictions so far. InPO adds noise of `eta = 0.1` after each step.

    Args:
        denoiser (`Callable`):
            As in the notation; guided, if so wanted (see [`~alignext.functional.predictions.guide`]).
        x0 (`torch.Tensor` of shape `(R, C, h, w)`): Clean latents.
        levels ([`Levels`]): The grid.
        conditioning (`Mapping[str, torch.Tensor]`, *optional*): Tensors of `R` rows for the denoiser.
        prediction_type (`str`, *optional*, defaults to `"epsilon"`): One of `PREDICTION_TYPES`.
        num_renoise_steps (`int`, *optional*, defaults to 0): `r`.
        last (`torch.Tensor` of shape `(R,)`, *optional*):
            The step each row stops after, 0 for none. Rows that have stopped cost nothing.
        eta (`float`, *optional*, defaults to 0.0): Standard deviation of the noise added after each step, in units of
            that of the DDIM posterior, `(s_{k-1} / s_k) sqrt(s_k^2 - (a_k s_{k-1} / a_{k-1})^2)`.
        noise (`Callable[[int], torch.Tensor]`, *optional*): For step `k`, standard normal, of `x0`'s shape.

    Yields:
        [`InversionStep`], one per step that any row takes.
    """
    x, conditioning = x0, dict(conditioning or {})
    steps = levels.num_steps if last is None else int(last.max())
    for k in range(1, steps + 1):
        rows = torch.arange(len(x0), device=x0.device) if last is None else (last >= k).nonzero()[:, 0]
        if len(rows) < len(x0):
            source = x[rows]
            given = {name: value[rows] for name, value in conditioning.items()}
        else:
            source, given = x, conditioning
        t = levels.timesteps[k - 1].expand(len(rows))
        a_from, s_from, a_to, s_to = levels.a[k - 1], levels.s[k - 1], levels.a[k], levels.s[k]

        reached, total, prediction = source, torch.zeros_like(source), source
        for i in range(1 + num_renoise_steps):
            total = total + denoiser(reached, t, **given).to(source.dtype)
            prediction = total / (i + 1)
            reached = add_noise(*clean_and_noise(prediction, source, a_from, s_from, prediction_type), a_to, s_to)
        if eta and noise is not None:
            variance = (s_from / s_to) ** 2 * (s_to**2 - (a_to * s_from / a_from) ** 2)
            reached = reached + eta * variance.clamp(min=0).sqrt().to(reached) * noise(k)[rows]
        yield InversionStep(k, rows, source, prediction, reached)
        x = reached if len(rows) == len(x0) else x.index_copy(0, rows, reached)


@dataclass(frozen=True)
class InversionPoints:
    """
    `K` points of the inversion of each of `R` rows. Their tensors have `K R` rows: all rows of the first point, then
    all of the second.

    Attributes:
        k (`torch.Tensor` of shape `(K, R)`): Which steps these are, 1 to `N`.
        source, prediction, x (`torch.Tensor` of shape `(K R, C, h, w)`): As of [`InversionStep`].
    """

    k: torch.Tensor
    source: torch.Tensor
    prediction: torch.Tensor
    x: torch.Tensor

    def __getitem__(self, point: int) -> "InversionPoints":
        """One of the `K` points of all rows."""
        rows = slice(point * self.k.shape[1], (point + 1) * self.k.shape[1])
        return InversionPoints(self.k[point, None], self.source[rows], self.prediction[rows], self.x[rows])


def inversion_points(steps: Iterable[InversionStep], k: torch.Tensor) -> InversionPoints:
    """
    Keep some points of an inversion.

    Args:
        steps (`Iterable[InversionStep]`): Of [`invert`], called with `last` of at least `k.amax(0)`.
        k (`torch.Tensor` of shape `(K, R)`): The steps to keep of each row, 1 to `N`.
    """
    kept: dict[str, torch.Tensor] = {}
    for step in steps:
        point, at = (k[:, step.rows] == step.k).nonzero(as_tuple=True)
        for name in ("source", "prediction", "x"):
            value = getattr(step, name)
            out = kept.setdefault(name, value.new_full((*k.shape, *value.shape[1:]), torch.nan))
            out[point, step.rows[at]] = value[at]
    return InversionPoints(k, **{name: value.flatten(0, 1) for name, value in kept.items()})
