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
from collections import defaultdict
from importlib.util import find_spec
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
SHARDED = ("2x1f",)
ZERO = ("2x1z2", "2x1z3")
# Largest difference of a step, and largest mean signed one, in parts of the root mean square over all steps; largest
# distance of the weights, in parts of the way they went. About ten times what rounding comes to.
STEP, SIGNED, WEIGHTS = 1e-4, 1e-5, 3e-4
# Its error is how far policy and reference have parted: a small difference, in which rounding weighs more.
ROUNDING = {"inversion-dpo": 20.0}
# Advantages have mean 0, and with a ratio of 1 the loss is what rounding leaves of that.
CENTRED = ("ddpo", "ddpo-again")
EVERYWHERE = [
    "bco",
    "f-dpg",
    "process-reward",
    "mah-dpo",
    "mah-dpo-example-mean",
    "diffusion-dpo",
    "diffusion-kto",
    "inversion-dpo",
    "inversion-dpo-all-steps",
    "smpo",
    "inpo",
    "alignprop",
    "ddpo",
    "ddpo-again",
]

# Those that read weights outside of the modules that hold them refuse it, as the diffusion trainers do.
UNDER_ZERO_3 = ["bco", "f-dpg", "process-reward"]

pytestmark = [pytest.mark.invariant, pytest.mark.slow]


class Runs:
    """All trainings of the selected tests, with few starts of processes: imports take as long as training."""

    def __init__(self, folder: Path, names: list[str], sharded: dict[str, list[str]]) -> None:
        """`names` train in all ways but sharded, `sharded` has the names of each of those, which train alone, too."""
        self.folder = folder
        only = sorted({name for of_way in sharded.values() for name in of_way} - set(names))
        for launcher, rows, ways in (
            ([], names, ALONE),
            ([], only, ALONE[:1]),
            (TWO, names, SHARED),
            *((TWO, of_way, (way,)) for way, of_way in sharded.items()),
        ):
            if rows:
                self.start(launcher, rows, ways)

    def start(self, launcher: list[str], names: list[str], ways: tuple[str, ...]) -> None:
        for name in names:
            (self.folder / name).mkdir(exist_ok=True)
        program = ["-m", "tests.trainers.invariant", str(self.folder), ",".join(names), ",".join(ways)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, *launcher, *program]
        answer = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=environment)
        assert answer.returncode == 0, answer.stderr[-3000:]

    def of(self, name: str) -> dict[str, dict[str, Any]]:
        """What each way comes to; with two processes, by `WAY-PROCESS`."""
        found = {file.stem: torch.load(file, weights_only=False) for file in (self.folder / name).glob("*.pt")}
        return {way.removesuffix("-0") if way[:-2] in ALONE else way: of_way for way, of_way in found.items()}


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    ours = [item for item in request.session.items if item.path == request.path]
    names: dict[str | None, set[str]] = defaultdict(set)
    for item in ours:
        way = item.callspec.params.get("way", "2x1f" if "sharded" in item.name else None)
        if way not in ZERO or find_spec("deepspeed"):
            names[way].update(item.callspec.params["name"].split())
    alone = sorted(names.pop(None, ()))
    return Runs(tmp_path_factory.mktemp("runs"), alone, {way: sorted(of_way) for way, of_way in names.items()})


def processes(ways: tuple[str, ...]) -> list[str]:
    return [f"{way}-{process}" for way in ways for process in (0, 1)]


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Of losses and gradient norms, the largest and the mean signed one; of the weights, the distance."""
    found = {}
    for column, name in ((1, "loss"), (2, "norm")):
        values = theirs["curve"][:, column]
        differ = (ours["curve"][:, column] - values) / values.square().mean().sqrt()
        found |= {name: differ.abs().max().item(), f"{name}, signed": differ.mean().item()}
    found["weights"] = ((ours["moved"] - theirs["moved"]).norm() / theirs["moved"].norm()).item()
    return found


def agree(found: dict[str, float], times: float = 1.0) -> bool:
    limits = {"loss": STEP, "norm": STEP, "loss, signed": SIGNED, "norm, signed": SIGNED, "weights": WEIGHTS}
    return all(abs(value) <= times * limits[name] for name, value in found.items())


def shown(name: str, found: dict[str, dict[str, float]]) -> None:
    for way, of_way in found.items():
        logger.info("%s, %s: %s", name, way, ", ".join(f"{what} {value:.1e}" for what, value in of_way.items()))


@pytest.mark.parametrize("name", EVERYWHERE)
def test_the_trajectory_depends_on_the_rows_of_a_step_alone(name: str, runs: Runs) -> None:
    ways = runs.of(name)
    reference = ways["4x1"]
    assert len(reference["curve"]) == STEPS
    assert reference["curve"].isfinite().all() and (reference["curve"][:, 2] > 0).all()
    found = {way: differences(ways[way], reference) for way in ("2x2", "4x1c", *processes(SHARED))}
    shown(name, found)
    if name in CENTRED:
        found = {way: {k: v for k, v in of.items() if not k.startswith("loss")} for way, of in found.items()}
    assert all(agree(of_way, ROUNDING.get(name, 1.0)) for of_way in found.values()), found
    assert ways["4x1c"]["forwards"] > ways["4x1"]["forwards"]
    if name not in ("smpo", "inpo"):  # whose inversions take as many calls as the deepest row of a micro-batch needs
        assert ways["1x2c-0"]["forwards"] > ways["2x2"]["forwards"]
    for way in SHARED:  # and processes never part
        first, second = ways[f"{way}-0"], ways[f"{way}-1"]
        assert torch.equal(first["moved"], second["moved"])
        assert first.get("stats") == second.get("stats") and first.get("state") == second.get("state")
    for way in found:
        if name == "bco":
            assert ways[way]["stats"] == pytest.approx(reference["stats"], rel=1e-4)
        if name == "f-dpg":
            assert ways[way]["completions"] == reference["completions"]


@pytest.mark.parametrize("name", ["bco", "f-dpg", "process-reward", "mah-dpo"])
def test_sharded_weights_take_the_same_way(name: str, runs: Runs) -> None:
    """FSDP2 in two processes, on the CPU."""
    ways = runs.of(name)
    assert ways["2x1f-0"]["sharded"] > 0
    found = {way: differences(ways[way], ways["4x1"]) for way in processes(SHARDED)}
    shown(name, found)
    assert all(agree(of_way) for of_way in found.values()), found
    saved = load_file(runs.folder / name / "2x1f-saved" / "model.safetensors")
    assert sum(weight.numel() for weight in saved.values()) >= len(ways["4x1"]["moved"])


@pytest.mark.parametrize("name", ["diffusion-dpo", "diffusion-dpo-lora", "diffusion-kto"])
def test_sharded_denoisers_take_the_same_way(name: str, runs: Runs) -> None:
    """FSDP2 in two processes, on the CPU, of a UNet, as a whole and by a LoRA; what is saved has every weight."""
    ways = runs.of(name)
    assert ways["2x1f-0"]["sharded"] > 0
    found = {way: differences(ways[way], ways["4x1"]) for way in processes(SHARDED)}
    shown(name, found)
    assert all(agree(of_way) for of_way in found.values()), found
    file = "pytorch_lora_weights" if name.endswith("lora") else "unet/diffusion_pytorch_model"
    saved = load_file(runs.folder / name / "2x1f-saved" / f"{file}.safetensors")
    trained = ways["2x1f-0"]["trained"]
    assert len(saved) == len(trained)
    sums = [sum(weight.detach().double().sum().item() for weight in found) for found in (saved.values(), trained)]
    assert sums[0] == pytest.approx(sums[1], abs=1e-6)


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize(
    ("name", "way"),
    [(name, "2x1z2") for name in EVERYWHERE if name not in ("mah-dpo-example-mean", "inversion-dpo-all-steps")]
    + [(name, "2x1z3") for name in UNDER_ZERO_3],
)
def test_deepspeed_takes_the_same_way(name: str, way: str, runs: Runs) -> None:
    """ZeRO in two processes, on the CPU: stage 2 shares out gradients and the optimizer, stage 3 the weights, too."""
    ways = runs.of(name)
    found = {each: differences(ways[each], ways["4x1"]) for each in processes((way,))}
    shown(name, found)
    if name in CENTRED:
        found = {each: {k: v for k, v in of.items() if not k.startswith("loss")} for each, of in found.items()}
    assert all(agree(of_way, ROUNDING.get(name, 1.0)) for of_way in found.values()), found


@pytest.mark.parametrize("name", ["bco-running-mean"])
def test_a_running_mean_sees_every_micro_batch(name: str, runs: Runs) -> None:
    """`reward_shift="running_mean"` takes a micro-batch into the shift of its own loss. Processes share theirs, so
    that two of them are one; of two micro-batches the first does not know the second. The first step, where all
    rewards are 0, and the number of rows that were counted are still the same."""
    ways = runs.of(name)
    reference, accumulated = ways["4x1"], ways["2x2"]
    found = {way: differences(of_way, reference) for way, of_way in ways.items()}
    shown(name, found)
    assert all(agree(found[way]) for way in ("4x1c", *processes(("2x1",))))
    assert not agree(found["2x2"])
    assert torch.allclose(accumulated["curve"][0], reference["curve"][0], rtol=1e-5)
    assert accumulated["stats"][2:] == reference["stats"][2:] and sum(reference["stats"][2:]) == 4 * STEPS


@pytest.mark.parametrize("name", ["mah-dpo-natural"])
def test_a_mean_of_objectives_is_one_of_the_rows_of_all_processes(name: str, runs: Runs) -> None:
    """`objective_reduction="objective_mean"` divides by how many rows of each objective there are among those of all
    processes. Micro-batches do not know each other: with rows in any order they are another loss, unless each of them
    is balanced, as the default sampling makes them, or `objective_reduction` is `"example_mean"`."""
    ways = runs.of(name)
    found = {way: differences(of_way, ways["4x1"]) for way, of_way in ways.items()}
    shown(name, found)
    assert all(agree(found[way]) for way in ("4x1c", *processes(("2x1",))))
    assert not agree(found["2x2"])


@pytest.mark.parametrize("name", ["f-dpg-free f-dpg-again"])
def test_processes_draw_other_samples_and_agree_on_what_they_mean(name: str, runs: Runs) -> None:
    """f-DPG writes its own data, each process with random numbers of its own. Two processes hence follow another
    trajectory than one, but always the same, with different texts, and with one estimate of Z from all of them."""
    ways, again = map(runs.of, name.split())
    first, second = ways["2x1-0"], ways["2x1-1"]
    assert torch.equal(again["2x1-0"]["curve"], first["curve"])
    assert torch.equal(first["moved"], second["moved"])
    assert first["state"] == second["state"]
    texts = first["completions"]
    assert len(set(texts)) == len(texts) == 4
    assert not agree(differences(first, ways["4x1"]))
