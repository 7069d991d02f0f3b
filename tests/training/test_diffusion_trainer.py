# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The generic trainer of a denoiser: prompts alone are enough for it, and its result has a card."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig

import alignext
from alignext.diffusion.draws import Draws
from alignext.diffusion.latents import decode_latents
from alignext.functional.predictions import clean_and_noise
from alignext.training.diffusion import DiffusionTrainer
from alignext.training.diffusion_arguments import DiffusionTrainingArguments

from ..trainers.diffusion_preference.tiny import SIZE, sd


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"index": torch.tensor([row["index"] for row in rows]), "prompts": [row["prompt"] for row in rows]}


class DarknessTrainer(DiffusionTrainer):
    """One step from noise, decoded, and the brightness of the picture minimised: rewards of pictures from prompts."""

    _needs_reference = False
    _name = "Darkness"
    _tag_names = ["alignext", "darkness"]
    _paper = {"title": "Darkness", "id": "2501.00000", "citation": "@misc{darkness}"}

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        device = self.accelerator.device
        x = Draws(self.args.seed, 0, inputs["index"]).normal("noise", (4, 8, 8), device)
        levels = self.levels(x)
        k = levels.num_steps // 2
        prediction = model(x, levels.timesteps[k - 1].expand(len(x)), self.conditions(inputs["prompts"]))
        x0 = clean_and_noise(prediction, x, levels.a[k], levels.s[k], self.prediction_type)[0]
        brightness = decode_latents(self.pipe, x0).flatten(1).mean(1)
        self.note({"brightness": brightness})
        return (brightness.mean(), {}) if return_outputs else brightness.mean()


def start(
    folder: Path, peft_config: LoraConfig | None = None, arguments: dict[str, Any] | None = None, **settings: Any
) -> DarknessTrainer:
    defaults = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 4, "learning_rate": 1e-2}
    defaults |= {"activation_checkpointing": False, "logging_steps": 1, "save_strategy": "no"}
    rows = Dataset.from_list([{"index": i, "prompt": f"a fox {i}"} for i in range(4)])
    args = DiffusionTrainingArguments(
        str(folder), per_device_train_batch_size=4, max_sequence_length=16, resolution=SIZE, **defaults | settings
    )
    given = {"train_dataset": rows, "data_collator": collate, "peft_config": peft_config} | (arguments or {})
    trainer = DarknessTrainer(sd(), args, **given)
    assert trainer.args is not args
    return trainer


def test_prompts_alone_train_a_pipeline(tmp_path: Path) -> None:
    trainer = start(tmp_path / "darker")
    trainer.train()
    curve = [log["brightness"] for log in trainer.state.log_history if "brightness" in log]
    assert len(curve) == 4 and curve[-1] < curve[0]
    assert trainer.ref_denoiser is None
    with pytest.raises(ValueError, match="no reference"):
        trainer.reference(trainer.model)


def test_a_result_has_a_card_without_being_pushed(tmp_path: Path) -> None:
    trainer = start(tmp_path / "darker", LoraConfig(r=2), max_steps=1)
    trainer.pipe.register_to_config(_name_or_path=str(tmp_path / "base"))
    trainer.train()
    trainer.save_model()
    trainer.save_model(str(tmp_path / "elsewhere"))
    for folder in ("darker", "elsewhere"):
        card = ModelCard.load(tmp_path / folder / "README.md")
        assert card.data.to_dict().get("base_model") is None
        assert f"alignext {alignext.__version__}" in card.text and "load_lora_weights" in card.text
        assert str(tmp_path) not in str(card) and "None" not in str(card)
    trainer.create_model_card(finetuned_from="someone/base")
    assert ModelCard.load(tmp_path / "darker" / "README.md").data.base_model == "someone/base"
    trainer.create_model_card(finetuned_from=str(tmp_path))
    assert ModelCard.load(tmp_path / "darker" / "README.md").data.to_dict().get("base_model") is None


@pytest.mark.parametrize(
    "setting",
    [
        {"train_sampling_strategy": "group_by_length"},
        {"train_sampling_strategy": "batch_rebalance"},
        {"label_smoothing_factor": 0.1},
        {"neftune_noise_alpha": 5.0},
        {"include_num_input_tokens_seen": "all"},
        {"bf16_full_eval": True},
    ],
    ids=str,
)
def test_arguments_of_language_models_are_refused(setting: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}` must be .*received"):
        DiffusionTrainingArguments(str(tmp_path), use_cpu=True, **setting)
    for config in (alignext.DiffusionDPOConfig, alignext.InversionDPOConfig, alignext.SmPOConfig):
        assert issubclass(config, DiffusionTrainingArguments)


@pytest.mark.parametrize("name", ["compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func"])
def test_arguments_that_would_never_be_called_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be None, received <function.*: DarknessTrainer has its own"):
        start(tmp_path, arguments={name: lambda *_: {}})
    start(tmp_path, arguments={name: None})


def test_settings_of_another_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`args` must be a `DiffusionDPOConfig`, received a DiffusionTraining"):
        alignext.DiffusionDPOTrainer(sd(), args=DiffusionTrainingArguments(str(tmp_path), use_cpu=True))
