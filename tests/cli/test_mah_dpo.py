# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext mah-dpo` and `alignext generate`: from a file of pairs to text with chosen weights."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from alignext import cli, mini
from alignext.cli.generate import parse_weights


pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained through the command, for one step."""
    folder = tmp_path_factory.mktemp("mah-dpo")
    rows = [
        {"prompt": "One day", "chosen": f" Tom {did} it.", "rejected": " No.", "objective": name}
        for did in ("found", "liked")
        for name in ("kind", "long")
    ]
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    config = folder / "mah-dpo.yaml"
    config.write_text("head_type: low_rank\nhead_rank: 4\nobjective_loss_weights:\n  kind: 2\n")
    settings = "--use_cpu --bf16 false --max_steps 1 --per_device_train_batch_size 2 --report_to none".split()
    words = ["--dataset_name", str(file), "--output_dir", str(folder / "model"), "--config", str(config), *settings]
    assert cli.main(["mah-dpo", *words]) == 0
    return folder / "model"


def test_says_how_to_load_and_to_write(trained: Path) -> None:
    saved = json.loads((trained / "config.json").read_text())["objective_heads"]
    assert saved["objectives"] == ["kind", "long"] and saved["head_type"] == "low_rank" and saved["rank"] == 4


def test_writes_with_weights_and_merges(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Lily had\nThe dog\n")
    merged = tmp_path / "merged"
    words = f"--model {trained} --objective-weights kind=.7,long=.3 --prompts {prompts} --max-new-tokens 4".split()
    assert cli.main(["generate", *words, "--prompt", "Tom", "--temperature", "0", "--merge-to", str(merged)]) == 0
    answer = capsys.readouterr().out
    assert all(f"{prompt} " in answer for prompt in ("Tom", "Lily had", "The dog"))
    assert "from_pretrained" in answer
    assert not hasattr(AutoModelForCausalLM.from_pretrained(merged).config, "objective_heads")
    assert cli.main(["generate", *words, "--chat"]) == 0


def test_weights_are_read() -> None:
    assert parse_weights("honest=.7, helpful=.3") == {"honest": 0.7, "helpful": 0.3}
    assert parse_weights("a=b=1") == {"a=b": 1.0}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--objective-weights", "brave=1", "--prompt", "x"], "['brave']"),
        ([], "There is no prompt"),
        (["--prompts", "nowhere.txt"], "--prompts nowhere.txt is no file"),
        (["--merge-to", "."], "is there already"),
    ],
    ids=["name", "prompt", "file", "folder"],
)
def test_wrong_input_is_named(trained: Path, capsys: pytest.CaptureFixture, more: list[str], named: str) -> None:
    assert cli.main(["generate", "--model", str(trained), *more]) == 2
    assert named in capsys.readouterr().err


def test_a_model_without_heads_is_not_merged(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--model", str(mini.path("lm")), "--reward", "x", "--merge-to", str(tmp_path / "merged")]
    assert cli.main(["generate", *words]) == 2
    assert "--merge-to" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--objective-weights", "honest"], "'honest' is not NAME=WEIGHT"),
        (["--temperature", "-1"], "--temperature: must be in [0, 100], got -1"),
        (["--top-p", "7"], "--top-p: must be in [0, 1], got 7"),
        (["--dtype", "float8"], "invalid choice: 'float8'"),
        (["--candidates", "0"], "must be at least 1, got 0"),
    ],
    ids=["weights", "temperature", "top-p", "dtype", "candidates"],
)
def test_wrong_values_are_shown(capsys: pytest.CaptureFixture, more: list[str], named: str) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["generate", "--model", "x", *more])
    assert end.value.code == 2
    assert named in capsys.readouterr().err


def test_help_shows_the_fields_of_the_config(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["mah-dpo", "--help"])
    assert end.value.code == 0
    answer = capsys.readouterr().out
    for name in (
        "alignext mah-dpo",
        "--objective_sampling",
        "--head_rank",
        "--dataset_name",
        "--use_peft",
        "--config",
    ):
        assert name in answer
