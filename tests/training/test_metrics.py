# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The one reducer of metrics."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from alignext.training import metrics
from alignext.training.metrics import FreshEvaluations, Sums, has_loss


@pytest.fixture
def sums() -> Sums:
    return Sums(Accelerator(cpu=True))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_a_mean_does_not_depend_on_the_size_of_batches(sums: Sums, size: int) -> None:
    rows = torch.arange(7.0, dtype=torch.float64) ** 2
    weights = torch.tensor([1, 0, 2, 1, 0, 0, 3])
    for part, count in zip(rows.split(size), weights.split(size), strict=True):
        sums.add("eval", "of all", part)
        sums.add("eval", "of some", part, count)
    assert sums.means("eval") == {"of all": 13.0, "of some": (0 + 4 + 9 + 36) / 7}


def test_means_are_of_one_mode_and_since_the_last_time(sums: Sums) -> None:
    sums.add("train", "loss", 3.0, 2)
    sums.add("train", "loss", torch.tensor(1.0))
    sums.add("eval", "loss", 8.0)
    sums.count("tokens", 5)
    assert sums.means("eval") == {"loss": 8.0, "tokens": 5}
    assert sums.means("train") == {"loss": 4 / 3, "tokens": 5}
    sums.count("tokens", torch.tensor(2))
    assert sums.means("train") == {}
    sums.add("train", "loss", 1.0)
    assert sums.means("train") == {"loss": 1.0, "tokens": 7}


def test_an_evaluation_begins_at_zero(sums: Sums) -> None:
    class Evaluations:
        def evaluation_loop(self, rows: list[float]) -> dict[str, float]:
            for row in rows:
                sums.add("eval", "loss", row)
                if row < 0:
                    raise KeyboardInterrupt
            return sums.means("eval")

    trainer = type("Trainer", (FreshEvaluations, Evaluations), {"sums": sums})()
    sums.add("train", "loss", 7.0)
    with pytest.raises(KeyboardInterrupt):
        trainer.evaluation_loop([5.0, -1.0])
    assert trainer.evaluation_loop([2.0, 4.0]) == {"loss": 3.0}
    assert sums.means("train") == {"loss": 7.0}


def test_what_nobody_counted_is_left_out_whatever_its_value(sums: Sums) -> None:
    sums.add("train", "nothing", torch.tensor([torch.nan, torch.inf]), torch.zeros(2))
    sums.add("train", "one", torch.tensor([torch.nan, 2.0]), torch.tensor([False, True]))
    assert sums.means("train") == {"one": 2.0}


def test_no_graph_is_kept(sums: Sums) -> None:
    sums.add("train", "loss", torch.ones(2, requires_grad=True) * 2)
    assert not sums._sums["train"]["loss"][0].requires_grad


def test_processes_with_names_of_their_own_meet(sums: Sums, monkeypatch: pytest.MonkeyPatch) -> None:
    sums.add("train", "both", torch.tensor([1.0, 2.0]))
    sums.add("train", "mine", 1.0)
    sums.count("tokens", 3)
    other = {"both": [6.0, 1.0], "theirs": [5.0, 2.0], "tokens": [4.0, -1.0]}
    monkeypatch.setattr(metrics, "gather_object", lambda own: [*own, other])
    assert sums.means("train") == {"both": 3.0, "mine": 1.0, "theirs": 2.5, "tokens": 7}


def test_rows_that_fill_up_the_last_batch_do_not_count() -> None:
    """Five rows, two processes, batches of two: three of the last four rows are repeated ones."""
    for process, taken in ((0, 5.0), (1, None)):
        state = SimpleNamespace(end_of_dataloader=True, remainder=1)
        sums = Sums(SimpleNamespace(gradient_state=state, num_processes=2, process_index=process))
        sums.add("eval", "x", torch.tensor([5.0, 1.0]))
        assert sums.means("eval") == ({"x": taken} if taken else {})
        sums.add("train", "x", torch.tensor([5.0, 1.0]))  # training learns from them
        assert sums.means("train") == {"x": 3.0}


def test_logs_of_all_processes_have_a_loss() -> None:
    assert has_loss({"loss": 1.0}) and has_loss({"eval_kind_loss": 1.0}) and has_loss({"train_loss": 1.0})
    assert not has_loss({"my_metric": 1.0, "lossless": 2.0})
