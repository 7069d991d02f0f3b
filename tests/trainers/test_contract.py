# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What every trainer keeps to, whatever it trains. A new trainer is a new row in `ROWS`.

The stock classes stand here, among the slow ones, because ours inherit from them: a clause that a parent does not keep
tells nothing about its child.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForTokenClassification, HfArgumentParser, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RLOOConfig, RLOOTrainer

from alignext.heads.auto import AutoModelForCausalLMWithObjectiveHeads
from alignext.trainers.bco import BCOConfig, BCOTrainer
from alignext.trainers.cdas import CDASConfig, CDASTrainer
from alignext.trainers.diffusion_preference import (
    DiffusionDPOConfig,
    DiffusionDPOTrainer,
    DiffusionKTOConfig,
    DiffusionKTOTrainer,
    InversionDPOConfig,
    InversionDPOTrainer,
    SmPOConfig,
    SmPOTrainer,
)
from alignext.trainers.diffusion_reward import AlignPropConfig, AlignPropTrainer, DDPOConfig, DDPOTrainer
from alignext.trainers.f_dpg import FDPGConfig, FDPGTrainer
from alignext.trainers.mah_dpo import MAHDPOConfig, MAHDPOTrainer
from alignext.trainers.process_reward import ProcessRewardConfig, ProcessRewardTrainer
from alignext.training.door import RawEvaluations

from ..fake_hub import metadata_errors
from .contract import (
    MINI_LM,
    AnyRow,
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
from .diffusion import DiffusionRow, RewardRow, picture_votes
from .diffusion_preference.tiny import PIPELINES
from .diffusion_reward.tiny import left_is_dark, near_grey
from .steering import SteeringRow


SAMPLED = {"num_generations": 2, "max_completion_length": 16}
INVERTED = {"num_inversion_steps": 2, "beta": 20.0}
ONE_POINT = {"num_renoise_steps": 0, "label_sharpness": None, "inversion_eta": 0.1, "num_train_steps_per_pair": 2}
BACKPROP = {"num_inference_steps": 3, "backprop_steps": "uniform:1:3"}
POLICY = {"num_inference_steps": 3, "num_images_per_prompt": 2}
ALL_STEPS = {"target": "trajectory", "num_train_steps_per_pair": None}


def diffusion_rows(trainer: type[Trainer], config: type[TrainingArguments], settings: dict, **given) -> list[AnyRow]:
    """A trainer on Stable Diffusion, and on the other families."""
    rows: list[AnyRow] = [DiffusionRow(trainer, config, settings, **given)]
    for family, pipe in PIPELINES.items():
        if family != "sd":
            # Flux guides itself
            more = {"guidance_scale": 1.0} if trainer is InversionDPOTrainer and family == "flux" else {}
            name = f"{trainer.__name__}-{family}"
            rows.append(DiffusionRow(trainer, config, settings | more, pipe, name=name, **given | {"slow": True}))
    return rows


ROWS: list[AnyRow] = [
    # The other loss of KTO pairs each completion with its neighbour in the micro-batch, so that accumulating over
    # smaller ones is another loss by design.
    Row(KTOTrainer, KTOConfig, unpaired, {"loss_type": "apo_zero_unpaired"}, learns="votes", ours=False, slow=True),
    Row(DPOTrainer, DPOConfig, preference, ours=False, slow=True),
    Row(
        RLOOTrainer,
        RLOOConfig,
        prompts,
        SAMPLED,
        {"reward_funcs": count_vowels},
        learns="prompts",
        samples=True,
        ours=False,
        slow=True,
    ),
    Row(BCOTrainer, BCOConfig, unpaired, learns="votes"),
    Row(
        FDPGTrainer,
        FDPGConfig,
        prompts,
        SAMPLED | {"beta": 2.0},
        {"reward_funcs": count_vowels},
        learns="prompts",
        samples=True,
    ),
    Row(
        ProcessRewardTrainer,
        ProcessRewardConfig,
        solutions,
        learns="steps",
        auto=AutoModelForTokenClassification,
        auto_settings={"num_labels": 1},
        task="TOKEN_CLS",
        head="score",
    ),
    Row(
        MAHDPOTrainer,
        MAHDPOConfig,
        preference_by_objective,
        auto=AutoModelForCausalLMWithObjectiveHeads,
        auto_settings={"objectives": ["kind", "lively"]},
        head="objective_heads",
    ),
    SteeringRow(trainer=CDASTrainer, config=CDASConfig, learns="steps"),
    *diffusion_rows(DiffusionDPOTrainer, DiffusionDPOConfig, {"beta": 20.0}),
    DiffusionRow(
        DiffusionKTOTrainer, DiffusionKTOConfig, {"beta": 20.0}, dataset=picture_votes, learns="votes", slow=True
    ),
    *diffusion_rows(InversionDPOTrainer, InversionDPOConfig, INVERTED, at_reference=False),
    # one training step is Inversion-DPO's, which stands among the fast ones
    *diffusion_rows(SmPOTrainer, SmPOConfig, INVERTED, slow=True),
    DiffusionRow(SmPOTrainer, SmPOConfig, INVERTED | ONE_POINT, name="InPO", slow=True),
    DiffusionRow(InversionDPOTrainer, InversionDPOConfig, INVERTED | ALL_STEPS, name="all steps", slow=True),
    RewardRow(AlignPropTrainer, AlignPropConfig, BACKPROP, arguments={"reward_funcs": near_grey}),
    RewardRow(
        AlignPropTrainer,
        AlignPropConfig,
        {"num_inference_steps": 3, "reward_gradient": "direct_align", "kl_coef": 0.1},
        PIPELINES["flux"],
        arguments={"reward_funcs": near_grey},
        name="Direct-Align-flux",
        slow=True,
    ),
    RewardRow(DDPOTrainer, DDPOConfig, POLICY, arguments={"reward_funcs": left_is_dark}),
    RewardRow(
        DDPOTrainer,
        DDPOConfig,
        POLICY | {"num_iterations": 3, "kl_coef": 0.1, "num_train_steps": 2},
        PIPELINES["flux"],
        arguments={"reward_funcs": left_is_dark},
        name="PPO-flux",
        slow=True,
    ),
]


def over(rows: list[AnyRow]):
    """Row after row, since the clauses share its finished run; the slow ones last, so that all lists begin alike."""
    rows = sorted(rows, key=lambda row: row.slow)
    marked = [pytest.param(row, id=str(row), marks=[pytest.mark.slow] * row.slow) for row in rows]
    return pytest.mark.parametrize("row", marked, scope="module")


every_row = over(ROWS)
every_class = over([row for row in ROWS if row.name is None])  # settings do not matter
ours = over([row for row in ROWS if row.name is None and row.ours])
in_full_and_as_lora = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning"),
]


def of_sampled_text(trainer: type[Trainer]) -> type[Trainer]:
    """The trainer, its evaluation drawing from random numbers of its own."""

    class WithOwnDraws(trainer):
        def evaluate(self, *args: object, **kwargs: object) -> dict[str, float]:
            with torch.random.fork_rng(devices=[]):
                return super().evaluate(*args, **kwargs)

    return WithOwnDraws


# What most clauses look at: two trainings of a row, in full and with its adapter

RUN = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "hub_model_id": "someone/storyteller"}


@dataclass
class Finished:
    """A trainer after four steps, with a checkpoint of the second in its folder, and what its weights were before."""

    trainer: Trainer
    folder: Path
    before: dict[str, torch.Tensor]
    trained: set[str]  # names of the weights that had a gradient to get
    after: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[AnyRow, bool], Finished]:
    """The run of a row, in full or with its adapter. Clauses read it; what they save goes elsewhere."""

    @functools.lru_cache(maxsize=2)
    def of(row: AnyRow, lora: bool) -> Finished:
        folder = tmp_path_factory.mktemp("finished")
        trainer = row.start(folder, **row.draws | RUN, peft_config=row.lora if lora else None)
        model = row.trained(trainer)
        before = weights(model)
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        trainer.train()
        return Finished(trainer, folder, before, trained, weights(model))

    return of


# Training


def check_trained_everything(row: AnyRow, trainer: Trainer, before: dict, after: dict) -> None:
    assert all(weight.isfinite().all() for weight in after.values())
    unmoved = {name for name in after if torch.equal(before[name], after[name])}
    assert unmoved == {name for name in after if row.idle and row.idle in name}
    assert [step for step, *_ in curve(trainer)] == list(range(1, trainer.args.max_steps + 1))
    assert all(math.isfinite(loss) and norm > 0 for _, loss, norm in curve(trainer))
    first = trainer.state.log_history[0]
    # before the first update, policy and reference are the same model
    rewards = [first.get(name) for name in ("kl", "rewards/chosen", "rewards/rejected", "rewards/margins")]
    assert any(rewards) != row.at_reference


@every_row
def test_trains_every_parameter(row: AnyRow, finished) -> None:
    run = finished(row, False)
    check_trained_everything(row, run.trainer, run.before, run.after)
    row.check_first(run.trainer.state.log_history[0])


@over([row for row in ROWS if isinstance(row, Row)])
def test_trains_on_conversations(row: Row, tmp_path: Path) -> None:
    # ours take a `Path`, as `from_pretrained` does
    trainer = row.start(tmp_path, model=MINI_LM if row.ours else str(MINI_LM), conversational=True, max_steps=1)
    before = weights(row.trained(trainer))
    trainer.train()
    check_trained_everything(row, trainer, before, weights(row.trained(trainer)))


@every_row
def test_the_run_depends_on_the_weights_and_the_seed_alone(row: AnyRow, finished, tmp_path: Path) -> None:
    run = finished(row, False)
    torch.manual_seed(1)  # what was drawn before must not matter
    path, instance = row.origins(tmp_path)
    again = row.start(tmp_path, **row.draws, **path if row.from_instance else instance, max_steps=4)
    again.train()
    assert curve(again) == curve(run.trainer)
    assert_same(weights(row.trained(again)), run.after)
    other = row.start(tmp_path, **row.draws, max_steps=1, seed=7)
    other.train()
    in_order = getattr(other.args, "train_sampling_strategy", "random") == "sequential"  # as KTO does by default
    assert (curve(other)[0] == curve(run.trainer)[0]) == (in_order and not row.draws)


@every_row
def test_lora_trains_the_adapter_and_nothing_else(row: AnyRow, finished) -> None:
    run = finished(row, True)
    assert run.trained == {name for name in run.before if row.moves(name)}
    moved = {name for name in run.after if not torch.equal(run.before[name], run.after[name])}
    assert moved == {name for name in run.trained if not (row.idle and row.idle in name)}
    base = weights(row.untrained())
    head = getattr(row, "head", None)
    left = {name.replace(".base_layer", "").removeprefix("base_model.model."): w for name, w in run.after.items()}
    left, base = ({k: v for k, v in w.items() if not row.moves(k) and not (head and head in k)} for w in (left, base))
    assert_same(left, base)


@every_row
def test_accumulating_is_a_larger_batch(row: AnyRow, tmp_path: Path) -> None:
    runs = []
    for size, accumulated in ((4, 1), (1, 4)):
        trainer = row.start(
            tmp_path,
            max_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            optim="sgd",  # Adam would blow rounding up to the size of a step wherever the gradient is about zero
            learning_rate=row.rate,
            max_grad_norm=1.0,
        )
        before = weights(row.trained(trainer))
        trainer.train()
        after = weights(row.trained(trainer))
        metrics = [[log[name] for name in row.summed] for log in trainer.state.log_history if "loss" in log]
        runs.append((torch.tensor(metrics), torch.cat([(after[n] - before[n]).flatten() for n in after])))
    (at_once, moved_at_once), (accumulated, moved_accumulated) = runs
    torch.testing.assert_close(accumulated, at_once, rtol=row.close, atol=1e-5)
    assert (moved_accumulated - moved_at_once).norm() < row.close * moved_at_once.norm()


# Evaluation


@every_row
def test_evaluation_is_the_same_every_time_and_changes_nothing(row: AnyRow, tmp_path: Path) -> None:
    data = row.data()
    parts = {"a": data.select(range(5)), "b": data.select(range(5, 8))}
    trainer = row.start(tmp_path, eval_dataset=parts if not row.samples else None)
    before = weights(row.trained(trainer))
    found = []
    for _ in range(2):
        if row.samples:  # what it draws, it draws from the global random numbers
            torch.manual_seed(0)
            found.append(trainer.evaluate(data.select(range(4))))
        else:
            found.append(trainer.evaluate())
        torch.rand(3)
    kept = [name for name in found[0] if any(part in name for part in ("loss", "rewards", "mse"))]
    assert kept and all(math.isfinite(found[0][name]) for name in kept)
    assert {name: found[0][name] for name in kept} == {name: found[1][name] for name in kept}
    assert_same(before, weights(row.trained(trainer)))
    if row.ours and not row.samples:
        assert {"eval_a_loss", "eval_b_loss"} <= set(kept)
        # A row is evaluated alike whatever it is in a batch with: the last batch above has one row.
        trainer.args.per_device_eval_batch_size = 2
        apart = trainer.evaluate()
        assert [apart[name] for name in kept] == pytest.approx([found[0][name] for name in kept], rel=1e-3, abs=1e-6)
        given = trainer.evaluate(parts["a"])  # as the constructor takes them: nobody has prepared these rows
        assert given["eval_loss"] == pytest.approx(apart["eval_a_loss"], rel=1e-6)
        # What other data or an interruption left behind is in no later evaluation.
        if isinstance(trainer, RawEvaluations):
            predicted = trainer.predict(parts["b"]).metrics
            assert predicted["test_loss"] == pytest.approx(apart["eval_b_loss"], rel=1e-5)
        else:
            trainer.predict(trainer._prepare_dataset(parts["b"], trainer.processing_class, trainer.args, "eval"))
        again = trainer.evaluate(parts["a"])
        assert [again[name] for name in given if "reward" in name or "loss" in name] == [
            given[name] for name in given if "reward" in name or "loss" in name
        ]


@every_row
def test_training_does_not_notice_evaluation(row: AnyRow, finished, tmp_path: Path) -> None:
    run = finished(row, False)
    trainer = row.start(
        tmp_path,
        **row.draws,
        trainer=of_sampled_text(row.trainer) if row.samples else None,
        eval_dataset=row.data().select(range(4)),
        eval_strategy="steps",
        eval_steps=3,  # once before the last step
        max_steps=4,
    )
    trainer.train()
    assert any("eval_loss" in log for log in trainer.state.log_history)
    assert curve(trainer) == curve(run.trainer)
    assert_same(weights(row.trained(trainer)), run.after)


# Saving


@every_row
@in_full_and_as_lora
def test_stock_classes_open_what_was_saved(row: AnyRow, lora: bool, finished, tmp_path: Path) -> None:
    trainer = finished(row, lora).trainer
    trainer.save_model(tmp_path / "saved")
    said = row.said(trainer)
    assert torch.equal(row.opened(tmp_path / "saved", lora), said)
    assert not torch.equal(row.opened(None, lora), said)


@every_row
@in_full_and_as_lora
def test_resumed_run_is_the_uninterrupted_one(row: AnyRow, lora: bool, finished, tmp_path: Path) -> None:
    run = finished(row, lora)
    resumed, steps = row.start(tmp_path, **row.draws, max_steps=4, peft_config=row.lora if lora else None), Steps()
    resumed.add_callback(steps)
    torch.rand(7)  # a state of the random numbers that only the checkpoint can put right
    resumed.train(resume_from_checkpoint=str(run.folder / "checkpoint-2"))
    assert steps.taken == [3, 4]
    assert curve(resumed) == curve(run.trainer)
    assert_same(weights(row.trained(resumed)), run.after)


# Cards and the Hub


@every_class
def test_class_names_itself_and_its_paper(row: AnyRow) -> None:
    own = vars(row.trainer)
    # An inherited one makes the card credit the parent's method.
    assert {"_tag_names", "_name", "_paper"} <= own.keys()
    assert {"title", "id", "citation"} <= own["_paper"].keys()
    parent = row.trainer.__mro__[1]
    assert own["_name"] != getattr(parent, "_name", None)
    assert own["_paper"] != getattr(parent, "_paper", None)
    if row.ours:
        assert {"trl", "alignext"} < set(own["_tag_names"])


@every_class
def test_model_card_is_the_method_s_own(row: AnyRow, finished) -> None:
    run = finished(row, False)
    run.trainer.create_model_card(model_name="storyteller")
    card = ModelCard.load(run.folder / "README.md")
    assert metadata_errors(card.data.to_dict()) == []
    assert set(row.trainer._tag_names) <= set(card.data.tags)
    for text in ("storyteller", row.trainer._name, row.trainer._paper["title"], row.trainer._paper["id"]):
        assert text in card.text
    row.check_card(card)


# The Hub's own client, when it does not speak that protocol, passes bytes the way its HTTP library has deprecated.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@every_class
def test_pushes_what_it_saved(row: AnyRow, finished, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_of_trainers(monkeypatch) as hub:
        finished(row, False).trainer.push_to_hub()
        files = hub.repos["someone/storyteller"]
    assert row.files <= files.keys()
    assert row.trainer._name in files["README.md"].decode()


# Configs and data


@every_class
def test_config_has_help_for_the_command_line(row: AnyRow) -> None:
    text = HfArgumentParser(row.config).format_help()  # a bare `%` in a help text would raise here
    assert "--learning_rate" in text
    declared = [cls.__annotations__ for cls in row.config.__mro__ if cls.__module__.startswith("alignext.")]
    for name, field in row.config.__dataclass_fields__.items():
        if any(name in names for names in declared):
            assert field.metadata.get("help"), f"{row.config.__name__}.{name} has no help text"


@ours
def test_default_config_is_its_own(row: AnyRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # TRL's default precision refuses to be made where there is no accelerator
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.delenv("CI", raising=False)  # what TRL's base class sends home then reads a config of transformers
    assert type(row.bare().args) is row.config
    with pytest.raises((TypeError, ValueError), match=row.config.__name__):
        row.bare(args=TrainingArguments("x", use_cpu=True))


@ours
def test_wrong_columns_are_named(row: AnyRow, tmp_path: Path) -> None:
    names = row.data().column_names
    wrong = row.data().rename_columns({name: f"my_{name}" for name in names})
    with pytest.raises(ValueError, match=r"(?i)expected") as error:
        row.start(tmp_path, dataset=wrong)
    for name in [*wrong.column_names, *(() if isinstance(row, DiffusionRow) else names), "prompt"]:
        assert name in str(error.value)
