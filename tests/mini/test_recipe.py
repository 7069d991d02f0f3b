# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The parts of the training script that a mistake would hide in."""

import copy
import json

import pytest
import torch

from alignext.mini import path, pictures
from alignext.mini.recipe import measure, render, train


class Interrupt(Exception):
    pass


def test_an_interrupted_run_ends_where_the_uninterrupted_one_does(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "MINUTES", 0)  # a checkpoint at every step
    config = {"seed": 3, "steps": 8, "lr": 0.1, "warmup": 2, "ema": 0.9}

    def run(folder, stop_at=None):
        torch.manual_seed(0)
        model, result = torch.nn.Linear(3, 1), []

        def loss_fn(step, rng):
            if step == stop_at:
                raise Interrupt
            return (model(torch.randn(4, 3, generator=rng)) - torch.randn(4, 1)).pow(2).mean()

        train.fit(model, loss_fn, config, folder, result.append)
        return torch.cat([p.flatten() for p in [*model.parameters(), *result[-1].parameters()]])

    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupt):
        run(tmp_path / "cut", stop_at=5)
    assert torch.equal(run(tmp_path / "cut"), whole)


def test_augment_at_rest_only_flips_and_white_moves_in():
    images = measure.tensor([p.image for p in pictures("unseen_concept")[:8]])
    rng = torch.Generator().manual_seed(0)
    still = train.augment(images, rng, shift=0, scale=0, angle=0)
    for image, result in zip(images, still, strict=True):
        assert min((result - image).abs().max(), (result - image.flip(2)).abs().max()) < 1e-4
    moved = train.augment(torch.zeros(64, 3, 16, 16), rng, shift=0.5, scale=0)
    assert moved.max() == 1 and moved.min() == 0


def test_standardize_keeps_the_pictures_and_gives_every_latent_channel_the_same_scale():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=3,
        norm_num_groups=4,
    ).eval()
    images = (measure.tensor([p.image for p in pictures("unseen_style")]) * 255).byte()
    before, floats = copy.deepcopy(vae), images[::8].float() / 255
    train.standardize(vae, images)
    torch.testing.assert_close(measure.reconstruct(vae, floats), measure.reconstruct(before, floats))
    with torch.no_grad():
        old, new = (v.encode(floats * 2 - 1).latent_dist for v in (before, vae))
    latents = new.mean * vae.config.scaling_factor
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        new.std / old.std, (new.mean.std((0, 2, 3)) / old.mean.std((0, 2, 3))).view(1, 3, 1, 1).expand_as(old.std)
    )


def test_every_word_of_the_captions_is_one_token():
    captions = [render.caption(render.word(name), style) for (name, style), s in render.grid().items() if s == "train"]
    tokenizer = train.make_tokenizer(captions, 24)
    shipped = type(tokenizer).from_pretrained(path("sd"), subfolder="tokenizer")
    for caption in captions:
        words = [f"{word}</w>" for word in caption.replace(",", " ,").split()]
        for each in (tokenizer, shipped):
            assert each.convert_ids_to_tokens(each(caption).input_ids)[1:-1] == words


def test_configs_and_shipped_models_agree():
    import yaml

    folder = path("sd").parent / "recipe" / "configs"
    sd, vae = (yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("sd", "vae"))
    for part, wanted in (("unet", sd["unet"]), ("vae", vae["model"]), ("text_encoder", sd["text_encoder"])):
        found = json.loads((path("sd") / part / "config.json").read_text())
        assert wanted.items() <= found.items(), part
    scheduler = json.loads((path("sd") / "scheduler" / "scheduler_config.json").read_text())
    assert sd["scheduler"].items() <= scheduler.items()
