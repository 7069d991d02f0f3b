# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext d2-align fit`."""

import pytest
import torch

from alignext import DirectionalReward, cli, mini
from alignext.rewards import CLIPReward


def test_fits_and_writes_what_the_reward_loads(tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red fox\n\na rocket\n")
    words = ["--steps", "2", "--fit-steps", "20", "--batch-size", "2", "--guidance-scale", "1.25"]
    assert cli.main(["d2-align", "fit", "--prompts", str(prompts), *words, "--out", str(tmp_path / "out")]) == 0
    found = DirectionalReward.from_pretrained(tmp_path / "out", CLIPReward(mini.path("clip")))
    assert found.guidance_scale == 1.25 and 0 < found.direction.norm() <= 0.3 + 1e-6
    assert found(torch.rand(1, 3, 64, 64), ["a red fox"]).isfinite().all()
    said = capsys.readouterr().out
    assert "margin" in said and "DirectionalReward.from_pretrained" in said


@pytest.mark.parametrize(
    "text, words, expected",
    [
        (None, [], "is no file. Pass one with a prompt per line"),
        ("a fox\na fox\n", [], "must have two different prompts or more, found 1"),
        ("a fox\na dog\n", ["--model", "nowhere"], "--model nowhere"),
        ("a fox\na dog\n", ["--reward", "hps"], "hps needs --clip"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, text, words, expected):
    prompts = tmp_path / "prompts.txt"
    if text is not None:
        prompts.write_text(text)
    assert cli.main(["d2-align", "fit", "--prompts", str(prompts), *words, "--out", str(tmp_path / "out")]) == 2
    assert expected in capsys.readouterr().err
