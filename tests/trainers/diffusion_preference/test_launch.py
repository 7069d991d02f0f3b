# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Two processes do what one does with a batch of twice the size."""

from pathlib import Path

import pytest

from ..launch import alone_and_shared, logged


SCRIPT = """
from datasets import Dataset
from peft import LoraConfig
import alignext
from alignext import mini

(name,), size = arguments, 4 // processes
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
"""

METRICS = (
    "loss grad_norm rewards/chosen rewards/rejected rewards/margins rewards/accuracies mse/policy mse/ref".split()
)


@pytest.mark.invariant
@pytest.mark.slow
@pytest.mark.parametrize("name", ["DiffusionDPO", "InversionDPO", "SmPO"])
def test_two_processes_are_one_larger_batch(tmp_path: Path, name: str) -> None:
    alone, first, second = alone_and_shared(SCRIPT, tmp_path, name)
    assert first["weights"] == second["weights"]
    assert first["weights"] == pytest.approx(alone["weights"], rel=1e-3)
    assert first["eval"] == pytest.approx(alone["eval"], rel=1e-2, abs=1e-5)
    for ours, theirs in zip(logged(first, METRICS), logged(alone, METRICS), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-5)
