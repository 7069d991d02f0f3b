# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""A constructor that fails leaves the pipeline as it was, and the next one works."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from diffusers import DiffusionPipeline
from peft import LoraConfig

import alignext
from alignext.training.undoing import unchanged_on_error

from ..trainers.contract import assert_same
from ..trainers.diffusion import DiffusionRow as Row
from ..trainers.diffusion import pairs
from ..trainers.diffusion_preference.tiny import sd, sd3


INVERSION = Row(alignext.InversionDPOTrainer, alignext.InversionDPOConfig, {"num_inversion_steps": 4})
LORA = LoraConfig(r=2, init_lora_weights="gaussian")


class LateTrainer(alignext.InversionDPOTrainer):
    """Fails after the constructors of all others."""

    def __init__(self, *args: Any, fails: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if fails:
            raise ValueError("late")


def tensors(pipe: DiffusionPipeline) -> dict[str, torch.Tensor]:
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{of}.{name}": t.clone() for of, part in modules.items() for name, t in part.state_dict().items()}


def state(pipe: DiffusionPipeline) -> dict[str, Any]:
    """All else that a constructor changes."""
    found: dict[str, Any] = {}
    for of, part in pipe.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        found |= {f"{of}.{name}": (p.dtype, p.requires_grad) for name, p in part.named_parameters()}
        for name, module in part.named_modules():
            found[f"{of}.{name} module"] = (
                type(module),
                {key: str(value) for key, value in vars(module).items() if not key.startswith("_")},
                set(getattr(module, "peft_config", ())),
                getattr(module, "_active_adapter", None),
                len(module._forward_hooks) + len(module._forward_pre_hooks),
            )
    return found


def styled() -> DiffusionPipeline:
    pipe = sd()
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(target_modules=["to_q"], lora_dropout=0.1), adapter_name="style")
    return pipe


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eval_strategy": "steps"}, "eval_dataset"),
        ({"random_flip": True, "dataset": "editing"}, "`random_flip` would not flip"),
        ({"trainer": LateTrainer}, "late"),
    ],
    ids=["parent", "pictures", "subclass"],
)
@pytest.mark.parametrize(
    ("pipe", "lora"), [(sd, True), (sd, False), (styled, True), (sd3, True)], ids=["lora", "whole", "beside", "sd3"]
)
def test_the_pipeline_is_as_it_was(pipe, lora: bool, settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    made = pipe().to(torch.float16 if "trainer" in settings else torch.float32)
    weights, rest = tensors(made), state(made)
    data = Dataset.from_list([row | {"source": row["image_chosen"]} for row in pairs(4)])
    bad = settings | ({"dataset": data} if "dataset" in settings else {})
    start = {"pipe": made, "peft_config": LORA if lora else None, "max_steps": 1, "init_noise": 0.1}
    with pytest.raises(ValueError, match=said):
        INVERSION.start(tmp_path, **start | bad)
    assert_same(tensors(made), weights)
    assert state(made) == rest
    # The next one takes nothing from it.
    again = INVERSION.start(tmp_path, **start)
    fresh = INVERSION.start(tmp_path, **start | {"pipe": pipe().to(made.dtype)})
    assert_same(tensors(again.pipe), tensors(fresh.pipe))


def test_nothing_is_undone_without_an_error() -> None:
    module = torch.nn.Linear(2, 2)
    with unchanged_on_error([module]):
        module.eval().half()
    assert not module.training and module.weight.dtype == torch.float16
