# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What several commands read: prompts, JSON lines, files of rows; and what is said of those that cannot be read."""

from pathlib import Path

import pytest

from alignext.cli.inputs import json_lines, prompts_of, read_rows


def test_prompts_are_the_lines_with_something_in_them(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a fox\n\n  an owl\n \n")
    assert prompts_of(file) == ["a fox", "  an owl"]
    assert prompts_of(None) == []
    with pytest.raises(FileNotFoundError, match=r"--prompts .*none\.txt is no file\. Pass one with a prompt per line"):
        prompts_of(tmp_path / "none.txt")


def test_json_lines_have_their_keys(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"a": 1, "b": null}\n\n{"a": 2, "b": 3, "c": 4}\n')
    assert json_lines(file, "a", "b", name="--pairs") == [{"a": 1, "b": None}, {"a": 2, "b": 3, "c": 4}]
    for line, said in (("{", "is no JSON"), ("[]", "must be an object with `a` and `b`"), ('{"a": 1}', "`b`")):
        file.write_text(f'{{"a": 1, "b": 2}}\n{line}\n')
        with pytest.raises(ValueError, match=rf"--pairs .*, line 2, .*{said}"):
            json_lines(file, "a", "b", name="--pairs")


def test_rows_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt\na fox\n")
    assert read_rows(file, name="DATA")["train"]["prompt"][:] == ["a fox"]
    file.write_bytes("prompt\nein Fuchs\nein Bär\n".encode("latin1"))
    with pytest.raises(ValueError, match=r"DATA .*rows\.csv is not UTF-8: byte 0xe4 in line 3"):
        read_rows(file, name="DATA")
    with pytest.raises(FileNotFoundError, match=r"--target .*none\.csv is no file"):
        read_rows(tmp_path / "none.csv", name="--target")
