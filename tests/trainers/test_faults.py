# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Runs that die while they save, and folders that nothing can be written to."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from alignext.training.runs import checkpoint_of, last_checkpoint, train

from .contract import Row, assert_same, curve, weights
from .diffusion import DiffusionRow
from .invariant import ROWS, lively_lm


ROOT = Path(__file__).parents[2]
TRAINERS = [
    "bco",
    "f-dpg-free",
    "process-reward",
    "mah-dpo",
    "diffusion-dpo",
    "inversion-dpo",
    "smpo",
    "diffusion-kto",
    "alignprop",
    "ddpo",
]
RUN: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}

pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning"),
]


# --------------------------------------------------------------------------------------------------- while it saves


CASES = [
    *((name, "killed", 0.5) for name in TRAINERS if name not in ("smpo", "diffusion-kto")),
    # the optimizer's state is twice as large as the weights, which are complete by then
    ("f-dpg-free", "killed", 1.5),
    ("bco", "full", 1.5),
    ("diffusion-dpo", "full", 0.5),
]


class FullAt(TrainerCallback):
    """From a step on, no file grows beyond a share of the weights: the disk is full, or, killed, the process ends."""

    def __init__(self, step: int, share: float, killed: bool) -> None:
        self.step, self.share, self.killed = step, share, killed

    def on_step_end(self, args: Any, state: Any, control: object, **kwargs: object) -> None:
        if state.global_step == self.step:
            files = Path(args.output_dir).glob("checkpoint-2/**/*.safetensors")
            size = int(self.share * max(file.stat().st_size for file in files))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            if self.killed:  # as by `kill -9`, nothing is cleaned up
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def started(name: str, folder: Path, lm: Path) -> Trainer:
    model = {} if isinstance(ROWS[name], DiffusionRow) else {"model": str(lm)}
    return ROWS[name].start(folder, **RUN, **model)


def train_until_it_dies(folder: str, lm: str) -> None:
    """All cases, each in a process of its own, and how it ended."""
    torch.set_num_threads(1)
    ends = []
    for number, (name, how, share) in enumerate(CASES):
        child = os.fork()
        if child == 0:
            try:
                trainer = started(name, Path(folder, str(number)), Path(lm))
                trainer.add_callback(FullAt(4, share, how == "killed"))
                trainer.train()
            except Exception as error:
                Path(folder, f"{number}.txt").write_text(f"{type(error).__name__}: {error}")
                os._exit(1)
            os._exit(0)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    Path(folder, "ends.json").write_text(json.dumps(ends))


def parameters(name: str, trainer: Trainer) -> dict[str, torch.Tensor]:
    return weights(trainer.denoiser if isinstance(ROWS[name], DiffusionRow) else trainer.model)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(lively_lm(tmp_path_factory.mktemp("lm")))


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory, lm: Path) -> Path:
    folder = tmp_path_factory.mktemp("dead")
    program = f"import sys; from {__name__} import train_until_it_dies; train_until_it_dies(*sys.argv[1:])"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", program, str(folder), str(lm)]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda k: "-".join(map(str, CASES[k])))
def test_a_run_that_dies_while_it_saves_goes_on_from_the_checkpoint_before(
    number: int, dead: Path, lm: Path, tmp_path: Path
) -> None:
    """Killed, or out of space, in the middle of the file with the weights or the one with the optimizer's state."""
    name, how, _ = CASES[number]
    folder = dead / str(number)
    said = dead / f"{number}.txt"
    end = json.loads((dead / "ends.json").read_text())[number]
    assert end == (-signal.SIGXFSZ if how == "killed" else 1), said.read_text() if said.exists() else end
    assert (folder / "checkpoint-4").is_dir()  # half of it
    checkpoint = last_checkpoint(folder)
    assert checkpoint == str(folder / "checkpoint-2")
    whole = started(name, tmp_path, lm)
    whole.train()
    resumed = started(name, folder, lm)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert curve(resumed) == curve(whole)
    assert_same(parameters(name, resumed), parameters(name, whole))
    assert last_checkpoint(folder) == str(folder / "checkpoint-6")


@pytest.mark.slow
def test_saving_over_an_earlier_result_leaves_it_or_replaces_it(tmp_path: Path) -> None:
    """A second run into the same folder, killed while it writes the denoiser: the first result is still there."""
    row = ROWS["diffusion-dpo"]
    trainer = row.start(tmp_path, max_steps=1)
    trainer.save_model()
    before = sorted((file.name, file.read_bytes()) for file in (tmp_path / "unet").iterdir())

    def half(folder: Path) -> None:
        Path(folder).mkdir()
        (Path(folder) / "config.json").write_text("{")
        raise OSError("No space left on device")

    trainer.denoiser.save_pretrained = half
    with pytest.raises(OSError, match="No space left"):
        trainer.save_model()
    assert sorted((file.name, file.read_bytes()) for file in (tmp_path / "unet").iterdir()) == before


def test_last_is_the_last_complete_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-4").mkdir()
    given = {"last": str(tmp_path / "checkpoint-2"), "elsewhere/checkpoint-9": "elsewhere/checkpoint-9", None: None}
    for value, meant in given.items():
        config = SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=value)
        assert checkpoint_of(config) == meant


class Failing(SimpleNamespace):
    """A trainer whose save fails, as torch says that of a full disk."""

    def train(self, resume_from_checkpoint: str | None) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672]")


@pytest.mark.parametrize("free", [1_000, 10_000_000])
def test_a_failure_is_that_of_a_full_disk_where_it_is_full(
    free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=None, should_save=True, world_size=1)
    Usage = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free))
    error, text = (OSError, "0 MB are free") if free < 1_000_000 else (RuntimeError, "enforce fail")
    with pytest.raises(error, match=text):
        train(Failing(args=args, model=torch.nn.Linear(1000, 100)))


# -------------------------------------------------------------------------------------------------- before it trains


def nowhere(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file" / "out"


@pytest.mark.parametrize("name", TRAINERS)
def test_a_folder_that_cannot_be_written_to_is_known_before_a_model_is_loaded(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    model = {"pipe": SimpleNamespace()} if isinstance(row, DiffusionRow) else {"model": "no/such/model"}
    with pytest.raises(OSError, match=r"`output_dir` is .* cannot be written to \(Not a directory\)"):
        row.start(nowhere(tmp_path), **model)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("bco", "diffusion-dpo"))) for n in TRAINERS]
)
def test_a_disk_with_too_little_room_is_known_before_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Usage = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10_000))
    with pytest.raises(OSError, match="0 MB are free, and the weights alone take"):
        ROWS[name].start(tmp_path)


def test_rows_are_of_all_trainers() -> None:
    def of(row: Row | DiffusionRow) -> set[type]:
        return {cls for cls in row.trainer.__mro__ if cls.__module__.startswith("alignext.")}

    assert set.union(*(of(row) for row in ROWS.values())) == set.union(*(of(ROWS[name]) for name in TRAINERS))
