# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext fade` and `alignext segment` as a user runs them, in process."""

import json
from pathlib import Path

import pytest
from PIL import Image

from alignext import cli, mini


LM, SD = str(mini.path("lm")), str(mini.path("sd"))


def test_two_language_models_are_compared(tmp_path: Path, capsys):
    out = tmp_path / "fade.json"
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Once"}\n\n{"prompt": [{"role": "user", "content": "Tom"}]}\n')
    words = ["fade", "--model", LM, "--reference", LM, "--prompts", str(tmp_path / "prompts.jsonl")]
    words += ["--baseline", f"again={LM}", "--num-samples", "2", "--max-new-tokens", "3", "--out", str(out)]
    assert cli.main([*words, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "forward" in said and "again" in said and "num_samples 2" in said
    found = json.loads(out.read_text())
    assert found["total"][0] == 0 and found["baselines"]["again"]["total"][0] == 0 and found["settings"]["seed"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", LM, "--reference", LM], "There is no prompt"),
        (
            ["--model", LM, "--reference", SD, "--prompt", "a"],
            "--reference is a pipeline, but --model a language model",
        ),
        (["--model", LM, "--reference", LM, "--prompt", "a", "--num-timesteps", "3"], "has no meaning for texts"),
        (["--model", SD, "--reference", SD, "--prompt", "a", "--max-new-tokens", "3"], "has no meaning for pictures"),
        (["--model", "nowhere", "--reference", LM, "--prompt", "a"], "--model nowhere: there is no such folder"),
        (["--model", LM, "--reference", LM, "--prompts", "nowhere"], "--prompts nowhere is no file"),
    ],
)
def test_bad_input_of_fade(words: list[str], message: str, capsys):
    assert cli.main(["fade", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_baseline_needs_its_name(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fade", "--model", LM, "--reference", LM, "--prompt", "a", "--baseline", LM])
    assert "must be NAME=MODEL" in capsys.readouterr().err


def test_a_picture_is_segmented(tmp_path: Path, capsys):
    drawing = next(p for p in mini.pictures("train") if p.concept == "red fox")
    out = tmp_path / "found"
    words = ["segment", str(drawing.path), "--classes", "red fox", "--prompt", "a red fox", "--out", str(out)]
    assert cli.main([*words, "--steps", "2", "--device", "cpu"]) == 0
    assert "red fox: " in capsys.readouterr().out
    with Image.open(out / "label_map.png") as labels:
        colors = {color for _, color in labels.getcolors()}
    assert labels.size == drawing.image.size and colors <= {0, 1}
    assert (out / "index.html").is_file() and (out / "01.png").is_file()


def test_bad_input_of_segment(tmp_path: Path, capsys):
    drawing = str(next(iter(mini.pictures("train"))).path)
    common = ["segment", drawing, "--classes", "red fox", "cup", "--out", str(tmp_path / "found"), "--device", "cpu"]
    assert cli.main([*common, "--prompt", "a red fox"]) == 2
    assert "'cup', which does not stand in the prompt" in capsys.readouterr().err
    assert cli.main([*common, "--guidance-scale", "3"]) == 2
    assert "--guidance-scale has no meaning here" in capsys.readouterr().err
