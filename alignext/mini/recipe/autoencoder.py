# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The autoencoder that the three denoisers share."""

import copy
import itertools
from pathlib import Path

import torch
import torch.nn.functional as F

from alignext import mini
from alignext.files import replacing
from alignext.mini.recipe import render
from alignext.mini.recipe.drawings import augment, nudge, pictures
from alignext.mini.recipe.fitting import fingerprint, fit, forget_origin


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
    """Go on with both halves, held to the latents that the denoisers know.

    With `goes_on`, from what is shipped; with `like` and `critic`, compared by features and by a critic as well.
    """
    from diffusers import AutoencoderKL

    started = mini.path("sd") if config.get("goes_on") else render.CACHE / "train" / "vae" / "decoder"
    vae = AutoencoderKL.from_pretrained(started / "vae")
    before, scale = copy.deepcopy(vae).requires_grad_(False), vae.config.scaling_factor
    drawn, _ = pictures("train")
    others, _ = pictures("extra")
    images = torch.cat([drawn, others])
    odds = torch.ones(len(images))
    odds[: len(drawn)] = config["drawn"] * len(others) / len(drawn) / (1 - config["drawn"])
    model = torch.nn.ModuleDict({"vae": vae})
    if "critic" in config:
        model["critic"] = Critic()
        seen, sampled = Features(render.CACHE / "train" / "features" / "features"), samples_of_denoisers()

    def loss_fn(step: int, rng: torch.Generator) -> torch.Tensor:
        chosen = torch.multinomial(odds, config["batch"], generator=rng)
        x = nudge(images[chosen].float() / 255, rng, config["shift"]) * 2 - 1
        posterior = vae.encode(x).latent_dist
        mean, std = posterior.mean.float() * scale, posterior.std.float() * scale
        z = mean + std * torch.randn(mean.shape, generator=rng)
        z = z + config["noise"] * torch.randn(z.shape, generator=rng) * torch.rand(len(z), 1, 1, 1, generator=rng)
        if "critic" in config:
            z = torch.cat([z, sampled[torch.randint(len(sampled), (config["sampled"],), generator=rng)]])
        decoded = vae.decode(z / scale).sample.float()
        error = decoded[: len(x)] - x
        edges = sum((error.diff(dim=dim).abs().mean() for dim in (2, 3)), torch.zeros(()))
        loss = error.abs().mean() + config["edges"] * edges + error.pow(2).mean()
        loss = loss + config["kl"] * 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()
        if step % config["pull_every"] == 0:
            with torch.no_grad():
                known = before.encode(x).latent_dist.mean * scale
            loss = loss + config["pull"] * config["pull_every"] * (mean - known).square().mean()
        if "critic" in config:
            loss = loss + config["like"] * seen.distance(decoded[: len(x)], x)
            weight = config["critic"] * min(1.0, step / config["critic_from"])  # it has to learn first
            loss = loss + weight * model["critic"].reproach(decoded) + model["critic"].error(x, decoded.detach())
        return loss

    def export(average: torch.nn.Module) -> None:
        average["vae"].half().save_pretrained(folder / "vae")
        forget_origin(folder / "vae")

    fit(model, loss_fn, config, folder, export)


class Critic(torch.nn.Module):
    """Tells patches of drawings from patches of what is decoded: a score above 0 says drawing, one per 8x8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        sizes, layers = (3, 32, 64, 96), []
        for a, b in itertools.pairwise(sizes):
            layers += [torch.nn.Conv2d(a, b, 4, stride=2, padding=1), torch.nn.LeakyReLU(0.2)]
        self.score = torch.nn.Sequential(*layers, torch.nn.Conv2d(sizes[-1], 1, 3, padding=1))

    def error(self, real: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        """What the critic learns from: both sides of the hinge."""
        return F.relu(1 - self.score(real).float()).mean() + F.relu(1 + self.score(decoded).float()).mean()

    def reproach(self, decoded: torch.Tensor) -> torch.Tensor:
        """What the decoder learns from the critic as it stands."""
        frozen = {name: p.detach() for name, p in self.score.named_parameters()}
        return -torch.func.functional_call(self.score, frozen, (decoded,)).float().mean()


class Features:
    """Compares pictures by a frozen classifier: squared distance of unit vectors, at every place of every depth."""

    def __init__(self, folder: Path) -> None:
        from transformers import ResNetForImageClassification

        classifier = ResNetForImageClassification.from_pretrained(folder)
        self.net = classifier.resnet.requires_grad_(False).eval()

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [F.normalize(h.float(), dim=1) for h in self.net(x, output_hidden_states=True).hidden_states]

    def distance(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = self(target)
        depths = [(a - b).square().sum(dim=1).mean() for a, b in zip(self(x), wanted, strict=True)]
        return torch.stack(depths).mean()


def samples_of_denoisers(number: int = 512) -> torch.Tensor:
    """Scaled latents of mini-SD and of mini-Flux, as many of each (2 * number, 16, 8, 8); cached."""
    from diffusers import FluxPipeline, StableDiffusionPipeline

    from alignext.mini.recipe.samples import generate_latents, trained_cells

    pipes = [StableDiffusionPipeline.from_pretrained(mini.path("sd")), FluxPipeline.from_pretrained(mini.path("flux"))]
    file = render.CACHE / f"samples-{number}-{fingerprint(pipes[0].unet, pipes[1].transformer)}.pt"
    if not file.exists():
        captions, latents = [p.caption for p in trained_cells(number)], []
        for pipe in pipes:
            pipe.set_progress_bar_config(disable=True)
            latents.append(generate_latents(pipe, captions))
        with replacing(file) as part:
            torch.save(torch.cat(latents), part)
    return torch.load(file, weights_only=True)
