# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext search` as a person types it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import alignext.demos.search as demo
from alignext import cli, mini
from tests.pipelines.latent_search.tiny_models import build


CPU2 = Path(__file__).parents[2] / "examples" / "accelerate_configs" / "cpu2.yaml"
SMALL = ("--beams", "2", "--candidates", "2", "--lookahead", "1", "--steps", "3", "--device", "cpu")


def call(out, *more, prompts=("a red fox, flat style",), reward="style"):
    return cli.main(["search", *prompts, "--reward", reward, "--out", str(out), *SMALL, *more])


def history(folder):
    document = json.loads((folder / "search.json").read_text())
    return document["results"]


def test_embedded_model(tmp_path, capsys):
    assert call(tmp_path / "out", "-n", "2", prompts=("a red fox, flat style", "an apple, ink style")) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"index.html", "search.json"} | {f"{k:02d}-{i}.png" for k in (0, 1) for i in ("00", "01", "beams")}
    assert str((tmp_path / "out" / "index.html").resolve()) in capsys.readouterr().out
    first, second = history(tmp_path / "out")
    assert first["prompt"] == "a red fox, flat style" and (first["seed"], second["seed"]) == (0, 1)
    assert first["interrupted"] is False
    assert first["rewards"] == sorted(first["rewards"], reverse=True) and first["nfe"] == 2 + 2 * 4
    assert [entry["node"] for entry in first["history"]] == [1, 2] and len(first["history"][0]["parents"]) == 4
    assert call(tmp_path / "again", prompts=("an apple, ink style",), reward="style") == 0
    assert history(tmp_path / "again")[0]["rewards"] != second["rewards"][:1]  # another seed
    assert call(tmp_path / "seeded", "--seed", "1", prompts=("an apple, ink style",)) == 0
    assert history(tmp_path / "seeded")[0]["rewards"][0] == pytest.approx(second["rewards"][0], abs=1e-4)


def test_video_and_a_reward_of_ones_own(tmp_path, monkeypatch):
    pipe, _ = build("latte")
    monkeypatch.setattr("alignext.cli.pictures.load", lambda *args: pipe)
    more = ("--model", "some/video", "--frames", "2", "--size", "16x16")
    assert call(tmp_path / "out", *more, reward="alignext.rewards:dynamics") == 0
    with Image.open(tmp_path / "out" / "00-00.gif") as video:
        assert video.n_frames == 2
    assert 'src="00-00.gif"' in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.slow
def test_the_demo_shows_clips(monkeypatch):
    """With a random model in the place of mini-video, for speed."""
    pipe, call = build("latte")
    monkeypatch.setattr(demo, "DiffusionPipeline", SimpleNamespace(from_pretrained=lambda path: pipe))
    monkeypatch.setattr(mini, "VIDEO_CALL", {name: call[name] for name in ("height", "width", "video_length")})
    section = demo._video_section(seed=0, steps=2)
    (clips,) = section.figures
    assert clips.file.endswith(".gif") and len(clips.image) == call["video_length"]
    evaluations = [row[1] for row in section.tables[0].rows]
    assert evaluations[0] == 2 and evaluations[1] == 16


def test_a_negative_prompt_for_flux(tmp_path, capsys):
    """Counts with guidance of two calls only, and that in its turn needs one: an empty one where none is given."""
    more = ("--model", str(mini.path("flux")), "--size", "32x32", "--steps", "2", "--beams", "1", "--candidates", "1")
    assert call(tmp_path / "out", *more, "--negative-prompt", "a cat", reward="brightness") == 2
    error = capsys.readouterr().err
    assert "--negative-prompt does nothing with --true-cfg-scale 1. Set --true-cfg-scale above 1" in error
    made = {}
    for name, guided in {
        "plain": (),
        "guided": ("--true-cfg-scale", "5"),
        "empty": ("--true-cfg-scale", "5", "--negative-prompt", ""),
        "away": ("--true-cfg-scale", "5", "--negative-prompt", "a red fox, flat style"),
    }.items():
        assert call(tmp_path / name, *more, *guided, reward="brightness") == 0
        made[name] = Image.open(tmp_path / name / "00-00.png").tobytes()
    # Away from the prompt itself there is nowhere to go.
    assert made["guided"] == made["empty"] != made["away"] == made["plain"]


def test_interrupted(tmp_path, monkeypatch):
    calls = []

    def reward(images, prompts):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return images.mean((1, 2, 3))

    monkeypatch.setattr("alignext.rewards.by_name.reward_of", lambda *args, **kwargs: reward)
    assert call(tmp_path / "out") == 0
    assert history(tmp_path / "out")[0]["interrupted"]
    assert "Interrupted: the best so far." in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    "more, text",
    [
        (("--reward", "beauty"), "--reward must be one of aesthetic, brightness"),
        (("--reward", "aesthetic"), "needs --head"),
        (("--reward", "beauty.py"), "Write beauty.py:FUNCTION"),
        (("--reward", "beauty.py:dark"), "there is no file beauty.py"),
        (("--reward", "beauty:dark"), "A file is written as file.py:dark"),
        (
            ("--model", "no/such/model"),
            "--model no/such/model: there is no such folder, and a Hub id is written OWNER/NAME",
        ),
        (("--device", "gpu"), "--device gpu cannot be used here"),
        (("-n", "3"), "3 outputs per prompt were asked for and 2 survive with --strategy 'beam'. Raise --beams"),
        (("-n", "2", "--strategy", "greedy"), "whatever the budget. Take 'beam', or ask for one."),
        (("--negative-prompt", "a cat", "--guidance-scale", "1"), "does nothing with --guidance-scale 1. Set"),
        (("--true-cfg-scale", "3"), "StableDiffusionPipeline takes no true_cfg_scale"),
        (("--eta", "0"), "all candidates of a beam would be equal"),
        (("--frames", "4"), "StableDiffusionPipeline takes no num_frames"),
        (("--noise", "flow_grpo"), "is for flow models"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, capsys, more, text):
    assert call(tmp_path / "out", *more) == 2
    assert text in capsys.readouterr().err


def test_a_caption_that_the_judge_does_not_know(tmp_path, capsys):
    assert call(tmp_path / "out", prompts=("a masterpiece",)) == 2
    assert "finds no style that it knows in 'a masterpiece'" in capsys.readouterr().err


REWARD = """
import os

def dark(images, prompts):
    with open(f"seen-{os.environ.get('RANK', 'alone')}", "a") as file:
        file.write(prompts[0] + "\\n")
    return -images.mean((1, 2, 3))
"""


@pytest.mark.invariant
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["beam", "smc"])
def test_two_processes_find_what_one_finds(tmp_path, strategy):
    """Prompts are shared out; a prompt's search depends on its own seed only."""
    (tmp_path / "rewards.py").write_text(REWARD)
    prompts = ("a red fox, flat style", "an apple, ink style", "a house, blob style")
    arguments = ["-m", "alignext", "search", *prompts, "--reward", "rewards:dark", "--strategy", strategy, *SMALL[:-2]]
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(CPU2), "--main_process_port", "0"]
    for name, launcher in (("one", []), ("two", launch)):
        command = [sys.executable, *launcher, *arguments, "--out", name]
        answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert answer.returncode == 0, answer.stderr
    seen = {file.name: set(file.read_text().splitlines()) for file in tmp_path.glob("seen-*")}
    assert seen == {"seen-alone": {*prompts}, "seen-0": {*prompts[:2]}, "seen-1": {prompts[2]}}
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert [result["prompt"] for result in two] == list(prompts)
    for ours, theirs in zip(one, two, strict=True):
        assert [e["parents"] for e in ours["history"]] == [e["parents"] for e in theirs["history"]]
        assert ours["rewards"] == pytest.approx(theirs["rewards"], abs=1e-4)
    assert sorted(os.listdir(tmp_path / "one")) == sorted(os.listdir(tmp_path / "two"))
