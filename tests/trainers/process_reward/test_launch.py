# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Two processes do what one does with a batch of twice the size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = """
import json, sys
import torch
from datasets import Dataset
from alignext import ProcessRewardConfig, ProcessRewardTrainer, mini

folder, size = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
# as many steps as the row's number: the two processes always see different numbers of labels
rows = [
    {"prompt": "One day", "steps": [f"Tom ate {k} cakes." for k in range(n)], "labels": [k / n for k in range(n)]}
    for n in (1, 5, 2, 3, 4, 1, 1, 6)
]
args = ProcessRewardConfig(
    folder, per_device_train_batch_size=size, max_steps=4, learning_rate=1e-3, optim="sgd", logging_steps=1,
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
with open(f"{folder}/outcome-{trainer.args.process_index}.json", "w") as file:
    json.dump(outcome, file)
trainer.end()
"""

METRICS = "loss grad_norm mean_score mean_label accuracy num_tokens".split()


@pytest.mark.invariant
@pytest.mark.slow
def test_two_processes_are_one_larger_batch(tmp_path: Path) -> None:
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
            [*command, str(folder), str(4 // processes)], capture_output=True, text=True, cwd=tmp_path
        )
        assert answer.returncode == 0, answer.stderr[-3000:]
        outcomes[processes] = [json.loads(file.read_text()) for file in sorted(folder.glob("outcome-*.json"))]
        assert len(outcomes[processes]) == processes
    (alone,), (first, second) = outcomes[1], outcomes[2]
    assert first["weights"] == second["weights"]
    assert first["weights"] == pytest.approx(alone["weights"], rel=1e-7)
    for ours, theirs in zip(first["log"], alone["log"], strict=True):
        assert {name: ours[name] for name in METRICS} == pytest.approx(
            {name: theirs[name] for name in METRICS}, rel=1e-3, abs=1e-5
        )
    assert first["eval"]["eval_loss"] == pytest.approx(alone["eval"]["eval_loss"], rel=1e-4)
