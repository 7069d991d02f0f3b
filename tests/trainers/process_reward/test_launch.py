# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Two processes do what one does with a batch of twice the size."""

from pathlib import Path

import pytest

from ..launch import alone_and_shared, logged


SCRIPT = """
from datasets import Dataset
from alignext import ProcessRewardConfig, ProcessRewardTrainer, mini

# as many steps as the row's number: the two processes always see different numbers of labels
rows = [
    {"prompt": "One day", "steps": [f"Tom ate {k} cakes." for k in range(n)], "labels": [k / n for k in range(n)]}
    for n in (1, 5, 2, 3, 4, 1, 1, 6)
]
args = ProcessRewardConfig(
    folder, per_device_train_batch_size=4 // processes, max_steps=4, learning_rate=1e-3, optim="sgd", logging_steps=1,
    train_sampling_strategy="sequential", use_cpu=True, bf16=False, report_to="none", save_strategy="no",
    disable_tqdm=True,
)
trainer = ProcessRewardTrainer(str(mini.path("lm")), args=args, train_dataset=Dataset.from_list(rows))
trainer.train()
outcome = {
    "log": [log for log in trainer.state.log_history if "loss" in log],
    "weights": sum(float(weight.double().abs().sum()) for weight in trainer.model.parameters()),
    "eval": trainer.evaluate(Dataset.from_list(rows)),
}
"""

METRICS = "loss grad_norm mean_score mean_label accuracy num_tokens".split()


@pytest.mark.invariant
@pytest.mark.slow
def test_two_processes_are_one_larger_batch(tmp_path: Path) -> None:
    alone, first, second = alone_and_shared(SCRIPT, tmp_path)
    assert first["weights"] == second["weights"]
    assert first["weights"] == pytest.approx(alone["weights"], rel=1e-7)
    for ours, theirs in zip(logged(first, METRICS), logged(alone, METRICS), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    assert first["eval"]["eval_loss"] == pytest.approx(alone["eval"]["eval_loss"], rel=1e-4)
