# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""mini-Flux's denoiser and its two text encoders."""

import copy
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from alignext import mini
from alignext.mini.recipe import render
from alignext.mini.recipe.drawings import pictures
from alignext.mini.recipe.fitting import fit, load_in_float32
from alignext.mini.recipe.latents import encode, make_canvases, pair_sampler, sampler
from alignext.mini.recipe.words import captions_of, make_clip_config, make_t5_tokenizer, make_tokenizer, read_capitals


def train_flux(config: dict, folder: Path) -> None:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5Config, T5EncoderModel

    images, rows = pictures("train")
    others, _ = pictures("extra")
    if config.get("goes_on"):  # from what is shipped, on the autoencoder that is shipped
        shipped = FluxPipeline.from_pretrained(mini.path("flux"))
        vae, clip_tokenizer, t5_tokenizer = shipped.vae, shipped.tokenizer, shipped.tokenizer_2
        parts = {"transformer": shipped.transformer, "clip": shipped.text_encoder, "t5": shipped.text_encoder_2}
    else:
        vae = AutoencoderKL.from_pretrained(render.CACHE / "train" / "vae" / "decoder" / "vae")
        vae.register_to_config(shift_factor=0.0)
        captions = [row["caption"] for row in rows] + ["and"]
        clip_tokenizer = make_tokenizer(captions, config["text_encoder"]["max_position_embeddings"])
        t5_tokenizer = make_t5_tokenizer(captions)
        parts = {
            "transformer": FluxTransformer2DModel(**config["transformer"]),
            "clip": CLIPTextModel(make_clip_config(clip_tokenizer, config["text_encoder"])),
            "t5": T5EncoderModel(T5Config(vocab_size=len(t5_tokenizer), **config["text_encoder_2"])),
        }
    model = torch.nn.ModuleDict(parts).train()

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
        # The usual length is so short that plain attention is the fastest. Nothing is compiled: torch 2.13's compiled
        # transformer has gradients in bfloat16 that are not finite, on wide canvases.
        with sdpa_kernel(SDPBackend.MATH) if length == min(config["lengths"]) else nullcontext():
            prediction = model["transformer"](
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
