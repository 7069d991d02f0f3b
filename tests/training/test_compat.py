# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Importing a trainer beside a TRL that it was not tested with."""

import ast
import warnings
from pathlib import Path

import pytest

from alignext.training import compat

from ..seams import REPLACED


ROOMS = {"BCO": "bco", "MAH-DPO": "mah_dpo", "Process Reward": "process_reward", "f-DPG": "f_dpg"}
PARENTS = {"BCO": "KTO", "MAH-DPO": "DPO", "Process Reward": "Reward", "f-DPG": "RLOO"}


@pytest.fixture(autouse=True)
def unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "_warned", False)


@pytest.mark.parametrize("trainer", compat.NAMES)
def test_the_installed_one_is_in_the_range(trainer: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compat.check_trl(trainer)


@pytest.mark.parametrize("installed", ["1.15.2", "1.17.0", "2.0.0.dev0"])
def test_another_one_is_warned_of_once(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "version", lambda name: installed)
    with pytest.warns(UserWarning, match=f"TRL {installed} is outside .*trl>=1.16.0,<1.17.*compatibility.md"):
        compat.check_trl("BCO")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compat.check_trl("MAH-DPO")


@pytest.mark.parametrize("gone", ["trl.KTOTrainer._compute_loss", "trl.trainer.utils.use_adapter", "trl.models.utils"])
def test_a_name_that_is_gone_is_said(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compat.NAMES, "BCO", (*compat.NAMES["BCO"], f"{gone}_"))
    with pytest.raises(
        ImportError, match=rf"has no {gone}_, on which the BCO trainer of alignext rests\..*pip install"
    ):
        compat.check_trl("BCO")


@pytest.mark.parametrize("trainer", compat.NAMES)
def test_all_that_a_room_imports_or_overrides_of_trl_is_looked_for(trainer: str) -> None:
    found = set()
    for path in (Path(__file__).parents[2] / "trainers" / ROOMS[trainer]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "trl":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    private = {name for name in REPLACED if name.startswith(f"trl.{PARENTS[trainer]}Trainer._")}
    private = {name for name in private if "__" not in name}
    names = compat.NAMES[trainer]
    looked = {*names, *(name.rpartition(".")[0] for name in names)}  # a method stands for its class
    assert found <= looked
    assert private <= looked
