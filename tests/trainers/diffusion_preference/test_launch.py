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
from peft import LoraConfig
import alignext
from alignext import mini

folder, name, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
rows = [
    {
        "prompt": f"a fox {i}",
        "chosen_latents": torch.randn(16, 8, 8, generator=g).numpy(),
        "rejected_latents": torch.randn(16, 8, 8, generator=g).numpy(),
        "score_chosen": 0.2 + 0.01 * i,
        "score_rejected": 0.19,
    }
    for i in range(8)
]
settings = {} if name == "DiffusionDPO" else {"num_inversion_steps": 4}
if name == "InversionDPO":  # all steps: several backward passes, one exchange of gradients
    settings |= {"num_train_steps_per_pair": None, "precompute_inversion": True, "inversion_cache": f"{folder}/kept"}
args = getattr(alignext, f"{name}Config")(
    folder, per_device_train_batch_size=size, per_device_eval_batch_size=size, max_steps=3, learning_rate=1e-2,
    optim="sgd", logging_steps=1, beta=20.0, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
    activation_checkpointing=True, **settings,
)
trainer = getattr(alignext, f"{name}Trainer")(
    str(mini.path("sd")), args=args, train_dataset=Dataset.from_list(rows), peft_config=LoraConfig(r=2),
)
trainer.train()
metrics = trainer.evaluate(Dataset.from_list(rows[:5]))  # the last batch is not full
kept = [p.detach().double() for p in trainer.denoiser.parameters() if p.requires_grad]
outcome = {
    "log": [log for log in trainer.state.log_history if "loss" in log],
    "weights": [float(p.abs().sum()) for p in kept],
    "eval": {name: value for name, value in metrics.items() if "loss" in name or "rewards" in name or "mse" in name},
}
with open(f"{folder}/outcome-{trainer.args.process_index}.json", "w") as file:
    json.dump(outcome, file)
trainer.end()
"""

METRICS = (
    "loss grad_norm rewards/chosen rewards/rejected rewards/margins rewards/accuracies mse/policy mse/ref".split()
)


@pytest.mark.invariant
@pytest.mark.slow
@pytest.mark.parametrize("name", ["DiffusionDPO", "InversionDPO", "SmPO"])
def test_two_processes_are_one_larger_batch(tmp_path: Path, name: str) -> None:
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
            [*command, str(folder), name, str(4 // processes)], capture_output=True, text=True, cwd=tmp_path
        )
        assert answer.returncode == 0, answer.stderr[-3000:]
        outcomes[processes] = [json.loads(file.read_text()) for file in sorted(folder.glob("outcome-*.json"))]
        assert len(outcomes[processes]) == processes
    (alone,), (first, second) = outcomes[1], outcomes[2]
    assert first["weights"] == second["weights"]
    assert first["weights"] == pytest.approx(alone["weights"], rel=1e-3)
    assert first["eval"] == pytest.approx(alone["eval"], rel=1e-2, abs=1e-5)
    for ours, theirs in zip(first["log"], alone["log"], strict=True):
        assert [ours[name] for name in METRICS] == pytest.approx(
            [theirs[name] for name in METRICS], rel=1e-2, abs=1e-5
        )
