# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What every trainer of a diffusion pipeline keeps to. A new trainer is a new row in `ROWS`."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from peft import LoraConfig
from transformers import HfArgumentParser

from alignext.trainers.diffusion_preference import (
    DiffusionDPOConfig,
    DiffusionDPOTrainer,
    InversionDPOConfig,
    InversionDPOTrainer,
    SmPOConfig,
    SmPOTrainer,
)

from ...fake_hub import metadata_errors
from ..contract import Steps, assert_same, curve, hub_of_trainers
from .contract import Row, pairs, prediction, weights
from .tiny import PIPELINES, sd


SHORT = {"num_inversion_steps": 4, "beta": 20.0}
ROWS = [
    Row(DiffusionDPOTrainer, DiffusionDPOConfig, {"beta": 20.0}),
    Row(InversionDPOTrainer, InversionDPOConfig, SHORT, at_reference=False),
    Row(SmPOTrainer, SmPOConfig, SHORT),
    Row(
        SmPOTrainer,
        SmPOConfig,
        SHORT | {"num_renoise_steps": 0, "label_sharpness": None, "inversion_eta": 0.1, "num_train_steps_per_pair": 2},
        name="InPO",
    ),
    Row(
        InversionDPOTrainer,
        InversionDPOConfig,
        SHORT | {"target": "trajectory", "num_train_steps_per_pair": None},
        name="all steps",
    ),
]
CLASSES = ROWS[:3]
LORA = LoraConfig(r=2, lora_alpha=4)

every_row = pytest.mark.parametrize("row", ROWS, ids=str)
FLUX_GUIDES_ITSELF = {InversionDPOTrainer: {"guidance_scale": 1.0}}
every_pair = pytest.mark.parametrize(
    ("row", "pipe", "settings"),
    [pytest.param(row, sd, {}, id=str(row)) for row in ROWS]
    + [
        pytest.param(
            row,
            PIPELINES[family],
            FLUX_GUIDES_ITSELF.get(row.trainer, {}) if family == "flux" else {},
            id=f"{row}-{family}",
            marks=pytest.mark.slow,
        )
        for row in CLASSES
        for family in PIPELINES
        if family != "sd"
    ],
)
every_class = pytest.mark.parametrize("row", CLASSES, ids=str)
with_and_without_lora = pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])


# Training


@every_row
def test_trains_every_parameter(row: Row, tmp_path: Path) -> None:
    trainer = row.start(tmp_path, prompt_dropout=0.0)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert all(weight.isfinite().all() for weight in after.values())
    assert not [name for name in after if torch.equal(before[name], after[name])]
    assert [step for step, *_ in curve(trainer)] == [1, 2, 3]
    assert all(math.isfinite(loss) and norm > 0 for _, loss, norm in curve(trainer))
    first = trainer.state.log_history[0]
    names = ("rewards/chosen", "rewards/rejected", "rewards/margins")
    assert any(first[name] for name in names) != row.at_reference
    if row.at_reference:
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert first["rewards/accuracies"] == 0.5
        assert first["mse/policy"] == first["mse/ref"] > 0


@every_row
def test_the_run_depends_on_the_weights_and_the_seed_alone(row: Row, tmp_path: Path) -> None:
    sd().save_pretrained(tmp_path / "pipe")
    runs = []
    for pipe in (str(tmp_path / "pipe"), sd()):  # a path and an instance
        trainer = row.start(tmp_path, pipe=pipe, max_steps=2)
        trainer.train()
        runs.append((curve(trainer), weights(trainer)))
        torch.manual_seed(1)  # what was drawn before must not matter
    assert runs[0][0] == runs[1][0]
    assert_same(runs[0][1], runs[1][1])
    other = row.start(tmp_path, max_steps=1, seed=7)
    other.train()
    assert curve(other)[0] != runs[0][0][0]


@every_row
def test_lora_trains_the_adapter_and_nothing_else(row: Row, tmp_path: Path) -> None:
    trainer = row.start(tmp_path, peft_config=LORA)
    before = weights(trainer)
    assert {name for name, p in trainer.denoiser.named_parameters() if p.requires_grad} == {
        name for name in before if "lora_" in name
    }
    trainer.train()
    after = weights(trainer)
    assert {name for name in after if not torch.equal(before[name], after[name])} == {
        name for name in after if "lora_" in name
    }
    assert trainer.ref_denoiser is None


@every_pair
def test_accumulating_is_a_larger_batch(
    row: Row, pipe: Callable[[], DiffusionPipeline], settings: dict[str, Any], tmp_path: Path
) -> None:
    runs = []
    for size, accumulated in ((4, 1), (1, 4)):
        trainer = row.start(
            tmp_path,
            pipe=pipe,
            **settings,
            max_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            optim="sgd",  # Adam would blow rounding up to the size of a step wherever the gradient is about zero
            learning_rate=1e-2,
            max_grad_norm=1.0,
        )
        before = weights(trainer)
        trainer.train()
        after = weights(trainer)
        logs = [log for log in trainer.state.log_history if "loss" in log]
        metrics = [[log[n] for n in ("loss", "grad_norm", "rewards/margins", "mse/policy")] for log in logs]
        runs.append((torch.tensor(metrics), torch.cat([(after[n] - before[n]).flatten() for n in after])))
    (at_once, moved_at_once), (accumulated, moved_accumulated) = runs
    torch.testing.assert_close(accumulated, at_once, rtol=1e-3, atol=1e-5)
    assert (moved_accumulated - moved_at_once).norm() < 2e-3 * moved_at_once.norm()


# Evaluation


@every_row
def test_evaluation_is_the_same_every_time_and_changes_nothing(row: Row, tmp_path: Path) -> None:
    trainer = row.start(tmp_path, eval_dataset={"a": pairs(5), "b": pairs(3, first=5)}, max_steps=2)
    trainer.train()
    before = weights(trainer)
    first = trainer.evaluate()
    torch.rand(3)
    again = trainer.evaluate()
    kept = [name for name in first if "loss" in name or "rewards" in name or "mse" in name]
    assert len(kept) == 2 * 7
    assert {name: first[name] for name in kept} == {name: again[name] for name in kept}
    assert_same(before, weights(trainer))
    # A row is evaluated alike whatever it is in a batch with: the last batch above has one row.
    trainer.args.per_device_eval_batch_size = 2
    apart = trainer.evaluate()
    assert [apart[name] for name in kept] == pytest.approx([first[name] for name in kept], rel=1e-3, abs=1e-6)
    given = trainer.evaluate(pairs(5))
    assert given["eval_loss"] == pytest.approx(first["eval_a_loss"], rel=1e-3)


@every_row
def test_training_does_not_notice_evaluation(row: Row, tmp_path: Path) -> None:
    runs = []
    for evaluated in (False, True):
        trainer = row.start(
            tmp_path,
            eval_dataset=pairs(4),
            eval_strategy="steps" if evaluated else "no",
            eval_steps=2,  # once before the last step
        )
        trainer.train()
        assert any("eval_loss" in log for log in trainer.state.log_history) == evaluated
        runs.append((curve(trainer), weights(trainer)))
    assert runs[0][0] == runs[1][0]
    assert_same(runs[0][1], runs[1][1])


# Saving


@with_and_without_lora
@pytest.mark.parametrize("family", PIPELINES)
def test_stock_classes_open_what_was_saved(family: str, tmp_path: Path, peft_config: LoraConfig | None) -> None:
    trainer = ROWS[0].start(tmp_path, pipe=PIPELINES[family], peft_config=peft_config, max_steps=1)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    pipe = PIPELINES[family]()
    base = prediction(pipe)
    if peft_config is not None:
        pipe.load_lora_weights(tmp_path / "saved")
    else:
        name = "unet" if hasattr(pipe, "unet") else "transformer"
        network = type(getattr(pipe, name)).from_pretrained(tmp_path / "saved", subfolder=name).eval()
        pipe.register_modules(**{name: network})
    trainer.denoiser.eval()
    found = prediction(pipe)
    assert torch.equal(found, prediction(trainer.pipe))
    assert not torch.equal(found, base)


def test_the_usage_lines_run(tmp_path: Path) -> None:
    sd().save_pretrained(tmp_path / "pipe")
    for peft_config, settings in ((LORA, {}), (None, {}), (None, {"save_full_pipeline": True})):
        folder = tmp_path / f"{peft_config is None}-{len(settings)}"
        pipe = DiffusionPipeline.from_pretrained(tmp_path / "pipe")
        trainer = ROWS[0].start(folder, pipe=pipe, peft_config=peft_config, max_steps=1, **settings)
        trainer.train()
        trainer.save_model()
        space: dict = {}
        exec(trainer.usage(), space)
        trainer.denoiser.eval()
        assert torch.equal(prediction(space["pipe"]), prediction(trainer.pipe))
        assert (folder / "model_index.json").exists() == bool(settings)


@every_pair
@with_and_without_lora
def test_resumed_run_is_the_uninterrupted_one(
    row: Row,
    pipe: Callable[[], DiffusionPipeline],
    settings: dict[str, Any],
    tmp_path: Path,
    peft_config: LoraConfig | None,
) -> None:
    settings = settings | {"pipe": pipe, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    settings |= {"peft_config": peft_config, "random_flip": True}
    whole = row.start(tmp_path, **settings)
    whole.train()
    resumed, steps = row.start(tmp_path, **settings), Steps()
    resumed.add_callback(steps)
    torch.rand(7)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert steps.taken == [3, 4]
    assert curve(resumed) == curve(whole)
    assert_same(weights(resumed), weights(whole))


@with_and_without_lora
def test_the_best_model_comes_back(tmp_path: Path, peft_config: LoraConfig | None) -> None:
    trainer = ROWS[0].start(
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
    ROWS[0].start(tmp_path / "full", **settings).train()
    ROWS[0].start(tmp_path / "lora", peft_config=LORA, **settings).train()
    with pytest.raises(ValueError, match="no LoRA"):
        ROWS[0].start(tmp_path, peft_config=LORA).train(resume_from_checkpoint=str(tmp_path / "full/checkpoint-1"))
    with pytest.raises(ValueError, match="no folder 'unet'"):
        ROWS[0].start(tmp_path).train(resume_from_checkpoint=str(tmp_path / "lora/checkpoint-1"))
    fewer = LoraConfig(r=2, target_modules=["to_q"])
    with pytest.raises(ValueError, match="does not fit"):
        ROWS[0].start(tmp_path, peft_config=fewer).train(resume_from_checkpoint=str(tmp_path / "lora/checkpoint-1"))


# Cards and the Hub


@every_class
def test_class_names_itself_and_its_paper(row: Row) -> None:
    own = vars(row.trainer)
    assert {"_tag_names", "_name", "_paper"} <= own.keys()
    assert {"title", "id", "citation"} <= own["_paper"].keys()
    assert {"trl", "alignext"} < set(own["_tag_names"])
    assert row.trainer.loss_is_scaled_for_ga is False


@every_class
def test_model_card_is_the_method_s_own(row: Row, tmp_path: Path) -> None:
    trainer = row.start(tmp_path, peft_config=LORA)
    trainer.create_model_card(model_name="painter", tags="foxes", finetuned_from="someone/base", license="mit")
    card = ModelCard.load(tmp_path / "README.md")
    assert metadata_errors(card.data.to_dict()) == []
    assert {*row.trainer._tag_names, "lora", "foxes"} <= set(card.data.tags)
    assert (card.data.library_name, card.data.base_model, card.data.license) == ("diffusers", "someone/base", "mit")
    assert card.data.pipeline_tag == "text-to-image"
    for text in ("painter", row.trainer._name, row.trainer._paper["title"], row.trainer._paper["id"], "load_lora_we"):
        assert text in card.text


# The Hub's own client, when it does not speak that protocol, passes bytes the way its HTTP library has deprecated.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@with_and_without_lora
def test_pushes_what_it_saved_at_every_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peft_config: LoraConfig | None
) -> None:
    with hub_of_trainers(monkeypatch) as hub:
        trainer = ROWS[0].start(
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


# Configs and data


@every_class
def test_config_has_help_for_the_command_line(row: Row) -> None:
    text = HfArgumentParser(row.config).format_help()  # a bare `%` in a help text would raise here
    assert "--beta" in text
    for name, field in row.config.__dataclass_fields__.items():
        if any(name in cls.__annotations__ for cls in row.config.__mro__[:3] if cls.__module__.startswith("alignext")):
            assert field.metadata.get("help"), f"{row.config.__name__}.{name} has no help text"


@every_class
def test_default_config_is_its_own(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CI", raising=False)  # what TRL's base class sends home then reads a config of transformers
    trainer = row.trainer(model=sd(), train_dataset=pairs(), peft_config=LORA)
    assert type(trainer.args) is row.config
    with pytest.raises(ValueError, match=f"`args` is a TrainingArguments. Pass a `{row.config.__name__}`"):
        from transformers import TrainingArguments

        row.trainer(model=sd(), args=TrainingArguments("x"), train_dataset=pairs())


@every_class
def test_wrong_columns_are_named(row: Row, tmp_path: Path) -> None:
    wrong = pairs().rename_columns({name: f"my_{name}" for name in pairs().column_names})
    with pytest.raises(ValueError, match="Expected `prompt`") as error:
        row.start(tmp_path, dataset=wrong)
    for name in wrong.column_names:
        assert name in str(error.value)
