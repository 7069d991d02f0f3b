# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""mini-video's denoiser and its text encoder."""

import copy
import random
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from alignext import mini
from alignext.mini.recipe import render
from alignext.mini.recipe.drawings import pictures
from alignext.mini.recipe.fitting import fit, load_in_float32
from alignext.mini.recipe.latents import encode_clips
from alignext.mini.recipe.words import make_t5_tokenizer, read_capitals


def train_video(config: dict, folder: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline, LatteTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    drawings, rows = pictures("train")
    chosen = [i for i, row in enumerate(rows) if row["name"] in render.MOVED and row["style"] in render.MOVED_STYLES]
    rows = [rows[i] for i in chosen]
    if config.get("goes_on"):  # from what is shipped, on the autoencoder that is shipped
        shipped = LattePipeline.from_pretrained(mini.path("video"))
        vae, tokenizer, scheduler = shipped.vae, shipped.tokenizer, shipped.scheduler
        transformer, t5 = shipped.transformer.train(), shipped.text_encoder.train()
    else:
        vae = AutoencoderKL.from_pretrained(render.CACHE / "train" / "vae" / "decoder" / "vae")
        tokenizer = make_t5_tokenizer([row["caption"] for row in rows] + ["moving", *mini.MOTIONS])
        transformer = LatteTransformer3DModel(**config["transformer"])
        t5 = T5EncoderModel(T5Config(vocab_size=len(tokenizer), **config["text_encoder"]))
        for block in transformer.temporal_transformer_blocks:  # says nothing before clips are shown
            for last in (block.attn1.to_out[0], block.ff.net[2]):
                torch.nn.init.zeros_(last.weight)
        scheduler = DDIMScheduler(**config["scheduler"])
    latents = encode_clips(vae, drawings[chosen], config["versions"], config["seed"])  # (M, N, versions, F, C, h, w)
    model = torch.nn.ModuleDict({"transformer": transformer, "t5": t5})
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
