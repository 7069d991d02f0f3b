# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Votes, shapes in buckets, masks, running means and other formats, on tiny Stable Diffusion."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file
from transformers import Trainer

from alignext.trainers.diffusion_preference import (
    DiffusionDPOConfig,
    DiffusionDPOTrainer,
    DiffusionKTOConfig,
    DiffusionKTOTrainer,
    SmPOConfig,
    SmPOTrainer,
    pictures,
)
from alignext.trainers.diffusion_preference.data import PairCollator, prepare_pairs, prepare_votes, to_rgb

from ..contract import assert_same
from ..diffusion import DiffusionRow as Row
from ..diffusion import pairs, picture, picture_votes, prediction, weights
from .tiny import SIZE, sd, sd3


DPO = Row(DiffusionDPOTrainer, DiffusionDPOConfig)
SMPO = Row(SmPOTrainer, SmPOConfig)
KTO = Row(DiffusionKTOTrainer, DiffusionKTOConfig, dataset=picture_votes)
LORA = LoraConfig(r=2, lora_alpha=4)


def batch_of(trainer: Trainer, rows: list[int]) -> dict[str, Any]:
    return trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in rows]))


# Votes


def test_votes_train_and_begin_at_the_reference(tmp_path: Path) -> None:
    trainer = KTO.start(tmp_path, peft_config=LORA, max_steps=2, beta=20.0)
    before = weights(trainer)
    trainer.train()
    first, second = (log for log in trainer.state.log_history if "loss" in log)
    assert first["rewards/chosen"] == first["rewards/rejected"] == first["rewards/shift"] == 0
    assert first["loss"] == 0.5 and first["rewards/accuracies"] == 0.5
    assert second["rewards/chosen"] != 0 and second["mse/policy"] != second["mse/ref"]
    assert {name for name, w in weights(trainer).items() if not torch.equal(w, before[name])} == {
        name for name in before if "lora_" in name
    }


def test_votes_of_one_kind_go_one_way(tmp_path: Path) -> None:
    """What everybody likes is denoised better, and what nobody likes worse."""
    moved = {}
    for label in (True, False):
        data = picture_votes().map(lambda row, label=label: {"label": label})
        trainer = KTO.start(tmp_path, dataset=data, max_steps=3, beta=20.0, prompt_dropout=0.0)
        inputs = batch_of(trainer, list(range(8)))
        trainer.train()
        batch = trainer.get_batch(inputs, training=False)
        with torch.no_grad():
            moved[label] = trainer.errors(trainer.model.eval(), batch).delta.mean().item()
    assert moved[True] < 0 < moved[False]


def test_the_shift_of_bco_is_a_setting_and_is_resumed(tmp_path: Path) -> None:
    settings = {"utility": "loss-averse", "reward_shift": "ema", "beta": 20.0, "max_steps": 3, "save_steps": 2}
    whole = KTO.start(tmp_path, save_strategy="steps", **settings)
    whole.train()
    resumed = KTO.start(tmp_path / "again", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert whole.reward_shift.stats == resumed.reward_shift.stats and any(whole.reward_shift.stats)
    assert_same(weights(whole), weights(resumed))


def test_pairs_are_taken_apart_for_votes() -> None:
    votes = prepare_votes(pairs(3))
    assert votes["label"][:] == [True] * 3 + [False] * 3
    assert votes["index"][:] == list(range(6)) and votes["prompt"][:] == ["fox 0", "fox 1", "fox 2"] * 2
    scores = {"score_chosen": "ps_score_0", "score_rejected": "ps_score_1"}
    names = {"image_chosen": "jpg_0", "image_rejected": "jpg_1"} | scores
    labelled = pairs(2).rename_columns(names).add_column("label_0", [0, 1])  # the first against the scores
    up = prepare_votes(labelled).filter(lambda row: row["label"])
    assert [to_rgb(file).tobytes() for file in up["image"]] == [picture(i).tobytes() for i in (1, 2)]
    with pytest.raises(ValueError, match=r"`label` of row 0 is 'up', expected True"):
        prepare_votes(
            Dataset.from_list([{"prompt": "a", "image": picture(i), "label": "up"} for i in range(2)]).select([1, 0])
        )
    with pytest.raises(ValueError, match=r"lacks `label`.*Expected `prompt`"):
        prepare_votes(picture_votes().remove_columns("label"))


def test_unequal_numbers_of_votes(tmp_path: Path) -> None:
    data = pairs(4).remove_columns(["score_chosen", "score_rejected"])
    data = data.add_column("votes_chosen", [3, 1, 2, 0]).add_column("votes_rejected", [1, 4, 2, 0])
    prepared = prepare_pairs(data, order_by_score=False)
    assert prepared["index"][:] == [0, 1]  # ties are dropped
    assert prepared["votes_chosen"][:] == [3, 4]
    hard, soft = (DPO.start(tmp_path, dataset=data, soft_labels=flag) for flag in (False, True))
    delta = torch.tensor([0.1, 0.2, -0.1, 0.3])
    inputs = batch_of(soft, [0, 1])
    torch.testing.assert_close(inputs["preference_prob"], torch.tensor([0.75, 0.8]))
    one, other = (t.losses(delta, t.get_batch(inputs)) for t in (hard, soft))
    assert (one != other).all()


@pytest.mark.parametrize("row", [DPO, SMPO], ids=["dpo", "smpo"])
def test_soft_labels_without_any(row: Row, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`soft_labels` is True, but `train_dataset` has neither `votes_chosen`"):
        row.start(tmp_path, soft_labels=True)


# Pictures


def oblong(seed: int, size: tuple[int, int]) -> Image.Image:
    return picture(seed).resize(size)


def test_shapes_in_buckets(tmp_path: Path) -> None:
    sizes = [(32, 8), (16, 16), (64, 16), (8, 32)]
    rows = [
        {"prompt": f"fox {i}", "image_chosen": oblong(i, size), "image_rejected": oblong(i + 9, size)}
        for i, size in enumerate(sizes)
    ]
    trainer = DPO.start(tmp_path, dataset=Dataset.from_list(rows), buckets=True, max_steps=2, prompt_dropout=0.0)
    parts = trainer.data_collator(list(trainer.train_dataset))["parts"]
    assert [part["index"].tolist() for part in parts] == [[0, 2], [1], [3]]
    shapes = [tuple(part["pixel_values"].shape[-2:]) for part in parts]
    assert shapes == [(8, 32), (16, 16), (32, 8)]  # about as many pixels
    trainer.train()
    assert trainer.state.log_history[0]["rewards/margins"] == 0
    assert trainer.state.log_history[1]["rewards/margins"] != 0
    with pytest.raises(ValueError, match="`buckets` and `precompute_latents`"):
        DiffusionDPOConfig(str(tmp_path), use_cpu=True, buckets=True, precompute_latents=True)


def test_masks_say_where_it_is_trained(tmp_path: Path) -> None:
    left = Image.new("L", (SIZE, SIZE))
    left.paste(255, (0, 0, SIZE // 2, SIZE))
    rows = [row | {"mask": left} for row in pairs(2)]
    trainer = DPO.start(tmp_path, dataset=Dataset.from_list(rows), max_steps=1)
    batch = trainer.get_batch(batch_of(trainer, [0, 1]))
    assert batch.mask.shape == (4, 1, 8, 8)
    assert (batch.mask[..., :4] == 1).all() and not batch.mask[..., 4:].any()
    trainer.train()
    rows[1]["mask"] = left.resize((8, 8))
    wrong = DPO.start(tmp_path, dataset=Dataset.from_list(rows))
    with pytest.raises(
        ValueError, match=r"`mask` of row 1 is of size \(8, 8\), but the picture is of size \(16, 16\)"
    ):
        wrong.data_collator(list(wrong.train_dataset))


def wide(i: int, size: tuple[int, int]) -> dict[str, Any]:
    """A pair with a mask of the left third, which the centre has a part of or none."""
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 3, size[1]))
    return {"prompt": f"fox {i}", "image_chosen": oblong(i, size), "image_rejected": oblong(i, size), "mask": mask}


def test_masks_are_cut_as_pictures_are_also_where_these_are_encoded(tmp_path: Path) -> None:
    data = Dataset.from_list([wide(i, size) for i, size in enumerate([(48, 16), (20, 16), (16, 24)])])
    fresh, kept = (DPO.start(tmp_path, dataset=data, precompute_latents=flag) for flag in (False, True))
    masks = [trainer.get_batch(batch_of(trainer, [0, 1, 2])).mask for trainer in (fresh, kept)]
    assert "image_chosen" not in kept.train_dataset.column_names
    assert torch.equal(*masks)
    assert not masks[1][0].any() and masks[1][1, ..., 0].all() and not masks[1][1, ..., 2:].any()
    wrong = Dataset.from_list([dict(data[0], mask=data[1]["mask"])])
    with pytest.raises(ValueError, match=r"`mask` of row 0 is of size \(20, 16\), but the picture"):
        DPO.start(tmp_path, dataset=wrong, precompute_latents=True)


def test_masks_of_latents_have_their_proportion() -> None:
    collator = PairCollator(16, 8)
    rows = [
        {"index": i, "prompt": "a", "chosen_latents": torch.zeros(4, 4, 12), "rejected_latents": torch.zeros(4, 4, 12)}
        for i in range(2)
    ]
    masks = [wide(0, (48, 16))["mask"], wide(0, (96, 32))["mask"]]
    mask = collator([row | {"mask": mask} for row, mask in zip(rows, masks, strict=True)])["mask"]
    assert mask.shape == (2, 1, 16, 48) and (mask[..., :14] > 0.99).all() and (mask[..., 18:] < 0.01).all()


def test_masks_are_mirrored_with_their_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = wide(0, (SIZE, SIZE))["mask"]
    rows = [{"prompt": "a", "image_chosen": left, "image_rejected": left, "mask": left} for _ in range(8)]
    trainer, seen = DPO.start(tmp_path, dataset=Dataset.from_list(rows), random_flip=True), []
    monkeypatch.setattr(pictures, "encode_images", lambda _, pixels, *args, **kwargs: seen.append(pixels) or pixels)
    batch = trainer.get_batch(batch_of(trainer, list(range(8))), training=True)
    assert 0 < (seen[0][:, 0, 0, 0] > 0).sum() < 16
    assert torch.equal(batch.mask, (seen[0][:, :1] + 1) / 2)
    assert torch.equal(batch.mask[:8], batch.mask[8:])


def test_all_that_encodes_may_leave(tmp_path: Path) -> None:
    data = pairs().map(lambda row: {"prompt": [row["prompt"], "a fox"]})
    trainer = DPO.start(
        tmp_path, dataset=data, precompute_latents=True, precompute_prompts=True, prompt_dropout=0.5, max_steps=2
    )
    trainer.pipe.vae.encode = trainer.pipe.encode_prompt = lambda *args, **kwargs: pytest.fail("an encoder ran")
    trainer.train()
    assert trainer.state.log_history[1]["rewards/margins"] != 0


# What is saved


def test_a_running_mean_is_saved_and_resumed(tmp_path: Path) -> None:
    settings = {"peft_config": LORA, "ema_decay": 0.9, "max_steps": 3, "learning_rate": 1e-2}
    whole = DPO.start(tmp_path / "whole", save_strategy="steps", save_steps=2, **settings)
    whole.train()
    whole.save_model()
    last = prediction(whole.pipe)
    mean = DPO.opened(tmp_path / "whole", lora=True)
    assert not torch.allclose(mean, last, rtol=1e-4) and torch.equal(prediction(whole.pipe), last)
    resumed = DPO.start(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    resumed.save_model()
    torch.testing.assert_close(DPO.opened(tmp_path / "resumed", lora=True), mean)
    with pytest.raises(ValueError, match=r"`ema_decay` must be in \[0, 1\), received 1.0"):
        DiffusionDPOConfig(str(tmp_path), use_cpu=True, ema_decay=1.0)


def test_the_format_of_kohya(tmp_path: Path) -> None:
    trainer = DPO.start(tmp_path, peft_config=LORA, save_format="kohya", learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    state = load_file(tmp_path / "pytorch_lora_weights_kohya.safetensors")
    assert all(name.startswith("lora_unet_") and name.count(".") in (1, 2) for name in state)
    assert {name.rsplit(".", 1)[0] if name.endswith("alpha") else name.split(".")[0] for name in state} == {
        name.split(".")[0] for name in state if "lora_down" in name
    }
    assert all(state[name].item() == 4 for name in state if name.endswith(".alpha"))
    assert len([n for n in state if "lora_down" in n]) == len([n for n in weights(trainer) if "lora_A" in n])
    with pytest.raises(ValueError, match=r"`save_format='kohya'` .* none for a `transformer`"):
        DPO.start(tmp_path, pipe=sd3, peft_config=LORA, save_format="kohya")
    with pytest.raises(ValueError, match=r"`save_format='kohya'` and `use_dora` are both set"):
        DPO.start(tmp_path, peft_config=LoraConfig(r=2, use_dora=True), save_format="kohya")


@pytest.mark.parametrize(
    "settings",
    [{"use_rslora": True}, {"alpha_pattern": {"to_q": 16}}, {"rank_pattern": {"to_q": 4}}],
    ids=lambda settings: next(iter(settings)),
)
def test_the_file_of_kohya_does_what_the_lora_does(settings: dict[str, Any], tmp_path: Path) -> None:
    trainer = DPO.start(
        tmp_path, peft_config=LoraConfig(r=2, lora_alpha=3, **settings), save_format="kohya", learning_rate=1e-2
    )
    trainer.train()
    trainer.save_model()
    pipe = sd()
    pipe.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights_kohya.safetensors")
    moved = DPO.said(trainer)
    assert not torch.allclose(moved, prediction(sd()), atol=1e-3)
    torch.testing.assert_close(prediction(pipe), moved)


def test_all_weights_of_a_quantized_denoiser_are_not_trained(tmp_path: Path) -> None:
    pipe = sd()
    pipe.unet.is_quantized = True
    with pytest.raises(ValueError, match=r"is quantized, and its weights cannot be trained\."):
        DPO.start(tmp_path, pipe=pipe)
