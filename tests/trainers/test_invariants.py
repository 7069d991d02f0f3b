# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Batch n in 2 processes = batch 2n in one = n with 2 micro-batches, with activations checkpointed or not.

Each row of `invariant.ROWS` trains 20 steps of 4 rows in every way. Loss and gradient norm are held against those of a
single process step by step, and in the mean of the signed differences, where small errors of one sign add up; so is
where the weights went. `--log-cli-level=info` shows the figures.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from .invariant import STEPS
from .launch import TWO


logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
ALONE = ("4x1", "2x2", "4x1c")  # rows of a process x micro-batches; "c": activations are checkpointed
SHARED = ("2x1", "1x2c")
# Largest difference of a step, and largest mean signed one, in parts of the root mean square over all steps; largest
# distance of the weights, in parts of the way they went. About ten times what rounding comes to.
STEP, SIGNED, WEIGHTS = 1e-4, 1e-5, 3e-4
EVERYWHERE = [
    "bco",
    "f-dpg",
    "process-reward",
    "mah-dpo",
    "mah-dpo-example-mean",
    "diffusion-dpo",
    "inversion-dpo",
    "inversion-dpo-all-steps",
    "smpo",
]

pytestmark = [pytest.mark.invariant, pytest.mark.slow]


def trained(name: str, folder: Path, alone: tuple[str, ...] = ALONE, shared: tuple[str, ...] = SHARED) -> dict:
    """What each way comes to, by its name, and by `WAY-PROCESS` in two processes."""
    program = ["-m", "tests.trainers.invariant", name, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    for launcher, ways in (([], alone), (TWO, shared)):
        if ways:
            command = [sys.executable, *launcher, *program, *ways]
            answer = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
            assert answer.returncode == 0, answer.stderr[-3000:]
    names = [f"{way}-0" for way in alone] + [f"{way}-{process}" for way in shared for process in (0, 1)]
    found = {name: torch.load(folder / f"{name}.pt", weights_only=False) for name in names}
    return {name[:-2] if name[:-2] in alone else name: of_way for name, of_way in found.items()}


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Of losses and gradient norms, the largest and the mean signed one; of the weights, the distance."""
    found = {}
    for column, name in ((1, "loss"), (2, "norm")):
        values = theirs["curve"][:, column]
        differ = (ours["curve"][:, column] - values) / values.square().mean().sqrt()
        found |= {name: differ.abs().max().item(), f"{name}, signed": differ.mean().item()}
    found["weights"] = ((ours["moved"] - theirs["moved"]).norm() / theirs["moved"].norm()).item()
    return found


def agree(found: dict[str, float]) -> bool:
    limits = {"loss": STEP, "norm": STEP, "loss, signed": SIGNED, "norm, signed": SIGNED, "weights": WEIGHTS}
    return all(abs(found[name]) <= limit for name, limit in limits.items())


def shown(name: str, found: dict[str, dict[str, float]]) -> None:
    for way, of_way in found.items():
        logger.info("%s, %s: %s", name, way, ", ".join(f"{what} {value:.1e}" for what, value in of_way.items()))


@pytest.mark.parametrize("name", EVERYWHERE)
def test_the_trajectory_depends_on_the_rows_of_a_step_alone(name: str, tmp_path: Path) -> None:
    ways = trained(name, tmp_path)
    reference = ways.pop("4x1")
    assert len(reference["curve"]) == STEPS
    assert reference["curve"].isfinite().all() and (reference["curve"][:, 2] > 0).all()
    found = {way: differences(of_way, reference) for way, of_way in ways.items()}
    shown(name, found)
    assert all(agree(of_way) for of_way in found.values()), found
    for checkpointed, plain in (("4x1c", reference), ("1x2c-0", ways["2x2"])):
        assert ways[checkpointed]["forwards"] > plain["forwards"]
    for way in SHARED:  # and processes never part
        first, second = ways[f"{way}-0"], ways[f"{way}-1"]
        assert torch.equal(first["moved"], second["moved"])
        assert first.get("stats") == second.get("stats") and first.get("state") == second.get("state")
    if name == "bco":
        assert all(of_way["stats"] == pytest.approx(reference["stats"], rel=1e-4) for of_way in ways.values())
    if name == "f-dpg":
        for of_way in ways.values():
            assert of_way["completions"] == reference["completions"]


@pytest.mark.parametrize("name", ["bco", "f-dpg", "process-reward", "mah-dpo"])
def test_sharded_weights_take_the_same_way(name: str, tmp_path: Path) -> None:
    """FSDP2 in two processes, on the CPU."""
    ways = trained(name, tmp_path, alone=("4x1",), shared=("2x1f",))
    reference = ways.pop("4x1")
    assert ways["2x1f-0"]["sharded"] > 0
    found = {way: differences(of_way, reference) for way, of_way in ways.items()}
    shown(name, found)
    assert all(agree(of_way) for of_way in found.values()), found
    saved = load_file(tmp_path / "2x1f-saved" / "model.safetensors")
    assert sum(weight.numel() for weight in saved.values()) >= len(reference["moved"])


def test_a_running_mean_sees_every_micro_batch(tmp_path: Path) -> None:
    """`reward_shift="running_mean"` takes a micro-batch into the shift of its own loss. Processes
    share theirs, so that two of them are one; of two micro-batches the first does not know the second. The first step,
    where all rewards are 0, and the number of rows that were counted are still the same."""
    ways = trained("bco-running-mean", tmp_path, shared=("2x1",))
    reference = ways.pop("4x1")
    found = {way: differences(of_way, reference) for way, of_way in ways.items()}
    shown("bco-running-mean", found)
    assert all(agree(found[way]) for way in ("2x1-0", "2x1-1", "4x1c"))
    assert not agree(found["2x2"])
    accumulated = ways["2x2"]
    assert torch.allclose(accumulated["curve"][0], reference["curve"][0], rtol=1e-5)
    assert accumulated["stats"][2:] == reference["stats"][2:] and sum(reference["stats"][2:]) == 4 * STEPS


def test_a_mean_of_objectives_is_one_of_the_rows_of_all_processes(tmp_path: Path) -> None:
    """`objective_reduction="objective_mean"` divides by how many rows of each objective there are among those of all
    processes. Micro-batches do not know each other: with rows in any order they are another loss, unless each of them
    is balanced, as the default sampling makes them, or `objective_reduction` is `"example_mean"`."""
    ways = trained("mah-dpo-natural", tmp_path, shared=("2x1",))
    reference = ways.pop("4x1")
    found = {way: differences(of_way, reference) for way, of_way in ways.items()}
    shown("mah-dpo-natural", found)
    assert all(agree(found[way]) for way in ("2x1-0", "2x1-1", "4x1c"))
    assert not agree(found["2x2"])


def test_processes_draw_other_samples_and_agree_on_what_they_mean(tmp_path: Path) -> None:
    """f-DPG writes its own data, each process with random numbers of its own. Two processes hence follow another
    trajectory than one, but always the same, with different texts, and with one estimate of Z from all of them."""
    (tmp_path / "again").mkdir()
    ways = trained("f-dpg-free", tmp_path, alone=("4x1",), shared=("2x1",))
    again = trained("f-dpg-free", tmp_path / "again", alone=(), shared=("2x1",))
    first, second = ways["2x1-0"], ways["2x1-1"]
    assert torch.equal(again["2x1-0"]["curve"], first["curve"])
    assert torch.equal(first["moved"], second["moved"])
    assert first["state"] == second["state"]
    texts = first["completions"]
    assert len(set(texts)) == len(texts) == 4
    assert not agree(differences(first, ways["4x1"]))
