# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext bco`: its arguments are those of TRL's parser, its data a file, its model the embedded one by default."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from alignext import cli


pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning"),
]


@pytest.fixture
def thumbs(tmp_path: Path) -> Path:
    rows = [
        {"prompt": "One day", "completion": f" Tom {did} it.", "label": did != "lost"}
        for did in ("found", "lost", "liked", "lost")
    ]
    file = tmp_path / "thumbs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def words(thumbs: Path, *more: str) -> list[str]:
    settings = "--use_cpu --bf16 false --max_steps 1 --per_device_train_batch_size 2 --report_to none".split()
    return ["bco", "--dataset_name", str(thumbs), "--output_dir", str(thumbs.parent / "model"), *settings, *more]


def test_trains_and_says_how_to_load(thumbs: Path, capsys: pytest.CaptureFixture) -> None:
    config = thumbs.parent / "bco.yaml"
    config.write_text("reward_shift: running_mean\nlearning_rate: 1.0e-3\n")
    assert cli.main(words(thumbs, "--config", str(config))) == 0, capsys.readouterr().err
    folder = str(thumbs.parent / "model")
    assert f"AutoModelForCausalLM.from_pretrained({folder!r})" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "llama"


def test_help_shows_the_fields_of_the_config(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["bco", "--help"])
    assert end.value.code == 0
    answer = capsys.readouterr().out
    for name in ("alignext bco", "--reward_shift", "--udm_embedding", "--dataset_name", "--use_peft", "--config"):
        assert name in answer
    places = [
        answer.index(word)
        for word in ("first:", "--output_dir", "options of bco:", "--reward_shift", "--dataset_config")
    ]
    assert places == sorted(places)


def test_a_wrong_option_is_not_lost_below_all_others(thumbs: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.main(words(thumbs, "--learning_rate", "fast"))
    usage, error = capsys.readouterr().err.strip().splitlines()
    assert usage.startswith("usage: alignext bco") and "'fast'" in error


def test_arguments_are_left_alone_until_it_runs() -> None:
    args = cli.make_parser().parse_args(["bco", "--debug", "--beta", "0.2", "--config", "x.yaml"])
    assert args.words == ["--beta", "0.2", "--config", "x.yaml"]
    assert args.debug and args.command == "bco"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--dataset_name", "nowhere.jsonl"], "nowhere.jsonl is no file"),
        (["--dataset_train_split", "half"], "no split 'half', only train. Name one with --dataset_train_split"),
        (["--eval_strategy", "epoch"], "leave --eval_strategy out"),
        (["--beta", "0"], "--beta is 0.0"),
    ],
    ids=["file", "split", "no test split", "beta"],
)
def test_wrong_input_is_named(thumbs: Path, capsys: pytest.CaptureFixture, more: list[str], named: str) -> None:
    assert cli.main(words(thumbs, *more)) == 2
    assert named in capsys.readouterr().err


def test_a_config_that_is_no_yaml(thumbs: Path, capsys: pytest.CaptureFixture) -> None:
    (config := thumbs.parent / "run.yaml").write_text("beta: [0.1\n")
    assert cli.main(words(thumbs, "--config", str(config))) == 2
    assert "run.yaml is no YAML" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("empty.jsonl", "", "empty.jsonl cannot be read as json: it holds no rows"),
        ("broken.jsonl", '{"prompt": "a", ', "broken.jsonl cannot be read as json: "),
        ("rows.txt", "a", "rows.txt is none of .json, .jsonl, .csv, .parquet"),
    ],
)
def test_files_without_rows(tmp_path: Path, capsys: pytest.CaptureFixture, name: str, text: str, named: str) -> None:
    (tmp_path / name).write_text(text)
    assert cli.main(words(tmp_path / name)) == 2
    assert named in capsys.readouterr().err


def test_needs_a_dataset(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["bco", "--use_cpu", "--bf16", "false"]) == 2
    assert "--dataset_name" in capsys.readouterr().err
