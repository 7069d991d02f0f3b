# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""How the autoencoder is trained, and how its pictures are measured."""

import copy
import json
import shutil

import pytest
import torch
import yaml
from diffusers import AutoencoderKL

from alignext.mini import path, pictures
from alignext.mini.recipe import autoencoder, drawings, render, scores


def some_pictures(*splits):
    """Stands for `drawings.pictures`, which draws from sets that have to be fetched."""
    chosen = [p for p in pictures() if (p.split == "train") == (splits == ("train",))][:20]
    rows = [{"name": p.concept, "concept": p.concept, "style": p.style, "caption": p.caption} for p in chosen]
    return (scores.tensor([p.image for p in chosen]) * 255).byte(), rows


def test_standardize_keeps_the_pictures_and_gives_every_latent_channel_the_same_scale():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=3,
        norm_num_groups=4,
    ).eval()
    images = (scores.tensor([p.image for p in pictures("unseen_style")]) * 255).byte()
    before, floats = copy.deepcopy(vae), images[::8].float() / 255
    autoencoder.standardize(vae, images)
    torch.testing.assert_close(scores.reconstruct(vae, floats), scores.reconstruct(before, floats))
    with torch.no_grad():
        old, new = (v.encode(floats * 2 - 1).latent_dist for v in (before, vae))
    latents = new.mean * vae.config.scaling_factor
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        new.std / old.std, (new.mean.std((0, 2, 3)) / old.mean.std((0, 2, 3))).view(1, 3, 1, 1).expand_as(old.std)
    )


def test_a_nudge_moves_whole_pixels_and_softens_nothing():
    images = scores.tensor([p.image for p in pictures("unseen_concept")[:12]])
    moved = drawings.nudge(images, torch.Generator().manual_seed(0), most=2)
    wide = torch.nn.functional.pad(images, (2,) * 4, value=1.0)
    places = []
    for image, result in zip(wide, moved, strict=True):
        places += [
            [(i, j, flip)
             for i in range(5) for j in range(5) for flip in (False, True)
             if torch.equal(image[:, i : i + 64, j : j + 64], result.flip(2) if flip else result)]
        ]  # fmt: skip
    assert all(places)
    assert len({found[0] for found in places}) > 6


def test_critic_and_decoder_learn_from_each_other_in_one_backward_pass():
    """The reproach moves the pictures and not the critic, the critic's error moves the critic and not the pictures."""
    torch.manual_seed(0)
    critic, real = autoencoder.Critic(), torch.rand(2, 3, 64, 64) * 2 - 1
    decoded = (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    critic.reproach(decoded).backward()
    assert decoded.grad.abs().sum() > 0 and all(p.grad is None for p in critic.parameters())
    decoded.grad = None
    critic.error(real, decoded.detach()).backward()
    assert decoded.grad is None and all(p.grad is not None for p in critic.parameters())
    scores = critic.score(real)
    assert scores.shape == (2, 1, 8, 8)
    torch.testing.assert_close(critic.reproach(real), -scores.mean())
    wanted = (1 - scores).clamp(min=0).mean() + (1 + critic.score(decoded)).clamp(min=0).mean()
    torch.testing.assert_close(critic.error(real, decoded), wanted)


def test_features_are_as_far_apart_as_the_pictures_look():
    images = scores.tensor([p.image for p in pictures("unseen_concept")[:8]]) * 2 - 1
    seen = autoencoder.Features(path("judge-style"))
    soft = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(images, (1,) * 4, mode="replicate"), 3, stride=1)
    blurred = soft.clone().requires_grad_()
    near, far = seen.distance(blurred, images), seen.distance(images.roll(1, 0), images)
    assert seen.distance(images, images) == 0 and 0 < near < far
    near.backward()
    assert blurred.grad.abs().sum() > 0
    for depth in seen(soft):
        torch.testing.assert_close(depth.square().sum(1), torch.ones_like(depth[:, 0]))
    unit = torch.stack([(1 - (a * b).sum(1)).mean() * 2 for a, b in zip(seen(soft), seen(images), strict=True)])
    torch.testing.assert_close(near, unit.mean())  # the squared distance of unit vectors


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sharper", "sharper-longer"])
def test_both_halves_go_on_and_the_latents_stay_near(tmp_path, monkeypatch, name):
    """The pull keeps the latents nearer than the other losses alone would."""
    monkeypatch.setattr(render, "CACHE", tmp_path)
    monkeypatch.setattr(autoencoder, "pictures", some_pictures)
    start = tmp_path / "train" / "vae" / "decoder" / "vae"
    shutil.copytree(path("sd") / "vae", start)
    shutil.copytree(path("judge-style"), tmp_path / "train" / "features" / "features")
    monkeypatch.setattr(autoencoder, "samples_of_denoisers", lambda: torch.randn(4, 16, 8, 8))
    file = path("sd").parent / "recipe" / "configs" / f"{name}.yaml"
    config = yaml.safe_load(file.read_text()) | {"steps": 4, "batch": 2, "warmup": 1, "pull_every": 1, "export_at": []}
    losses = []
    for pull in (0.0, 100.0):
        folder = tmp_path / f"pull-{pull:.0f}"
        torch.manual_seed(0)
        autoencoder.train_sharper(config | {"pull": pull}, folder)
        before, after = (AutoencoderKL.from_pretrained(f) for f in (start, folder / "vae"))
        changed = {n for n, p in after.named_parameters() if not torch.equal(p, before.get_parameter(n))}
        assert {n.split(".")[0] for n in changed} == {"encoder", "decoder", "quant_conv", "post_quant_conv"}
        x = scores.tensor([p.image for p in pictures("unseen_concept")[:8]]) * 2 - 1
        with torch.no_grad():
            losses.append((after.encode(x).latent_dist.mean - before.encode(x).latent_dist.mean).square().mean())
        assert "_name_or_path" not in json.loads((folder / "vae" / "config.json").read_text())
    assert losses[1] < losses[0]


def test_edges_and_what_is_fine_of_drawings_through_softness():
    """Softness keeps the height of a step, and so its summed gradient; the second difference goes."""
    step = torch.zeros(1, 3, 16, 16)
    step[..., 8:] = 1
    soft = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(step, (2, 2, 0, 0), mode="replicate"), (1, 5), 1)
    assert scores.edges(step).item() == pytest.approx(1 / 15)
    assert scores.edges(soft).item() == pytest.approx(scores.edges(step).item(), rel=1e-4)
    assert scores.fine(step).item() == pytest.approx(2 / 14)
    assert scores.fine(soft).item() == pytest.approx(scores.fine(step).item() / 5, rel=1e-4)
