# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What the diffusion trainers save and push, beyond the clauses of every trainer."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from peft import LoraConfig

from alignext.trainers.diffusion_preference import DiffusionDPOConfig, DiffusionDPOTrainer

from ...fake_hub import metadata_errors
from ..contract import hub_of_trainers
from ..diffusion import DiffusionRow, pairs, prediction
from .tiny import sd


ROW = DiffusionRow(DiffusionDPOTrainer, DiffusionDPOConfig, {"beta": 20.0})
LORA = ROW.lora
with_and_without_lora = pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])


def test_the_usage_lines_run(tmp_path: Path) -> None:
    sd().save_pretrained(tmp_path / "pipe")
    for peft_config, settings in ((LORA, {}), (None, {}), (None, {"save_full_pipeline": True})):
        folder = tmp_path / f"{peft_config is None}-{len(settings)}"
        pipe = DiffusionPipeline.from_pretrained(tmp_path / "pipe")
        trainer = ROW.start(folder, pipe=pipe, peft_config=peft_config, max_steps=1, **settings)
        trainer.train()
        trainer.save_model()
        space: dict = {}
        exec(trainer.usage(), space)
        trainer.denoiser.eval()
        assert torch.equal(prediction(space["pipe"]), prediction(trainer.pipe))
        assert (folder / "model_index.json").exists() == bool(settings)


@with_and_without_lora
def test_the_best_model_comes_back(tmp_path: Path, peft_config: LoraConfig | None) -> None:
    trainer = ROW.start(
        tmp_path,
        peft_config=peft_config,
        eval_dataset=pairs(4),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="rewards/margins",
        greater_is_better=False,
        learning_rate=1e-2,
    )
    trainer.train()
    margins = [log["eval_rewards/margins"] for log in trainer.state.log_history if "eval_rewards/margins" in log]
    assert trainer.state.best_metric == min(margins)
    assert trainer.evaluate()["eval_rewards/margins"] == min(margins)


def test_a_checkpoint_of_another_kind_is_named(tmp_path: Path) -> None:
    settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    ROW.start(tmp_path / "full", **settings).train()
    ROW.start(tmp_path / "lora", peft_config=LORA, **settings).train()
    with pytest.raises(ValueError, match="no LoRA"):
        ROW.start(tmp_path, peft_config=LORA).train(resume_from_checkpoint=str(tmp_path / "full/checkpoint-1"))
    with pytest.raises(ValueError, match="no folder 'unet'"):
        ROW.start(tmp_path).train(resume_from_checkpoint=str(tmp_path / "lora/checkpoint-1"))
    fewer = LoraConfig(r=2, target_modules=["to_q"])
    with pytest.raises(ValueError, match="does not fit"):
        ROW.start(tmp_path, peft_config=fewer).train(resume_from_checkpoint=str(tmp_path / "lora/checkpoint-1"))


def test_card_says_what_it_is_told(tmp_path: Path) -> None:
    trainer = ROW.start(tmp_path, peft_config=ROW.lora)
    trainer.create_model_card(model_name="painter", tags="foxes", finetuned_from="someone/base", license="mit")
    card = ModelCard.load(tmp_path / "README.md")
    assert metadata_errors(card.data.to_dict()) == []
    assert {*ROW.trainer._tag_names, "lora", "foxes"} <= set(card.data.tags)
    assert (card.data.base_model, card.data.license) == ("someone/base", "mit")
    assert "load_lora_we" in card.text


def test_a_lora_has_no_reference_of_its_own(tmp_path: Path) -> None:
    assert ROW.start(tmp_path, peft_config=ROW.lora).ref_denoiser is None


# The Hub's own client, when it does not speak that protocol, passes bytes the way its HTTP library has deprecated.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@with_and_without_lora
def test_pushes_what_it_saved_at_every_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peft_config: LoraConfig | None
) -> None:
    with hub_of_trainers(monkeypatch) as hub:
        trainer = ROW.start(
            tmp_path,
            peft_config=peft_config,
            max_steps=2,
            save_strategy="steps",
            save_steps=1,
            push_to_hub=True,
            hub_model_id="someone/painter",
            hub_always_push=True,
        )
        trainer.train()
        trainer._finish_current_push()
        during = [commit["paths"] for commit in hub.commits]
        trainer.push_to_hub()
        files = hub.repos["someone/painter"]
    if peft_config is None:
        expected = {"unet/diffusion_pytorch_model.safetensors", "unet/config.json", "README.md"}
    else:
        expected = {"pytorch_lora_weights.safetensors", "README.md"}
    assert any(expected <= set(paths) for paths in during)
    assert expected <= files.keys()
    assert "Diffusion-DPO" in files["README.md"].decode()
    assert "model.safetensors" not in files
