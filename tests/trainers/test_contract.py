# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What every trainer keeps to. A new trainer is a new row in `ROWS`.

The stock classes stand here beside ours because ours inherit from them: a clause that a parent does not keep tells
nothing about its child.
"""

import math
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    HfArgumentParser,
    Trainer,
)
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RLOOConfig, RLOOTrainer

from alignext.heads.auto import AutoModelForCausalLMWithObjectiveHeads
from alignext.trainers.bco import BCOConfig, BCOTrainer
from alignext.trainers.f_dpg import FDPGConfig, FDPGTrainer
from alignext.trainers.mah_dpo import MAHDPOConfig, MAHDPOTrainer
from alignext.trainers.process_reward import ProcessRewardConfig, ProcessRewardTrainer

from ..fake_hub import metadata_errors
from .contract import (
    MINI_LM,
    Row,
    Steps,
    assert_same,
    count_vowels,
    curve,
    hub_of_trainers,
    preference,
    preference_by_objective,
    prompts,
    solutions,
    unpaired,
    weights,
)


ROWS = [
    # The other loss of KTO pairs each completion with its neighbour in the micro-batch, so that accumulating over
    # smaller ones is another loss by design.
    Row(KTOTrainer, KTOConfig, unpaired, {"loss_type": "apo_zero_unpaired"}),
    Row(DPOTrainer, DPOConfig, preference),
    Row(
        RLOOTrainer,
        RLOOConfig,
        prompts,
        {"num_generations": 2, "max_completion_length": 16},
        {"reward_funcs": count_vowels},
        samples=True,
    ),
    Row(BCOTrainer, BCOConfig, unpaired, ours=True),
    Row(
        FDPGTrainer,
        FDPGConfig,
        prompts,
        {"num_generations": 2, "max_completion_length": 16, "beta": 2.0},
        {"reward_funcs": count_vowels},
        samples=True,
        ours=True,
    ),
    Row(
        ProcessRewardTrainer,
        ProcessRewardConfig,
        solutions,
        ours=True,
        auto=AutoModelForTokenClassification,
        auto_settings={"num_labels": 1},
        task="TOKEN_CLS",
        head="score",
    ),
    Row(
        MAHDPOTrainer,
        MAHDPOConfig,
        preference_by_objective,
        ours=True,
        auto=AutoModelForCausalLMWithObjectiveHeads,
        auto_settings={"objectives": ["kind", "lively"]},
        head="objective_heads",
    ),
]
OURS = [row for row in ROWS if row.ours]
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])

every_row = pytest.mark.parametrize("row", ROWS, ids=str)
with_and_without_lora = pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning"),
]


def of_ours(test):
    """Parametrize over our rows; with none there is no test, rather than a skipped one."""
    return pytest.mark.parametrize("row", OURS, ids=str)(test) if OURS else None


def of_sampled_text(trainer: type[Trainer]) -> type[Trainer]:
    """The trainer, its evaluation drawing from random numbers of its own."""

    class WithOwnDraws(trainer):
        def evaluate(self, *args: object, **kwargs: object) -> dict[str, float]:
            with torch.random.fork_rng(devices=[]):
                return super().evaluate(*args, **kwargs)

    return WithOwnDraws


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = AutoTokenizer.from_pretrained(MINI_LM)("Lily and Tom went home.", return_tensors="pt").input_ids
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


# Training


@every_row
@pytest.mark.parametrize("conversational", [False, True], ids=["standard", "conversational"])
def test_trains_every_parameter(row: Row, tmp_path: Path, conversational: bool) -> None:
    trainer = row.start(tmp_path, conversational=conversational)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    assert all(weight.isfinite().all() for weight in after.values())
    assert not [name for name in after if torch.equal(before[name], after[name])]
    assert [step for step, *_ in curve(trainer)] == [1, 2, 3]
    assert all(math.isfinite(loss) and norm > 0 for _, loss, norm in curve(trainer))
    # before the first update, policy and reference are the same model
    first = trainer.state.log_history[0]
    assert not any(first.get(name) for name in ("kl", "rewards/chosen", "rewards/rejected", "rewards/margins"))


@every_row
def test_the_run_depends_on_the_weights_and_the_seed_alone(row: Row, tmp_path: Path) -> None:
    runs = []
    for model in (str(MINI_LM), row.load()):  # a path and an instance
        trainer = row.start(tmp_path, model=model, max_steps=2)
        trainer.train()
        runs.append((curve(trainer), weights(trainer.model)))
        torch.manual_seed(1)  # what was drawn before must not matter
    assert runs[0][0] == runs[1][0]
    assert_same(runs[0][1], runs[1][1])


@every_row
def test_lora_trains_the_adapter_and_nothing_else(row: Row, tmp_path: Path) -> None:
    trainer = row.start(tmp_path, peft_config=LORA)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    head = f"{row.head}.modules_to_save"
    assert moved == {name for name in after if "lora_" in name or head in name}
    left, base = weights(trainer.model.unload()), weights(row.load())
    if row.head is not None:
        left, base = ({k: v for k, v in w.items() if row.head not in k} for w in (left, base))
    assert_same(left, base)


@every_row
def test_accumulating_is_a_larger_batch(row: Row, tmp_path: Path) -> None:
    runs = []
    for size, accumulated in ((4, 1), (1, 4)):
        trainer = row.start(
            tmp_path,
            max_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            optim="sgd",  # Adam would blow rounding up to the size of a step wherever the gradient is about zero
            learning_rate=1e-3,
            max_grad_norm=1.0,
        )
        before = weights(trainer.model)
        trainer.train()
        after = weights(trainer.model)
        runs.append((torch.tensor(curve(trainer)), torch.cat([(after[n] - before[n]).flatten() for n in after])))
    (curve_at_once, moved_at_once), (curve_accumulated, moved_accumulated) = runs
    assert torch.allclose(curve_accumulated, curve_at_once, rtol=1e-4, atol=1e-5)
    assert (moved_accumulated - moved_at_once).norm() < 1e-3 * moved_at_once.norm()


# Evaluation


@every_row
def test_evaluation_gives_a_loss_and_changes_nothing(row: Row, tmp_path: Path) -> None:
    trainer = row.start(tmp_path)
    before = weights(trainer.model)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(trainer.evaluate(row.dataset(False).select(range(4)))["eval_loss"])
    assert losses[0] == losses[1]
    assert math.isfinite(losses[0])
    assert_same(before, weights(trainer.model))


@every_row
def test_training_does_not_notice_evaluation(row: Row, tmp_path: Path) -> None:
    runs = []
    for evaluated in (False, True):
        trainer = row.start(
            tmp_path,
            trainer=of_sampled_text(row.trainer) if row.samples else None,
            eval_dataset=row.dataset(False).select(range(4)),
            eval_strategy="steps" if evaluated else "no",
            eval_steps=2,  # once before the last step
        )
        trainer.train()
        assert any("eval_loss" in log for log in trainer.state.log_history) == evaluated
        runs.append((curve(trainer), weights(trainer.model)))
    assert runs[0][0] == runs[1][0]
    assert_same(runs[0][1], runs[1][1])


# Saving


@every_row
@with_and_without_lora
def test_stock_classes_open_what_was_saved(row: Row, tmp_path: Path, peft_config: LoraConfig | None) -> None:
    trainer = row.start(tmp_path, peft_config=peft_config, max_steps=1)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    model = row.load(tmp_path / "saved" if peft_config is None else MINI_LM)
    base = logits(model)
    if peft_config is not None:
        model = PeftModel.from_pretrained(model, tmp_path / "saved")
        assert not torch.equal(logits(model), base)
    assert torch.equal(logits(model), logits(trainer.model))
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved.get_vocab() == AutoTokenizer.from_pretrained(MINI_LM).get_vocab()
    assert saved.chat_template


@every_row
@with_and_without_lora
def test_resumed_run_is_the_uninterrupted_one(row: Row, tmp_path: Path, peft_config: LoraConfig | None) -> None:
    settings = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "peft_config": peft_config}
    whole = row.start(tmp_path, **settings)
    whole.train()
    resumed, steps = row.start(tmp_path, **settings), Steps()
    resumed.add_callback(steps)
    torch.rand(7)  # a state of the random numbers that only the checkpoint can put right
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert steps.taken == [4, 5]
    assert curve(resumed) == curve(whole)
    assert_same(weights(resumed.model), weights(whole.model))


# Cards and the Hub


@every_row
def test_class_names_itself_and_its_paper(row: Row) -> None:
    own = vars(row.trainer)
    # An inherited one makes the card credit the parent's method.
    assert {"_tag_names", "_name", "_paper"} <= own.keys()
    assert {"title", "id", "citation"} <= own["_paper"].keys()
    parent = row.trainer.__mro__[1]
    assert own["_name"] != parent._name
    assert own["_paper"] != parent._paper
    if row.ours:
        assert {"trl", "alignext"} < set(own["_tag_names"])


@every_row
def test_model_card_is_the_method_s_own(row: Row, tmp_path: Path) -> None:
    trainer = row.start(tmp_path)
    trainer.create_model_card(model_name="storyteller")
    card = ModelCard.load(tmp_path / "README.md")
    assert metadata_errors(card.data.to_dict()) == []
    assert set(row.trainer._tag_names) <= set(card.data.tags)
    assert row.trainer._name in card.text
    assert row.trainer._paper["title"] in card.text
    assert row.trainer._paper["id"] in card.text
    (snippet,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    compile(snippet, "card", "exec")
    assert ("pipeline(" in snippet) == (row.auto is AutoModelForCausalLM)  # which the other classes do without


# The Hub's own client, when it does not speak that protocol, passes bytes the way its HTTP library has deprecated.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@every_row
def test_pushes_what_it_saved(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_of_trainers(monkeypatch) as hub:
        trainer = row.start(tmp_path, max_steps=1, hub_model_id="someone/storyteller")
        trainer.train()
        trainer.push_to_hub()
        files = hub.repos["someone/storyteller"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= files.keys()
    assert row.trainer._name in files["README.md"].decode()


# Configs and data


@every_row
def test_config_has_help_for_the_command_line(row: Row) -> None:
    text = HfArgumentParser(row.config).format_help()  # a bare `%` in a help text would raise here
    assert "--learning_rate" in text
    for name, field in row.config.__dataclass_fields__.items():
        if row.ours and name in row.config.__annotations__:
            assert field.metadata.get("help"), f"{row.config.__name__}.{name} has no help text"


@of_ours
def test_default_config_is_its_own(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # TRL's default precision refuses to be made where there is no accelerator
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    trainer = row.trainer(model=str(MINI_LM), train_dataset=row.dataset(False), **row.arguments)
    assert type(trainer.args) is row.config


@of_ours
def test_wrong_columns_are_named(row: Row, tmp_path: Path) -> None:
    wrong = row.dataset(False).rename_columns({name: f"my_{name}" for name in row.dataset(False).column_names})
    with pytest.raises(ValueError, match="found") as error:
        row.start(tmp_path, dataset=wrong)
    for name in [*wrong.column_names, *row.dataset(False).column_names]:
        assert name in str(error.value)


@of_ours
def test_scaling_under_accumulation_is_stated(row: Row) -> None:
    assert row.trainer.loss_is_scaled_for_ga is not None
