# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The autoencoder that the three denoisers share."""

import copy
from pathlib import Path

import torch

from alignext.mini.recipe import render
from alignext.mini.recipe.drawings import augment, nudge, pictures
from alignext.mini.recipe.fitting import fit, forget_origin


def train_vae(config: dict, folder: Path) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(**config["model"])
    if "start" in config:  # go on with the decoder alone: the latents stay what the denoiser learns
        vae = AutoencoderKL.from_pretrained(config["start"])
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    images, _ = pictures("train", "extra")
    full_from = config["steps"] * (1 - config["full_only"])

    def reconstruct(x: torch.Tensor) -> torch.Tensor:
        posterior = vae.encode(x).latent_dist
        z = posterior.sample()
        if "noise" in config:  # a denoiser's latents are not perfect either
            z = z + config["noise"] / vae.config.scaling_factor * torch.randn_like(z) * torch.rand(len(z), 1, 1, 1)
        y = vae.decode(z).sample.float()
        error, edges = y - x, 0.0
        for dim in (2, 3):
            edges = edges + error.diff(dim=dim).abs().mean()
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        return error.abs().mean() + edges + error.pow(2).mean() + config["kl"] * kl

    def loss_fn(step: int, rng: torch.Generator) -> torch.Tensor:
        whole = config["full"] if step < full_from else 16
        crops = config["crops"] if step < full_from else 0
        chosen = torch.randint(len(images), (crops + whole,), generator=rng)
        batch = augment(images[chosen].float() / 255, rng) * 2 - 1
        loss = reconstruct(batch[crops:])
        if crops:
            corners = torch.randint(33, (crops, 2), generator=rng).tolist()
            small = torch.stack([x[:, i : i + 32, j : j + 32] for x, (i, j) in zip(batch, corners, strict=False)])
            share = crops / (crops + 4 * whole)  # by pixels
            loss = share * reconstruct(small) + (1 - share) * loss
        return loss

    def export(average: torch.nn.Module) -> None:
        if "start" not in config:
            standardize(average, images)
        average.save_pretrained(folder / "vae")

    fit(vae, loss_fn, config, folder, export)
    if "decoder" in config:
        second = {key: value for key, value in config.items() if key != "decoder"} | config["decoder"]
        train_vae(second | {"start": str(folder / "vae")}, folder / "decoder")


@torch.no_grad()
def standardize(vae: torch.nn.Module, images: torch.Tensor) -> None:
    """Give every latent channel mean 0 and std 1 / scaling_factor, inside the 1x1 convolutions around the latents.

    The decoder's picture stays the same. White paper alone would otherwise give the latents a mean far from 0, which a
    denoiser that starts from plain noise has to recover.
    """
    latents = torch.cat([vae.encode(x.float() / 127.5 - 1).latent_dist.mean for x in images[::8].split(64)])
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)) * vae.config.scaling_factor
    inside, outside = vae.quant_conv, vae.post_quant_conv
    outside.bias += outside.weight[:, :, 0, 0] @ mean
    outside.weight *= std[None, :, None, None]
    n = len(mean)
    inside.bias[:n] = (inside.bias[:n] - mean) / std
    inside.weight[:n] /= std[:, None, None, None]
    inside.bias[n:] -= 2 * std.log()  # log variances


def train_sharper(config: dict, folder: Path) -> None:
    """Go on with both halves, held to the latents that the denoisers know."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(render.CACHE / "train" / "vae" / "decoder" / "vae")
    before, scale = copy.deepcopy(vae).requires_grad_(False), vae.config.scaling_factor
    drawn, _ = pictures("train")
    others, _ = pictures("extra")
    images = torch.cat([drawn, others])
    odds = torch.ones(len(images))
    odds[: len(drawn)] = config["drawn"] * len(others) / len(drawn) / (1 - config["drawn"])

    def loss_fn(step: int, rng: torch.Generator) -> torch.Tensor:
        chosen = torch.multinomial(odds, config["batch"], generator=rng)
        x = nudge(images[chosen].float() / 255, rng, config["shift"]) * 2 - 1
        posterior = vae.encode(x).latent_dist
        mean, std = posterior.mean * scale, posterior.std * scale
        z = mean + std * torch.randn(mean.shape, generator=rng)
        z = z + config["noise"] * torch.randn(z.shape, generator=rng) * torch.rand(len(z), 1, 1, 1, generator=rng)
        error = vae.decode(z / scale).sample - x
        edges = sum((error.diff(dim=dim).abs().mean() for dim in (2, 3)), torch.zeros(()))
        loss = error.abs().mean() + config["edges"] * edges + error.pow(2).mean()
        loss = loss + config["kl"] * 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()
        if step % config["pull_every"] == 0:
            with torch.no_grad():
                known = before.encode(x).latent_dist.mean * scale
            loss = loss + config["pull"] * config["pull_every"] * (mean - known).square().mean()
        return loss

    def export(average: torch.nn.Module) -> None:
        average.half().save_pretrained(folder / "vae")
        forget_origin(folder / "vae")

    fit(vae, loss_fn, config, folder, export)
