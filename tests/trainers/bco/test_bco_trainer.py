# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What `BCOTrainer` does beyond the contract of all trainers."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig
from torch.utils.data import RandomSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from alignext.functional.bco import class_mean_shift, pooled_mean_shift, update_sums
from alignext.trainers.bco import BCOConfig, BCOTrainer
from alignext.training.reward_shift import RewardShift

from ..contract import LM, Row, curve, moved, preference, unpaired, weights, with_and_without_lora


BCO = Row(BCOTrainer, BCOConfig, unpaired, ours=True)
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])

pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning"),
]


def another_model() -> torch.nn.Module:
    """A reference that is not the policy, so that rewards are not 0."""
    model = AutoModelForCausalLM.from_pretrained(LM)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.9)
    return model


def logged(trainer: KTOTrainer, name: str) -> list[float]:
    """A metric of every training step."""
    return [log[name] for log in trainer.state.log_history if name in log]


def batch_of(trainer: BCOTrainer) -> dict[str, torch.Tensor]:
    """The first rows of the training data as a batch."""
    rows = trainer.train_dataset.select(range(4))
    return trainer.data_collator(list(rows))


# The parent


class WithLossOfKTO(BCOTrainer):
    """BCO's trainer, KTO's loss without the KL term."""

    def losses(self, rewards, labels, shift, density_ratio):
        chosen, rejected = rewards[labels], rewards[~labels]
        return torch.cat(
            [self.desirable_weight * (1 - chosen.sigmoid()), self.undesirable_weight * rejected.sigmoid()]
        )


@pytest.mark.parametrize(("peft_config", "accumulated"), [(None, 1), (LORA, 2)], ids=["full", "lora"])
def test_with_the_loss_of_kto_it_is_kto(tmp_path: Path, peft_config: LoraConfig | None, accumulated: int) -> None:
    settings = {
        "max_steps": 5,
        "peft_config": peft_config,
        "gradient_accumulation_steps": accumulated,
        "per_device_train_batch_size": 3,  # batches of unequal classes
        "undesirable_weight": 1.5,
        "train_sampling_strategy": "random",
    }
    kto = Row(KTOTrainer, KTOConfig, unpaired, {"loss_type": "apo_zero_unpaired"}).start(tmp_path, **settings)
    ours = BCO.start(tmp_path, trainer=WithLossOfKTO, **settings)
    for trainer in (kto, ours):
        trainer.train()
    assert [norm for *_, norm in curve(ours)] == [norm for *_, norm in curve(kto)]
    assert torch.allclose(torch.tensor(curve(ours)), torch.tensor(curve(kto)), rtol=1e-6, atol=0)
    left, right = weights(ours.model), weights(kto.model)
    assert not [name for name in left if not torch.equal(left[name], right[name])]
    names = ("rewards/chosen", "rewards/rejected", "logps/chosen", "logits/rejected", "entropy", "num_tokens")
    for name in names if accumulated == 1 else ("num_tokens",):  # KTO takes the mean of the means of micro-batches
        assert logged(ours, name) == pytest.approx(logged(kto, name), rel=1e-5)


def test_config_is_unharmed_by_what_the_parent_is_told(tmp_path: Path) -> None:
    trainer = BCO.start(tmp_path)
    assert trainer.args.loss_type == trainer.loss_type == "bco"
    args = BCOConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="train_dataset"):
        BCOTrainer(str(LM), args=args)
    assert args.loss_type == "bco"


def test_takes_positional_arguments_as_the_parent(tmp_path: Path) -> None:
    args = BCOConfig(str(tmp_path), use_cpu=True, bf16=False)
    trainer = BCOTrainer(str(LM), None, args, None, unpaired(), unpaired().select(range(4)))
    assert len(trainer.eval_dataset) == 4


def test_needs_its_own_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="KTOConfig"):
        BCOTrainer(str(LM), args=KTOConfig(str(tmp_path), use_cpu=True, bf16=False), train_dataset=unpaired())


def test_without_shift_it_is_dpo_with_the_loss_bco_pair(tmp_path: Path) -> None:
    losses = []
    for trainer, config, settings in (
        (BCOTrainer, BCOConfig, {"reward_shift": "none"}),
        (DPOTrainer, DPOConfig, {"loss_type": "bco_pair"}),
    ):
        row = Row(trainer, config, preference, settings, {"ref_model": another_model()})
        losses.append(row.start(tmp_path, per_device_eval_batch_size=16).evaluate(preference())["eval_loss"])
    assert 2 * losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_policy_runs_once_and_the_reference_once_a_step(tmp_path: Path) -> None:
    trainer = BCO.start(tmp_path, max_steps=2)
    calls = {"policy": 0, "reference": 0}
    for name, model in (("policy", trainer.model), ("reference", trainer.ref_model)):
        model.get_decoder().register_forward_pre_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    assert not [name for name in trainer.train_dataset.column_names if "KL" in name]
    trainer.train()
    assert calls == {"policy": 2, "reference": 2}


# The shift


@pytest.mark.parametrize(
    ("mode", "decay", "mean"), [("running_mean", 1.0, pooled_mean_shift), ("ema", 0.8, class_mean_shift)]
)
def test_shift_follows_the_rewards(tmp_path: Path, mode: str, decay: float, mean: object) -> None:
    trainer = BCO.start(
        tmp_path, max_steps=5, reward_shift=mode, reward_shift_decay=0.8, train_sampling_strategy="sequential"
    )
    trainer.train()
    sums, expected = torch.zeros(4, dtype=torch.float64), []
    for chosen, rejected in zip(logged(trainer, "rewards/chosen"), logged(trainer, "rewards/rejected"), strict=True):
        if mode == "ema":
            expected.append(mean(sums))
        sums = update_sums(sums, torch.tensor([2 * rejected, 2 * chosen, 2, 2]).double(), decay)
        if mode == "running_mean":
            expected.append(mean(sums))
    assert logged(trainer, "delta") == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert trainer.reward_shift.stats == pytest.approx(sums.tolist(), rel=1e-5)


def test_no_shift_is_no_shift(tmp_path: Path) -> None:
    trainer = BCO.start(tmp_path, reward_shift="none")
    trainer.train()
    assert logged(trainer, "delta") == [0, 0, 0]


def test_only_the_moving_average_ignores_how_a_step_is_cut(tmp_path: Path) -> None:
    deltas = {}
    for mode in ("ema", "running_mean"):
        for size, accumulated in ((4, 1), (2, 2), (1, 4)):
            trainer = BCO.start(
                tmp_path,
                max_steps=5,
                reward_shift=mode,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulated,
                train_sampling_strategy="random",
                optim="sgd",
                learning_rate=0.05,  # so that rewards are far above rounding
            )
            trainer.train()
            deltas[mode, size] = trainer.reward_shift.value(trainer.args)
    assert deltas["ema", 4] != 0
    for size in (1, 2):
        assert deltas["ema", size] == pytest.approx(deltas["ema", 4], rel=1e-4)
        assert deltas["running_mean", size] != pytest.approx(deltas["running_mean", 4], rel=1e-4)


def test_shift_carries_no_gradient_and_a_constant_in_the_reference_cancels(tmp_path: Path) -> None:
    trainer = BCO.start(tmp_path, reward_shift="running_mean")
    trainer.precompute_ref_logps = True  # read from the batch
    trainer.model.train()
    batch = batch_of(trainer)
    outcomes = []
    for constant in (0.0, 30.0):
        batch["ref_logps"] = torch.tensor([-30.0, -35.0, -40.0, -45.0]) + constant
        trainer.reward_shift.stats = [0.0] * 4
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        gradient = trainer.model.get_input_embeddings().weight.grad.clone()
        outcomes.append((loss.item(), gradient, trainer.reward_shift.value(trainer.args)))
    (loss, gradient, delta), (moved_loss, moved_gradient, moved_delta) = outcomes
    assert moved_loss == pytest.approx(loss, rel=1e-5)
    assert torch.allclose(moved_gradient, gradient, rtol=1e-3, atol=1e-6)
    assert moved_delta == pytest.approx(delta - trainer.beta * 30, rel=1e-5)


def test_evaluation_uses_the_shift_and_leaves_it(tmp_path: Path) -> None:
    trainer = BCO.start(tmp_path)
    trainer.train()
    before = list(trainer.reward_shift.stats)
    first, second = (trainer.evaluate(unpaired()) for _ in range(2))
    assert trainer.reward_shift.stats == before
    assert first["eval_loss"] == second["eval_loss"]
    assert first["eval_delta"] == pytest.approx(trainer.reward_shift.value(trainer.args))
    assert first["eval_delta"] != 0


def test_batches_of_one_row_and_of_one_class(tmp_path: Path) -> None:
    one_class = unpaired().filter(lambda row: row["label"])
    for dataset, size in ((unpaired(), 1), (one_class, 2)):
        trainer = BCO.start(tmp_path, dataset=dataset, per_device_train_batch_size=size)
        trainer.train()
        assert all(torch.tensor(curve(trainer)).isfinite().flatten())
        _, plus, n_minus, n_plus = trainer.reward_shift.stats
    assert n_minus == 0 and trainer.reward_shift.value(trainer.args) == pytest.approx(plus / n_plus)


@pytest.mark.parametrize("restore", [True, False], ids=["callbacks restored", "not restored"])
@pytest.mark.parametrize("mode", ["ema", "running_mean"])
def test_resuming_continues_the_shift(tmp_path: Path, restore: bool, mode: str) -> None:
    settings = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "reward_shift": mode,
        "restore_callback_states_from_checkpoint": restore,
    }
    whole = BCO.start(tmp_path, **settings)
    whole.train()
    resumed = BCO.start(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert curve(resumed) == curve(whole)
    assert resumed.reward_shift.stats == whole.reward_shift.stats
    assert len([c for c in resumed.callback_handler.callbacks if isinstance(c, RewardShift)]) == 1


def test_shift_is_saved_without_the_optimizer_and_kept_by_a_second_run(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 3, "save_only_model": True}
    trainer = BCO.start(tmp_path, **settings)
    trainer.train()
    stats = list(trainer.reward_shift.stats)
    resumed = BCO.start(tmp_path, **settings | {"max_steps": 4})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert logged(resumed, "delta")[3] == pytest.approx(class_mean_shift(torch.tensor(stats)), rel=1e-6)
    trainer.train()
    assert logged(trainer, "delta")[0] == pytest.approx(class_mean_shift(torch.tensor(stats)), rel=1e-6)


def test_resumes_from_a_checkpoint_of_kto(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    Row(KTOTrainer, KTOConfig, unpaired, {"loss_type": "apo_zero_unpaired"}).start(tmp_path, **settings).train()
    trainer = BCO.start(tmp_path, **settings | {"max_steps": 4})
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 4


def test_shift_follows_a_reference_that_is_synchronised(tmp_path: Path) -> None:
    settings = {"sync_ref_model": True, "ref_model_sync_steps": 3, "ref_model_mixup_alpha": 0.75}
    plain = BCO.start(tmp_path)
    synchronised = BCO.start(tmp_path, **settings)
    for trainer in (plain, synchronised):
        trainer.train()
    assert synchronised.reward_shift.stats[:2] == pytest.approx([0.25 * s for s in plain.reward_shift.stats[:2]])
    assert synchronised.reward_shift.stats[2:] == plain.reward_shift.stats[2:]


# Data


def test_pairs_are_unpaired_and_shuffled(tmp_path: Path) -> None:
    trainer = BCO.start(tmp_path, dataset=preference())
    labels = trainer.train_dataset["label"]
    assert sorted(labels) == [False] * 8 + [True] * 8
    assert isinstance(trainer._get_train_sampler(), RandomSampler)
    mixed = [len(set(batch["label"].tolist())) == 2 for batch in trainer.get_train_dataloader()]
    assert sum(mixed) >= 3  # of 4; in their order, none would be


@pytest.mark.parametrize("convert", [int, float], ids=["int", "float"])
def test_labels_of_one_and_zero_are_true_and_false(tmp_path: Path, convert: type) -> None:
    numbers = Dataset.from_list([{**row, "label": convert(row["label"])} for row in unpaired()])
    runs = []
    for dataset in (unpaired(), numbers):
        trainer = BCO.start(tmp_path, dataset=dataset)
        trainer.train()
        runs.append((curve(trainer), logged(trainer, "rewards/margins")))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("stream", [False, True], ids=["dataset", "stream"])
@pytest.mark.parametrize("label", [0.7, "good", None, 2], ids=str)
def test_other_labels_are_refused(tmp_path: Path, label: object, stream: bool) -> None:
    dataset = Dataset.from_list([{**row, "label": label} for row in unpaired()])
    said = (
        "no null, received one at row 0, column label" if label is None else f"`label` must be .*, received {label!r}"
    )
    with pytest.raises(ValueError, match=said):
        BCO.start(tmp_path, dataset=dataset.to_iterable_dataset() if stream else dataset).train()


def test_evaluation_data_is_checked_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found \['text'\]"):
        BCO.start(tmp_path).evaluate(Dataset.from_dict({"text": ["a"]}))


def test_streams(tmp_path: Path) -> None:
    trainer = BCO.start(tmp_path, dataset=unpaired().to_iterable_dataset())
    trainer.train()
    assert len(curve(trainer)) == 3


def test_reference_log_probabilities_computed_before_are_the_same(tmp_path: Path) -> None:
    runs = []
    for precompute in (False, True):
        trainer = BCO.start(tmp_path, precompute_ref_log_probs=precompute, eval_dataset=unpaired().select(range(4)))
        assert (trainer.ref_model is None) == precompute
        trainer.train()
        runs.append(torch.tensor([*curve(trainer), (0, trainer.evaluate()["eval_loss"], 0)]))
    assert torch.allclose(runs[0], runs[1], rtol=1e-3)


def test_compute_metrics_gets_logits(tmp_path: Path) -> None:
    seen = []

    def compute_metrics(prediction: object) -> dict[str, float]:
        seen.append(prediction.predictions.shape)
        return {"right": 1.0}

    row = Row(BCOTrainer, BCOConfig, unpaired, arguments={"compute_metrics": compute_metrics})
    metrics = row.start(tmp_path).evaluate(unpaired().select(range(4)))
    assert metrics["eval_right"] == 1.0
    assert seen[0][0] == 4 and seen[0][-1] == 4096


# Models


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")  # PEFT 0.21 on transformers 5.24
def test_prefix_tuning(tmp_path: Path) -> None:
    trainer = BCO.start(tmp_path, peft_config=PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    trainer.train()
    assert all(torch.tensor(curve(trainer)).isfinite().flatten())


@with_and_without_lora
def test_mixture_of_experts_adds_its_auxiliary_loss(tmp_path: Path, peft_config: LoraConfig | None) -> None:
    config = MixtralConfig(
        vocab_size=4096,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        output_router_logits=True,
        router_aux_loss_coef=0.5,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    AutoTokenizer.from_pretrained(LM).save_pretrained(tmp_path / "moe")
    losses, aux = [], []
    for coefficient in (0.5, 0.0):
        settings = {"router_aux_loss_coef": coefficient, "max_steps": 1, "peft_config": peft_config}
        trainer = BCO.start(tmp_path, model=str(tmp_path / "moe"), **settings)
        before = weights(trainer.model)
        trainer.train()
        names = moved(before, trainer.model)
        assert names and all("lora_" in name for name in names) == (peft_config is not None)
        losses.append(curve(trainer)[0][1])
        aux += logged(trainer, "aux_loss")
    assert losses[0] == pytest.approx(losses[1] + 0.5 * aux[0], rel=1e-5)
    assert len(aux) == 1 and aux[0] > 0


# Settings


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"beta": 0.0}, "beta"),
        ({"reward_shift": "median"}, "reward_shift"),
        ({"reward_shift_decay": 0.0}, "reward_shift_decay"),
        ({"reward_shift_decay": 1.1}, "reward_shift_decay"),
        ({"min_density_ratio": 0.0}, "min_density_ratio"),
        ({"min_density_ratio": 2.0, "max_density_ratio": 1.0}, "max_density_ratio"),
        ({"prompt_sample_size": 1}, "prompt_sample_size"),
        ({"udm_regularization": 0.0}, "udm_regularization"),
        ({"udm_embedding": "bert"}, "udm_embedding"),
        ({"loss_type": "kto"}, "loss_type"),
        ({"sync_ref_model": True, "udm_embedding": "policy"}, "udm_embedding"),
        ({"sync_ref_model": True, "reward_shift": "running_mean"}, "sync_ref_model"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"`{named}"):
        BCOConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)
