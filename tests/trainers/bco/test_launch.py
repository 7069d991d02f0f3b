# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Two processes do what one does with a batch of twice the size."""

from pathlib import Path

import pytest

from ..launch import alone_and_shared, logged


SCRIPT = """
from datasets import Dataset
from alignext import BCOConfig, BCOTrainer, mini

(mode,) = arguments
ups = [{"prompt": "One day", "completion": f" Tom ate {n} cakes.", "label": True} for n in range(10)]
downs = [{"prompt": "One day", "completion": f" Lily lost {n} toys. She was sad.", "label": False} for n in range(10)]
# two of a class in turn: with two processes, each one only ever sees one class
rows = [row for i in range(0, 10, 2) for row in (*ups[i : i + 2], *downs[i : i + 2])]
args = BCOConfig(
    folder, per_device_train_batch_size=4 // processes, max_steps=5, learning_rate=1e-3, optim="sgd", logging_steps=1,
    train_sampling_strategy="sequential", reward_shift=mode, use_cpu=True, bf16=False, report_to="none",
    save_strategy="no", disable_tqdm=True,
)
trainer = BCOTrainer(str(mini.path("lm")), args=args, train_dataset=Dataset.from_list(rows))
trainer.train()
metrics = trainer.evaluate(Dataset.from_list(rows[:8]))
outcome = {
    "log": [log for log in trainer.state.log_history if "loss" in log],
    "stats": trainer.reward_shift.stats,
    "weights": sum(float(weight.double().abs().sum()) for weight in trainer.model.parameters()),
    "eval": metrics,
}
"""

METRICS = (
    "loss grad_norm delta rewards/chosen rewards/rejected rewards/accuracies logps/chosen logps/rejected "
    "logits/chosen logits/rejected entropy num_tokens"
).split()


@pytest.mark.invariant
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ema", "running_mean"])
def test_two_processes_are_one_larger_batch(tmp_path: Path, mode: str) -> None:
    alone, first, second = alone_and_shared(SCRIPT, tmp_path, mode)
    assert first["stats"] == second["stats"]
    assert first["weights"] == second["weights"]
    assert first["stats"] == pytest.approx(alone["stats"], rel=1e-4)
    assert first["weights"] == pytest.approx(alone["weights"], rel=1e-7)
    for ours, theirs in zip(logged(first, METRICS), logged(alone, METRICS), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    assert first["log"][-1]["delta"] != 0
    assert first["eval"]["eval_delta"] == pytest.approx(alone["eval"]["eval_delta"], rel=1e-4)
