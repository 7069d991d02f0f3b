# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext cdas`: its data a file, its model the embedded one by default."""

from pathlib import Path

import pytest

from alignext import SteeringVector, cli, mini

from ..trainers.steering import quads


def test_trains_and_says_how_to_load(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    quads().select(range(4)).to_json(str(tmp_path / "quads.jsonl"))
    settings = "--use_cpu --max_steps 1 --per_device_train_batch_size 2 --report_to none --layer 2".split()
    folder = tmp_path / "trained"
    words = ["cdas", "--dataset_name", str(tmp_path / "quads.jsonl"), "--output_dir", str(folder), *settings]
    assert cli.main(words) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert f'SteeringVector.load("{folder}/steering.safetensors")' in said and "Loss without intervention" in said
    vector = SteeringVector.load(folder / "steering.safetensors")
    assert (vector.layer, vector.method) == (2, "clamp") and vector.mu_positive > vector.mu_negative
    apply = ["steer", "apply", "--model", str(mini.path("lm")), "--vector", str(folder / "steering.safetensors")]
    assert cli.main([*apply, "--prompt", "Tom was", "--max-new-tokens", "3"]) == 0
    assert "clamp: " in capsys.readouterr().out
    assert cli.main([*words, "--use_peft"]) == 2
    assert "a vector is trained" in capsys.readouterr().err
