# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext steer`: from pairs to vectors to steered text."""

import json
from pathlib import Path

import pytest
import torch

from alignext import SteeringVector, cli, mini


MODEL = str(mini.path("lm"))
PAIRS = [
    {"prompt": "Lily went out.", "positive": f"She was {good}.", "negative": f"She was {bad}."}
    for good, bad in (("happy", "sad"), ("glad", "angry"), ("kind", "mean"), ("good", "bad"))
]


def write(folder: Path, *lines: str) -> str:
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return str(folder / "pairs.jsonl")


def test_fit_then_apply(tmp_path: Path, capsys: pytest.CaptureFixture):
    pairs = write(tmp_path, *(json.dumps(row) for row in PAIRS), "")
    out = tmp_path / "vectors"
    fit = ["steer", "fit", "--model", MODEL, "--pairs", pairs, "--layers", "2,3", "--out", str(out)]
    assert cli.main(fit) == 0
    assert sorted(path.name for path in out.iterdir()) == ["layer-2.safetensors", "layer-3.safetensors"]
    vector = SteeringVector.load(out / "layer-3.safetensors")
    assert vector.mu_positive > vector.boundary > vector.mu_negative
    assert "layer-3.safetensors" in capsys.readouterr().out
    apply = ["steer", "apply", "--model", MODEL, "--vector", str(out / "layer-3.safetensors"), "--max-new-tokens", "8"]
    texts = {}
    for alpha in ("0", "8"):
        assert cli.main([*apply, "--prompt", "Tom was", "--method", "swfc", "--alpha", alpha]) == 0
        texts[alpha] = [line.split(": ", 1)[1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert texts["0"][0] == texts["0"][1] == texts["8"][0] != texts["8"][1]
    assert cli.main(fit) == 2
    assert "is there already" in capsys.readouterr().err


def test_sweep_and_page(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for layer in (2, 3):
        direction = torch.randn(288, generator=torch.Generator().manual_seed(layer))
        sv = SteeringVector(direction, layer, boundary=0.0, mu_positive=1.0, mu_negative=-1.0)
        sv.save(tmp_path / f"layer-{layer}.safetensors")
    (tmp_path / "score.py").write_text("def letters(texts):\n    return [len(text) for text in texts]\n")
    sweep = ["steer", "sweep", "--model", MODEL, "--vectors", str(tmp_path), "--prompt", "Tom was"]
    words = ["--trait", "score.py:letters", "--alphas", "0", "2", "--methods", "swfc", "--max-new-tokens", "4"]
    assert cli.main([*sweep, *words, "--out", "table.csv"]) == 0, capsys.readouterr().err
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[0] == "layer,method,alpha,trait,coherence" and len(lines) == 6
    assert lines[1].split(",")[3:] == lines[2].split(",")[3:]  # strength 0 is the plain model
    assert "<- the most of the trait" in capsys.readouterr().out
    assert cli.main([*sweep, "--trait", "score.py:none"]) == 2
    assert "--trait" in capsys.readouterr().err
    apply = ["steer", "apply", "--model", MODEL, "--vector", "layer-2.safetensors", "--prompt", "Tom was"]
    assert cli.main([*apply, "--max-new-tokens", "4", "--html", "page.html"]) == 0, capsys.readouterr().err
    assert (tmp_path / "page.html").read_text().count("<span") >= 4


MISTAKES = {
    "no file": (None, [], "is no file"),
    "no JSON": (["{"], [], "line 1, is no JSON"),
    "no object": (["[]"], [], "line 1, must be an object"),
    "too few": ([json.dumps(PAIRS[0])], [], "at least 4 rows"),
    "a column": ([json.dumps(row | {"negative": None}) for row in PAIRS], [], "`negative`"),
    "a layer": ([json.dumps(row) for row in PAIRS], ["--layers", "99"], "must be within 0 and 5"),
}


@pytest.mark.parametrize(("lines", "words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(lines, words, message, tmp_path: Path, capsys: pytest.CaptureFixture):
    pairs = str(tmp_path / "none.jsonl") if lines is None else write(tmp_path, *lines)
    out = tmp_path / "vectors"
    assert cli.main(["steer", "fit", "--model", MODEL, "--pairs", pairs, "--out", str(out), *words]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_vector_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["steer", "apply", "--model", MODEL, "--vector", str(tmp_path / "none"), "--prompt", "Tom"]
    assert cli.main(words) == 2
    assert "--vector" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "layer-2.safetensors").touch()
    assert cli.main(words) == 2
    assert "Name one of the vectors in it: layer-2.safetensors" in capsys.readouterr().err
