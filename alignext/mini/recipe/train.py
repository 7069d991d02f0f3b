# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
# More than 300 lines: a recipe, read from top to bottom.
"""Train the embedded models: `python -m alignext.mini.recipe.train vae sd flux video decoder judge-concept clip`.

Each name is a file in `configs/` (or a YAML file of your own). A run resumes from its last checkpoint in the cache.
Its randomness comes from (seed, step), so an interrupted run ends where the uninterrupted one would.
"""

import copy
import json
import math
import random
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import spectral_norm

from alignext import mini
from alignext.files import replacing
from alignext.mini.recipe import render


if TYPE_CHECKING:
    from transformers import CLIPTextConfig, CLIPTokenizer, T5Tokenizer

Batch = Callable[[int, torch.Generator], torch.Tensor]  # (step, generator) -> loss
Sampler = Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]  # (size, generator) -> latents, captions
WEIGHTS = "diffusion_pytorch_model.safetensors"
MINUTES = 8  # between two checkpoints


def pictures(*splits: str) -> tuple[torch.Tensor, list[dict]]:
    """Pictures of these splits, uint8 (N, 3, 64, 64), and their rows."""
    images, rows = render.load(*splits)
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), rows


def augment(
    images: torch.Tensor, rng: torch.Generator, shift: float = 0.06, scale: float = 0.1, angle: float = 0.0
) -> torch.Tensor:
    """Random flips and small affine motions of pictures (B, 3, H, W) in [0, 1]; what moves in is white."""
    n = len(images)
    uniform = torch.rand(5, n, generator=rng) * 2 - 1
    zoom, turn = torch.exp(uniform[0] * scale), uniform[1] * angle * math.pi / 180
    flip = torch.where(uniform[2] < 0, -1.0, 1.0)
    across = [flip * zoom * turn.cos(), -zoom * turn.sin(), uniform[3] * 2 * shift]
    down = [flip * zoom * turn.sin(), zoom * turn.cos(), uniform[4] * 2 * shift]
    theta = torch.stack([*across, *down], dim=1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return 1 - F.grid_sample(1 - images, grid, align_corners=False)


def nudge(images: torch.Tensor, rng: torch.Generator, most: int) -> torch.Tensor:
    """Random flips and shifts by whole pixels, `most` at most: unlike [`augment`], no edge gets softer."""
    h, w = images.shape[2:]
    wide = F.pad(images, (most,) * 4, value=1.0)
    places = torch.randint(2 * most + 1, (len(images), 2), generator=rng).tolist()
    flips = (torch.rand(len(images), generator=rng) < 0.5).tolist()
    moved = [x[:, i : i + h, j : j + w] for x, (i, j) in zip(wide, places, strict=True)]
    return torch.stack([x.flip(2) if flip else x for x, flip in zip(moved, flips, strict=True)])


def make_optimizers(model: torch.nn.Module, config: dict) -> dict[str, torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices inside the blocks where the configuration has a rate for it (`muon`)."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    inner = [n for n, p in trained.items() if "muon" in config and "block" in n and p.ndim == 2 and min(p.shape) > 32]
    outer = [p for name, p in trained.items() if name not in inner]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "optimizer": torch.optim.AdamW(
            outer, lr=config["lr"], betas=config.get("betas", (0.9, 0.99)), weight_decay=0.01
        )
    }
    if inner:
        optimizers["muon"] = torch.optim.Muon([trained[n] for n in inner], lr=config["muon"], weight_decay=0.0)
    return optimizers


def fit(model: torch.nn.Module, loss_fn: Batch, config: dict, folder: Path, export: Callable) -> None:
    """Minimise `loss_fn`, keep an average of the weights, and `export` it at the end and at `export_at` steps."""
    folder.mkdir(parents=True, exist_ok=True)
    if "start" in config:
        model.load_state_dict(torch.load(config["start"], weights_only=True)["average"])
    average, start, spent = copy.deepcopy(model).requires_grad_(False), 0, 0.0
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizers = make_optimizers(model, config)
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in optimizers.items()}
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(state[name])
        start, spent = state["step"], state["seconds"]
    began, saved, losses = time.time() - spent, time.time(), []
    for step in range(start, config["steps"]):
        rng = torch.Generator().manual_seed(config["seed"] * 1_000_003 + step)
        torch.manual_seed(config["seed"] * 1_000_003 + step)  # for noise drawn inside the models
        warm = min(1.0, (step + 1) / config["warmup"])
        share = warm * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / config.get("horizon", config["steps"]))))
        share *= min(1.0, (config["steps"] - step) / config.get("decay", 1))  # where a run ends before its horizon
        for name, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = rates[name] * share
        with torch.autocast("cpu", torch.bfloat16, enabled=config.get("bf16", False)):
            loss = loss_fn(step, rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
        model.zero_grad(set_to_none=True)
        decay = min(config["ema"], (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        losses.append(loss.item())
        done = step + 1
        if done % 50 == 0:
            print(f"step {done} loss {sum(losses[-50:]) / 50:.4f} seconds {time.time() - began:.0f}", flush=True)
        if time.time() - saved > MINUTES * 60 or done == config["steps"]:
            state = {"model": model.state_dict(), "average": average.state_dict()}
            state |= {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
            torch.save(state | {"step": done, "seconds": time.time() - began}, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").rename(checkpoint)
            saved = time.time()
        if done in config.get("export_at", []) or done == config["steps"]:
            for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
                mine.copy_(theirs)
            export(copy.deepcopy(average).eval())


def load_in_float32(folder: Path) -> None:
    """Let transformers, which opens a checkpoint in the dtype of its config, open float16 weights in float32."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")


def forget_origin(folder: Path) -> None:
    """Take out of all configurations in a folder where their models were loaded from on this machine."""
    for file in folder.rglob("*config.json"):
        config = json.loads(file.read_text())
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2) + "\n")


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


class Critic(torch.nn.Sequential):
    """Tells drawings from decoded ones, patch by patch: (n, 3, 64, 64) to (n, 1, 16, 16), positive for drawings.

    It sees what differs from the surroundings and not the colours: a critic of whole pictures, which does not know
    what is drawn, pulled all of them towards the same few colours. Its first convolution keeps the size, since what
    it has to see is how sharp an edge is.
    """

    def __init__(self, width: int) -> None:
        layers: list[torch.nn.Module] = []
        for inside, outside, kernel, stride in (
            (3, width, 3, 1),
            (width, 2 * width, 4, 2),
            (2 * width, 4 * width, 4, 2),
            (4 * width, 4 * width, 3, 1),
        ):
            layers += [torch.nn.Conv2d(inside, outside, kernel, stride, 1), torch.nn.LeakyReLU(0.2)]
        layers.append(torch.nn.Conv2d(4 * width, 1, 1))
        super().__init__(*(spectral_norm(x) if isinstance(x, torch.nn.Conv2d) else x for x in layers))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images - F.avg_pool2d(F.pad(images, (2,) * 4, mode="replicate"), 5, stride=1))


def relief(images: torch.Tensor) -> torch.Tensor:
    """How strongly pictures (n, c, h, w) differ from their surroundings, pixel by pixel, averaged over 4x4 places."""
    inner = images[..., 1:-1, 1:-1]
    around = images[..., 2:, 1:-1] + images[..., :-2, 1:-1] + images[..., 1:-1, 2:] + images[..., 1:-1, :-2]
    return F.avg_pool2d((around / 4 - inner).abs(), 4, stride=2)


def train_decoder(config: dict, folder: Path) -> None:
    """Go on with the decoder, stage by stage: the latents, and so the denoisers, stay what they are."""
    last = render.CACHE / "train" / "vae" / "decoder"
    for number, stage in enumerate([{}, *config.pop("then", [])], 1):
        config.update(stage)
        torch.manual_seed(config["seed"])
        train_sharpness(config, last / "vae", folder / f"stage-{number}")
        last = folder / f"stage-{number}"
    shutil.copytree(last / "vae", folder / "vae", dirs_exist_ok=True)


def train_sharpness(config: dict, start: Path, folder: Path) -> None:
    """One stage of the decoder."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline

    from alignext.mini.recipe.features import Features

    vae = AutoencoderKL.from_pretrained(start)
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)
    model = torch.nn.ModuleDict({"vae": vae, "critic": Critic(config["critic"])})
    features = Features()
    drawn, rows = pictures("train")
    others, _ = pictures("extra")
    images = torch.cat([drawn, others])
    odds = torch.ones(len(images))
    odds[: len(drawn)] = config["drawn"] * len(others) / len(drawn) / (1 - config["drawn"])
    pipe = StableDiffusionPipeline.from_pretrained(mini.path("sd"))
    tokens = pipe.tokenizer([row["caption"] for row in rows] + [""], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        told = pipe.text_encoder(tokens.input_ids).last_hidden_state  # the last one says nothing
    abar, scale = pipe.scheduler.alphas_cumprod, vae.config.scaling_factor

    @torch.no_grad()
    def inexact(x: torch.Tensor, chosen: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Latents of pictures: some as mini-SD guesses them from noised ones, the others with a little noise."""
        z = vae.encode(x).latent_dist.sample() * scale
        guessed = round(len(z) * config["guessed"])
        sure = z[guessed:]
        sure = sure + config["noise"] * torch.randn(sure.shape, generator=rng) * torch.rand(
            len(sure), 1, 1, 1, generator=rng
        )
        if not guessed:
            return sure / scale
        t = torch.randint(config["guessed_from"], (guessed,), generator=rng)
        a = abar[t].view(-1, 1, 1, 1)
        noise = torch.randn(z[:guessed].shape, generator=rng)
        text = told[chosen[:guessed].clamp(max=len(drawn))]
        found = pipe.unet(a.sqrt() * z[:guessed] + (1 - a).sqrt() * noise, t, text).sample
        guess = z[:guessed] + ((1 - a) / a).sqrt() * (noise - found)
        return torch.cat([guess, sure]) / scale

    def loss_fn(step: int, rng: torch.Generator) -> torch.Tensor:
        chosen = torch.multinomial(odds, config["batch"], generator=rng)
        x = nudge(images[chosen].float() / 255, rng, config["shift"]) * 2 - 1
        y = vae.decode(inexact(x, chosen, rng)).sample
        error = y - x
        edges = sum((error.diff(dim=dim).abs().mean() for dim in (2, 3)), torch.zeros(()))
        loss = error.abs().mean() + config["edges"] * edges + config["features"] * features.distance(y, x)
        loss = (
            loss + config["relief"] * (relief(y) - relief(x)).abs().mean()
        )  # sharp somewhere near is better than soft
        if step < config["critic_from"]:
            return loss
        critic = model["critic"]
        right, wrong = critic(x), critic(y.detach())
        judged = F.relu(1 - right).mean() + F.relu(1 + wrong).mean()
        if step < config["critic_from"] + config["critic_alone"]:
            return loss + judged
        # The critic's wish counts for a fixed part of the rest, measured at the pixels.
        (pull,) = torch.autograd.grad(loss, y, retain_graph=True)
        (wish,) = torch.autograd.grad(-critic(y).mean(), y)
        wish = wish * config["wish"] * pull.norm() / (wish.norm() + 1e-8)
        return (
            loss + judged + (y * wish).sum() - (y * wish).sum().detach()
        )  # adds a gradient, and nothing to the value

    def export(average: torch.nn.ModuleDict) -> None:
        average["vae"].half().save_pretrained(folder / "vae")
        forget_origin(folder / "vae")

    fit(model, loss_fn, config, folder, export)


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


def make_tokenizer(captions: list[str], length: int) -> "CLIPTokenizer":
    """CLIP's byte-level BPE with `</w>`, merged until every word of the captions is one token."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    words = Counter(re.findall(r"[a-z]+|[^a-z\s]", " ".join(captions)))
    pieces = {word: (*word[:-1], word[-1] + "</w>") for word in sorted(words)}
    merges: list[tuple[str, str]] = []
    while pairs := Counter(p for word, parts in pieces.items() for p in pairwise(parts) for _ in range(words[word])):
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))  # ties by name: the same on every machine
        for word, parts in pieces.items():
            merged = list(parts[:1])
            for part in parts[1:]:
                merged[-1:] = [merged[-1] + part] if (merged[-1], part) == merges[-1] else [merged[-1], part]
            pieces[word] = tuple(merged)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*alphabet, *(a + "</w>" for a in alphabet), *(a + b for a, b in merges)])
    tokens = [*tokens, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({token: i for i, token in enumerate(tokens)}, merges, model_max_length=length)


def make_clip_config(tokenizer: "CLIPTokenizer", config: dict) -> "CLIPTextConfig":
    """The configuration of a CLIP text encoder that reads this tokenizer."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **config,
    )


def captions_of(rows: list[dict]) -> list[str]:
    """Three captions for each picture: whole, without its style, and none (one for all, the last)."""
    return [row["caption"] for row in rows] + [render.caption(row["concept"]) for row in rows] + [""]


def sampler(latents: torch.Tensor, loose: torch.Tensor, without_caption: float, without_style: float) -> Sampler:
    """Draws latents with the places of their captions in `captions_of`.

    A part has no caption, and these may be any drawing (`loose`), so that unseen ones are not far.
    """
    n = latents.shape[1]

    def draw(size: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        free = round(size * without_caption)
        chosen = torch.randint(n, (size - free,), generator=rng)
        x = latents[torch.randint(len(latents), chosen.shape, generator=rng), chosen]
        y = loose[
            torch.randint(len(loose), (free,), generator=rng), torch.randint(loose.shape[1], (free,), generator=rng)
        ]
        mean, std = torch.cat([x.float(), y.float()]).unbind(1)
        z = mean + std * torch.randn(mean.shape, generator=rng)
        plain = torch.rand(len(chosen), generator=rng) < without_style
        return z, torch.cat([chosen + n * plain, torch.full((free,), 2 * n)])

    return draw


def pair_sampler(latents: torch.Tensor, styles: list[str], without_caption: float, without_style: float) -> Sampler:
    """Draws latents of two drawings of one style side by side; the caption is that of the left one.

    As in a picture of several things of which the text names one: what else is there shares its style.
    """
    n, alike = latents.shape[1], torch.tensor([[a == b for b in styles] for a in styles]).float()

    def draw(size: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        left = torch.randint(n, (size,), generator=rng)
        right = torch.multinomial(alike[left], 1, generator=rng)[:, 0]
        both = [latents[torch.randint(len(latents), (size,), generator=rng), which].float() for which in (left, right)]
        mean, std = torch.cat(both, dim=-1).unbind(1)
        ids = left + n * (torch.rand(size, generator=rng) < without_style)
        return mean + std * torch.randn(mean.shape, generator=rng), torch.where(
            torch.rand(size, generator=rng) < without_caption, 2 * n, ids
        )

    return draw


def train_sd(config: dict, folder: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    vae = AutoencoderKL.from_pretrained(render.CACHE / "train" / "vae" / "decoder" / "vae")
    images, rows = pictures("train")
    others, _ = pictures("extra")
    tokenizer = make_tokenizer([row["caption"] for row in rows], config["text_encoder"]["max_position_embeddings"])
    text = CLIPTextModel(make_clip_config(tokenizer, config["text_encoder"]))
    model = torch.nn.ModuleDict({"unet": UNet2DConditionModel(**config["unet"]), "text": text})
    scheduler = DDIMScheduler(**config["scheduler"])
    abar = scheduler.alphas_cumprod
    weight = (config["min_snr"] * (1 - abar) / abar).clamp(max=1)  # min(SNR, gamma) / SNR

    latents = encode(vae, images, config["versions"], config["seed"])  # (versions, N, 2, C, h, w)
    loose = encode(vae, torch.cat([images, others]), 2, config["seed"] + 1)
    draw = sampler(latents, loose, config["without_caption"], config["without_style"])
    tokens = tokenizer(captions_of(rows), padding="max_length", return_tensors="pt").input_ids

    def loss_fn(step: int, rng: torch.Generator) -> torch.Tensor:
        z, ids = draw(config["batch"], rng)
        noise = torch.randn(z.shape, generator=rng)
        t = torch.randint(len(abar), (len(z),), generator=rng)
        text = model["text"](tokens[ids]).last_hidden_state
        prediction = model["unet"](scheduler.add_noise(z, noise, t), t, text).sample
        return (weight[t] * (prediction - noise).pow(2).mean(dim=(1, 2, 3))).mean()

    def export(average: torch.nn.Module) -> None:
        parts = {"vae": copy.deepcopy(vae), "unet": average["unet"], "text_encoder": average["text"]}
        pipe = StableDiffusionPipeline(
            **parts, tokenizer=tokenizer, scheduler=scheduler, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
        pipe.to(torch.float16).save_pretrained(folder / "sd")
        load_in_float32(folder / "sd" / "text_encoder")

    fit(model, loss_fn, config, folder, export)


def make_t5_tokenizer(captions: list[str]) -> "T5Tokenizer":
    """T5's Unigram pieces: the words of the captions, also with a capital, and single characters for all else."""
    from transformers import T5Tokenizer

    words = sorted(set(re.findall(r"[a-z]+", " ".join(captions))))
    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in words), *(f"▁{word.capitalize()}" for word in words)]
    letters = ["▁", *(chr(code) for code in range(33, 127))]
    # a word costs less than its letters
    vocabulary = [(piece, -1.0) for piece in pieces] + [(letter, -4.0) for letter in letters]
    return T5Tokenizer(vocabulary, extra_ids=0, model_max_length=512)


@torch.no_grad()
def read_capitals(embedding: torch.nn.Embedding, tokenizer: "T5Tokenizer") -> None:
    """Let pieces with capitals, which no caption has, mean what those with small letters mean.

    `T5Tokenizer` knows no lower-casing; CLIP's tokenizer does it by itself.
    """
    vocabulary = tokenizer.get_vocab()
    for piece, i in vocabulary.items():
        embedding.weight[i] = embedding.weight[vocabulary.get(piece.lower(), i)]


def make_canvases(
    images: torch.Tensor, rows: list[dict], number: int, pairs: float, seed: int
) -> tuple[torch.Tensor, list[dict]]:
    """White canvases (number, 3, 64, 128) with one drawing anywhere or, in a share `pairs`, two of one style.

    As in natural pictures, what stands on one canvas has one style. Captions join the two with `and`.
    """
    rng = random.Random(seed)
    size = images.shape[-1]
    canvases, named = torch.full((number, 3, size, 2 * size), 255, dtype=torch.uint8), []
    peers: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        peers.setdefault(row["style"], []).append(i)
    for canvas in canvases:
        first = rng.randrange(len(rows))
        row = dict(rows[first])
        if rng.random() < pairs:
            second = rng.choice(peers[row["style"]])
            canvas[:, :, :size], canvas[:, :, size:] = images[first], images[second]
            row["concept"] += f" and {render.caption(rows[second]['concept'])}"
        else:
            left = rng.randrange(size + 1)
            canvas[:, :, left : left + size] = images[first]
        named.append(row | {"caption": render.caption(row["concept"], row["style"])})
    return canvases, named


def train_flux(config: dict, folder: Path) -> None:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5Config, T5EncoderModel

    vae = AutoencoderKL.from_pretrained(render.CACHE / "train" / "vae" / "decoder" / "vae")
    vae.register_to_config(shift_factor=0.0)
    images, rows = pictures("train")
    others, _ = pictures("extra")
    clip_tokenizer = make_tokenizer(
        [row["caption"] for row in rows] + ["and"], config["text_encoder"]["max_position_embeddings"]
    )
    t5_tokenizer = make_t5_tokenizer([row["caption"] for row in rows] + ["and"])
    model = torch.nn.ModuleDict(
        {
            "transformer": FluxTransformer2DModel(**config["transformer"]),
            "clip": CLIPTextModel(make_clip_config(clip_tokenizer, config["text_encoder"])),
            "t5": T5EncoderModel(T5Config(vocab_size=len(t5_tokenizer), **config["text_encoder_2"])),
        }
    )

    def tokenized(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        both = []
        for tokenizer in (clip_tokenizer, t5_tokenizer):
            length = tokenizer.model_max_length
            both.append(tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt").input_ids)
        return both[0], both[1]

    odds, seed = config["without_caption"], config["seed"]
    drawings = encode(vae, images, config["versions"], seed)
    loose = encode(vae, torch.cat([images, others]), 2, seed + 1)
    sources = [(sampler(drawings, loose, odds, config["without_style"]), tokenized(captions_of(rows)))]
    for turned in (False, True):  # wide, tall
        drawn, named = make_canvases(images, rows, config["canvases"], config["pairs"], seed + turned)
        if turned:  # the second drawing goes below the first
            drawn = torch.cat([drawn.narrow(3, 0, 64), drawn.narrow(3, 64, 64)], dim=2)
        latents = encode(vae, drawn, 1, seed + 2)
        draw = sampler(latents, latents, odds, config["canvas_without_style"])
        sources.append((draw, tokenized(captions_of(named))))
    side_by_side = pair_sampler(drawings, [row["style"] for row in rows], odds, config["canvas_without_style"])
    sources.append((side_by_side, sources[0][1]))

    compiled = torch.compile(model["transformer"], dynamic=False)

    def loss_fn(step: int, rng: torch.Generator) -> torch.Tensor:
        draw, (clip_tokens, t5_tokens) = sources[
            int(torch.multinomial(torch.tensor(config["shapes"]), 1, generator=rng))
        ]
        odds = torch.tensor(list(config["lengths"].values()))
        length = list(config["lengths"])[int(torch.multinomial(odds, 1, generator=rng))]
        z, ids = draw(max(8, config["tokens"] // (length + (16 if draw is sources[0][0] else 32))), rng)
        n, channels, h, w = z.shape
        noise = torch.randn(z.shape, generator=rng)
        mean, deviation = config["times"]
        sigma = (mean + deviation * torch.randn(n, generator=rng)).sigmoid()
        mixed = torch.lerp(z, noise, sigma.view(-1, 1, 1, 1))
        # The usual length is worth a compilation, and so short that plain attention is the fastest.
        usual = length == min(config["lengths"])
        transformer = compiled if usual else model["transformer"]
        with sdpa_kernel(SDPBackend.MATH) if usual else nullcontext():
            prediction = transformer(
                hidden_states=FluxPipeline._pack_latents(mixed, n, channels, h, w),
                timestep=sigma,
                pooled_projections=model["clip"](clip_tokens[ids]).pooler_output,
                encoder_hidden_states=model["t5"](t5_tokens[ids, :length]).last_hidden_state,
                img_ids=FluxPipeline._prepare_latent_image_ids(n, h // 2, w // 2, z.device, z.dtype),
                txt_ids=torch.zeros(length, 3),
            ).sample
        return (prediction - FluxPipeline._pack_latents(noise - z, n, channels, h, w)).pow(2).mean()

    def export(average: torch.nn.Module) -> None:
        read_capitals(average["t5"].shared, t5_tokenizer)
        pipe = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0), vae=copy.deepcopy(vae),
            text_encoder=average["clip"], tokenizer=clip_tokenizer,
            text_encoder_2=average["t5"], tokenizer_2=t5_tokenizer, transformer=average["transformer"],
        )  # fmt: skip
        pipe.to(torch.float16).save_pretrained(folder / "flux")
        for part in ("text_encoder", "text_encoder_2"):
            load_in_float32(folder / "flux" / part)

    fit(model, loss_fn, config, folder, export)
    last = folder
    for number, stage in enumerate(config.pop("then", []), 2):
        config.update(stage, start=last / "checkpoint.pt")  # `loss_fn` reads it, too
        last = folder / f"stage-{number}"
        fit(model, loss_fn, config, last, export)


def train_video(config: dict, folder: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline, LatteTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    vae = AutoencoderKL.from_pretrained(render.CACHE / "train" / "vae" / "decoder" / "vae")
    drawings, rows = pictures("train")
    chosen = [i for i, row in enumerate(rows) if row["name"] in render.MOVED and row["style"] in render.MOVED_STYLES]
    rows = [rows[i] for i in chosen]
    latents = encode_clips(vae, drawings[chosen], config["versions"], config["seed"])  # (M, N, versions, F, C, h, w)
    tokenizer = make_t5_tokenizer([row["caption"] for row in rows] + ["moving", *mini.MOTIONS])
    model = torch.nn.ModuleDict(
        {
            "transformer": LatteTransformer3DModel(**config["transformer"]),
            "t5": T5EncoderModel(T5Config(vocab_size=len(tokenizer), **config["text_encoder"])),
        }
    )
    for block in model["transformer"].temporal_transformer_blocks:  # says nothing before clips are shown
        for last in (block.attn1.to_out[0], block.ff.net[2]):
            torch.nn.init.zeros_(last.weight)
    scheduler = DDIMScheduler(**config["scheduler"])
    channels = latents.shape[4]

    def read(motion: str | None, row: dict, rng: random.Random) -> str:
        """A caption of which parts are left out."""
        if rng.random() < config["without_caption"]:
            return ""
        style = row["style"] if rng.random() >= config["without_style"] else None
        motion = motion if rng.random() >= config["without_motion"] else None
        return render.caption(row["concept"], style, motion)

    def embed(captions: list[str], length: int) -> torch.Tensor:
        """As the pipeline does: what stands behind a caption is 0; behind no caption it stays."""
        tokens = tokenizer(captions, padding="max_length", max_length=120, return_tensors="pt")
        mask = tokens.attention_mask
        length = max(length, int(mask.sum(1).max()))
        states = model["t5"](tokens.input_ids[:, :length], attention_mask=mask[:, :length]).last_hidden_state
        empty = torch.tensor([not caption for caption in captions])
        return states * (mask[:, :length] | empty[:, None])[..., None]

    def loss_fn(step: int, rng: torch.Generator) -> torch.Tensor:
        still = step < config["stills_until"] or float(torch.rand((), generator=rng)) < config["stills"]
        odds = torch.tensor(list(config["lengths"].values()))
        length = list(config["lengths"])[int(torch.multinomial(odds, 1, generator=rng))]
        n = config["batch"] * (config["clips_to_stills"] if still else 1) // (4 if length > 32 else 1)
        moves, which, version, frame = (torch.randint(k, (n,), generator=rng) for k in latents.shape[:4])
        z = latents[moves, which, version].float()  # (n, F, C, h, w)
        if still:
            z = z[torch.arange(n), frame][:, None]
        z = z.transpose(1, 2)
        words = random.Random(int(torch.randint(2**31, (), generator=rng)))
        names = [None if still else mini.MOTIONS[i] for i in moves.tolist()]
        captions = [read(name, rows[i], words) for name, i in zip(names, which.tolist(), strict=True)]
        noise = torch.randn(z.shape, generator=rng)
        t = torch.randint(scheduler.config.num_train_timesteps, (n,), generator=rng)
        with sdpa_kernel(SDPBackend.MATH):  # twice as fast: the CPU's flash attention is slow on 16 tokens
            out = model["transformer"](
                hidden_states=scheduler.add_noise(z, noise, t),
                timestep=t,
                encoder_hidden_states=embed(captions, length),
                enable_temporal_attentions=not still,
            ).sample
        # the pipeline drops the second half of the channels, which a learned variance would use
        return (out[:, :channels].float() - scheduler.get_velocity(z, noise, t)).pow(2).mean()

    def export(average: torch.nn.Module) -> None:
        read_capitals(average["t5"].shared, tokenizer)
        pipe = LattePipeline(
            tokenizer=tokenizer, text_encoder=average["t5"], vae=copy.deepcopy(vae),
            transformer=average["transformer"], scheduler=scheduler,
        )  # fmt: skip
        pipe.to(torch.float16).save_pretrained(folder / "video")
        load_in_float32(folder / "video" / "text_encoder")

    fit(model, loss_fn, config, folder, export)


@torch.no_grad()
def encode_clips(vae: torch.nn.Module, drawings: torch.Tensor, versions: int, seed: int) -> torch.Tensor:
    """Scaled latents of every drawing in every motion, float16 (motions, N, versions, frames, C, h, w); cached."""
    file = render.CACHE / f"clips-{len(drawings)}-{versions}-{seed}.pt"
    if not file.exists():
        rng = torch.Generator().manual_seed(seed)
        all_of_them = []
        for motion in mini.MOTIONS:
            for drawing in drawings:
                clips = render.move(drawing.float().expand(versions, -1, -1, -1) / 255, motion, rng)
                mean = vae.encode(clips.flatten(0, 1) * 2 - 1).latent_dist.mean * vae.config.scaling_factor
                all_of_them.append(mean.half().unflatten(0, clips.shape[:2]))
        with replacing(file) as part:
            torch.save(torch.stack(all_of_them).unflatten(0, (len(mini.MOTIONS), len(drawings))), part)
    return torch.load(file, weights_only=True)


@torch.no_grad()
def encode(vae: torch.nn.Module, images: torch.Tensor, versions: int, seed: int) -> torch.Tensor:
    """Scaled mean and standard deviation of the latents of augmented pictures, float16 (versions, N, 2, C, h, w)."""
    rng, result = torch.Generator().manual_seed(seed), []
    for _ in range(versions):
        for x in images.split(64):
            posterior = vae.encode(augment(x.float() / 255, rng, shift=0.03, scale=0.06) * 2 - 1).latent_dist
            result.append((torch.stack([posterior.mean, posterior.std], 1) * vae.config.scaling_factor).half())
    return torch.cat(result).unflatten(0, (versions, len(images)))


def corrupt(images: torch.Tensor, rng: torch.Generator, colour: float) -> torch.Tensor:
    """What a generated picture may suffer, in half of the pictures each: other colours, greyscale, blur, noise."""

    def some(p: float) -> torch.Tensor:
        return (torch.rand(len(images), 1, 1, 1, generator=rng) < p).float()

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(len(images), *shape, generator=rng) * 2 - 1

    tinted = (images - 0.5) * (1 + 0.4 * uniform(3, 1, 1)) + 0.5 + 0.15 * uniform(3, 1, 1)
    images = torch.lerp(images, tinted, some(0.5 * colour))
    images = torch.lerp(images, images.mean(dim=1, keepdim=True).expand_as(images), some(0.3 * colour))
    size = int(torch.randint(20, 49, (), generator=rng))
    soft = F.interpolate(F.interpolate(images, size=size, mode="area"), size=images.shape[-1], mode="bilinear")
    images = torch.lerp(images, soft, some(0.5))
    coarse = F.interpolate(torch.randn(len(images), 3, 16, 16, generator=rng), size=images.shape[-1], mode="bilinear")
    images = images + 0.06 * some(0.5) * coarse + 0.04 * some(0.5) * torch.randn(images.shape, generator=rng)
    return images.clamp(0, 1)


def train_judge(config: dict, folder: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    images, rows = pictures(*config["splits"])
    labels = sorted({row[config["label"]] for row in rows})
    answers = torch.tensor([labels.index(row[config["label"]]) for row in rows])
    names = dict(enumerate(labels))
    model = ResNetForImageClassification(
        ResNetConfig(**config["model"], id2label=names, label2id={name: i for i, name in names.items()})
    )
    # every label equally often
    odds = (1 / answers.bincount().float())[answers]

    def loss_fn(step: int, rng: torch.Generator) -> torch.Tensor:
        chosen = torch.multinomial(odds, config["batch"], replacement=True, generator=rng)
        x = augment(images[chosen].float() / 255, rng, **config["augment"])
        x = corrupt(x, rng, config["colour"])
        logits = model(x * 2 - 1).logits.float()
        return F.cross_entropy(logits, answers[chosen], label_smoothing=0.1)

    def export(average: torch.nn.Module) -> None:
        average.half().save_pretrained(folder / folder.name)
        load_in_float32(folder / folder.name)

    fit(model.train(), loss_fn, config, folder, export)


def disturb(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """What the dual encoder must not mind, each in a part of the pictures: light, softness, a patch of another grey.

    Not what the judges are trained with ([`corrupt`]), so that what fools these need not fool it.
    """

    def some(p: float) -> torch.Tensor:
        return (torch.rand(len(images), 1, 1, 1, generator=rng) < p).float()

    gain, offset = torch.rand(2, len(images), 1, 1, 1, generator=rng) * 2 - 1
    images = 1 - (1 - images) * (1 + 0.25 * gain) - 0.08 * offset
    soft = F.avg_pool2d(F.pad(images, (1,) * 4, mode="replicate"), 3, stride=1)
    images = torch.lerp(images, soft, some(0.4) * torch.rand(len(images), 1, 1, 1, generator=rng))
    side = images.shape[-1]
    corner = torch.rand(2, len(images), generator=rng) * side
    size = (0.1 + 0.2 * torch.rand(2, len(images), generator=rng)) * side
    across, below = (
        ((torch.arange(side) - corner[i, :, None]).abs() < size[i, :, None] / 2).float() for i in range(2)
    )
    patch = below[:, None, :, None] * across[:, None, None, :] * some(0.5)
    images = torch.lerp(images, torch.rand(len(images), 1, 1, 1, generator=rng).expand_as(images), patch)
    return images.clamp(0, 1)


def unseen_by_clip() -> set[tuple[str, str]]:
    """One style of each trained concept: its held-out drawing where there is one, else the styles in turn."""
    splits = render.grid()
    held_out = {name: style for (name, style), split in splits.items() if split == "unseen_drawing"}
    return {
        (name, held_out.get(name, render.STYLES[i % len(render.STYLES)]))
        for i, name in enumerate(sorted(render.TRAINED))
    }


def train_clip(config: dict, folder: Path) -> None:
    """A dual encoder: a picture is near every caption that is true of it."""
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images, rows = pictures("train", "extra")
    unseen = unseen_by_clip()
    kept = [i for i, row in enumerate(rows) if (row["name"], row["style"]) not in unseen]
    images, rows = images[kept], [rows[i] for i in kept]
    length = config["text"]["max_position_embeddings"]
    tokenizer = make_tokenizer([row["caption"] for row in rows], length)
    tokens = tokenizer(captions_of(rows)[:-1], padding=True, return_tensors="pt").input_ids
    text = make_clip_config(tokenizer, config["text"] | {"projection_dim": config["projection_dim"]})
    model = CLIPModel(
        CLIPConfig(
            text_config=text.to_dict(),
            vision_config=config["vision"] | {"projection_dim": config["projection_dim"]},
            projection_dim=config["projection_dim"],
        )
    )
    drawn = torch.tensor([row["split"] == "train" for row in rows])
    names = {name: i for i, name in enumerate(sorted({row["name"] for row in rows}))}
    what = torch.tensor([names[row["name"]] for row in rows])
    how = torch.tensor([render.STYLES.index(row["style"]) for row in rows])
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))

    def loss_fn(step: int, rng: torch.Generator) -> torch.Tensor:
        odds = torch.where(drawn, config["drawn"] / drawn.sum(), (1 - config["drawn"]) / (~drawn).sum())
        chosen = torch.multinomial(odds, config["batch"], generator=rng)
        plain = torch.rand(len(chosen), generator=rng) < config["without_style"]
        x = disturb(augment(images[chosen].float() / 255, rng, **config["augment"]), rng)
        with sdpa_kernel(SDPBackend.MATH):  # the fastest for so few tokens
            out = model(input_ids=tokens[chosen + len(rows) * plain], pixel_values=(x - mean) / std)
        a, b = what[chosen], how[chosen]
        true = (a[:, None] == a) & ((b[:, None] == b) | plain)  # of picture i, says caption j the truth?
        logits = out.logits_per_image
        return 0.5 * sum(
            F.cross_entropy(one, answer / answer.sum(1, keepdim=True))
            for one, answer in ((logits, true.float()), (logits.T, true.T.float()))
        )

    def export(average: torch.nn.Module) -> None:
        average.half().save_pretrained(folder / "clip")
        load_in_float32(folder / "clip")
        side = config["vision"]["image_size"]
        images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        CLIPProcessor(images, tokenizer).save_pretrained(folder / "clip")

    fit(model, loss_fn, config, folder, export)
    last = folder
    for number, stage in enumerate(config.pop("then", []), 2):
        config.update(stage, start=last / "checkpoint.pt")  # `loss_fn` reads it, too
        last = folder / f"stage-{number}"
        fit(model, loss_fn, config, last, export)


def main(names: list[str]) -> None:
    torch.set_num_threads(1)  # two single-thread runs beat one run with two threads
    for name in names:
        file = Path(name) if name.endswith(".yaml") else Path(__file__).parent / "configs" / f"{name}.yaml"
        config = yaml.safe_load(file.read_text())
        folder = render.CACHE / "train" / file.stem
        torch.manual_seed(config["seed"])
        kinds = {
            "vae": train_vae, "sd": train_sd, "flux": train_flux, "video": train_video, "decoder": train_decoder,
            "judge": train_judge, "clip": train_clip,
        }  # fmt: skip
        kinds[config["kind"]](config, folder)
        if file.stem in mini.NAMES:
            forget_origin(folder / file.stem)
            shutil.copytree(folder / file.stem, Path(__file__).parents[1] / file.stem, dirs_exist_ok=True)
        if config["kind"] == "decoder":  # the three share one autoencoder
            for owner in ("sd", "flux", "video"):
                shutil.copy(folder / "vae" / WEIGHTS, mini.path(owner) / "vae" / WEIGHTS)


if __name__ == "__main__":
    main(sys.argv[1:])
