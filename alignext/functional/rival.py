# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The equations of RIVAL (Zhang, Xing, Lo, Jia: "Real-World Image Variation by Aligning Diffusion Inversion Chain",
[arXiv 2305.18729](https://huggingface.co/papers/2305.18729), NeurIPS 2023).

Notation: `_G` generated image, `_R` reference picture, `z_t` the reference's inverted latent at timestep `t`. The DDIM
inversion chain itself is `diffusers.DDIMInverseScheduler`, which matches the paper's step exactly. The paper's own
numbers of its equations were not at hand; they are not numbered here.
"""

import math

import torch
import torch.nn.functional as F


def adain(
    noise: torch.Tensor,  # (B, C, h, w)
    reference_noise: torch.Tensor,  # (B, C, h', w') or broadcastable over B
    *,
    eps: float = 1e-5,
    strength: float = 1.0,
) -> torch.Tensor:
    r"""
    Give each channel of a noise prediction the mean and variance of the reference's prediction (the paper's latent
    alignment of the early steps):

        e_G <- (e_G - mu(e_G)) / sqrt(var(e_G) + eps) * sqrt(var(e_R) + eps) + mu(e_R)

    Means and unbiased variances are taken per image and per channel over the spatial positions, in float32 or better.

    Args:
        noise (`torch.Tensor` of shape `(B, C, h, w)`):
            Guided noise prediction of the generated images, epsilon parametrisation.
        reference_noise (`torch.Tensor` of shape `(B, C, h', w')`):
            Unguided (conditional) noise prediction of the reference; its spatial size may differ.
        eps (`float`, *optional*, defaults to 1e-5):
            Added to both variances.
        strength (`float`, *optional*, defaults to 1.0):
            `s` in `(1 - s) * e_G + s * AdaIN(e_G)`; 1 is the paper, 0 returns `noise` itself.

    Returns:
        `torch.Tensor` of shape `(B, C, h, w)`, dtype of `noise`.
    """
    if strength == 0:
        return noise
    dtype = torch.promote_types(noise.dtype, torch.float32)
    var_G, mu_G = torch.var_mean(noise.to(dtype), dim=(-2, -1), keepdim=True)
    var_R, mu_R = torch.var_mean(reference_noise.to(dtype), dim=(-2, -1), keepdim=True)
    aligned = (noise.to(dtype) - mu_G) * ((var_R + eps) / (var_G + eps)).sqrt() + mu_R
    return (aligned if strength == 1 else torch.lerp(noise.to(dtype), aligned, strength)).to(noise.dtype)


def attention_mode(t: float, t_align: float, t_inject: float) -> str:
    """
    Which keys and values the self-attention of a generated image reads at gate value `t`.

    Args:
        t (`float`): Gate value: the scheduler's timestep minus its `steps_offset` (0..`num_train_timesteps`).
        t_align (`float`): At or below it: own and reference keys, concatenated.
        t_inject (`float`): Above it: only its own keys. Between the two: only the reference's.

    Returns:
        `str`: `"plain"`, `"replace"` or `"concat"`.
    """
    if t > t_inject:
        return "plain"
    return "concat" if t <= t_align else "replace"


def cross_image_attention(
    query: torch.Tensor,  # (G * M, heads, n, d)
    key: torch.Tensor | None,  # (G * M, heads, n, d); None replaces
    value: torch.Tensor | None,
    reference_key: torch.Tensor,  # (G, heads, n', d)
    reference_value: torch.Tensor,
    *,
    reference_weight: float = 1.0,
) -> torch.Tensor:
    r"""
    Self-attention of `M` generated images per reference whose keys and values come from the reference:

        replace (`key` is None):  softmax(Q_G K_R^T / sqrt(d)) V_R
        concat:                   softmax(Q_G [K_R, K_G]^T / sqrt(d)) [V_R, V_G]

    Rows are reference-major: row `g * M + m` reads reference row `g`. When replacing, the `M` images of a reference
    are folded into one row of `M * n` queries, so its keys are never copied.

    Args:
        query, key, value (`torch.Tensor` of shape `(G * M, heads, n, d)`):
            Of the generated images; `key = value = None` selects the replace form.
        reference_key, reference_value (`torch.Tensor` of shape `(G, heads, n', d)`):
            Of the reference rows.
        reference_weight (`float`, *optional*, defaults to 1.0):
            Concat only: `log(reference_weight)` is added to the logits of the reference tokens. 1 is the paper, 0
            drops the reference.

    Returns:
        `torch.Tensor` of shape `(G * M, heads, n, d)`.
    """
    rows, (groups, _, n_ref, _) = query.shape[0], reference_key.shape
    images = rows // groups
    if key is None or value is None:
        folded = query.unflatten(0, (groups, images)).transpose(1, 2).flatten(2, 3)  # (G, heads, M * n, d)
        out = F.scaled_dot_product_attention(folded, reference_key, reference_value)
        # The shape is the query's, and said to be: a compiler does not know that groups * (rows // groups) = rows.
        return out.unflatten(2, (images, -1)).transpose(1, 2).reshape(query.shape)
    if reference_weight == 0:
        return F.scaled_dot_product_attention(query, key, value)
    bias = None
    if reference_weight != 1:
        bias = query.new_zeros(1, 1, 1, n_ref + key.shape[2])
        bias[..., :n_ref] = math.log(reference_weight)
    # One reference is not copied for each image before it is put in front of the image's own.
    per_image = (
        x[:, None].expand(-1, images, -1, -1, -1).reshape(rows, *x.shape[1:]) for x in (reference_key, reference_value)
    )
    key, value = (torch.cat(pair, dim=2) for pair in zip(per_image, (key, value), strict=True))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def _permutation(n: int, generator: torch.Generator | None) -> torch.Tensor:
    """A random permutation drawn where the generator lives: a CPU generator gives the same one for every device."""
    return torch.randperm(n, generator=generator, device=generator.device if generator is not None else "cpu")


def shuffle_latents(
    latents: torch.Tensor,  # (C, h, w)
    size: tuple[int, int] | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    r"""
    Initial latent by position shuffling: `x_T[:, j] = z_T[:, pi(j)]` with one random permutation `pi` of the positions
    for all channels. Keeps each channel's histogram and the relation between channels, destroys the layout.

    Args:
        latents (`torch.Tensor` of shape `(C, h, w)`):
            The reference's last inverted latent `z_T`.
        size (`tuple[int, int]`, *optional*):
            `(h', w')` of the result. When it has another number of positions than `latents`, positions are drawn with
            replacement.
        generator (`torch.Generator`, *optional*):
            Source of the permutation.

    Returns:
        `torch.Tensor` of shape `(C, h', w')`.
    """
    h, w = size or latents.shape[-2:]
    positions = latents.flatten(1)
    n = positions.shape[1]
    if h * w == n:
        pi = _permutation(n, generator)
    else:
        pi = torch.randint(n, (h * w,), generator=generator, device=generator.device if generator else "cpu")
    return positions[:, pi.to(latents.device)].unflatten(1, (h, w))


def shuffle_hole(
    shuffled: torch.Tensor,  # (C, h, w)
    latents: torch.Tensor,  # (C, h, w)
    repaint: torch.Tensor,  # (h, w) bool
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    Initial latent of inpainting: `shuffled`, its hole overwritten by the hole's own values of `latents` permuted among
    themselves (row-major positions, one permutation for all channels).

    Args:
        shuffled (`torch.Tensor` of shape `(C, h, w)`): Result of [`shuffle_latents`].
        latents (`torch.Tensor` of shape `(C, h, w)`): The reference's last inverted latent `z_T`.
        repaint (`torch.Tensor` of shape `(h, w)`, bool): True where the picture is to be repainted.
        generator (`torch.Generator`, *optional*): Source of the permutation.

    Returns:
        `torch.Tensor` of shape `(C, h, w)`.
    """
    hole = repaint.flatten().nonzero().squeeze(1)
    pi = _permutation(len(hole), generator).to(hole.device)
    out = shuffled.flatten(1).clone()
    out[:, hole] = latents.flatten(1)[:, hole[pi]]
    return out.view_as(shuffled)


def match_gaussian(
    noise: torch.Tensor,  # (C, h', w') standard normal
    latents: torch.Tensor,  # (C, h, w)
) -> torch.Tensor:
    """
    Initial latent `x_T ~ N(mu(z_T), sigma^2(z_T))`, per channel: `mu + sigma * noise`.

    Args:
        noise (`torch.Tensor` of shape `(C, h', w')`): Standard normal noise.
        latents (`torch.Tensor` of shape `(C, h, w)`): The reference's last inverted latent `z_T`.

    Returns:
        `torch.Tensor` of shape `(C, h', w')`.
    """
    sigma, mu = torch.std_mean(latents, dim=(-2, -1), keepdim=True)
    return mu + sigma * noise
