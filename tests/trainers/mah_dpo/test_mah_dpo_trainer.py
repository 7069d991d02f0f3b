# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What `MAHDPOTrainer` does beyond the contract of all trainers, on a model of two small layers."""

import math
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftModel, PromptTuningConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MixtralConfig
from trl import DPOConfig, DPOTrainer

from alignext.heads.auto import AutoModelForCausalLMWithObjectiveHeads as AutoHeads
from alignext.trainers.mah_dpo import MAHDPOConfig, MAHDPOTrainer
from alignext.trainers.mah_dpo.sampling import ObjectiveSampler

from ..contract import LM, Row, curve, preference, weights, with_and_without_lora


LORA = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
SIZE = {
    "vocab_size": 4096,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}

pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def no_fingerprints() -> Generator[None]:
    """Hashing the tokenizer, for a cache that nobody reads, takes longer than all else in these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.fingerprint.Hasher.hash", staticmethod(lambda value: uuid4().hex))
        yield


def pairs(objectives: list[object] | None = None, column: str = "objective") -> Dataset:
    """Eight pairs with the given objectives."""
    return preference().add_column(column, objectives or ["x", "y"] * 4)


DPO = Row(DPOTrainer, DPOConfig, lambda _: preference())
MAH = Row(MAHDPOTrainer, MAHDPOConfig, lambda _: pairs(), ours=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**SIZE)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(LM).save_pretrained(folder)
    return str(folder)


def run(row: Row, folder: Path, model: object, **settings: object) -> MAHDPOTrainer:
    trainer = row.start(folder, model=model, **settings)
    trainer.train()
    return trainer


def losses(trainer: MAHDPOTrainer) -> list[float]:
    return [loss for _, loss, _ in curve(trainer)]


def logged(trainer: MAHDPOTrainer, name: str) -> list[float]:
    return [log[name] for log in trainer.state.log_history if name in log]


def heads(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if "objective_heads" in name}


# The parent


@pytest.mark.parametrize("settings", [{}, {"loss_type": ["ipo"]}, {"loss_type": ["hinge"]}], ids=str)
def test_one_objective_is_dpo_bit_for_bit(tiny: str, tmp_path: Path, settings: dict) -> None:
    settings = settings | {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    one = pairs(["x"] * 8)
    theirs, ours = run(DPO, tmp_path, tiny, **settings), run(MAH, tmp_path, tiny, dataset=one, **settings)
    assert curve(ours) == curve(theirs)  # losses and gradient norms
    after = weights(ours.model)
    after["lm_head.weight"] = after.pop("objective_heads.weight_0")
    assert all(torch.equal(after[name], weight) for name, weight in weights(theirs.model).items())
    for left, right in zip(theirs.state.log_history[:3], ours.state.log_history[:3], strict=True):
        for name, value in left.items():
            if name == "num_tokens":
                assert right[name] == value
            elif not name.startswith(("entropy", "mean_token", "logits")):  # DPO rounds its means to float32
                assert right[name] == pytest.approx(value, rel=1e-6, abs=1e-7), name
            # of tokens, DPO takes the mean of the means of micro-batches; they are compared in one batch below


def test_losses_add_up_as_in_dpo(tiny: str, tmp_path: Path) -> None:
    settings = {"loss_type": ["sigmoid", "sigmoid_norm"], "loss_weights": [1.0, 0.5]}
    theirs, ours = run(DPO, tmp_path, tiny, **settings), run(MAH, tmp_path, tiny, dataset=pairs(["x"] * 8), **settings)
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-6)


def test_one_objective_evaluates_as_dpo(tiny: str, tmp_path: Path) -> None:
    at_once = {"per_device_eval_batch_size": 8}
    left = DPO.start(tmp_path, model=tiny, **at_once).evaluate(preference())
    right = MAH.start(tmp_path, model=tiny, dataset=pairs(["x"] * 8), **at_once).evaluate(pairs(["x"] * 8))
    rows = ("loss", "rewards/margins", "logps/chosen", "logps/rejected")
    for name in (*rows, "entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected"):
        assert left[f"eval_{name}"] == pytest.approx(right[f"eval_{name}"], rel=1e-5), name
    assert right["eval_x/loss"] == pytest.approx(right["eval_loss"])


# The loss


@pytest.mark.parametrize(
    "settings",
    [{}, {"head_type": "low_rank"}, {"precompute_ref_log_probs": True}, {"peft_config": LORA}],
    ids=["full", "low rank", "precomputed", "lora"],
)
def test_starts_at_log_2_and_accuracy_0(tiny: str, tmp_path: Path, settings: dict) -> None:
    trainer = run(MAH, tmp_path, tiny, **settings)
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert first["rewards/accuracies"] == first["rewards/chosen"] == 0
    assert losses(trainer)[-1] < math.log(2) - 0.01


@pytest.mark.parametrize("head_type", ["full", "low_rank"])
def test_precomputing_the_reference_changes_nothing(tiny: str, tmp_path: Path, head_type: str) -> None:
    settings = {"head_type": head_type, "head_init_std": 0.01}
    at_once = run(MAH, tmp_path, tiny, **settings)
    before = run(MAH, tmp_path, tiny, precompute_ref_log_probs=True, **settings)
    assert before.ref_model is None
    assert losses(before) == pytest.approx(losses(at_once), rel=1e-6)  # batches of the reference are padded otherwise


@pytest.mark.parametrize(
    "settings",
    [{}, {"precompute_ref_log_probs": True}, {"peft_config": LORA}],
    ids=["whole", "precomputed", "adapter"],
)
def test_reference_does_not_see_the_noise(tiny: str, tmp_path: Path, settings: dict) -> None:
    trainer = MAH.start(tmp_path, model=tiny, head_init_std=0.05, **settings)
    batch = next(iter(trainer.get_train_dataloader()))
    stock = DPO.start(tmp_path, model=tiny)
    expected = stock.compute_ref_log_probs(stock.ref_model, {k: v for k, v in batch.items() if k != "objective_ids"})
    found = (batch.get("ref_chosen_logps"), batch.get("ref_rejected_logps"))
    if "precompute_ref_log_probs" not in settings:
        found = trainer.compute_ref_log_probs(trainer.ref_model or trainer.model, batch)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert abs(trainer.compute_loss(trainer.model, batch).item() - math.log(2)) > 1e-4


def test_loss_of_a_batch_is_the_mean_of_means(tiny: str, tmp_path: Path) -> None:
    settings = {"model": tiny, "head_init_std": 0.05, "objective_sampling": "natural", "objectives": ["x", "y", "z"]}
    data = pairs(["x", "x", "x", "y", "z", "z", "y", "x"])
    trainer = MAH.start(tmp_path, dataset=data, **settings)
    batch = trainer.data_collator(list(trainer.train_dataset.select(range(5))))
    each = []
    for k, objective in enumerate("xyz"):
        rows = [row for row in trainer.train_dataset.select(range(5)) if row["objective"] == objective]
        each.append(trainer.compute_loss(trainer.model, trainer.data_collator(rows)))
        assert rows[0]["objective_id"] == k
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), torch.stack(each).mean())
    weighted = MAH.start(tmp_path, dataset=data, objective_loss_weights={"x": 3, "z": 0}, **settings)
    expected = (3 * each[0] + each[1]) / 4
    torch.testing.assert_close(weighted.compute_loss(weighted.model, batch), expected)
    by_row = MAH.start(tmp_path, dataset=data, objective_reduction="example_mean", **settings)
    expected = (3 * each[0] + each[1] + each[2]) / 5
    torch.testing.assert_close(by_row.compute_loss(by_row.model, batch), expected)


def test_label_smoothing_is_cdpo(tiny: str, tmp_path: Path) -> None:
    settings = {"model": tiny, "head_init_std": 0.05}
    plain, smooth = (MAH.start(tmp_path, label_smoothing=e, **settings) for e in (0.0, 0.25))
    batch = next(iter(plain.get_train_dataloader()))
    ids = batch["objective_ids"]
    flipped = {k: torch.cat(v.chunk(2)[::-1]) for k, v in batch.items()} | {"objective_ids": ids}
    flipped["objective_ids"] = torch.cat(ids.chunk(2)[::-1])
    clean, wrong = (plain.compute_loss(plain.model, b) for b in (batch, flipped))
    torch.testing.assert_close(smooth.compute_loss(smooth.model, batch), 0.75 * clean + 0.25 * wrong)


def test_one_objective_in_a_batch_leaves_the_other_heads(tiny: str, tmp_path: Path) -> None:
    trainer = MAH.start(tmp_path, model=tiny)
    rows = [row for row in trainer.train_dataset if row["objective"] == "x"]
    trainer.compute_loss(trainer.model, trainer.data_collator(rows)).backward()
    gradients = {name: weight.grad for name, weight in trainer.model.named_parameters()}
    assert torch.equal(gradients["objective_heads.weight_1"], torch.zeros(4096, 16))
    assert gradients["objective_heads.weight_0"].abs().sum() > 0
    assert gradients["model.embed_tokens.weight"].abs().sum() > 0
    assert gradients["lm_head.weight"] is None


def test_all_tokens_truncated_is_finite(tiny: str, tmp_path: Path) -> None:
    trainer = MAH.start(tmp_path, model=tiny)
    batch = next(iter(trainer.get_train_dataloader()))
    batch["completion_mask"] = torch.zeros_like(batch["completion_mask"])
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(math.log(2))


# Going on from trained heads


@pytest.fixture(scope="module")
def saved(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("saved")
    run(MAH, folder, tiny, learning_rate=1e-2).save_model(str(folder))
    return str(folder)


@pytest.mark.parametrize(
    "settings",
    [{}, {"precompute_ref_log_probs": True}, {"peft_config": LORA}, {"as_instance": True}],
    ids=["full", "precomputed", "lora", "instance"],
)
def test_reference_of_trained_heads_has_them(saved: str, tmp_path: Path, settings: dict) -> None:
    model = AutoHeads.from_pretrained(saved) if settings.pop("as_instance", False) else saved
    trainer = run(MAH, tmp_path, model, **settings)
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert logged(trainer, "x/rewards/margins")[0] == pytest.approx(0, abs=1e-5)


def test_reference_may_stay_the_base_model(saved: str, tmp_path: Path) -> None:
    trainer = run(MAH, tmp_path, saved, reference_heads="base")
    assert abs(losses(trainer)[0] - math.log(2)) > 1e-3
    assert type(trainer.ref_model).__name__ == "LlamaForCausalLM"


def test_noise_can_be_in_the_reference(tiny: str, tmp_path: Path) -> None:
    trainer = run(MAH, tmp_path, tiny, reference_heads="objective", head_init_std=0.05)
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)


def test_adapter_is_loaded_and_trained_on(tiny: str, tmp_path: Path) -> None:
    first = run(MAH, tmp_path, tiny, peft_config=LORA, learning_rate=1e-2)
    first.save_model(str(tmp_path / "adapter"))
    ids = torch.tensor([[1, 300, 400]])
    opened = AutoHeads.from_pretrained(tmp_path / "adapter")
    assert isinstance(opened, PeftModel)
    with torch.no_grad():
        expected = first.model.eval()(ids, objective_weights=[1, 0]).logits
        assert torch.equal(opened(ids, objective_weights=[1, 0]).logits, expected)
    again = run(MAH, tmp_path / "again", str(tmp_path / "adapter"))
    assert losses(again)[0] == pytest.approx(math.log(2), abs=1e-6)  # its reference is the loaded adapter
    assert heads(again.model).keys() == heads(first.model).keys() | {
        name.replace(".default.", ".ref.") for name in heads(first.model) if ".default." in name
    }
    with pytest.raises(ValueError, match="frozen"):
        MAH.start(tmp_path, model=opened)


def test_virtual_tokens_stand_in_front(tiny: str, tmp_path: Path) -> None:
    adapter = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    trainer = MAH.start(tmp_path, model=tiny, peft_config=adapter)
    before = heads(trainer.model)
    trainer.train()
    after = heads(trainer.model)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == {name for name in after if "modules_to_save" in name}
    assert all(math.isfinite(loss) for loss in losses(trainer))


# Data


def test_balanced_sampler() -> None:
    ids = [0] * 5 + [1] * 9 + [2] * 7
    sampler = ObjectiveSampler(ids, 3, seed=1)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        rows = list(sampler)
        epochs.append(rows)
        assert len(rows) == len(sampler) == 15 and len(set(rows)) == 15
        for width in range(1, 8):  # any window is balanced to within one row
            for start in range(len(rows) - width):
                counts = Counter(ids[row] for row in rows[start : start + width])
                assert max(counts.values()) - min(counts.get(k, 0) for k in range(3)) <= 1
    assert epochs[0] != epochs[1]
    assert set(epochs[0]) != set(epochs[1])  # other rows of the larger objectives are drawn
    sampler.set_epoch(0)
    assert list(sampler) == epochs[0]
    more = list(ObjectiveSampler(ids, 3, oversample=True))
    assert len(more) == 27 and set(more) == set(range(21))
    assert max(Counter(more).values()) == 2  # an objective is gone through before a row comes again
    with pytest.raises(ValueError, match=r"\[5, 9, 7, 0\]"):
        ObjectiveSampler(ids, 4)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_row_is_there_once_per_epoch(processes: int) -> None:
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    sampler = ObjectiveSampler([0, 1] * 12, 2)
    shards = [
        BatchSamplerShard(BatchSampler(sampler, 2, drop_last=False), processes, rank, even_batches=True)
        for rank in range(processes)
    ]
    rows = [row for shard in shards for batch in shard for row in batch]
    assert Counter(rows) == Counter(range(24))


def test_batches_are_balanced_and_change_by_epoch(tiny: str, tmp_path: Path) -> None:
    seen: list[list[int]] = []

    class Watched(MAHDPOTrainer):
        def _compute_loss(self, model, inputs, return_outputs):
            seen.append(inputs["objective_ids"].tolist())
            return super()._compute_loss(model, inputs, return_outputs)

    data = pairs(["x"] * 5 + ["y"] * 3)
    MAH.start(
        tmp_path,
        model=tiny,
        trainer=Watched,
        dataset=data,
        max_steps=-1,
        num_train_epochs=2,
        per_device_train_batch_size=2,
    ).train()
    assert len(seen) == 6  # two epochs of three pairs of each
    assert all(ids == [0, 1, 0, 1] for ids in seen)


@pytest.mark.parametrize("sampling", ["natural", "oversample"])
def test_other_samplings(tiny: str, tmp_path: Path, sampling: str) -> None:
    data = pairs(["x"] * 5 + ["y"] * 3)
    trainer = MAH.start(tmp_path, model=tiny, dataset=data, objective_sampling=sampling)
    rows = [i for batch in trainer.get_train_dataloader() for i in batch["objective_ids"].chunk(2)[0].tolist()]
    assert Counter(rows) == ({0: 5, 1: 3} if sampling == "natural" else {0: 5, 1: 5})


def test_dictionary_of_datasets(tiny: str, tmp_path: Path) -> None:
    data = {"x": preference(), "y": preference().select(range(4))}
    trainer = MAH.start(tmp_path, model=tiny, dataset=data, eval_dataset=data)
    assert trainer.objectives == ["x", "y"]
    assert Counter(trainer.train_dataset["objective_id"]) == {0: 8, 1: 4}
    metrics = trainer.evaluate()
    assert {"eval_x_loss", "eval_y_loss"} <= metrics.keys()


def test_numbers_for_names(tiny: str, tmp_path: Path) -> None:
    data = pairs([1, 0] * 4, column="goal")
    trainer = MAH.start(tmp_path, model=tiny, dataset=data, objective_column="goal")
    assert trainer.objectives == ["0", "1"]
    assert trainer.train_dataset["objective_id"][:2] == [1, 0]
    named = MAH.start(tmp_path, model=tiny, dataset=data, objective_column="goal", objectives=["a", "b"])
    assert named.model.objectives == ["a", "b"]


def test_stream(tiny: str, tmp_path: Path) -> None:
    stream = IterableDataset.from_generator(lambda: iter(pairs()))
    trainer = run(MAH, tmp_path, tiny, dataset=stream, objectives=["x", "y"])
    assert losses(trainer)[0] == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="`objectives` is needed"):
        MAH.start(tmp_path, model=tiny, dataset=stream)
    with pytest.raises(ValueError, match="`train_dataset` has a stream of 'y'"):
        MAH.start(tmp_path, model=tiny, dataset={"x": preference(), "y": stream})


# Metrics


def test_metrics_by_objective(tiny: str, tmp_path: Path) -> None:
    trainer = run(MAH, tmp_path, tiny, logging_steps=3, max_steps=3, dataset=pairs(["x"] * 4 + ["y"] * 4))
    log = trainer.state.log_history[0]
    for name in ("rewards/margins", "rewards/accuracies", "logps/chosen"):
        assert log[name] == pytest.approx((log[f"x/{name}"] + log[f"y/{name}"]) / 2, rel=1e-4, abs=1e-6)
    assert log["loss"] == pytest.approx((log["x/loss"] + log["y/loss"]) / 2, rel=1e-4)
    # uneven batches: means over all rows, not means of the batches' means
    uneven = pairs(["x", "x", "x", "x", "x", "y", "y", "x"])
    metrics = trainer.evaluate(uneven)
    rows = [row for row in uneven if row["objective"] == "x"]
    alone = trainer.evaluate(Dataset.from_list(rows))
    assert metrics["eval_x/logps/chosen"] == pytest.approx(alone["eval_x/logps/chosen"], rel=1e-5)
    assert "eval_y/loss" in metrics and "eval_y/loss" not in alone


@with_and_without_lora
def test_experts_are_balanced_as_by_dpo(tmp_path: Path, peft_config: LoraConfig | None) -> None:
    torch.manual_seed(0)
    config = MixtralConfig(**SIZE, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(LM).save_pretrained(tmp_path)
    theirs = run(DPO, tmp_path / "a", str(tmp_path), peft_config=peft_config)
    for head_type in ("full", "low_rank"):
        settings = {"dataset": pairs(["x"] * 8), "head_type": head_type, "peft_config": peft_config}
        ours = run(MAH, tmp_path / "b", str(tmp_path), **settings)
        trained = {name for name, weight in ours.model.named_parameters() if weight.requires_grad}
        assert any("experts" in name for name in trained) == (peft_config is None)
        assert logged(ours, "aux_loss")[0] == pytest.approx(logged(theirs, "aux_loss")[0], rel=1e-6)
        assert losses(ours)[0] == pytest.approx(losses(theirs)[0], rel=1e-6)


def test_checkpointing_changes_nothing(tiny: str, tmp_path: Path) -> None:
    plain = run(MAH, tmp_path, tiny)
    checkpointed = run(MAH, tmp_path, tiny, activation_checkpointing=True)
    assert losses(checkpointed) == pytest.approx(losses(plain), rel=1e-6)


# Wrong input


@pytest.mark.parametrize(
    ("objectives", "settings", "named"),
    [
        (["x", None] * 4, {}, "null"),
        (["x", "y"] * 4, {"objectives": ["x", "z"]}, "'y', expected one of"),
        (["x", "y"] * 4, {"objectives": ["x", "y", "z"]}, r"\['z'\] have no pairs"),
        ([0, 7] * 4, {"objectives": ["x", "y"]}, "is 7, expected one of"),
        (["x", "y"] * 4, {"objective_loss_weights": [1.0]}, "Give one for each of"),
        (["x", "y"] * 4, {"objective_loss_weights": {"z": 1}}, r"names \['z'\]"),
        (["x", "y"] * 4, {"objective_loss_weights": "x"}, "must be a number for each of .*, received 'x'"),
        (["x", "y"] * 4, {"objective_loss_weights": [0.0, 0.0]}, "not all 0"),
        (["x", "y"] * 4, {"objective_loss_weights": [1.0, math.nan]}, "finite"),
    ],
    ids=["null", "unknown", "absent", "number", "few", "name", "word", "zero", "nan"],
)
def test_wrong_data_is_named(tiny: str, tmp_path: Path, objectives: list, settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MAH.start(tmp_path, model=tiny, dataset=pairs(objectives), **settings)


def test_evaluated_objectives_are_those_of_training(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="eval data is 'z'"):
        MAH.start(tmp_path, model=tiny, eval_dataset=pairs(["x", "z"] * 4))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"loss_type": ["aot"]}, r"\['aot'\]"),
        ({"use_weighting": True}, "`use_weighting` is True"),
        ({"ld_alpha": 0.5}, "`ld_alpha` is 0.5"),
        ({"f_divergence_type": "js_divergence"}, "'js_divergence'"),
        ({"sync_ref_model": True}, "`sync_ref_model`"),
        ({"label_smoothing": 0.5}, "`label_smoothing` is 0.5"),
        ({"label_smoothing": 0.1, "loss_type": ["ipo"]}, "for 'sigmoid' and 'robust'"),
        ({"head_rank": 0}, "`head_rank` is 0"),
        ({"head_type": "wide"}, "'wide'"),
        ({"objective_sampling": "random"}, "'random'"),
        ({"objectives": ["a", "a"]}, "each once"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MAHDPOConfig("x", use_cpu=True, bf16=False, **settings)


def test_wrong_models_are_named(tiny: str, saved: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="LlamaForCausalLM without objective heads"):
        MAH.start(tmp_path, model=AutoModelForCausalLM.from_pretrained(tiny))
    with pytest.raises(ValueError, match="the model's heads are"):
        MAH.start(tmp_path, model=saved, objectives=["y", "x"])
    with pytest.raises(ValueError, match="must be a `MAHDPOConfig`"):
        MAHDPOTrainer(tiny, args=DPOConfig(str(tmp_path), use_cpu=True, bf16=False), train_dataset=pairs())
    with pytest.raises(ValueError, match="pictures"):
        MAH.start(tmp_path, model=tiny, dataset=pairs().add_column("image", ["a.png"] * 8))


@pytest.mark.parametrize("head_type", ["full", "low_rank"])
def test_heads_are_refused_under_zero_3(
    head_type: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignext.trainers.mah_dpo.trainer.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(NotImplementedError, match="ZeRO-3"):
        MAH.start(tmp_path, model=tiny, head_type=head_type)


def test_constructor_leaves_the_arguments_as_they_were(tiny: str, tmp_path: Path) -> None:
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    trainer = MAH.start(tmp_path, model=tiny, model_init_kwargs={"attn_implementation": "eager"}, peft_config=lora)
    assert trainer.args.model_init_kwargs == {"attn_implementation": "eager"}
    assert trainer.model.config._attn_implementation == "eager"
    assert lora.modules_to_save is None


def test_doubtful_settings_are_said(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "alignext.trainers.mah_dpo.trainer.logger.warning", lambda text, *args: said.append(text % args)
    )
    MAH.start(tmp_path, model=tiny)
    assert not said
    many = preference().select([0] * 33).add_column("objective", ["x"] * 30 + ["y"] * 2 + ["x"])
    MAH.start(tmp_path, model=tiny, dataset=many, per_device_train_batch_size=3, head_dtype="bfloat16")
    assert len(said) == 3
    assert "3 rows" in said[0] and "[31, 2]" in said[1] and "half precision" in said[2]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # PEFT 0.19 says it first
def test_adapter_on_the_output_head_is_refused(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lm_head"):
        MAH.start(tmp_path, model=tiny, peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"]))


def test_preparing_data_hashes_no_modules(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` names what it prepares by a hash of the arguments, also of what loads the heads, if that is in them:
    it takes that apart for seconds, gives up, and draws a random name."""
    dataset, drawn = pairs(), []
    monkeypatch.setattr("datasets.fingerprint.generate_random_fingerprint", lambda: drawn.append(1) or "0" * 16)
    MAH.start(tmp_path, model=tiny, dataset=dataset)
    assert not drawn
