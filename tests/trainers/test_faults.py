# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Runs that die while they save, and folders that nothing can be written to."""

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

from alignext.cli.training import checkpoint_of
from alignext.files import last_checkpoint

from .contract import Row, assert_same, curve, weights
from .diffusion_preference.contract import Row as DiffusionRow
from .invariant import ROWS


ROOT = Path(__file__).parents[2]
TRAINERS = ["bco", "f-dpg-free", "process-reward", "mah-dpo", "diffusion-dpo", "inversion-dpo", "smpo"]
RUN: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}

pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning"),
]


# --------------------------------------------------------------------------------------------------- while it saves


class FullAt(TrainerCallback):
    """From a step on, files cannot grow beyond a number of bytes: the disk is full, or, killed, the process ends."""

    def __init__(self, step: int, size: int, killed: bool) -> None:
        self.step, self.size, self.killed = step, size, killed

    def on_step_end(self, args: object, state: Any, control: object, **kwargs: object) -> None:
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))
            if self.killed:  # as by `kill -9`, nothing is cleaned up
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def train_until_it_dies(name: str, folder: str, size: str, how: str) -> None:
    torch.set_num_threads(1)
    trainer = ROWS[name].start(Path(folder), **RUN)
    trainer.add_callback(FullAt(4, int(size), how == "killed"))
    trainer.train()


def parameters(name: str, trainer: Trainer) -> dict[str, torch.Tensor]:
    return weights(trainer.denoiser if isinstance(ROWS[name], DiffusionRow) else trainer.model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how", "share"),
    [
        *((name, "killed", 0.5) for name in TRAINERS if name != "smpo"),
        # the optimizer's state is twice as large as the weights, which are complete by then
        ("f-dpg-free", "killed", 1.5),
        ("bco", "full", 1.5),
        ("diffusion-dpo", "full", 0.5),
    ],
)
def test_a_run_that_dies_while_it_saves_goes_on_from_the_checkpoint_before(
    name: str, how: str, share: float, tmp_path: Path
) -> None:
    """Killed, or out of space, in the middle of the file with the weights or the one with the optimizer's state."""
    whole = ROWS[name].start(tmp_path / "whole", **RUN)
    whole.train()
    size = max(file.stat().st_size for file in (tmp_path / "whole" / "checkpoint-2").rglob("*.safetensors"))
    program = f"import sys; from {__name__} import train_until_it_dies as run; run(*sys.argv[1:])"
    command = [sys.executable, "-c", program, name, str(tmp_path / "dead"), str(int(share * size)), how]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    if how == "killed":
        assert answer.returncode == -signal.SIGXFSZ, answer.stderr[-3000:]
    else:
        assert answer.returncode == 1
        assert "File too large" in answer.stderr or "write" in answer.stderr.splitlines()[-1], answer.stderr[-3000:]

    assert (tmp_path / "dead" / "checkpoint-4").is_dir()  # half of it
    checkpoint = last_checkpoint(tmp_path / "dead")
    assert checkpoint == str(tmp_path / "dead" / "checkpoint-2")
    resumed = ROWS[name].start(tmp_path / "dead", **RUN)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert curve(resumed) == curve(whole)
    assert_same(parameters(name, resumed), parameters(name, whole))
    assert last_checkpoint(tmp_path / "dead") == str(tmp_path / "dead" / "checkpoint-6")


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
