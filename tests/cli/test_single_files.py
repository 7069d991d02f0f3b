# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints in a single file, as they are traded: the embedded model with the names of the original code."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file

from alignext import cli, mini
from alignext.diffusion.single_files import kind_of


RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
OUTER = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip


def unet_name(name: str, layers: int) -> str:
    """The name that a weight of the U-Net has in the original code, with so many layers a block."""
    for ours, theirs in OUTER.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    found = re.match(r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", name)
    assert found, name
    side, block, part, k, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    if part == "resnets":
        head, dot, tail = rest.partition(".")
        rest = f"{RESNET[head]}{dot}{tail}"
    if side == "mid_block":
        return f"middle_block.{1 if part == 'attentions' else 2 * k}.{rest}"
    place = (layers + 1) * block + k
    if side == "down_blocks":
        if part == "downsamplers":
            return f"input_blocks.{(layers + 1) * (block + 1)}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{place + 1}.{int(part == 'attentions')}.{rest}"
    if part == "upsamplers":
        return f"output_blocks.{(layers + 1) * block + layers}.2.{rest}"
    return f"output_blocks.{place}.{int(part == 'attentions')}.{rest}"


def vae_name(name: str, blocks: int) -> str:
    """The name that a weight of the autoencoder has in the original code, with so many blocks a side."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded Stable Diffusion in one file."""
    pipe = StableDiffusionPipeline.from_pretrained(mini.path("sd"))
    unet, vae = pipe.unet, pipe.vae
    weights = {
        f"model.diffusion_model.{unet_name(k, unet.config.layers_per_block)}": v for k, v in unet.state_dict().items()
    }
    weights |= {
        f"first_stage_model.{vae_name(k, len(vae.config.block_out_channels))}": v for k, v in vae.state_dict().items()
    }
    prefix = "cond_stage_model.transformer."
    for k, v in pipe.text_encoder.state_dict().items():
        weights[prefix + (k if k.startswith("text_model.") else f"text_model.{k}")] = v
    file = tmp_path_factory.mktemp("single") / "mine.safetensors"
    save_file({k: v.contiguous().clone() for k, v in weights.items()}, file)
    torch.save({"state_dict": weights}, file.with_suffix(".ckpt"))
    return file


def drawn(folder: Path) -> torch.Tensor:
    with Image.open(folder / "00-00.png") as picture:
        return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).int()


@pytest.mark.slow
def test_a_single_file_draws_what_its_folder_draws(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mini.pictures("unseen_drawing")[0].image.save(tmp_path / "drawing.png")
    words = ["rival", str(tmp_path / "drawing.png"), "--prompt", "a frog", "-n", "1", "--steps", "2", "--out"]
    monkeypatch.chdir(single.parent)
    assert cli.main([*words, str(tmp_path / "folder")]) == 0
    more = ("--model", single.name, "--model-config", str(mini.path("sd")))
    assert cli.main([*words, str(tmp_path / "file"), *more]) == 0
    monkeypatch.chdir("/")  # the file is found from elsewhere
    settings = str(tmp_path / "file" / "settings.json")
    assert cli.main(["rival", "--from", settings, "--out", str(tmp_path / "again")]) == 0
    folder, file, again = (drawn(tmp_path / name) for name in ("folder", "file", "again"))
    assert (file - folder).abs().max() <= 1 and folder.unique().numel() > 20
    assert torch.equal(again, file)


def test_its_kind_is_told_by_its_weights(single: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for file in (single, single.with_suffix(".ckpt")):
        assert kind_of(file) == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert cli.main(["search", "fox", "--reward", "brightness", "--out", str(tmp_path), "--model", str(single)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--model-config stable-diffusion-v1-5/stable-diffusion-v1-5: there is no such folder, it is not in" in error
