# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Two processes do what one does with the same completions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = """
import json, sys
import torch
from datasets import Dataset
from alignext import FDPGConfig, FDPGTrainer, mini

folder, target = sys.argv[1], sys.argv[2]
torch.set_num_threads(1)


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
    folder, target=target, num_generations=4, per_device_train_batch_size=8 // int(sys.argv[3]), max_steps=3,
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
with open(f"{folder}/outcome-{trainer.args.process_index}.json", "w") as file:
    json.dump(outcome, file)
trainer.end()
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
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    outcomes = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        command = [sys.executable, str(script)]
        if processes > 1:
            launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
            launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
            command = [sys.executable, *launch, str(script)]
        answer = subprocess.run(
            [*command, str(folder), target, str(processes)], capture_output=True, text=True, cwd=tmp_path
        )
        assert answer.returncode == 0, answer.stderr[-3000:]
        outcomes[processes] = [json.loads(file.read_text()) for file in sorted(folder.glob("outcome-*.json"))]
        assert len(outcomes[processes]) == processes
    (alone,), (first, second) = outcomes[1], outcomes[2]
    assert first["state"] == second["state"]
    assert first["weights"] == second["weights"]
    assert first["sampled"] == second["sampled"] and len(first["sampled"]) == 3
    assert first["weights"] == pytest.approx(alone["weights"], rel=1e-7)
    assert (first["state"]["coefficients"] or []) == pytest.approx(alone["state"]["coefficients"] or [], rel=1e-6)
    assert first["state"]["z"].keys() == alone["state"]["z"].keys() and len(alone["state"]["z"]) == 2
    for key, entry in alone["state"]["z"].items():
        assert first["state"]["z"][key] == pytest.approx(entry, rel=1e-4)
    for ours, theirs in zip(first["log"], alone["log"], strict=True):
        assert {name: ours[name] for name in METRICS} == pytest.approx(
            {name: theirs[name] for name in METRICS}, rel=1e-3, abs=1e-5
        )
