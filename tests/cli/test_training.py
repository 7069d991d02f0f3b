# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What the commands that train share: options that do not exist, the CPU, splits, files and trackers."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset
from trl import DatasetMixtureConfig, ScriptArguments

from alignext import BCOConfig, cli, mini
from alignext.cli import rows, training


pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning"),
]
COMMANDS = list(training.TRAININGS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bare_command_asks_for_what_is_missing(name: str, capsys: pytest.CaptureFixture) -> None:
    """Not for bf16 on a machine without a GPU."""
    assert cli.main([name]) == 2
    missing = "Pass --reward_funcs" if name in ("f-dpg", "alignprop", "ddpo") else "Pass --dataset_name"
    assert missing in capsys.readouterr().err


def test_the_cpu_is_found_out_and_can_be_asked_for(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("bf16: true\n")
    _, found, *_ = training.parse("bco", ["--output_dir", str(tmp_path)])
    assert found.use_cpu and not found.bf16
    _, found, *_ = training.parse("bco", ["--config", str(config)])
    assert found.bf16


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--learning_rat", "3"], "There is no option --learning_rat. Did you mean --learning-rate?"),
        (["--learn", "3"], "There is no option --learn."),
        (["--dataset_nam=x"], "There is no option --dataset_nam. Did you mean --dataset-name?"),
        (["--config", "run.yaml"], "There is no option learning_rat in --config. Did you mean --learning-rate?"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml is no file"),
        (["--output_dir", "two", "words"], "'words' belongs to no option"),
        (["--dataset_name", "nowhere/at/all"], "--dataset_name nowhere/at/all is no folder, and no Hub id"),
        (["--report_to", "wandb"], "--report_to wandb needs the package wandb"),
    ],
)
def test_what_does_not_exist_is_named(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("learning_rat: 3\n")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    assert cli.main(["bco", *words]) == 2
    assert (
        said.replace("-rate", "_rate") in (error := capsys.readouterr().err.replace("-rate", "_rate")) or said in error
    )


def splits(size: float | None, strategy: str = "no", **splits: Dataset) -> dict:
    config = BCOConfig(output_dir="unused", use_cpu=True, bf16=False, eval_strategy=strategy, eval_steps=1)
    dataset = splits or {"train": Dataset.from_dict({"n": list(range(10))})}
    return rows.splits(dataset, ScriptArguments(), config, DatasetMixtureConfig(test_split_size=size))


def test_rows_of_a_file_are_held_out() -> None:
    found = splits(0.2, "steps")
    train, test = set(found["train_dataset"]["n"]), set(found["eval_dataset"]["n"])
    assert (len(train), len(test)) == (8, 2) and not train & test
    assert found["eval_dataset"]["n"] == splits(0.2, "steps")["eval_dataset"]["n"]
    assert len(splits(None)["train_dataset"]) == 10 and len(splits(0.2)["train_dataset"]) == 8
    with pytest.raises(ValueError, match="hold rows out with --test_split_size"):
        splits(None, "steps")


def test_a_split_that_is_there_is_taken() -> None:
    one, two = Dataset.from_dict({"n": [1]}), Dataset.from_dict({"n": [2]})
    found = splits(0.2, "steps", train=one, test=two)
    assert (found["train_dataset"], found["eval_dataset"]) == (one, two)


def test_a_file_in_latin_1_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    line = json.dumps({"prompt": "a", "completion": "caf\u00e9", "label": True}, ensure_ascii=False)
    (tmp_path / "thumbs.jsonl").write_bytes((line + "\n").encode("latin-1"))
    assert cli.main(["bco", "--dataset_name", str(tmp_path / "thumbs.jsonl")]) == 2
    said = f"--dataset_name {tmp_path}/thumbs.jsonl is not UTF-8: byte 0xe9 in line 1. Convert it: iconv"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nowhere", "--model_name_or_path nowhere: there is no such folder, and a Hub id is written OWNER/NAME"),
        ("someone/model", "it is not in the cache of the Hub, and HF_HUB_OFFLINE is set"),
        (str(mini.path("sd")), "is a folder without config.json or adapter_config.json, so no language model"),
    ],
)
def test_a_model_that_is_not_there(model: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "thumbs.jsonl").write_text(json.dumps({"prompt": "a", "completion": " b", "label": True}))
    words = ["--dataset_name", str(tmp_path / "thumbs.jsonl"), "--output_dir", str(tmp_path / "out")]
    assert cli.main(["bco", *words, "--model_name_or_path", model]) == 2
    assert said in capsys.readouterr().err


def test_a_plain_model_writes(capsys: pytest.CaptureFixture) -> None:
    words = ["--model", str(mini.path("lm")), "--prompt", "One day", "--max-new-tokens", "4"]
    assert cli.main(["generate", *words]) == 0
    assert capsys.readouterr().out.startswith("One day")
    assert cli.main(["generate", *words, "--objective-weights", "a=1"]) == 2
    assert "--objective-weights needs objective heads, but --model" in capsys.readouterr().err


@pytest.mark.invariant
@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    """`--num_processes 2` with half the rows in each: the same updates, of one run folder."""
    rows = [
        {"prompt": "One day", "completion": f" Tom {did} it.", "label": did != "lost"} for did in ("found", "lost")
    ]
    (tmp_path / "thumbs.jsonl").write_text("\n".join(map(json.dumps, rows * 4)))
    words = "--dataset_name thumbs.jsonl --max_steps 2 --save_steps 2 --logging_steps 1 --report_to none".split()
    for name, size, more in (("one", "4", []), ("two", "2", ["--num_processes", "2"])):
        command = [sys.executable, "-m", "alignext", "bco", *words, "--per_device_train_batch_size", size]
        answer = subprocess.run(
            [*command, "--output_dir", name, *more], cwd=tmp_path, capture_output=True, text=True, timeout=1200
        )
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.count("Saved. Load it with:") == 1
    one, two = (
        json.loads((tmp_path / name / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
        for name in ("one", "two")
    )
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-3)
        assert len(one) == 2


def test_processes_are_started_as_accelerate_starts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    seen: list[list[str]] = []
    code = [0]

    def run(words: list[str]) -> SimpleNamespace:
        seen.append(words)
        return SimpleNamespace(returncode=code[0])

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(training, "subprocess", SimpleNamespace(run=run))
    words = ["bco", "--dataset_name", "thumbs.jsonl", "--output_dir", str(tmp_path), "--num_processes", "2"]
    assert cli.main(words) == 0
    (started,) = seen
    assert started[1:] == [
        *"-m accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0 -m alignext".split(),
        *words,
    ]
    code[0] = 3
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 3
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert cli.main([*words, "--use_cpu", "false"]) == 2
    assert "--num_processes 2 needs a GPU each, and there are 1" in capsys.readouterr().err
