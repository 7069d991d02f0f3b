# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latents of the pictures of pairs, computed before the training."""

from typing import Any

import datasets
import torch
from datasets import Dataset
from diffusers import DiffusionPipeline

from alignext.diffusion.digests import digest, weights_digest
from alignext.diffusion.latents import encode_images
from alignext.diffusion.layouts import Layout

from .collators import PictureCollator
from .columns import is_embedding


def precompute_latents(
    pipe: DiffusionPipeline,
    dataset: Dataset,
    collator: PictureCollator,
    batch_size: int = 8,
    seed: int = 0,
    layout: Layout | None = None,
) -> Dataset:
    """
    The dataset with `chosen_latents` and `rejected_latents`, or `latents`, in place of its pictures or videos. A
    second run on the same data, VAE and settings finds what the first one wrote, where the dataset has files on disk.

    Args:
        pipe (`DiffusionPipeline`): Its VAE is used.
        dataset (`Dataset`): Of `prepare_pairs` or `prepare_votes`.
        collator (`PictureCollator`): How pictures are cut.
        batch_size (`int`, *optional*, defaults to 8): Pictures per pass.
        seed (`int`, *optional*, defaults to 0): The sample of a picture depends on it and on the row alone.
        layout ([`~alignext.diffusion.layouts.Layout`], *optional*): How the pipeline has its latents.
    """
    vae = digest(weights_digest(pipe.vae), dict(pipe.vae.config))
    pictures = [name for name in (*collator.videos, *collator.pictures) if name in dataset.column_names]
    shape = _shape(pipe, collator.resolution) if layout is None else tuple(layout.shape)
    # The hash of the closure below would be one of the whole pipeline.
    fingerprint = digest(dataset._fingerprint, vae, collator.resolution, collator.vae_scale_factor, seed, shape)

    def encode(rows: dict[str, list]) -> dict[str, Any]:
        count = len(rows["index"])
        pixels = collator._pixels([{name: column[i] for name, column in rows.items()} for i in range(count)])
        # torch reads no more than 32 bits of a seed
        seeds = [int(digest(seed, name, int(index))[:8], 16) for name in pictures for index in rows["index"]]
        generators = [torch.Generator().manual_seed(number) for number in seeds]
        latents = encode_images(pipe, pixels, batch_size, generators, layout=layout).cpu().numpy()
        return dict(zip(collator.latents, latents.reshape(len(pictures), count, *shape), strict=True))

    array = {3: datasets.Array3D, 4: datasets.Array4D}[len(shape)]
    features = {name: kind for name, kind in dataset.features.items() if name not in pictures}
    latents = {name: array(shape, "float32") for name in collator.latents}
    encoded = dataset.map(
        encode,
        batched=True,
        batch_size=max(1, batch_size // 2),
        remove_columns=pictures,
        features=datasets.Features(features | latents),
        new_fingerprint=fingerprint[:32],
        desc="Encoding pictures",
    )
    arrays = [*collator.latents, *filter(is_embedding, features)]
    return encoded.with_format("numpy", columns=arrays, output_all_columns=True)


def _shape(pipe: DiffusionPipeline, side: int) -> tuple[int, int, int]:
    """Of the latents of a square picture."""
    side //= 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    return pipe.vae.config.latent_channels, side, side
