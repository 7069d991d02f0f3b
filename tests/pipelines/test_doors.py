# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What diffusers finds our pipelines by: the classes behind `AutoPipelineFor...`, and the verbosity of its logger."""

import logging
from importlib import import_module
from pathlib import Path

import diffusers
import pytest

import alignext
from alignext import hub

from .contract import ROWS


ROOT = Path(__file__).parents[2]
# Those that are saved as their stock class.
NAMES = [n for n in alignext.__all__ if n.endswith("Pipeline") and issubclass(getattr(alignext, n), hub.HubMixin)]


ONE_OF_EACH = [row for row in ROWS if row.name in ("rival-sdxl-controlnet", "alignedgen", "search-sd")]


@pytest.mark.parametrize("row", ONE_OF_EACH, ids=[row.name for row in ONE_OF_EACH])
@pytest.mark.parametrize("task", ["Text2Image", "Image2Image", "Inpainting"])
def test_auto_pipelines_take_ours_for_its_stock_class(row, task):
    auto = getattr(diffusers, f"AutoPipelineFor{task}")
    ours, stock = row.build(), row.build(ours=False)
    made = auto.from_pipe(ours)
    assert type(made) is type(auto.from_pipe(stock))
    assert getattr(made, row.denoiser) is getattr(ours, row.denoiser)


@pytest.mark.parametrize("name", NAMES)
def test_auto_pipelines_know_each_class_whose_stock_class_they_know(name):
    from diffusers.pipelines import auto_pipeline

    cls = getattr(alignext, name)
    assert len(NAMES) >= 15
    hub._tell_auto_pipelines(cls)  # which reading the configuration of one does
    assert auto_pipeline._get_model(name) == auto_pipeline._get_model(hub._stock(cls).__name__)


def loggers():
    """The loggers of modules that run in pipelines."""
    files = [*(ROOT / "pipelines").rglob("*.py"), *(ROOT / "alignext" / "search").rglob("*.py")]
    files += [ROOT / "alignext" / "hub.py", *(ROOT / "alignext" / "rewards").glob("*.py")]
    for path in files:
        # Rewards of texts belong to language models, and follow transformers.
        if "logger" in path.read_text() and path.name not in ("texts.py", "process.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts if parts[0] == "alignext" else ("alignext", *parts))
            yield name, import_module(name).logger


def test_our_messages_follow_the_verbosity_of_diffusers():
    found, before = dict(loggers()), diffusers.utils.logging.get_verbosity()
    assert len(found) >= 4
    try:
        for level, quiet in ((logging.ERROR, True), (logging.WARNING, False)):
            diffusers.utils.logging.set_verbosity(level)
            heard = {name for name, logger in found.items() if logger.isEnabledFor(logging.WARNING)}
            assert heard == (set() if quiet else set(found))
    finally:
        diffusers.utils.logging.set_verbosity(before)
