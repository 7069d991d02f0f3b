# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""AlignedGen written down once more, slowly and whole: own forward, own positions, dense mask, own loop.

It takes the weights of a `FluxTransformer2DModel` and nothing else of it that decides where attention looks. Layout
`(B, heads, S, d)`, all images in one batch, the extra keys of every image masked where it may not see them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass
class Levers:
    layers: set[int] = field(default_factory=set)
    style_lambda: float = 1.1
    adain: bool = True
    shift: tuple[float, ...] = (0, 0, 0)
    isolate: bool = True
    anchor: int = 0


def rotate(x: torch.Tensor, ids: torch.Tensor, axes: tuple[int, ...], theta: float = 10000.0) -> torch.Tensor:
    """Rotates pairs of channels as complex numbers: axis by axis, `exp(i p theta^(-2 k / d))`."""
    angles = []
    for axis, size in enumerate(axes):
        frequencies = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles.append(ids[:, axis].double()[:, None] * frequencies)
    turn = torch.polar(torch.ones(1, dtype=torch.float64), torch.cat(angles, dim=1))
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.mean(dim=-2, keepdim=True), (x.var(dim=-2, keepdim=True) + 1e-5).sqrt()


def attention(
    attn, image: torch.Tensor, text: torch.Tensor | None, length: int, img_ids, txt_ids, axes, levers: Levers | None
) -> torch.Tensor:
    """`image` are all tokens if `text` is None. Returns what goes into the output projection: `(B, S, heads * d)`."""

    def heads(x):
        return x.unflatten(-1, (attn.heads, attn.head_dim)).transpose(1, 2)

    q, k, v = heads(attn.to_q(image)), heads(attn.to_k(image)), heads(attn.to_v(image))
    q, k = attn.norm_q(q), attn.norm_k(k)
    if text is not None:
        q = torch.cat([attn.norm_added_q(heads(attn.add_q_proj(text))), q], dim=2)
        k = torch.cat([attn.norm_added_k(heads(attn.add_k_proj(text))), k], dim=2)
        v = torch.cat([heads(attn.add_v_proj(text)), v], dim=2)
    return mixed(q, k, v, length, img_ids, txt_ids, axes, levers)


def mixed(
    q, k, v, length: int, img_ids, txt_ids, axes, levers: Levers | None, theta: float = 10000.0, padding=None
) -> torch.Tensor:
    """
    From queries, keys and values, normed and not rotated, `(B, heads, S, d)`, to `(B, S, heads * d)`. `padding`, of
    shape `(B, S)`, is -inf where a key is to be left out.
    """

    def turned(x, ids):
        return rotate(x, ids, axes, theta)

    ids = torch.cat([txt_ids, img_ids])
    rows, tokens, scaling = q.shape[0], q.shape[2], math.sqrt(q.shape[3])
    padding = torch.zeros(rows, tokens) if padding is None else padding
    if levers is None:
        logits = turned(q, ids) @ turned(k, ids).transpose(-1, -2) / scaling + padding[:, None, None]
        return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)

    a, own = levers.anchor, img_ids[:, 0] == 0  # what is to be edited has other places on the first axis
    image = slice(length, length + int(own.sum()))
    if levers.adain:
        for x in (q, k):
            mean, std = statistics(x[:, :, image])
            x[:, :, image] = (x[:, :, image] - mean) / std * std[a : a + 1] + mean[a : a + 1]
    moved = img_ids[own] + torch.tensor(levers.shift)
    extra = turned(k[a : a + 1, :, image], moved)
    q, k = turned(q, ids), turned(k, ids)
    scale = torch.full((rows, 1, 1, 1), levers.style_lambda)
    scale[a] = 1.0
    keys = torch.cat([k, scale * extra], dim=2)
    values = torch.cat([v, v[a : a + 1, :, image].expand(rows, -1, -1, -1)], dim=2)
    mask = torch.zeros(rows, q.shape[1], tokens, keys.shape[2])
    mask[..., :tokens] += padding[:, None, None]
    if levers.isolate:
        mask[a, :, :, tokens:] = -torch.inf
    logits = q @ keys.transpose(-1, -2) / scaling + mask
    return (logits.softmax(-1) @ values).transpose(1, 2).flatten(2)


@torch.no_grad()
def transformer(model, levers: Levers, hidden, text, pooled, timestep, guidance, img_ids, txt_ids) -> torch.Tensor:
    """The velocity that the model predicts for a batch, `levers.layers` (global indices) sharing."""
    axes, length = tuple(model.config.axes_dims_rope), text.shape[1]
    image, text = model.x_embedder(hidden), model.context_embedder(text)
    if guidance is None:
        temb = model.time_text_embed(timestep * 1000, pooled)
    else:
        temb = model.time_text_embed(timestep * 1000, guidance * 1000, pooled)
    for i, block in enumerate([*model.transformer_blocks, *model.single_transformer_blocks]):
        chosen = levers if i in levers.layers else None
        if i < len(model.transformer_blocks):
            x, gate, shift_mlp, scale_mlp, gate_mlp = block.norm1(image, emb=temb)
            c, c_gate, c_shift, c_scale, c_gate_mlp = block.norm1_context(text, emb=temb)
            out = attention(block.attn, x, c, length, img_ids, txt_ids, axes, chosen)
            text = text + c_gate[:, None] * block.attn.to_add_out(out[:, :length])
            image = image + gate[:, None] * block.attn.to_out[0](out[:, length:])
            text = text + c_gate_mlp[:, None] * block.ff_context(
                block.norm2_context(text) * (1 + c_scale[:, None]) + c_shift[:, None]
            )
            image = image + gate_mlp[:, None] * block.ff(
                block.norm2(image) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
            )
        else:
            both = torch.cat([text, image], dim=1)
            x, gate = block.norm(both, emb=temb)
            out = attention(block.attn, x, None, length, img_ids, txt_ids, axes, chosen)
            both = both + gate[:, None] * block.proj_out(torch.cat([out, block.act_mlp(block.proj_mlp(x))], dim=2))
            text, image = both[:, :length], both[:, length:]
    return model.proj_out(model.norm_out(image, temb))


def shifted_sigmas(steps: int, tokens: int) -> list[float]:
    """FLUX.1's schedule: 1 .. 1/n, moved by `e^mu / (e^mu + 1/s - 1)` with mu linear in the number of tokens."""
    mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
    plain = [1 + (1 / steps - 1) * i / (steps - 1) for i in range(steps)] if steps > 1 else [1.0]
    return [math.exp(mu) / (math.exp(mu) + 1 / s - 1) for s in plain] + [0.0]


@torch.no_grad()
def loop(
    model,
    levers: Callable[[int, float], Levers],
    latents: torch.Tensor,
    conditions: dict[str, torch.Tensor],
    steps: int,
    guidance: float = 3.5,
    negative: dict[str, torch.Tensor] | None = None,
    true_cfg: float = 1.0,
    overwrite: Callable[[int, float], torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """
    Euler steps from noise to picture; the latents that entered each step, and the result. `levers(i, sigma)` gives
    each step's; `overwrite(i, sigma)` the latents that the anchor's row has instead of its own.
    """
    sigmas, trajectory = shifted_sigmas(steps, latents.shape[1]), []
    for i in range(steps):
        sigma, chosen = sigmas[i], levers(i, sigmas[i])
        if overwrite is not None:
            latents = latents.clone()
            latents[chosen.anchor] = overwrite(i, sigma)[0]
        trajectory.append(latents)
        times = torch.full((len(latents),), sigma)
        guide = torch.full((len(latents),), guidance)
        velocity = transformer(model, chosen, latents, timestep=times, guidance=guide, **conditions)
        if negative is not None:
            other = transformer(model, chosen, latents, timestep=times, guidance=guide, **negative)
            velocity = other + true_cfg * (velocity - other)
        latents = latents + (sigmas[i + 1] - sigma) * velocity
    return [*trajectory, latents]
