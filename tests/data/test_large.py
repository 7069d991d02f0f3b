# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Scores of many rows: a hundred thousand, interrupted halfway, and rows cut among real processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from alignext.data import add_ches_scores
from alignext.data.ches import _score

from ..trainers.contract import MINI_LM
from ..trainers.launch import TWO
from ..trainers.steering import tiny_folder


pytestmark = pytest.mark.slow


def answers(count: int) -> Dataset:
    """Pairs whose answers are numbers in words, no two rows alike."""
    names = ("one two three four five six seven eight nine ten").split()
    said = [" ".join(names[int(digit)] for digit in str(i)) for i in range(count)]
    rows = {"prompt": ["Tom said:"] * count, "chosen": [f" {text}." for text in said], "rejected": [" no."] * count}
    return Dataset.from_dict(rows)


def test_a_hundred_thousand_rows_are_interrupted_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """The bar counts rows, no row is scored twice, none is lost, and both halves have the scores of one run."""
    count, size = 100_000, 512
    tokenizer = AutoTokenizer.from_pretrained(MINI_LM)
    torch.manual_seed(0)
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **tiny)).eval()
    data, calls = answers(count), []

    def counted(model: torch.nn.Module, rows: list, **kwargs) -> dict:
        if len(calls) == 100:
            calls.append(0)
            raise KeyboardInterrupt
        calls.append(len(rows))
        return _score(model, rows, **kwargs)

    monkeypatch.setattr("alignext.data.ches._score", counted)
    settings = {"processing_class": tokenizer, "cache": tmp_path / "kept", "batch_size": size}
    with pytest.raises(KeyboardInterrupt):
        add_ches_scores(model, data, **settings)
    bar = capsys.readouterr().err
    assert "51200/100000" in bar and "row" in bar
    scored = add_ches_scores(model, data, **settings)
    assert sum(calls) == count and len(scored) == count
    assert "100000/100000" in capsys.readouterr().err
    assert set(scored["ches_note"][:]) == {""}
    places = [0, 51_199, 51_200, 99_999]  # both sides of the break
    alone = add_ches_scores(model, data.select(places), processing_class=tokenizer, progress=False)
    assert [scored[i]["ln_ches"] for i in places] == pytest.approx(list(alone["ln_ches"]), rel=1e-4)


@pytest.mark.parametrize("command", ["ches", "gist"])
def test_two_processes_write_what_one_writes(command: str, tmp_path: Path):
    """Both are started as `accelerate launch` starts them; the main one writes the file."""
    folder = tiny_folder()
    rows = answers(1300)  # three blocks
    if command == "gist":
        rows = rows.remove_columns("rejected").rename_column("chosen", "completion").select(range(600))
        rows.select(range(4)).to_json(tmp_path / "task.jsonl")
    rows.to_json(tmp_path / "rows.jsonl")
    more = ["--target", str(tmp_path / "task.jsonl")] if command == "gist" else []
    found = []
    for name, launcher in (("one", []), ("two", TWO)):
        out = tmp_path / f"{name}.jsonl"
        what = [command, str(tmp_path / "rows.jsonl"), "--model", folder.name, "--out", str(out), *more]
        answer = subprocess.run(
            [sys.executable, *launcher, "-m", "alignext", *what], capture_output=True, text=True, cwd=tmp_path
        )
        assert answer.returncode == 0, answer.stderr[:6000]
        found.append([json.loads(line) for line in out.read_text().splitlines()])
    one, two = found
    assert len(one) == len(rows)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert b[name] == (pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value)
    assert load_dataset("json", data_files=str(tmp_path / "two.jsonl"), split="train").num_rows == len(rows)
