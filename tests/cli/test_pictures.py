# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What the picture commands share: LoRAs, schedulers, sizes, and pictures that remember how they were made."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from alignext import cli, mini
from alignext.cli import pictures


@pytest.fixture
def drawing(tmp_path: Path) -> Path:
    mini.pictures("unseen_drawing")[0].image.save(tmp_path / "drawing.png")
    return tmp_path / "drawing.png"


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the embedded model that changes what it draws."""
    pipe = StableDiffusionPipeline.from_pretrained(mini.path("sd"))
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    folder = tmp_path_factory.mktemp("lora")
    pipe.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    return folder


def rival(drawing: Path, out: Path, *more: str) -> int:
    words = ["rival", str(drawing), "--prompt", "a frog", "--out", str(out), "--steps", "2", "-n", "1"]
    return cli.main([*words, *more])


def pixels(folder: Path, name: str = "00-00.png") -> bytes:
    with Image.open(folder / name) as picture:
        return picture.tobytes()


@pytest.mark.slow
def test_a_lora_counts_by_its_scale(drawing: Path, lora: Path, tmp_path: Path) -> None:
    file = lora / "pytorch_lora_weights.safetensors"
    for name, more in {
        "plain": (),
        "off": ("--lora", f"{lora}:0"),
        "on": ("--lora", str(file)),
        "one": ("--lora", f"{lora}:1"),
        "twice": ("--lora", f"{lora}:0.5", "--lora", f"{file}:0.5"),
    }.items():
        assert rival(drawing, tmp_path / name, *more) == 0
    assert pixels(tmp_path / "plain") == pixels(tmp_path / "off") != pixels(tmp_path / "on")
    assert pixels(tmp_path / "on") == pixels(tmp_path / "one")
    assert json.loads((tmp_path / "one" / "settings.json").read_text())["words"][-2:] == ["--lora", f"{lora}:1.0"]
    twice, once = (Image.open(tmp_path / name / "00-00.png").tobytes() for name in ("twice", "on"))
    assert max(abs(a - b) for a, b in zip(twice, once, strict=True)) <= 1


def test_a_picture_remembers_how_it_was_made(drawing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the picture is named as seen from here
    more = ("--seed", "3", "--size", "64x64", "--negative-prompt", "a house", "--t-align", "500", "--keep-pixels")
    assert rival(Path("drawing.png"), tmp_path / "a", *more[:-1]) == 0
    with Image.open(tmp_path / "a" / "00-00.png") as picture:
        kept = json.loads(picture.info["alignext"])
    assert kept == json.loads((tmp_path / "a" / "settings.json").read_text()) and kept["seed"] == 3
    monkeypatch.chdir("/")
    for source in ("00-00.png", "settings.json"):
        out = tmp_path / f"again {source}"
        assert cli.main(["rival", "--from", str(tmp_path / "a" / source), "--out", str(out)]) == 0
        assert pixels(out) == pixels(tmp_path / "a")
    assert cli.main(["rival", "--from", str(tmp_path / "a/settings.json"), "--out", str(out), "--seed", "4"]) == 0
    assert pixels(out.with_name(out.name + "-2")) != pixels(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.json", "--from nowhere.json is no file"),
        ("drawing.png", "does not say how it was made"),
        ("other.json", "was made by `alignext search`. Write: alignext search --from"),
        ("broken.json", "does not say how it was made"),
    ],
)
def test_a_file_that_does_not_say(
    name: str, said: str, drawing: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(drawing.parent)
    Path("other.json").write_text('{"words": ["search", "a fox"]}')
    Path("broken.json").write_text("{")
    with pytest.raises(SystemExit) as stop:
        cli.main(["rival", "--from", name, "--out", "out"])
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_a_second_run_goes_beside_the_first(drawing: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert rival(drawing, tmp_path / "out", "-n", "2") == 0
    assert "2 images. Open" in capsys.readouterr().out
    for name in ("out-2", "out-3"):
        assert rival(drawing, tmp_path / "out") == 0
        assert f"1 image. Open {(tmp_path / name / 'index.html').resolve()}" in capsys.readouterr().out
    assert not (tmp_path / "out-2" / "00-01.png").exists()


def test_schedulers_are_found_by_short_names() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(mini.path("sd"))
    pictures.set_scheduler(pipe, "ddim")
    assert type(pipe.scheduler) is DDIMScheduler
    for name in ("Euler-Discrete", "euler", "EulerDiscreteScheduler"):
        pictures.set_scheduler(pipe, name)
        assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    with pytest.raises(ValueError, match=r"--scheduler dimm does not go with .*Did you mean ddim\? It takes "):
        pictures.set_scheduler(pipe, "dimm")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--lora", "no/such/lora"), "--lora no/such/lora: there is no such folder, and a Hub id"),
        (("--lora", "."), "--lora . is a folder without pytorch_lora_weights.safetensors, so no LoRA of diffusers"),
        (("--model", str(mini.path("flux"))), "is a FluxPipeline; this command takes StableDiffusionPipeline, "),
        (("--model", "someone/model"), "and HF_HUB_OFFLINE is set, so that the Hub is not asked"),
        (("--model", str(mini.path("lm"))), "is a folder without model_index.json"),
        (("--controlnet", str(mini.path("pictures")), "--control-image", "drawing.png"), "so no ControlNet"),
    ],
    ids=["lora", "no lora", "class", "offline", "language model", "controlnet"],
)
def test_what_cannot_be_loaded_is_told_apart(
    more: tuple, said: str, drawing: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(drawing.parent)
    assert rival(drawing, Path("out"), *more) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and "class '" not in error


def test_broken_pictures_are_named(drawing: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    (tmp_path / "half.png").write_bytes(drawing.read_bytes()[:-400])
    assert rival(tmp_path / "half.png", tmp_path / "out") == 2
    assert f"picture {tmp_path}/half.png is broken: " in capsys.readouterr().err
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert rival(drawing, tmp_path / "out") == 2
    assert f"{drawing} is too large a picture: scale it down first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--size", "64"), "'64' is not WIDTHxHEIGHT"),
        (("--lora", "a:b"), "'a:b' is not PATH or PATH:SCALE"),
        (("--guidance-scale", "nan"), "got nan"),
        (("--guidance", "3"), "there is no option --guidance. Did you mean --guidance-scale?"),
    ],
)
def test_wrong_words_are_shown(more: tuple, said: str, drawing: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        rival(drawing, Path("out"), *more)
    assert said in capsys.readouterr().err
