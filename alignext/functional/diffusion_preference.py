# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The equations of preference optimization for diffusion models.

- Diffusion-DPO (Wallace et al.: "Diffusion Model Alignment Using Direct Preference Optimization",
  [arXiv 2311.12908](https://huggingface.co/papers/2311.12908), CVPR 2024)
- Inversion-DPO (Li et al.: "Inversion-DPO: Precise and Efficient Post-Training for Diffusion Models",
  [arXiv 2507.11554](https://huggingface.co/papers/2507.11554), ACM MM 2025)
- InPO (Lu et al.: "InPO: Inversion Preference Optimization with Reparametrized DDIM for Efficient Diffusion Model
  Alignment", [arXiv 2503.18454](https://huggingface.co/papers/2503.18454), CVPR 2025)
- SmPO-Diffusion (Lu et al.: "Smoothed Preference Optimization via ReNoise Inversion for Aligning Diffusion Models with
  Varied Human Preferences", [arXiv 2506.02698](https://huggingface.co/papers/2506.02698), ICML 2025)

Notation: a noise level is a pair `(a, s)` with `x = a x0 + s n`: `a = sqrt(abar_t)`, `s = sqrt(1 - abar_t)` for
diffusion, `a = 1 - sigma`, `s = sigma` for flow matching. A batch of `B` pairs has `2B` rows, winners first:
row `i` won over row `B + i`. `l` and `r` are the errors of policy and reference, `m` the margin of a pair.

A denoiser is a callable `denoiser(x, t, **conditioning)` of `x` (`R`, C, h, w), timesteps `t` (`R`,) and tensors of
`R` rows that returns a prediction of the shape of `x`. `prediction_type` says of what: `"epsilon"` the noise `n`,
`"v_prediction"` `a n - s x0`, `"flow_prediction"` `n - x0`, `"sample"` `x0`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F


Denoiser = Callable[..., torch.Tensor]

PREDICTION_TYPES = ("epsilon", "v_prediction", "flow_prediction", "sample")
TARGETS = ("reference", "trajectory", "recovered")


def _like(value: torch.Tensor | float, x: torch.Tensor) -> torch.Tensor:
    """A scalar, or one value per row of `x`, so that it multiplies `x` row by row."""
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    return value.view(-1, *(1,) * (x.dim() - 1)) if value.dim() else value


# What a network predicts


def add_noise(x0: torch.Tensor, noise: torch.Tensor, a: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """
    `x = a x0 + s n`.

    Args:
        x0, noise (`torch.Tensor` of shape `(R, C, h, w)`): Clean latents and their noise.
        a, s (`torch.Tensor`): The level; scalars or of shape `(R,)`.
    """
    return _like(a, x0) * x0 + _like(s, x0) * noise


def recovered_noise(x: torch.Tensor, x0: torch.Tensor, a: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """
    `n = (x - a x0) / s`, the noise that leads from `x0` to `x`: inverse of [`add_noise`].

    Args:
        x, x0 (`torch.Tensor` of shape `(R, C, h, w)`): Noisy and clean latents.
        a, s (`torch.Tensor`): The level of `x`; scalars or of shape `(R,)`. `s` must not be 0.
    """
    return (x - _like(a, x) * x0) / _like(s, x)


def prediction_target(
    x0: torch.Tensor, noise: torch.Tensor, a: torch.Tensor, s: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """
    What a perfect network says at `a x0 + s n`: `n`, `a n - s x0`, `n - x0` or `x0`.

    Args:
        x0, noise (`torch.Tensor` of shape `(R, C, h, w)`): Clean latents and their noise.
        a, s (`torch.Tensor`): The level; scalars or of shape `(R,)`.
        prediction_type (`str`): One of `PREDICTION_TYPES`.

    Raises:
        ValueError: There is no such `prediction_type`.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return _like(a, x0) * noise - _like(s, x0) * x0
    if prediction_type == "flow_prediction":
        return noise - x0
    if prediction_type == "sample":
        return x0
    raise ValueError(f"`prediction_type` is {prediction_type!r}, expected one of {', '.join(PREDICTION_TYPES)}.")


def clean_and_noise(
    prediction: torch.Tensor, x: torch.Tensor, a: torch.Tensor, s: torch.Tensor, prediction_type: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The `(x0, n)` that a prediction at `x` stands for, with `a x0 + s n = x`. Inverse of [`prediction_target`].

    Args:
        prediction, x (`torch.Tensor` of shape `(R, C, h, w)`): Output and input of the network.
        a, s (`torch.Tensor`): The level of `x`; scalars or of shape `(R,)`. `a > 0` for `"epsilon"`, `s > 0` for
            `"sample"`.
        prediction_type (`str`): One of `PREDICTION_TYPES`.
    """
    a, s = _like(a, x), _like(s, x)
    if prediction_type == "epsilon":
        return (x - s * prediction) / a, prediction
    if prediction_type == "v_prediction":  # a^2 + s^2 = 1
        return a * x - s * prediction, s * x + a * prediction
    if prediction_type == "flow_prediction":  # a + s = 1
        return x - s * prediction, x + a * prediction
    if prediction_type == "sample":
        return prediction, (x - a * prediction) / s
    raise ValueError(f"`prediction_type` is {prediction_type!r}, expected one of {', '.join(PREDICTION_TYPES)}.")


def guide(denoiser: Denoiser, unconditional: Mapping[str, torch.Tensor], scale: float) -> Denoiser:
    """
    Classifier-free guidance, `e_u + g (e_c - e_u)`, in one call of rows `[unconditional; conditional]`. A `scale` of 1
    gives back `denoiser` itself.

    Args:
        denoiser (`Callable`): As in the module's notation.
        unconditional (`Mapping[str, torch.Tensor]`): The conditioning of an empty prompt, one row each.
        scale (`float`): `g`.
    """
    if scale == 1:
        return denoiser

    def guided(x: torch.Tensor, t: torch.Tensor, **conditioning: torch.Tensor) -> torch.Tensor:
        both = {
            name: torch.cat([unconditional[name].to(value).expand_as(value), value])
            for name, value in conditioning.items()
        }
        e_u, e_c = denoiser(torch.cat([x, x]), torch.cat([t, t]), **both).chunk(2)
        return e_u + scale * (e_c - e_u)

    return guided


# Inversion


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
    initial_alpha_cumprod: float | None = None,
    label: str = "destination",
) -> Levels:
    """
    The levels of DDIM inversion, "leading" spacing: `t_k = (k - 1) D + offset` with `D = T // N`, level `k` at
    `abar[t_k]`, level 0 at `abar[0]`. With `offset=0` the first step has length zero.

    Args:
        alphas_cumprod (`torch.Tensor` of shape `(T,)`): `abar`.
        num_steps (`int`): `N`.
        offset (`int`, *optional*, defaults to 0): Of the timesteps, `steps_offset` of the schedulers.
        initial_alpha_cumprod (`float`, *optional*): Of level 0 in place of `abar[0]`; 1 is data without noise.
        label (`str`, *optional*, defaults to `"destination"`):
            Which end of a step the network is told: `"destination"` is `t_k` (the Inversion-DPO release, diffusers
            since its pull request 5145), `"source"` is `t_k - D` (diffusers 0.20, where the first one is negative).

    Raises:
        ValueError: `num_steps` is not between 1 and `T`, the grid ends beyond `T`, or `label` is another.
    """
    T = len(alphas_cumprod)
    if not 1 <= num_steps <= T:
        raise ValueError(f"`num_steps` is {num_steps}, but it must be between 1 and the {T} timesteps of training.")
    if label not in ("destination", "source"):
        raise ValueError(f"`label` is {label!r}, expected 'destination' or 'source'.")
    spacing = T // num_steps
    timesteps = torch.arange(num_steps, device=alphas_cumprod.device) * spacing + offset
    if not 0 <= offset <= timesteps[-1] < T:
        raise ValueError(f"`num_steps={num_steps}` with an `offset` of {offset} ends beyond the {T} timesteps.")
    first = (
        alphas_cumprod[:1] if initial_alpha_cumprod is None else alphas_cumprod.new_full((1,), initial_alpha_cumprod)
    )
    abar = torch.cat([first, alphas_cumprod[timesteps]])
    return Levels(timesteps if label == "destination" else timesteps - spacing, abar.sqrt(), (1 - abar).sqrt())


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
        denoiser (`Callable`): As in the module's notation; guided, if so wanted (see [`guide`]).
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


def step_weight(a: torch.Tensor, s: torch.Tensor, prediction_type: str) -> torch.Tensor:
    r"""
    The factor `w` with which a squared error of the prediction is one of `x0` in units of twice the noise variance,
    `|x0_theta - x0_ref|^2 / (2 s^2)`: `1 / (2 a^2)` for epsilon, `1 / 2` for v (where `n` differs by `a` times as much
    as `v`) and flow, `1 / (2 s^2)` for `x0` itself.

    Args:
        a, s (`torch.Tensor`): The level the step leads to.
        prediction_type (`str`): One of `PREDICTION_TYPES`.
    """
    if prediction_type == "epsilon":
        return 1 / (2 * a**2)
    if prediction_type == "sample":
        return 1 / (2 * s**2)
    return torch.full_like(a, 0.5)


# Margins and losses


def row_mse(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """
    Mean over all but the first dimension of `(prediction - target)^2`, in float32 or better; shape `(R,)`.

    Args:
        prediction, target (`torch.Tensor` of shape `(R, ...)`): What the network says, and what it should say.
    """
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    return (prediction.to(dtype) - target.to(dtype)).square().flatten(1).mean(1)


def implicit_rewards(
    delta: torch.Tensor,  # (2B,)
    beta: float,
    factor: torch.Tensor | float = 1.0,  # (B,)
    reverse_sign: bool = False,
) -> torch.Tensor:
    """
    `-1/2 beta f delta`: high where the policy fits better than the reference does. The margin of a pair is the
    winner's minus the loser's.

    Args:
        delta (`torch.Tensor` of shape `(2B,)`): `l - r`, or a weighted mean of them; winners first.
        beta (`float`): Strength of the tie to the reference.
        factor (`float` or `torch.Tensor` of shape `(B,)`, *optional*, defaults to 1.0):
            `f`, of [`label_factor`].
        reverse_sign (`bool`, *optional*, defaults to `False`):
            The opposite sign, which the Inversion-DPO release has: the policy then leaves the reference on winners.
    """
    if isinstance(factor, torch.Tensor):
        factor = factor.to(delta).repeat(2)
    rewards = -0.5 * beta * factor * delta
    return -rewards if reverse_sign else rewards


def preference_margin(
    delta: torch.Tensor,  # (2B,)
    beta: float,
    factor: torch.Tensor | float = 1.0,  # (B,)
    reverse_sign: bool = False,
) -> torch.Tensor:
    """
    `m = -1/2 beta f (delta_w - delta_l)` of shape `(B,)`: the difference of the [`implicit_rewards`].

    Args:
        delta, beta, factor, reverse_sign: As for [`implicit_rewards`].
    """
    chosen, rejected = implicit_rewards(delta, beta, factor, reverse_sign).chunk(2)
    return chosen - rejected


def preference_loss(margin: torch.Tensor) -> torch.Tensor:
    """
    `-log sigmoid(m)` of each pair; their mean is minimised. `ln 2` where policy and reference are the same.

    Args:
        margin (`torch.Tensor` of shape `(B,)`): Of [`preference_margin`].
    """
    return -F.logsigmoid(margin)


@dataclass(frozen=True)
class PreferenceErrors:
    """
    How well policy and reference do on a batch of pairs.

    Attributes:
        policy, reference (`torch.Tensor` of shape `(2B,)`): Mean errors `l` and `r`, without weights.
        delta (`torch.Tensor` of shape `(2B,)`): Mean of `w (l - r)` over the points, what the margin is made of.
    """

    policy: torch.Tensor
    reference: torch.Tensor
    delta: torch.Tensor


def preference_errors(
    policy: Denoiser,
    reference: Denoiser | None,
    x: torch.Tensor,  # (K * 2B, C, h, w)
    t: torch.Tensor,  # (K * 2B,)
    target: torch.Tensor,
    conditioning: Mapping[str, torch.Tensor] | None = None,
    *,
    weight: torch.Tensor | float = 1.0,
    points: int = 1,
) -> PreferenceErrors:
    """
    Evaluate policy and reference at the same points against the same targets. Only the policy gets a gradient.

    Args:
        policy (`Callable`): As in the module's notation.
        reference (`Callable`, *optional*): `None` where its error is zero by construction.
        x, target (`torch.Tensor` of shape `(K * 2B, C, h, w)`): Where, and against what.
        t (`torch.Tensor` of shape `(K * 2B,)`): Timesteps.
        conditioning (`Mapping[str, torch.Tensor]`, *optional*): Tensors of `K * 2B` rows.
        weight (`float` or `torch.Tensor` of shape `(K * 2B,)`, *optional*, defaults to 1.0): `w`.
        points (`int`, *optional*, defaults to 1): `K`, points per row, outermost.
    """
    conditioning = dict(conditioning or {})
    # The reference first: its activations are gone before those of the policy come, which stay for the backward pass.
    with torch.no_grad():
        r = None if reference is None else row_mse(reference(x, t, **conditioning), target)
    l = row_mse(policy(x, t, **conditioning), target)  # noqa: E741
    r = torch.zeros_like(l) if r is None else r
    delta = weight * (l - r)
    return PreferenceErrors(*(value.unflatten(0, (points, -1)).mean(0) for value in (l.detach(), r, delta)))


def diffusion_dpo_errors(
    policy: Denoiser,
    reference: Denoiser,
    x0: torch.Tensor,  # (2B, C, h, w)
    noise: torch.Tensor,  # (B, C, h, w)
    t: torch.Tensor,  # (B,)
    a: torch.Tensor,  # (B,)
    s: torch.Tensor,  # (B,)
    conditioning: Mapping[str, torch.Tensor] | None = None,
    *,
    prediction_type: str = "epsilon",
) -> PreferenceErrors:
    """
    Diffusion-DPO: both latents of a pair get the same noise and timestep. Its loss is
    `preference_loss(preference_margin(errors.delta, beta))`.

    Args:
        policy, reference (`Callable`): As in the module's notation.
        x0 (`torch.Tensor` of shape `(2B, C, h, w)`): Clean latents, winners first.
        noise (`torch.Tensor` of shape `(B, C, h, w)`): One per pair.
        t, a, s (`torch.Tensor` of shape `(B,)`): Timestep and level, one per pair.
        conditioning (`Mapping[str, torch.Tensor]`, *optional*): Tensors of `2B` rows.
        prediction_type (`str`, *optional*, defaults to `"epsilon"`): One of `PREDICTION_TYPES`.
    """
    noise, t, a, s = (torch.cat([value, value]) for value in (noise, t, a, s))
    target = prediction_target(x0, noise, a, s, prediction_type)
    return preference_errors(policy, reference, add_noise(x0, noise, a, s), t, target, conditioning)


def inversion_errors(
    policy: Denoiser,
    reference: Denoiser | None,
    x0: torch.Tensor,  # (2B, C, h, w)
    points: InversionPoints,
    levels: Levels,
    conditioning: Mapping[str, torch.Tensor] | None = None,
    *,
    target: str = "reference",
    prediction_type: str = "epsilon",
) -> PreferenceErrors:
    r"""
    Inversion-DPO, InPO and SmPO: errors at points of the inversion of each image.

    - `target="reference"` (Inversion-DPO): the policy, at `(x_{k-1}, t_k)`, against the prediction `p_k` of the
      network that was inverted with. Where that is the reference, its own error is 0, and `delta` is the mean of
      `w_k |p_theta - p_k|^2` (`S` in the paper's figure). **At policy = reference its gradient is zero**: training has
      to start elsewhere.
    - `target="trajectory"`: both, at `(x_k, t_k)`, against what leads from `x_k` back to `x_{k-1}`, weighted alike.
    - `target="recovered"` (InPO, SmPO): both, at `(x_k, t_k)`, against the noise `(x_k - a_k x0) / s_k`; weight 1.

    Args:
        policy (`Callable`): As in the module's notation; guided if the inversion was and `target="reference"`.
        reference (`Callable`, *optional*): Not used by `target="reference"`.
        x0 (`torch.Tensor` of shape `(2B, C, h, w)`): Clean latents, winners first.
        points ([`InversionPoints`]): Of `x0`.
        levels ([`Levels`]): The grid of the inversion.
        conditioning (`Mapping[str, torch.Tensor]`, *optional*): Tensors of `2B` rows.
        target (`str`, *optional*, defaults to `"reference"`): One of `TARGETS`.
        prediction_type (`str`, *optional*, defaults to `"epsilon"`): One of `PREDICTION_TYPES`.
    """
    if target not in TARGETS:
        raise ValueError(f"`target` is {target!r}, expected one of {', '.join(TARGETS)}.")
    count, k = len(points.k), points.k.flatten()
    a, s = levels.a[k], levels.s[k]
    weight = 1.0 if target == "recovered" else step_weight(a, s, prediction_type).to(x0)
    if target == "reference":
        x, goal, reference = points.source, points.prediction, None
    elif target == "trajectory":
        source_level = levels.a[k - 1], levels.s[k - 1]
        pair = clean_and_noise(points.prediction, points.source, *source_level, prediction_type)
        x, goal = points.x, prediction_target(*pair, a, s, prediction_type)
    else:
        tiled = x0.repeat(count, *(1,) * (x0.dim() - 1))
        noise = recovered_noise(points.x, tiled, a, s)
        x, goal = points.x, prediction_target(tiled, noise, a, s, prediction_type)
    tiled_conditioning = {
        name: value.repeat(count, *(1,) * (value.dim() - 1)) for name, value in (conditioning or {}).items()
    }
    return preference_errors(
        policy, reference, x, levels.timesteps[k - 1], goal, tiled_conditioning, weight=weight, points=count
    )


# Soft labels of SmPO


def preference_probability(
    chosen: torch.Tensor,  # (B,)
    rejected: torch.Tensor,  # (B,)
    minimum: float = 0.11543526500463486,
    maximum: float = 0.28201571106910706,
) -> torch.Tensor:
    """
    `p = exp(s_w) / (exp(s_w) + exp(s_l))` of scores scaled by `s = (score - minimum) / (maximum - minimum)`.

    Args:
        chosen, rejected (`torch.Tensor` of shape `(B,)`): Scores, for example cosines of PickScore without its scale.
        minimum, maximum (`float`, *optional*): The range of the scores; by default that of PickScore over Pick-a-Pic
            v2 in the SmPO release.
    """
    return torch.sigmoid((chosen - rejected) / (maximum - minimum))


def label_factor(probability: torch.Tensor, sharpness: float = 10.0) -> torch.Tensor:
    """
    The factor `2 alpha - gamma` of the margin with `alpha = gamma p`: `gamma (2 p - 1)`. Zero, so without gradient,
    for a pair that could go either way; 1 with sure labels and a `sharpness` of 1.

    Args:
        probability (`torch.Tensor` of shape `(B,)`): That the winner is the better one.
        sharpness (`float`, *optional*, defaults to 10.0): `gamma`.
    """
    return sharpness * (2 * probability - 1)


# All steps of a trajectory in the memory of a few


def two_pass_backward(
    delta: Callable[[int], torch.Tensor],
    chunks: int,
    loss: Callable[[torch.Tensor], torch.Tensor],
    backward: Callable[[torch.Tensor], None],
    context: Callable[[bool], AbstractContextManager] = lambda last: nullcontext(),
) -> torch.Tensor:
    r"""
    The gradient of `loss(delta_1 + ... + delta_n)` with one part's graph alive at a time. A first pass without graphs
    gives the sum and `c = d loss / d sum`, a second one adds the gradient of `sum(c * delta_i)` part by part.

    Args:
        delta (`Callable[[int], torch.Tensor]`): The contribution of part `i`, the same at every call; shape `(2B,)`.
        chunks (`int`): `n`.
        loss (`Callable[[torch.Tensor], torch.Tensor]`): Scalar function of the sum.
        backward (`Callable[[torch.Tensor], None]`): Gets each scalar to differentiate.
        context (`Callable[[bool], AbstractContextManager]`, *optional*):
            What each part of the second pass runs in, given whether it is the last one; for `no_sync`.

    Returns:
        `torch.Tensor`: The loss, detached.
    """
    with torch.no_grad():
        total = torch.stack([delta(i) for i in range(chunks)]).sum(0)
    total.requires_grad_()
    with torch.enable_grad():
        value = loss(total)
        (c,) = torch.autograd.grad(value, total)
        for i in range(chunks):
            with context(i == chunks - 1):
                backward((c * delta(i)).sum())
    return value.detach()
