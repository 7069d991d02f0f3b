# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext ches` and `alignext gist`: rows in, rows and a report out; interrupted, and gone on with."""

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model

from alignext import cli
from alignext.data.counts import histogram, quantiles, spearman

from ..trainers.contract import STORIES, preference
from ..trainers.steering import tiny_folder, tiny_lm


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = preference().to_list()
    rows[3]["chosen"] = None
    Dataset.from_list(rows).to_json(str(tmp_path / "pairs.jsonl"))
    return tmp_path / "pairs.jsonl"


def test_pairs_are_scored_filtered_and_reported(pairs: Path, capsys: pytest.CaptureFixture):
    out, report = pairs.parent / "kept.parquet", pairs.parent / "report"
    words = ["ches", str(pairs), "--model", tiny_folder().name, "--out", str(out), "--drop-top", "0.25", "--rows", "2"]
    assert cli.main([*words, "--report", str(report)]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    for text in ("ln_ches of 7 rows, 1 without (1: a cell is null)", "50%:", "The most dangerous:", "6 of 8 rows"):
        assert text in said, said
    kept = load_dataset("parquet", data_files=str(out), split="train")
    assert len(kept) == 6 and kept.column_names == ["prompt", "chosen", "rejected", "ches", "ln_ches", "ches_note"]
    page = (report / "index.html").read_text()
    assert "<svg" in page and "most dangerous" in page
    assert not (pairs.parent / "kept.parquet.scores").exists()
    assert cli.main(words) == 2
    assert "is there already" in capsys.readouterr().err


def test_an_interrupted_command_goes_on(pairs: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("alignext.data.core.BLOCK", 4)
    from alignext.data import ches

    score, calls = ches._score, []

    def stops(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(*args, **kwargs)

    monkeypatch.setattr(ches, "_score", stops)
    words = ["ches", str(pairs), "--model", tiny_folder().name, "--out", str(pairs.parent / "all.jsonl")]
    assert cli.main(words) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert cli.main(words) == 0 and len(calls) == 3
    assert len(load_dataset("json", data_files=str(pairs.parent / "all.jsonl"), split="train")) == 8


def test_rows_for_a_target(tmp_path: Path, capsys: pytest.CaptureFixture):
    rows = [{"prompt": p, "completion": c} for p, c, _ in STORIES]
    for name, part in (("pool", rows), ("task", rows[:3])):
        Dataset.from_list(part).to_json(str(tmp_path / f"{name}.jsonl"))
    torch.manual_seed(0)
    base = tiny_lm()
    base.config._name_or_path = base.name_or_path = tiny_folder().name
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(tmp_path / "lora")
    words = ["gist", str(tmp_path / "pool.jsonl"), "--target", str(tmp_path / "task.jsonl")]
    words += ["--model", str(tmp_path / "lora"), "--out", str(tmp_path / "chosen.csv"), "--top", "2"]
    assert cli.main(words) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "gist of 8 rows" in said and "The most useful:" in said and "2 of 8 rows" in said
    chosen = load_dataset("csv", data_files=str(tmp_path / "chosen.csv"), split="train")
    assert chosen["gist"][0] >= chosen["gist"][1]


MISTAKES = {
    "no file": (["none.jsonl"], "none.jsonl is no file"),
    "ending": (["pairs.txt"], "is none of .json"),
    "model": (["pairs.jsonl", "--model", "nowhere"], "--model"),
    "out": (["pairs.jsonl", "--out", "kept.txt"], "must end in .parquet, .jsonl or .csv"),
    "filter": (["pairs.jsonl", "--max-score", "-1000000"], "No row is left"),
    "column": (["pairs.jsonl", "--keep", "0.5", "--column", "score"], "no column 'score'"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(words: list[str], message: str, pairs: Path, capsys: pytest.CaptureFixture, monkeypatch):
    monkeypatch.chdir(pairs.parent)
    Path("pairs.txt").write_text("")
    defaults = ["ches", *words[:1], "--model", tiny_folder().name, "--out", "kept.parquet"]
    assert cli.main([*defaults, *words[1:]]) == 2
    assert message in capsys.readouterr().err
    assert not Path("kept.parquet").exists()


def test_what_a_report_counts():
    assert quantiles([3.0, 1.0, 2.0])[0] == (0.0, 1.0) and quantiles([3.0, 1.0, 2.0])[-1] == (1.0, 3.0)
    counts = histogram([0.0, 1.0, 12.0])
    assert counts[0] == (0.0, 1) and counts[1] == (1.0, 1) and counts[-1] == (11.0, 1)
    assert sum(count for _, count in histogram([5.0, 5.0])) == 2
    assert spearman([1.0, 2.0, 3.0], [2.0, 4.0, 9.0]) == 1.0
    assert spearman([1.0, 2.0, 2.0, 4.0], [4.0, 3.0, 3.0, 0.0]) == -1.0
    assert math.isnan(spearman([1.0, 1.0], [1.0, 2.0]))
