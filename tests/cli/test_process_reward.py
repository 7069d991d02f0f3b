# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext process-reward`: its data a file, its model the embedded one by default."""

import json
from pathlib import Path

import pytest

from alignext import cli, mini
from alignext.rewards.process import ProcessReward


pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning"),
]


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    rows = [
        {"prompt": "One day", "steps": [f"Tom {did} it.", "He ran."], "labels": [label, None]}
        for did, label in (("found", 1.0), ("lost", 0.0), ("liked", 0.8), ("hid", 0.1))
    ]
    file = tmp_path / "stories.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def words(stories: Path, *more: str) -> list[str]:
    settings = "--use_cpu --bf16 false --max_steps 1 --per_device_train_batch_size 2 --report_to none".split()
    folder = str(stories.parent / "reward")
    return ["process-reward", "--dataset_name", str(stories), "--output_dir", folder, *settings, *more]


@pytest.mark.parametrize(
    "more", [[], ["--use_peft", "--lora_target_modules", "q_proj", "v_proj"]], ids=["full", "lora"]
)
def test_trains_and_says_how_to_load(stories: Path, capsys: pytest.CaptureFixture, more: list[str]) -> None:
    config = stories.parent / "reward.yaml"
    config.write_text("loss_type: mse\nlearning_rate: 1.0e-3\n")
    assert cli.main(words(stories, "--config", str(config), *more)) == 0, capsys.readouterr().err
    folder = str(stories.parent / "reward")
    assert f"ProcessReward.from_pretrained({folder!r})" in capsys.readouterr().out
    reward = ProcessReward.from_pretrained(folder)
    assert reward.loss_type == "mse"
    assert len(reward.scores(["One day"], [["Tom ran.", "He fell."]])[0]) == 2
    prompt = ["--prompt", "One day, Amy", "--max-new-tokens", "12", "--candidates", "2"]
    assert cli.main(["generate", "--model", str(mini.path("lm")), "--reward", folder, *prompt]) == 0
    assert capsys.readouterr().out.startswith("One day, Amy")


def test_help_shows_the_fields_of_the_config(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["process-reward", "--help"])
    assert end.value.code == 0
    answer = capsys.readouterr().out
    for name in ("alignext process-reward", "--loss_type", "--step_separator", "--dataset_name", "--use_peft"):
        assert name in answer


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--dataset_train_split", "half"], "no split 'half', only train"),
        (["--loss_type", "ce"], "loss_type"),
        (["--max_length", "2"], "--max_length=2"),
    ],
    ids=["split", "loss", "length"],
)
def test_wrong_input_is_named(stories: Path, capsys: pytest.CaptureFixture, more: list[str], named: str) -> None:
    try:
        assert cli.main(words(stories, *more)) == 2
    except SystemExit as end:  # of the parser
        assert end.code == 2
    assert named in capsys.readouterr().err
