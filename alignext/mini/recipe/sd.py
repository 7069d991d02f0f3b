# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""mini-SD's denoiser and its text encoder."""

import copy
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from alignext import mini
from alignext.mini.recipe import render
from alignext.mini.recipe.drawings import pictures
from alignext.mini.recipe.fitting import fit, load_in_float32
from alignext.mini.recipe.latents import encode, sampler
from alignext.mini.recipe.words import captions_of, make_clip_config, make_tokenizer


def train_sd(config: dict, folder: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    images, rows = pictures("train")
    others, _ = pictures("extra")
    if config.get("goes_on"):  # from what is shipped, on the autoencoder that is shipped
        shipped = StableDiffusionPipeline.from_pretrained(mini.path("sd"))
        vae, tokenizer, scheduler = shipped.vae, shipped.tokenizer, shipped.scheduler
        unet, text = shipped.unet.train(), shipped.text_encoder.train()
    else:
        vae = AutoencoderKL.from_pretrained(render.CACHE / "train" / "vae" / "decoder" / "vae")
        tokenizer = make_tokenizer([row["caption"] for row in rows], config["text_encoder"]["max_position_embeddings"])
        scheduler = DDIMScheduler(**config["scheduler"])
        unet = UNet2DConditionModel(**config["unet"])
        text = CLIPTextModel(make_clip_config(tokenizer, config["text_encoder"]))
    model = torch.nn.ModuleDict({"unet": unet, "text": text})
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
        with sdpa_kernel(SDPBackend.MATH):  # the CPU's flash attention is slow on so few tokens, in bfloat16 most
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
