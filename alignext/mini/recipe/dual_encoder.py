# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The dual encoder, which tells the captions of a drawing from others."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from alignext.mini.recipe import render
from alignext.mini.recipe.drawings import augment, disturb, pictures
from alignext.mini.recipe.fitting import fit, load_in_float32
from alignext.mini.recipe.words import captions_of, make_clip_config, make_tokenizer


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
        own = chosen + len(rows) * (torch.rand(len(chosen), generator=rng) < config["without_style"])
        others = torch.multinomial(odds, config["captions"], replacement=True, generator=rng)
        others += len(rows) * (torch.rand(len(others), generator=rng) < config["without_style"])
        told = torch.cat([own, others])  # a picture is compared with the captions of others, too: they are cheap
        x = disturb(augment(images[chosen].float() / 255, rng, **config["augment"]), rng)
        with sdpa_kernel(SDPBackend.MATH):  # the fastest for so few tokens
            logits = model(input_ids=tokens[told], pixel_values=(x - mean) / std).logits_per_image
        which, plain = told % len(rows), told >= len(rows)
        true = (what[chosen][:, None] == what[which]) & ((how[chosen][:, None] == how[which]) | plain)
        true = true.float()  # of picture i, says caption j the truth?
        pairs = ((logits, true), (logits[:, : len(own)].T, true[:, : len(own)].T))
        return 0.5 * sum(F.cross_entropy(one, answer / answer.sum(1, keepdim=True)) for one, answer in pairs)

    def export(average: torch.nn.Module) -> None:
        average.half().save_pretrained(folder / "clip")
        load_in_float32(folder / "clip")
        side = config["vision"]["image_size"]
        images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        CLIPProcessor(images, tokenizer).save_pretrained(folder / "clip")

    fit(model, loss_fn, config, folder, export)
