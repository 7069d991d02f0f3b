# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Two processes do what one does with a batch of twice the size, each with all weights or with a part of them."""

from pathlib import Path

import pytest

from ..launch import alone_and_shared, logged
from .test_families import NAMES


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


SHARED = """
sys.path.insert(0, arguments[0])
from pathlib import Path
import pytest
from tests.trainers.diffusion_preference.test_families import NAMES, families, pairs, start
from tests.trainers.invariant import shard_on_cpu, whole

if processes == 2:
    shard_on_cpu()
"""
SHARDS = (
    SHARED
    + """
# Prompts of other lengths go through the denoiser one after another: as often in the process that has none of them.
rows = pairs("z-image", 8).to_list()
for i, row in enumerate(rows):
    row["prompt_embeds"] = row["prompt_embeds"][: (3, 3, 4, 6)[i % 4]]
from datasets import Dataset
data, settings = Dataset.from_list(rows), {
    "per_device_train_batch_size": 4 // processes, "per_device_eval_batch_size": 4 // processes, "max_steps": 3,
    "learning_rate": 1e-3, "lr_scheduler_type": "constant", "adam_epsilon": 1e-4, "beta": 20.0,
    "use_cpu": processes == 1, "activation_checkpointing": True, "save_strategy": "steps", "save_steps": 2,
    "train_sampling_strategy": "sequential",
}

def trained(name, **resume):
    trainer = start("z-image", Path(f"{folder}/{name}"), train_dataset=data, **settings)
    trainer.train(**resume)
    weights = whole({n: p.detach() for n, p in trainer.denoiser.named_parameters() if p.requires_grad})
    return trainer, {n: float(w.double().abs().sum()) for n, w in weights.items()}

calls = []
trainer, weights = trained("run")
trainer.denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
metrics = trainer.evaluate(data)
trainer.save_model()
again, resumed = trained("again", resume_from_checkpoint=f"{folder}/run/checkpoint-2")
outcome = {
    "log": [log for log in trainer.state.log_history if "loss" in log], "weights": weights, "resumed": resumed,
    "eval": {name: value for name, value in metrics.items() if "loss" in name or "rewards" in name or "mse" in name},
    "calls": len(calls), "files": sorted(str(file.name) for file in Path(f"{folder}/run").iterdir()),
}
"""
)


@pytest.mark.invariant
@pytest.mark.slow
def test_processes_that_share_weights_are_one_larger_batch(tmp_path: Path) -> None:
    """FSDP2 on the CPU, a LoRA of Z-Image: training, evaluation, what is saved, and going on from a checkpoint."""
    alone, first, second = alone_and_shared(SHARDS, tmp_path, str(Path(__file__).parents[3]))
    for shared in (first, second):
        assert shared["weights"] == pytest.approx(alone["weights"], rel=1e-3)
        assert shared["resumed"] == pytest.approx(shared["weights"], rel=1e-6)
        assert shared["eval"] == pytest.approx(alone["eval"], rel=1e-2, abs=1e-5)
    assert first["calls"] == second["calls"] > 0
    assert "pytorch_lora_weights.safetensors" in first["files"] and first["files"] == alone["files"]
    for ours, theirs in zip(logged(first, METRICS), logged(alone, METRICS), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-5)


EVERY_FAMILY = (
    SHARED
    + """
families.small_pictures(pytest.MonkeyPatch())
outcome = {}
for name in NAMES:
    trainer = start(
        name, Path(f"{folder}/{name}"), per_device_train_batch_size=4 // processes, max_steps=1, optim="sgd",
        use_cpu=processes == 1, train_sampling_strategy="sequential",
    )
    trainer.train()
    sharded = sum(hasattr(weight, "full_tensor") for weight in trainer.denoiser.parameters())
    log = trainer.state.log_history[0]
    outcome[name] = {"loss": log["loss"], "norm": log["grad_norm"], "mse": log["mse/policy"], "sharded": sharded}
"""
)


@pytest.mark.invariant
@pytest.mark.slow
def test_every_family_trains_in_shards(tmp_path: Path) -> None:
    """An update of each family with FSDP2 on the CPU: a LoRA, or all weights where diffusers has none."""
    alone, first, second = alone_and_shared(EVERY_FAMILY, tmp_path, str(Path(__file__).parents[3]))
    assert set(alone) == set(NAMES)
    for name, expected in alone.items():
        for found in (first[name], second[name]):
            assert found.pop("sharded") > 0, name
            assert found == pytest.approx({k: v for k, v in expected.items() if k != "sharded"}, rel=1e-3), name
