# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Two processes do what one does with the same completions."""

from pathlib import Path

import pytest

from ..launch import alone_and_shared, logged


SCRIPT = """
from datasets import Dataset
from alignext import FDPGConfig, FDPGTrainer, mini

(target,) = arguments


class Dictated(FDPGTrainer):
    # the same completions, whoever writes them: 4 of each of 2 prompts, cut into as many parts as there are processes
    def _generate_single_turn(self, prompt_ids, images, fields):
        step = self.state.global_step
        size, rank = len(prompt_ids), self.accelerator.process_index
        rows = range(rank * size, (rank + 1) * size)
        return [[300 + 7 * step + 11 * row + k for k in range(3 + row % 3)] for row in rows]


def length(completions, **kwargs):
    return [len(text) / 10 for text in completions]


def even(completions, completion_ids, **kwargs):
    return [float(ids[0] % 2 == 0) for ids in completion_ids]


settings = {"exponential": {"beta": 0.5}, "distributional": {"target_moments": [0.4], "moment_samples": 16}}[target]
args = FDPGConfig(
    folder, target=target, num_generations=4, per_device_train_batch_size=8 // processes, max_steps=3,
    learning_rate=1e-3, lr_scheduler_type="constant", optim="sgd", logging_steps=1, baseline="leave_one_out",
    shuffle_dataset=False, use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
    log_diversity=True, **settings,
)
rows = [{"prompt": "One day"}, {"prompt": "Tom ran"}]
trainer = Dictated(str(mini.path("lm")), length if target == "exponential" else even, args, Dataset.from_list(rows))
trainer.train()
outcome = {
    "log": [log for log in trainer.state.log_history if "loss" in log],
    "state": vars(trainer.target_state),
    "weights": sum(float(weight.double().abs().sum()) for weight in trainer.model.parameters()),
    "sampled": [s["completion"] for s in trainer.quasi_rejection_sample("One day", 1e-9, num_samples=3)],
}
"""

METRICS = (
    "loss grad_norm z/mean z/log_mean z/ess log_t/mean log_t/max divergence/tv divergence/js "
    "divergence/kl_target_policy divergence/kl_policy_base advantage/std pseudo_reward/mean entropy "
    "importance_ratio/max diversity/self_bleu_5 reward"
).split()


@pytest.mark.invariant
@pytest.mark.slow
@pytest.mark.parametrize("target", ["exponential", "distributional"])
def test_two_processes_are_one(tmp_path: Path, target: str) -> None:
    alone, first, second = alone_and_shared(SCRIPT, tmp_path, target)
    assert first["state"] == second["state"]
    assert first["weights"] == second["weights"]
    assert first["sampled"] == second["sampled"] and len(first["sampled"]) == 3
    assert first["weights"] == pytest.approx(alone["weights"], rel=1e-7)
    assert (first["state"]["coefficients"] or []) == pytest.approx(alone["state"]["coefficients"] or [], rel=1e-6)
    assert first["state"]["z"].keys() == alone["state"]["z"].keys() and len(alone["state"]["z"]) == 2
    for key, entry in alone["state"]["z"].items():
        assert first["state"]["z"][key] == pytest.approx(entry, rel=1e-4)
    for ours, theirs in zip(logged(first, METRICS), logged(alone, METRICS), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
