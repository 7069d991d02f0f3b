# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Nothing that is shipped or published says where it lay on the machine that made it."""

import json
import re
from pathlib import Path

import pytest

from alignext.mini.recipe.fitting import forget_origin


ROOT = Path(__file__).parents[2]
TEXT = {".json", ".jsonl", ".md", ".txt", ".yaml", ".yml", ".csv", ".jinja", ".html", ".js", ".css", ".svg", ".py"}
# Somebody's home, a temporary folder or a mount: at the start of a word, so that the paths of addresses are none.
PLACE = re.compile(r"(?<![\w.:/~-])/(?:root|home|Users|tmp|work|workspace|mnt|opt|data|var|private)/[\w.][^\s\"'`)]*")


def shipped() -> list[Path]:
    folders = ("alignext/mini", "docs", "benchmarks/results")
    found = [f for folder in folders for f in (ROOT / folder).rglob("*") if f.suffix in TEXT and f.is_file()]
    return sorted(f for f in found if "__pycache__" not in f.parts)


def test_no_shipped_file_names_a_place_on_the_machine_that_made_it():
    files = shipped()
    assert len(files) > 60, "the search goes past the files"
    told = {}
    for file in files:
        if places := PLACE.findall(file.read_text(encoding="utf-8")):
            told[str(file.relative_to(ROOT))] = places
    assert not told


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ('"_name_or_path": "/root/.cache/alignext/vae"', 1),
        ('"_name_or_path": "/home/me/vae"', 1),
        ("loaded from /tmp/x/model.safetensors.", 1),
        ("https://example.org/home/me and docs/data/x and ~/files/it", 0),
    ],
)
def test_what_counts_as_a_place(text, places):
    assert len(PLACE.findall(text)) == places


def test_exports_forget_their_origin_and_keep_the_rest(tmp_path):
    (tmp_path / "vae").mkdir()
    file = tmp_path / "vae" / "config.json"
    file.write_text(json.dumps({"_class_name": "AutoencoderKL", "_name_or_path": str(tmp_path), "sample_size": 64}))
    forget_origin(tmp_path)
    assert json.loads(file.read_text()) == {"_class_name": "AutoencoderKL", "sample_size": 64}
