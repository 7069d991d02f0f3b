# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latents that are kept in place of pictures, and inversions that are kept on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from alignext.diffusion import inversions
from alignext.diffusion.inversions import InversionCache, inversion_identity
from alignext.diffusion.latents import encode_images
from alignext.trainers.diffusion_preference import precompute
from alignext.trainers.diffusion_preference.data import PairCollator, prepare_pairs
from alignext.trainers.diffusion_preference.precompute import precompute_latents

from .test_data import pairs
from .tiny import SIZE, sd


# Pictures


def test_latents_in_place_of_pictures():
    pipe, collate = sd(), PairCollator(SIZE, 2)
    dataset = prepare_pairs(pairs(5, preference_prob=[0.1, 0.2, 0.3, 0.4, 0.5]))
    encoded = precompute_latents(pipe, dataset, collate, batch_size=4)
    assert set(encoded.column_names) == {"index", "prompt", "preference_prob", "chosen_latents", "rejected_latents"}
    batch = collate(list(encoded))
    assert batch["latents"].shape == (10, 4, 8, 8)
    mode = encode_images(pipe, collate(list(dataset))["pixel_values"])
    assert (batch["latents"] - mode).abs().max() < 3 * (batch["latents"][0] - batch["latents"][1]).abs().max()
    assert batch["preference_prob"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    # a row's latents depend on the row alone
    other = precompute_latents(pipe, dataset.select([3, 1]), collate, batch_size=2)
    assert torch.allclose(collate(list(other))["latents"], batch["latents"][[3, 1, 8, 6]], atol=1e-5)
    assert not torch.equal(
        collate(list(precompute_latents(pipe, dataset, collate, seed=1)))["latents"], batch["latents"]
    )


def test_latents_are_computed_once_for_data_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pairs(4).save_to_disk(str(tmp_path / "pairs"))
    passes = []
    original = precompute.encode_images
    monkeypatch.setattr(
        precompute, "encode_images", lambda *args, **given: passes.append(1) or original(*args, **given)
    )
    runs = []
    for _ in range(2):
        dataset = prepare_pairs(Dataset.load_from_disk(str(tmp_path / "pairs")))
        runs.append(
            np.asarray(precompute_latents(sd(), dataset, PairCollator(SIZE, 2), batch_size=4)["chosen_latents"])
        )
    assert len(passes) == 2  # of two pairs each, by the first run alone
    assert np.array_equal(*runs)
    other = sd()
    torch.nn.init.normal_(other.vae.quant_conv.weight)
    precompute_latents(other, dataset, PairCollator(SIZE, 2), batch_size=4)
    assert len(passes) == 4


# Inversions


def identity(**changes) -> dict:
    pipe = sd()
    return inversion_identity(pipe.unet, pipe.scheduler, steps=4, guidance=2.0, **changes)


def an_inversion(value: float = 0.5) -> dict[str, torch.Tensor]:
    return {
        "latents": torch.full((2, 4, 8, 8), value),
        "noise": torch.full((2, 4, 8, 8), value / 3),
        "timesteps": torch.tensor([1, 501]),
        "sigmas": torch.tensor([0.1, 0.7]),
    }


def test_inversions_come_back(tmp_path: Path):
    cache = InversionCache(tmp_path, identity())
    keys = [cache.key("a fox", torch.full((4, 8, 8), float(i))) for i in range(3)]
    assert len(set(keys)) == 3 and not any(key in cache for key in keys)
    for i, key in enumerate(keys):
        cache.save(key, an_inversion(i / 3))
    again = InversionCache(tmp_path, identity())  # another process
    loaded = again.load([keys[2], keys[0]])
    assert loaded["latents"].shape == (2, 2, 4, 8, 8) and loaded["latents"].dtype == torch.float32
    assert torch.equal(loaded["latents"][0], torch.full((2, 4, 8, 8), 2 / 3).half().float())
    assert torch.equal(loaded["timesteps"], torch.tensor([[1, 501]] * 2))
    assert torch.equal(loaded["sigmas"], torch.tensor([[0.1, 0.7]] * 2))  # not rounded
    exact = InversionCache(tmp_path, identity(), dtype=torch.float32)
    key = exact.key("a fox", torch.zeros(4, 8, 8))
    assert key not in exact
    exact.save(key, an_inversion(1 / 3))
    assert torch.equal(exact.load([key])["latents"][0], an_inversion(1 / 3)["latents"])


def test_what_an_inversion_depends_on(tmp_path: Path):
    cache, latents = InversionCache(tmp_path, identity()), torch.ones(4, 8, 8)
    key = cache.key("a fox", latents)
    assert cache.key("a fox", latents.clone()) == key
    assert cache.key("an owl", latents) != key
    assert cache.key("a fox", latents + 1e-6) != key
    assert cache.key(torch.ones(3, 4), latents) == cache.key(torch.ones(3, 4), latents) != key
    assert InversionCache(tmp_path, identity()).folder == cache.folder
    pipe = sd()
    with torch.no_grad():
        pipe.unet.conv_out.bias[0] += 1e-6
    others = [
        inversion_identity(pipe.unet, pipe.scheduler, steps=4, guidance=2.0),
        inversion_identity(
            sd().unet, pipe.scheduler.from_config(pipe.scheduler.config, steps_offset=0), steps=4, guidance=2.0
        ),
        inversion_identity(sd().unet, pipe.scheduler, steps=5, guidance=2.0),
        inversion_identity(sd().unet, pipe.scheduler, steps=4, guidance=1.0),
        inversion_identity(sd().unet.to(torch.bfloat16), pipe.scheduler, steps=4, guidance=2.0),
    ]
    folders = {InversionCache(tmp_path, other).folder for other in others} | {cache.folder}
    assert len(folders) == 6


def test_an_adapter_in_training_is_no_part_of_the_reference(tmp_path: Path):
    plain = identity()
    pipe = sd()
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]), adapter_name="default")
    trained = inversion_identity(pipe.unet, pipe.scheduler, steps=4, guidance=2.0)
    assert trained == plain
    with pytest.warns(UserWarning, match="multiple adapters"):
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"]), adapter_name="style")
    assert inversion_identity(pipe.unet, pipe.scheduler, steps=4, guidance=2.0) != plain


def test_half_a_file_is_never_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = InversionCache(tmp_path, identity())
    keys = [cache.key("a fox", torch.full((4, 8, 8), float(i))) for i in range(2)]
    cache.save(keys[0], an_inversion())

    def interrupted(tensors: dict, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(inversions, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.save(keys[1], an_inversion())
    again = InversionCache(tmp_path, identity())
    assert keys[0] in again and keys[1] not in again
    assert [path.name for path in cache.folder.iterdir()] == [f"{keys[0]}.safetensors"]
    with pytest.raises(KeyError, match="1 of 2 inversions"):
        again.load(keys)


def test_what_float16_cannot_hold(tmp_path: Path):
    cache = InversionCache(tmp_path, identity())
    with pytest.raises(ValueError, match=r"`latents` of an inversion is not finite in torch\.float16"):
        cache.save("key", an_inversion(1e6))
    assert "key" not in cache
