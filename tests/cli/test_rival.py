# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext rival` as a person types it."""

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from alignext import cli, mini
from tests.pipelines import tiny


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "frog.png"
    next(p for p in mini.pictures("unseen_drawing") if p.concept == "frog").image.save(path)
    return path


def call(picture, out, *more):
    return cli.main(["rival", str(picture), "--prompt", "a frog", "--out", str(out), "--steps", "2", "-n", "2", *more])


def test_embedded_model(picture, tmp_path, capsys):
    assert call(picture, tmp_path / "out") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"index.html", "contact-sheet.png", "00-00.png", "00-01.png"} <= names
    assert str((tmp_path / "out" / "index.html").resolve()) in capsys.readouterr().out
    first = (tmp_path / "out" / "00-00.png").read_bytes()
    assert call(picture, tmp_path / "again") == 0
    assert (tmp_path / "again" / "00-00.png").read_bytes() == first


@pytest.mark.parametrize("task", ["text2image", "editing", "dreambooth"])
def test_tasks(picture, tmp_path, task):
    assert call(picture, tmp_path / "out", "--task", task) == 0


def test_inpainting(picture, tmp_path):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 64, 32))
    mask.save(tmp_path / "mask.png")
    more = ("--task", "inpainting", "--mask", str(tmp_path / "mask.png"), "--keep-pixels")
    assert call(picture, tmp_path / "out", *more) == 0
    made, original = (Image.open(path).convert("RGB") for path in (tmp_path / "out" / "00-00.png", picture))
    assert made.crop((0, 40, 64, 64)).tobytes() == original.crop((0, 40, 64, 64)).tobytes()


def test_xl_and_controlnet(picture, tmp_path):
    sd, xl = tiny.sd_components(), tiny.sdxl_components()
    StableDiffusionPipeline(**sd).save_pretrained(tmp_path / "sd")
    StableDiffusionXLPipeline(**xl).save_pretrained(tmp_path / "xl")
    tiny.controlnet(sd["unet"]).save_pretrained(tmp_path / "controlnet")
    assert call(picture, tmp_path / "a", "--model", str(tmp_path / "xl")) == 0
    control = ("--controlnet", str(tmp_path / "controlnet"), "--control-image", str(picture))
    assert call(picture, tmp_path / "b", "--model", str(tmp_path / "sd"), *control) == 0
    assert "controlnet" in (tmp_path / "b" / "index.html").read_text()


def test_a_control_picture_of_sixteen_bits_or_with_transparency(picture, tmp_path):
    sd = tiny.sd_components()
    StableDiffusionPipeline(**sd).save_pretrained(tmp_path / "sd")
    tiny.controlnet(sd["unet"]).save_pretrained(tmp_path / "controlnet")
    grey = np.arange(64, dtype=np.uint8)[:, None].repeat(64, 1) * 4
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "white.png")
    Image.new("LA", (64, 64), (0, 0)).save(tmp_path / "clear.png")
    made = {}
    for name in ("grey", "deep", "white", "clear"):
        more = ("--controlnet", str(tmp_path / "controlnet"), "--control-image", str(tmp_path / f"{name}.png"))
        assert call(picture, tmp_path / name, "--model", str(tmp_path / "sd"), *more) == 0
        made[name] = Image.open(tmp_path / name / "00-00.png").tobytes()
    assert made["grey"] == made["deep"] and made["white"] == made["clear"] and made["grey"] != made["white"]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (
            ("--negative-prompt", "a cat", "--guidance-scale", "1"),
            "--negative-prompt does nothing with --guidance-scale 1",
        ),
        (("--task", "inpainting"), "--mask"),
        (("--controlnet", "folder"), "--control-image"),
        (("--mask", "no-such-file.png"), "no-such-file.png"),
        (("--mask", __file__), "--mask"),  # no picture
        (
            ("--model", "no/such/model"),
            "--model no/such/model: there is no such folder, and a Hub id is written OWNER/NAME",
        ),
        (("--device", "gpu"), "--device gpu cannot be used here"),
    ],
)
def test_bad_input_is_one_line(picture, tmp_path, capsys, more, text):
    assert call(picture, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("alignext rival: error:") and text in error
