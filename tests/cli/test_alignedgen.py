# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext alignedgen` as a person types it."""

import argparse
import dataclasses
import json

import diffusers
import numpy as np
import pytest
from diffusers import FluxPipeline
from PIL import Image

import alignext
import alignext.cli.alignedgen as command
from alignext import AlignedGenPipeline, cli, mini
from alignext.cli import pictures


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "snail.png"
    mini.pictures("unseen_concept")[0].image.save(path)
    return path


def call(out, *more, prompts=("a red fox", "an owl", "a house")):
    return cli.main(["alignedgen", *prompts, "--out", str(out), "--steps", "2", *map(str, more)])


def images(folder):
    return {path.name: Image.open(path).tobytes() for path in folder.glob("*.png")}


def test_embedded_model(tmp_path, capsys):
    assert call(tmp_path / "a", "--compare") == 0
    assert str((tmp_path / "a" / "index.html").resolve()) in capsys.readouterr().out
    made = images(tmp_path / "a")
    stock = {f"{k:02d}-stock.png" for k in range(3)}
    assert set(made) == {"contact-sheet.png", "00.png", "01.png", "02.png"} | stock
    assert made["00.png"] == made["00-stock.png"]  # the anchor is the stock image
    assert made["01.png"] != made["01-stock.png"]
    assert call(tmp_path / "b") == 0
    again = images(tmp_path / "b")
    assert all(again[name] == made[name] for name in ("00.png", "01.png", "02.png"))
    assert not any("stock" in name for name in again)


@pytest.mark.slow
def test_a_series_is_continued_from_its_saved_style(tmp_path):
    style = tmp_path / "style.safetensors"
    assert call(tmp_path / "a", "--save-style", style, prompts=("a red fox", "an owl")) == 0
    assert call(tmp_path / "b", "--style-reference", style, "--seed", 1, prompts=("an owl",)) == 0
    # the same noise and style as in the set
    made = [Image.open(tmp_path / name) for name in ("a/01.png", "b/00.png")]
    assert max(abs(a - b) for a, b in zip(*(image.tobytes() for image in made), strict=True)) <= 1


def test_style_of_a_picture(picture, tmp_path):
    more = ("--style-image", picture, "--style-prompt", "a snail, ink style")
    assert call(tmp_path / "a", *more, prompts=("a red fox",)) == 0
    assert call(tmp_path / "b", *more[:2], prompts=("a red fox",)) == 0
    assert images(tmp_path / "a")["00.png"] != images(tmp_path / "b")["00.png"]


def test_pictures_of_sixteen_bits_and_with_transparency(tmp_path):
    """Stay what they show: 16 bits are scaled to 8, and what is transparent is white."""
    grey = np.arange(64, dtype=np.uint8)[:, None].repeat(64, 1) * 4
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    white = np.where(np.arange(64) < 32, grey, 255).astype(np.uint8)
    Image.fromarray(white).save(tmp_path / "white.png")
    alpha = np.where(np.arange(64) < 32, 255, 0)[None].repeat(64, 0)
    Image.fromarray(np.stack([grey, alpha.astype(np.uint8)], -1), "LA").save(tmp_path / "clear.png")
    made = {}
    for name in ("grey", "deep", "white", "clear"):
        assert call(tmp_path / name, "--style-image", tmp_path / f"{name}.png", prompts=("a red fox",)) == 0
        made[name] = images(tmp_path / name)
    assert made["grey"] == made["deep"] and made["white"] == made["clear"] and made["grey"] != made["white"]


def test_a_set_is_made_again_from_its_settings(tmp_path):
    more = ("--share-blocks", "1:3", "--shift=-1:0.5:0", "--size", "128x64", "--negative-prompt=-x", "--no-adain")
    assert call(tmp_path / "a", *more, prompts=("a red fox", "an owl")) == 0
    words = json.loads((tmp_path / "a" / "settings.json").read_text())["words"]
    assert {"1:3", "--shift=-1:0.5:0", "128x64", "--negative-prompt=-x"} <= set(words)
    for k, source in enumerate((["--from", tmp_path / "a" / "01.png"], [f"--from={tmp_path}/a/settings.json"])):
        assert cli.main(["alignedgen", *map(str, source), "--out", str(tmp_path / f"b{k}")]) == 0
        assert images(tmp_path / f"b{k}") == images(tmp_path / "a")


def test_every_class_has_its_checkpoints():
    ours = {name for name in alignext.__all__ if name.startswith("AlignedGen") and name.endswith("Pipeline")}
    assert set(command._CLASSES.values()) == ours
    assert all(issubclass(getattr(alignext, mine), getattr(diffusers, it)) for it, mine in command._CLASSES.items())


def test_every_lever_arrives(monkeypatch, tmp_path):
    seen = {}
    load = pictures.load

    def loaded(*args):
        pipe = load(*args)

        def call(prompt, **kwargs):
            seen.update(kwargs)
            return pipe(prompt, **kwargs)

        return call

    monkeypatch.setattr(pictures, "load", loaded)
    levers = {
        "style_lambda": 1.3, "lambda_schedule": "sigma_squared", "share_blocks": (3, 6), "share_start": 0.25,
        "share_end": 0.75, "shift": "height", "anchor_index": 1, "target_batch_size": 1,
    }  # fmt: skip
    words = [
        word
        for name, value in levers.items()
        for word in (f"--{name.replace('_', '-')}", "3:6" if name == "share_blocks" else value)
    ]
    assert (
        call(tmp_path / "out", *words, "--no-adain", "--shared-noise", "--true-cfg-scale", 1, "--size", "128x64") == 0
    )
    wanted = levers | {"adain": False, "shared_noise": True, "width": 128, "height": 64, "true_cfg_scale": 1}
    assert wanted.items() <= seen.items()
    assert "negative_prompt" not in seen


def test_a_checkpoint_gets_no_settings_of_the_embedded_model(monkeypatch, tmp_path):
    seen = {}

    class Stop(ValueError):
        pass

    def loaded(*args):
        def call(prompt, **kwargs):
            seen.update(kwargs)
            raise Stop("enough")

        return call

    monkeypatch.setattr(pictures, "load", loaded)
    assert call(tmp_path / "out", "--model", "some/flux") == 2
    assert not {"height", "true_cfg_scale", "max_sequence_length", "negative_prompt"} & set(seen)


def test_nobody_s_files_are_overwritten(tmp_path, capsys):
    (tmp_path / "00.png").write_text("precious")
    assert call(tmp_path) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "00.png").read_text() == "precious"


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--style-prompt", "ink"), "--style-image"),
        (("--style-image", "no-such-file.png"), "--style-image no-such-file.png is no file"),
        (("--style-image", __file__), "is no picture"),
        (("--style-reference", "no-such-file"), "--style-reference no-such-file is no file"),
        (("--style-reference", __file__), "is no file that `StyleReference.save` wrote"),
        (("--save-style", "."), "--save-style . is a folder"),
        (
            ("--model", "no/such/model"),
            "--model no/such/model: there is no such folder, and a Hub id is written OWNER/NAME",
        ),
        (("--device", "gpu"), "--device gpu cannot be used here"),
        (("--model", str(mini.path("sd"))), "StableDiffusionPipeline"),
        (("--style-lambda", "-1"), "--style-lambda"),
        (("--share-start", "0.8", "--share-end", "0.2"), "--share-start"),
        (("--anchor-index", "7"), "--anchor-index"),
        (("--share-blocks", "5:40"), "--share-blocks"),
        (("--share-blocks", "3"), "--share-blocks must be 'single', 'double', 'all' or (lo, hi), received 3"),
        (("--shift", "3"), "--shift must be 'width', 'height', 'none' or one number per position axis, received 3"),
        (("--style-lambda", "high"), "--style-lambda must be a number, received 'high'"),
        (
            ("--model", str(mini.path("flux")), "--negative-prompt", "a cat"),
            "--negative-prompt does nothing with --true-cfg-scale 1. Set --true-cfg-scale above 1",
        ),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, more, text):
    assert call(tmp_path / "out", *more) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("alignext alignedgen: error:") and text in error


def test_one_prompt_and_no_style_is_refused(tmp_path, capsys):
    assert call(tmp_path / "out", prompts=("a red fox",)) == 2
    assert "style" in capsys.readouterr().err


def test_every_lever_is_an_option():
    words = cli.make_parser()._subparsers._group_actions[0].choices["alignedgen"]
    words.parse_known_args(["a", "b", "--out", "out"])
    levers = {field.name: field for field in dataclasses.fields(AlignedGenPipeline._levers)}
    options = {action.dest: action for action in words._actions}
    assert levers.keys() <= options.keys()
    for name, field in levers.items():
        shown = field.default is not None and field.default is not True
        assert options[name].help and ("(default" in options[name].help) == shown
    assert options["share_blocks"].help.startswith("layers that share: single for the single-stream ones")


def test_offload_asks_for_hooks(monkeypatch):
    asked = []
    for name in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        monkeypatch.setattr(FluxPipeline, name, lambda self, device, name=name: asked.append((name, device)))
    for offload in ("model", "sequential"):
        args = argparse.Namespace(model=None, device="cpu", dtype=None, offload=offload, lora=[], model_config=None)
        pictures.load(args, "flux", command._CLASSES)
    assert asked == [("enable_model_cpu_offload", "cpu"), ("enable_sequential_cpu_offload", "cpu")]
