# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Two processes, an objective missing on one of them, do what one does with a batch of twice the size."""

from pathlib import Path

import pytest

from ..launch import alone_and_shared


SCRIPT = """
from datasets import Dataset
from alignext import MAHDPOConfig, MAHDPOTrainer, mini

(head_type,) = arguments
objectives = "xxxx yyxy xxyz zyxx zzzz xxxy xyzx yyyy xxzx zxyx".replace(" ", "")
rows = [
    {"prompt": "One day", "chosen": f" Tom ate {n} cakes.", "rejected": f" Lily lost {n} toys. Oh.", "objective": o}
    for n, o in enumerate(objectives)
]
args = MAHDPOConfig(
    folder, per_device_train_batch_size=8 // processes, max_steps=4, learning_rate=1e-2, optim="sgd", logging_steps=1,
    objective_sampling="natural", train_sampling_strategy="sequential", head_type=head_type, head_rank=4,
    objective_loss_weights={"x": 1, "y": 2, "z": 0.5}, use_cpu=True, bf16=False, report_to="none",
    save_strategy="no", disable_tqdm=True, activation_checkpointing=False, ddp_find_unused_parameters=False,
)
trainer = MAHDPOTrainer(str(mini.path("lm")), args=args, train_dataset=Dataset.from_list(rows))
before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
trainer.train()
moved = {name: float((weight - before[name]).double().norm()) for name, weight in trainer.model.named_parameters()}
outcome = {
    "log": [log for log in trainer.state.log_history if "loss" in log],
    "moved": moved,
    "eval": trainer.evaluate(Dataset.from_list(rows[:8])),
}
"""

IGNORED = ("runtime", "per_second", "epoch", "learning_rate")


def figures(log: dict) -> dict:
    return {name: value for name, value in log.items() if not any(word in name for word in IGNORED)}


@pytest.mark.invariant
@pytest.mark.slow
@pytest.mark.parametrize("head_type", ["full", "low_rank"])
def test_two_processes_are_one_larger_batch(tmp_path: Path, head_type: str) -> None:
    alone, first, second = alone_and_shared(SCRIPT, tmp_path, head_type)
    assert first["moved"] == second["moved"]
    assert first["moved"] == pytest.approx(alone["moved"], rel=1e-3, abs=1e-9)
    assert all(value > 0 for value in alone["moved"].values())
    for ours, theirs in zip(first["log"], alone["log"], strict=True):
        assert figures(ours) == pytest.approx(figures(theirs), rel=1e-3, abs=1e-5)
    # the loss of evaluation is a mean over batches, which are others; the figures by objective are over all rows
    by_objective = [{k: v for k, v in o["eval"].items() if "_x/" in k or "_y/" in k} for o in (first, alone)]
    assert by_objective[0] == pytest.approx(by_objective[1], rel=1e-3, abs=1e-5)
