# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The embedded pictures, and the room that everything embedded takes."""

import subprocess
import sys

import pytest

from alignext import mini
from alignext.mini.recipe import render


MB = 10**6


def test_names_lead_to_folders_with_a_model_card():
    for name in mini.NAMES:
        assert (mini.path(name) / "README.md").is_file(), name


def test_unknown_names_and_splits_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'wan', expected one of sd, flux, lm"):
        mini.path("wan")
    with pytest.raises(ValueError, match=r"'test', expected one of train, unseen_concept"):
        mini.pictures("test")


def test_a_missing_folder_says_how_to_get_it_back(monkeypatch, tmp_path):
    monkeypatch.setattr(mini, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match="make mini"):
        mini.path("sd")


def test_looking_up_pictures_imports_no_framework():
    code = (
        "import sys, alignext.mini as mini; mini.pictures(); mini.path('sd');"
        "sys.exit(', '.join({'torch', 'diffusers', 'transformers'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_embedded_files_stay_small():
    root = mini.path("pictures").parent
    sizes = {name: sum(f.stat().st_size for f in mini.path(name).rglob("*") if f.is_file()) for name in mini.NAMES}
    assert all(size <= 18 * MB for size in sizes.values()), sizes
    assert sizes["pictures"] <= 2 * MB
    assert sizes["judge-concept"] + sizes["judge-style"] <= 4 * MB
    assert sum(sizes.values()) <= 64 * MB
    kinds = {f.suffix for f in root.rglob("*") if f.is_file() and f.stat().st_size > MB}
    assert kinds <= {".safetensors"}, "large files are weights, and weights are safetensors"


def test_metadata_and_files_belong_together():
    pictures = mini.pictures()
    assert sorted(p.path for p in pictures) == sorted(mini.path("pictures").glob("*.png"))
    for picture in pictures:
        image = picture.image
        assert (image.size, image.mode) == ((render.SIZE, render.SIZE), "RGB")
        assert image.resize((1, 1)).getpixel((0, 0)) != (255, 255, 255), f"{picture.path} is empty"
        assert picture.caption == render.caption(picture.concept, picture.style if picture.style != "fx" else None)


def test_splits_are_what_the_recipe_holds_out():
    grid = {(render.word(name), style): split for (name, style), split in render.grid().items()}
    trained = {concept for (concept, _), split in grid.items() if split == "train"}
    for picture in mini.pictures():
        if picture.split == "unseen_style":
            assert picture.style not in render.STYLES and picture.concept in trained
        else:
            assert picture.split == grid[picture.concept, picture.style]
    assert not trained & {p.concept for p in mini.pictures("unseen_concept")}
    for split in ("unseen_concept", "unseen_drawing"):
        shipped = {(p.concept, p.style) for p in mini.pictures(split)}
        assert shipped == {cell for cell, found in grid.items() if found == split}


def test_captions_use_the_right_article():
    assert render.caption("owl", "ink") == "an owl, ink style"
    assert render.caption("unicorn") == "a unicorn"


def test_the_folder_is_an_image_folder(tmp_path):
    import datasets

    rows = datasets.load_dataset(
        "imagefolder", data_dir=str(mini.path("pictures")), split="train", cache_dir=str(tmp_path)
    )
    assert len(rows) == len(mini.pictures())
    assert {"image", "caption", "concept", "style", "split"} <= set(rows.column_names)
