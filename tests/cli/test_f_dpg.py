# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext f-dpg`: its arguments are those of TRL's parser, its rewards functions of a file or a module."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from alignext import cli, mini
from alignext.cli.training import reward


pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning"),
]

REWARDS = """
def length(completions, **kwargs):
    return [len(text) / 10 for text in completions]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "broken.py").write_text("def length(:\n")
    return tmp_path


def words(*more: str) -> list[str]:
    settings = "--use_cpu --bf16 false --max_steps 1 --per_device_train_batch_size 4 --num_generations 4 "
    settings += "--max_completion_length 6 --report_to none --output_dir model"
    return ["f-dpg", *settings.split(), *more]


def test_trains_on_one_prompt_and_says_how_to_load(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "f-dpg.yaml").write_text("divergence: forward_kl\nbeta: 2.0\n")
    more = ["--prompt", "One day", "--reward_funcs", "rewards.py:length", "--config", "f-dpg.yaml"]
    assert cli.main(words(*more)) == 0, capsys.readouterr().err
    assert "AutoModelForCausalLM.from_pretrained('model')" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(folder / "model").config.model_type == "llama"


def test_trains_on_a_file_of_prompts_with_moments(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in ("One day", "Tom ran")))
    more = "--dataset_name prompts.jsonl --reward_funcs rewards.py:length --target distributional --target_moments 2.2"
    assert cli.main(words(*more.split(), "--moment_samples", "16")) == 0, capsys.readouterr().err


def test_a_reward_is_a_function_or_a_model(folder: Path) -> None:
    assert reward("rewards.py:length")(["ten chars!"]) == [1.0]
    assert reward("os.path:basename")("a/b") == "b"
    assert reward(str(mini.path("lm"))) == str(mini.path("lm"))


def test_help_shows_the_fields_of_the_config(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["f-dpg", "--help"])
    assert end.value.code == 0
    answer = capsys.readouterr().out
    for name in ("alignext f-dpg", "--divergence", "--target_moments", "--reward_funcs", "--prompt", "--use_peft"):
        assert name in answer


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--prompt", "a"], "--reward_funcs"),
        (["--reward_funcs", "rewards.py:length"], "--dataset_name"),
        (["--reward_funcs", "rewards.py:length", "--prompt", "a", "--dataset_name", "b"], "Both --prompt"),
        (["--reward_funcs", "nowhere.py:length", "--prompt", "a"], "no file nowhere.py"),
        (["--reward_funcs", "rewards.py:width", "--prompt", "a"], "no function 'width'"),
        (["--reward_funcs", "broken.py:length", "--prompt", "a"], "broken.py, line 1 is no Python"),
        (["--reward_funcs", "rewards.py", "--prompt", "a"], "Write rewards.py:FUNCTION"),
        (["--reward_funcs", "rewards.py:length", "--prompt", "a", "--beta", "0"], "--beta is 0.0"),
    ],
    ids=["reward", "dataset", "both", "file", "function", "syntax", "no function", "beta"],
)
def test_wrong_input_is_named(folder: Path, capsys: pytest.CaptureFixture, more: list[str], named: str) -> None:
    assert cli.main(words(*more)) == 2
    assert named in capsys.readouterr().err
