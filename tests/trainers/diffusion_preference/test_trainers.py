# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What is particular to the three trainers: margins, what is trained and what is not, what it costs, bad input."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from diffusers.utils.peft_utils import get_adapter_name
from peft import LoKrConfig, LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import Trainer

from alignext.diffusion.draws import Draws
from alignext.trainers.diffusion_preference import (
    DiffusionDPOConfig,
    DiffusionDPOTrainer,
    InversionDPOConfig,
    InversionDPOTrainer,
    SmPOConfig,
    SmPOTrainer,
)
from alignext.training.diffusion import adapter_off

from ..contract import assert_same, curve
from ..diffusion import DiffusionRow as Row
from ..diffusion import latent_pairs, pairs, picture, weights
from .tiny import PIPELINES, flux, sd, sdxl


DPO = Row(DiffusionDPOTrainer, DiffusionDPOConfig)
INVERSION = Row(InversionDPOTrainer, InversionDPOConfig, {"num_inversion_steps": 4})
SMPO = Row(SmPOTrainer, SmPOConfig, {"num_inversion_steps": 4})
ROWS = [DPO, INVERSION, SMPO]
LORA = LoraConfig(r=2, lora_alpha=4)

every_row = pytest.mark.parametrize("row", ROWS, ids=str)


def batch_of(trainer: Trainer, rows: list[int]) -> dict[str, Any]:
    """A batch of these rows, as the loop gets it."""
    return trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in rows]))


def margins(trainer: Trainer, inputs: dict[str, Any]) -> torch.Tensor:
    batch = trainer.get_batch(inputs)
    chosen, rejected = trainer.rewards(trainer.errors(trainer.model, batch).delta, batch).chunk(2)
    return chosen - rejected


def displaced(trainer: Trainer, by: float = 0.05) -> Trainer:
    """The trainer with its policy moved off the reference, in float64."""
    torch.manual_seed(5)
    with torch.no_grad():
        for p in trainer.denoiser.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * by)
    trainer.model.train()
    return trainer


# The start


@every_row
@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_margin_is_exactly_zero_at_the_start_in_bfloat16(row: Row, tmp_path: Path, peft_config: Any) -> None:
    # Reference predictions come from the inversion, whose later steps have fewer rows: one pair keeps sums the same.
    settings = {} if row is not INVERSION else {"init_noise": 0.0, "per_device_train_batch_size": 1}
    trainer = row.start(tmp_path, peft_config=peft_config, bf16=True, max_steps=1, **settings)
    trainer.train()
    (first,) = [log for log in trainer.state.log_history if "loss" in log]
    assert first["rewards/margins"] == first["rewards/chosen"] == first["rewards/rejected"] == 0
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (first["grad_norm"] > 0) == (row is not INVERSION)


@pytest.mark.parametrize("family", PIPELINES)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_family_trains(row: Row, family: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"guidance_scale": 1.0} if family == "flux" and row is INVERSION else {}
    trainer = row.start(tmp_path, pipe=PIPELINES[family], peft_config=LORA, max_steps=2, **settings)
    before = weights(trainer)
    trainer.train()
    first, second = (log for log in trainer.state.log_history if "loss" in log)
    assert (first["rewards/margins"] == 0) == (row is not INVERSION)
    assert second["rewards/margins"] != 0
    assert all(weight.isfinite().all() for weight in weights(trainer).values())
    moved = {name for name, weight in weights(trainer).items() if not torch.equal(weight, before[name])}
    # What the last block of SD3 attends to from the prompt goes nowhere.
    assert moved == {name for name in before if "lora_" in name and "attn.add_q_proj" not in name} or family == "flux"
    assert moved <= {name for name in before if "lora_" in name}


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@every_row
def test_other_predictions_train(row: Row, kind: str, tmp_path: Path) -> None:
    pipe = sd()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=kind)
    trainer = row.start(tmp_path, pipe=pipe, max_steps=2)
    trainer.train()
    assert all(math.isfinite(loss) and norm > 0 for _, loss, norm in curve(trainer))


def test_frozen_weights_may_be_in_half_precision(tmp_path: Path) -> None:
    pipe = sd().to(torch.bfloat16)
    trainer = DPO.start(tmp_path, pipe=pipe, peft_config=LORA, bf16=True, eval_dataset=pairs(4))
    trainer.train()
    kinds = {p.dtype for p in trainer.denoiser.parameters() if p.requires_grad}
    assert kinds == {torch.float32}
    assert trainer.state.log_history[0]["rewards/margins"] == 0
    assert math.isfinite(trainer.evaluate()["eval_loss"])


def test_published_target_alone_trains_nothing_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("alignext.trainers.diffusion_preference.inversion_core")
    logger.addHandler(caplog.handler)
    try:
        still = INVERSION.start(tmp_path, init_noise=0.0, per_device_train_batch_size=1)
        assert "trains nothing" in caplog.text
        caplog.clear()
        moving = INVERSION.start(tmp_path)
        assert not caplog.text
    finally:
        logger.removeHandler(caplog.handler)
    before = weights(still)
    still.train()
    assert all(norm == 0 for *_, norm in curve(still))
    assert_same(before, weights(still))
    moving.train()
    assert all(norm > 0 for *_, norm in curve(moving))


def test_start_beside_the_reference_is_seeded_and_small(tmp_path: Path) -> None:
    def moved(**settings: Any) -> dict[str, torch.Tensor]:
        trainer = INVERSION.start(tmp_path, **settings)
        return {
            name: (weight - original) / original
            for (name, weight), original in zip(weights(trainer).items(), sd().unet.parameters(), strict=True)
            if original.all()
        }

    first, again, other = moved(), moved(), moved(seed=3, init_noise=1e-2)
    assert_same(first, again)
    assert torch.cat([value.flatten() for value in first.values()]).std().item() == pytest.approx(1e-3, rel=0.05)
    assert torch.cat([value.flatten() for value in other.values()]).std().item() == pytest.approx(1e-2, rel=0.05)
    lora = INVERSION.start(tmp_path, peft_config=LORA)
    second = torch.cat([w.flatten() for name, w in weights(lora).items() if "lora_B" in name])
    assert second.std().item() == pytest.approx(1e-3, rel=0.05)
    assert InversionDPOConfig("x", target="recovered").init_noise == 0


# Pairs


@every_row
def test_a_batch_is_its_pairs(row: Row, tmp_path: Path) -> None:
    trainer = displaced(row.start(tmp_path))
    at_once = margins(trainer, batch_of(trainer, [0, 3, 5]))
    alone = torch.cat([margins(trainer, batch_of(trainer, [i])) for i in (0, 3, 5)])
    assert at_once.unique().numel() == 3
    torch.testing.assert_close(at_once, alone, rtol=1e-3, atol=1e-3 * at_once.abs().max().item())
    inputs = batch_of(trainer, [0, 3, 5])
    loss = trainer.compute_loss(trainer.model, inputs)
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(at_once).mean())


@every_row
def test_exchanged_pictures_negate_the_margin(row: Row, tmp_path: Path) -> None:
    settings = {"label_sharpness": None} if row is SMPO else {}
    trainer = displaced(row.start(tmp_path, dataset=latent_pairs(), **settings))
    inputs = batch_of(trainer, [0, 1, 2])
    exchanged = inputs | {"latents": inputs["latents"].roll(3, 0)}
    straight, crossed = margins(trainer, inputs), margins(trainer, exchanged)
    torch.testing.assert_close(straight, -crossed, rtol=1e-4, atol=1e-4 * straight.abs().max().item())
    assert straight.all()


@every_row
def test_the_same_picture_twice_teaches_nothing(row: Row, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"label_sharpness": None, "inversion_eta": 0.1} if row is SMPO else {}
    trainer = displaced(row.start(tmp_path, dataset=latent_pairs(), beta=0.1, **settings))
    inputs = batch_of(trainer, [0, 1])
    same = inputs | {"latents": inputs["latents"][:2].repeat(2, 1, 1, 1)}
    errors = trainer.errors(trainer.model, trainer.get_batch(same))
    torch.testing.assert_close(errors.delta[:2], errors.delta[2:], rtol=1e-5, atol=1e-7)
    gradients = []
    for batch in (same, inputs):
        trainer.compute_loss(trainer.model, batch).backward()
        gradients.append(max(p.grad.abs().max().item() for p in trainer.denoiser.parameters()))
        trainer.model.zero_grad()
    assert gradients[0] < 1e-3 * gradients[1]


def test_soft_labels_are_those_of_each_pair(tmp_path: Path) -> None:
    rows = [row | {"preference_prob": p} for row, p in zip(latent_pairs(4), (0.5, 0.6, 0.9, 0.4), strict=True)]
    trainer = displaced(SMPO.start(tmp_path, dataset=Dataset.from_list(rows)))
    inputs = batch_of(trainer, [0, 1, 2, 3])
    torch.testing.assert_close(trainer.factor(inputs), torch.tensor([0.0, 2.0, 8.0, -2.0]))
    plain = displaced(SMPO.start(tmp_path, dataset=latent_pairs(4), label_sharpness=None))
    torch.testing.assert_close(margins(trainer, inputs), margins(plain, inputs) * trainer.factor(inputs))
    unsure = inputs | {"preference_prob": torch.full((4,), 0.5)}
    trainer.compute_loss(trainer.model, unsure).backward()
    assert not any(p.grad.any() for p in trainer.denoiser.parameters() if p.grad is not None)


def test_scores_decide_who_wins_for_smpo_and_labels_for_the_others(tmp_path: Path) -> None:
    swapped = pairs(2).map(lambda row: {"score_chosen": 0.15, "score_rejected": 0.25})
    smpo, dpo = (row.start(tmp_path, dataset=swapped) for row in (SMPO, DPO))
    pixels = [batch_of(trainer, [0])["pixel_values"] for trainer in (smpo, dpo)]
    assert torch.equal(pixels[0], pixels[1].flip(0))
    assert (smpo.factor(batch_of(smpo, [0])) > 0).all()
    inpo = SMPO.start(tmp_path, dataset=swapped, label_sharpness=None)
    assert torch.equal(batch_of(inpo, [0])["pixel_values"], pixels[1])
    with pytest.raises(ValueError, match="no scores"):
        SMPO.start(tmp_path, dataset=pairs().remove_columns(["score_chosen", "score_rejected"]))


def test_dropped_prompts_are_empty_for_both_pictures_and_not_at_evaluation(tmp_path: Path) -> None:
    trainer = DPO.start(tmp_path, prompt_dropout=0.5)
    inputs, seen = batch_of(trainer, list(range(8))), []
    for step in range(20):
        trainer.state.global_step = step
        batch = trainer.get_batch(inputs)
        numbers = batch.conditioning["conditions"]
        assert torch.equal(numbers[:8], numbers[8:])
        (empty,) = trainer.conditions([""]).tolist()
        assert [number == empty for number in numbers[:8].tolist()] == [prompt == "" for prompt in batch.prompts]
        seen += [prompt == "" for prompt in batch.prompts]
    assert 0.3 < sum(seen) / len(seen) < 0.7
    trainer.model.eval()
    assert "" not in trainer.get_batch(inputs).prompts
    embedded = DPO.start(tmp_path, prompt_dropout=1.0, dataset=latent_pairs())
    numbers = embedded.get_batch(batch_of(embedded, [0, 1])).conditioning["conditions"]
    assert set(numbers.tolist()) == set(embedded.conditions([""]).tolist())


@pytest.mark.slow
def test_one_of_several_captions_is_drawn_for_each_pair_and_step(tmp_path: Path) -> None:
    dataset = pairs(8).map(lambda row: {"prompt": [f"{row['prompt']}, {i}" for i in range(3)]})
    trainer = DPO.start(tmp_path, dataset=dataset, prompt_dropout=0.0)
    inputs, rows = batch_of(trainer, list(range(8))), dataset["prompt"][:]

    def drawn(step: int) -> list[int]:
        trainer.state.global_step = step
        torch.rand(1)  # what else is drawn must not matter
        prompts = trainer.get_batch(inputs).prompts
        return [captions.index(prompt) for captions, prompt in zip(rows, prompts, strict=True)]

    steps = [drawn(step) for step in range(30)]
    assert steps == [drawn(step) for step in range(30)]  # as a run that is resumed does
    assert all(60 < sum(step.count(i) for step in steps) < 100 for i in range(3))
    assert trainer.get_batch(inputs, training=False).prompts == [captions[0] for captions in rows]
    kept = INVERSION.start(tmp_path, dataset=dataset, precompute_inversion=True, num_cached_points=1)
    assert kept.get_batch(batch_of(kept, [0, 1])).prompts == [captions[0] for captions in rows[:2]]
    kept.train()


def test_pictures_of_a_pair_are_flipped_together(tmp_path: Path) -> None:
    same = [row | {"image_rejected": row["image_chosen"]} for row in pairs(8)]
    trainer = DPO.start(tmp_path, dataset=Dataset.from_list(same), random_flip=True)
    inputs, flips = batch_of(trainer, list(range(8))), 0
    seen: list[torch.Tensor] = []
    encode = trainer.pipe.vae.encode
    trainer.pipe.vae.encode = lambda pixels: (seen.append(pixels), encode(pixels))[1]
    trainer.get_batch(inputs)
    pixels = torch.cat(seen)
    assert torch.equal(pixels[:8], pixels[8:])
    flips = sum(
        torch.equal(one, other.flip(-1)) for one, other in zip(pixels[:8], inputs["pixel_values"][:8], strict=True)
    )
    assert 0 < flips < 8


def test_noise_depends_on_the_row_and_the_step_alone() -> None:
    index = torch.tensor([4, 9, 2])
    at_once, alone = Draws(1, 5, index), Draws(1, 5, index[1:2])
    assert torch.equal(at_once.normal("n", (2, 2), torch.device("cpu"))[1:2], alone.normal("n", (2, 2), "cpu"))
    assert torch.equal(at_once.uniform("u")[1:2], alone.uniform("u"))
    others = [Draws(2, 5, index), Draws(1, 6, index), Draws(1, 5, index + 1)]
    assert not any(torch.equal(at_once.uniform("u"), other.uniform("u")) for other in others)
    assert not torch.equal(at_once.uniform("u"), at_once.uniform("v"))


def test_points_are_different_and_all_equally_likely() -> None:
    k = torch.cat([Draws(0, step, torch.arange(50)).points("time", 3, 7) for step in range(60)], dim=1)
    assert all(len(set(column)) == 3 for column in k.T.tolist())
    counts = k.flatten().bincount(minlength=7) / k.numel()
    assert (counts - 1 / 7).abs().max() < 0.01
    # At evaluation they are spread evenly from the start.
    spread = Draws(0, "eval", torch.arange(70)).points("time", 1, 7).flatten().bincount(minlength=7)
    assert spread.min() >= 9
    assert Draws(0, 0, torch.arange(5)).points("time", 7, 7).sort(0).values.T.tolist() == [list(range(7))] * 5


# What it costs


def counted(trainer: Trainer, step: Callable[[], Any]) -> dict[str, int]:
    """Rows that the policy's network and the reference's see, with a graph and without."""
    seen = {"graph": 0, "no graph": 0, "reference": 0}
    networks = {trainer.denoiser: "policy"}
    if trainer.ref_denoiser is not None:
        networks[trainer.ref_denoiser.denoiser] = "reference"

    def hook(module: torch.nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        rows = len(args[0] if args else kwargs["hidden_states"])
        if networks[module] == "reference" or (trainer.is_lora and not adapter_on(module)):
            seen["reference"] += rows
        else:
            seen["graph" if torch.is_grad_enabled() else "no graph"] += rows

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in networks]
    try:
        step()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def adapter_on(denoiser: torch.nn.Module) -> bool:
    return any("default" in m.active_adapters for m in denoiser.modules() if isinstance(m, BaseTunerLayer))


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_forwards_of_an_update(tmp_path: Path, peft_config: Any) -> None:
    """A forward with a graph counts 3 F with its backward pass, 4 F if activations are computed again."""

    def cost(row: Row, rows: int = 2, **settings: Any) -> dict[str, int]:
        trainer = row.start(tmp_path, dataset=latent_pairs(), peft_config=peft_config, prompt_dropout=0.0, **settings)
        inputs = batch_of(trainer, list(range(rows)))
        return counted(trainer, lambda: trainer.compute_loss(trainer.model.train(), inputs).backward())

    # 2 pairs: 4 rows. Diffusion-DPO is (1 + 3) F a picture: 8 F a pair.
    assert cost(DPO) == {"graph": 4, "no graph": 0, "reference": 4}
    # With kept inversions the policy alone: (4 or 3) F a picture, and no reference at all.
    kept = {"precompute_inversion": True, "num_cached_points": 2, "inversion_cache": str(tmp_path / "kept")}
    assert cost(INVERSION, guidance_scale=1.0, **kept) == {"graph": 4, "no graph": 0, "reference": 0}
    assert cost(INVERSION, guidance_scale=2.0, **kept) == {"graph": 8, "no graph": 0, "reference": 0}
    # Inverting with the policy: each step twice with a round of re-noising, up to the point drawn and no further.
    trainer = SMPO.start(tmp_path, dataset=latent_pairs(), prompt_dropout=0.0)
    steps = 1 + Draws(42, 0, torch.arange(2)).points("time", 1, 4)[0]
    walked = 2 * int(steps.sum())
    assert trainer.args.seed == 42
    assert cost(SMPO) == {"graph": 4, "no graph": 2 * walked, "reference": 4}
    assert cost(SMPO, num_renoise_steps=0) == {"graph": 4, "no graph": walked, "reference": 4}


def test_reference_takes_no_memory_with_a_lora(tmp_path: Path) -> None:
    before = sum(p.numel() for p in sd().unet.parameters())
    trainer = DPO.start(tmp_path, peft_config=LORA)
    assert trainer.ref_denoiser is None
    added = sum(p.numel() for name, p in trainer.denoiser.named_parameters() if "lora_" in name)
    assert sum(p.numel() for p in trainer.model.parameters()) == before + added
    # Neither the VAE nor the text encoder is trained, saved or moved with the denoiser.
    assert {name.partition(".")[0] for name, _ in trainer.model.named_parameters()} == {"denoiser"}
    assert not hasattr(trainer.model, "config")


def test_all_steps_take_the_gradient_of_one_graph(tmp_path: Path) -> None:
    settings = {"num_train_steps_per_pair": None, "max_steps": 1, "optim": "sgd", "beta": 20.0}
    trainer = displaced(INVERSION.start(tmp_path, dataset=latent_pairs(), **settings))
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 2
    inputs = batch_of(trainer, [0, 1, 2])
    loss = trainer.compute_loss(trainer.model, inputs)
    (loss / 2).backward()
    expected = {name: p.grad.clone() for name, p in trainer.denoiser.named_parameters()}
    trainer.model.zero_grad()
    seen = counted(trainer, lambda: setattr(trainer, "found", trainer.training_step(trainer.model, inputs)))
    # 3 pairs, 4 steps, guidance: the first pass of 48 rows without a graph, the second with one.
    assert seen == {"graph": 48, "no graph": 48, "reference": 48}
    torch.testing.assert_close(trainer.found, loss.detach() / 2)
    for name, p in trainer.denoiser.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-3, atol=1e-5)


# Inversions computed beforehand


def whole(target: str, folder: Path) -> dict[str, Any]:
    """Settings under which all points of each pair count, and are kept in the folder where they are kept."""
    return {
        "target": target,
        "dataset": latent_pairs(4),
        "inversion_cache": str(folder / "kept"),
        "prompt_dropout": 0.0,
        "beta": 20.0,
        "num_train_steps_per_pair": None,
    }


@pytest.mark.parametrize("target", ["reference", "trajectory", "recovered"])
def test_kept_inversions_train_as_fresh_ones(target: str, tmp_path: Path) -> None:
    settings = whole(target, tmp_path)
    kept = displaced(INVERSION.start(tmp_path, precompute_inversion=True, num_cached_points=4, **settings))
    fresh = displaced(INVERSION.start(tmp_path, **settings))
    found, expected = (margins(trainer, batch_of(trainer, [0, 1, 2])) for trainer in (kept, fresh))
    # Half precision is coarse beside the little noise of the first steps, which is what `recovered` divides by.
    tolerance = 0.01 if target == "recovered" else 0.001
    torch.testing.assert_close(found, expected, rtol=0.02, atol=tolerance * expected.abs().max().item())
    assert (kept.ref_denoiser is None) == (target == "reference")


# Under which names they are kept is the same for every target.
@pytest.mark.parametrize(
    "target", ["reference", *(pytest.param(name, marks=pytest.mark.slow) for name in ("trajectory", "recovered"))]
)
def test_kept_inversions_are_found_again(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference of a second run never runs; with other points or another text encoder it does."""
    ran: list[int] = []
    original = InversionDPOTrainer._invert
    monkeypatch.setattr(InversionDPOTrainer, "_invert", lambda *args: ran.append(1) or original(*args))

    def runs(points: int = 4, pipe: Any = None) -> bool:
        ran.clear()
        settings = {"precompute_inversion": True, "num_cached_points": points} | whole(target, tmp_path)
        INVERSION.start(tmp_path, pipe=pipe, **settings)
        return bool(ran)

    assert runs() and not runs() and runs(points=3)
    other = sd()  # another text encoder reads another prompt
    next(other.text_encoder.parameters()).data.add_(1)
    assert runs(pipe=other)


def test_kept_points_of_a_pair_are_the_same_of_both_pictures(tmp_path: Path) -> None:
    # One picture is in every pair, first as the winner and then as the loser; the last pair is the first one again.
    shared, *others = latent_pairs(5)["chosen_latents"]
    rows = [{"chosen_latents": shared, "rejected_latents": other} for other in others]
    rows += [{"chosen_latents": other, "rejected_latents": shared} for other in others[::-1]]
    dataset = Dataset.from_list([row | {"prompt": "fox"} for row in rows])
    settings: dict[str, Any] = {"num_inversion_steps": 20, "num_cached_points": 1, "per_device_eval_batch_size": 2}
    trainer = INVERSION.start(tmp_path, dataset=dataset, precompute_inversion=True, **settings)
    batch = trainer.get_batch(batch_of(trainer, list(range(8))))
    winner, loser = trainer._points(trainer.model, batch).k.chunk(2, dim=1)
    assert torch.equal(winner, loser)
    assert winner.unique().numel() > 1


def test_a_kept_inversion_depends_on_its_pair_alone(tmp_path: Path) -> None:
    """Also where it is random: in which row the pair is, and which picture won, does not matter."""
    pair, other = latent_pairs(2).to_list()
    turned = pair | {"chosen_latents": pair["rejected_latents"], "rejected_latents": pair["chosen_latents"]}

    def kept(rows: list[dict], row: int) -> torch.Tensor:
        trainer = INVERSION.start(
            tmp_path / str(len(rows)),
            dataset=Dataset.from_list(rows),
            target="recovered",
            inversion_eta=0.5,
            precompute_inversion=True,
            prompt_dropout=0.0,
        )
        batch = trainer.get_batch(batch_of(trainer, [row]))
        return trainer._cache.load(trainer._keys(trainer._cache, batch))["x"]

    alone = kept([pair], 0)
    torch.testing.assert_close(kept([other, pair, turned], 1), alone)
    torch.testing.assert_close(kept([other, pair, turned], 2), alone.flip(0))


def test_pictures_are_encoded_once_and_the_vae_leaves(tmp_path: Path) -> None:
    trainer = INVERSION.start(tmp_path, precompute_inversion=True, num_cached_points=2, eval_dataset=pairs(4))
    assert "image_chosen" not in trainer.train_dataset.column_names
    assert "image_chosen" not in trainer.eval_dataset.column_names

    def refuse(*args: object) -> None:
        raise AssertionError("the VAE ran")

    trainer.pipe.vae.encode = refuse
    trainer.train()
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    assert list((tmp_path / "inversions").rglob("*.safetensors"))


# Adapters and references


def with_style(pipe: Any) -> Any:
    """The pipeline with a frozen, active adapter that does something."""
    torch.manual_seed(2)
    denoiser = pipe.unet
    denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "style")
    denoiser.requires_grad_(False)
    return pipe


def test_another_lora_stays_frozen_and_active(tmp_path: Path) -> None:
    styled, plain = with_style(sd()).unet.eval(), sd().unet.eval()
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 700])
    prompt = torch.cat([sd().encode_prompt(text, "cpu", 1, False)[0] for text in ("a", "fox")])
    with torch.no_grad():
        expected = styled(x, t, prompt)[0]
        assert not torch.equal(expected, plain(x, t, prompt)[0])
    trainer = DPO.start(tmp_path, pipe=with_style(sd()), peft_config=LORA, max_steps=2)
    trainable = {name for name, p in trainer.denoiser.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in trainer.denoiser.named_parameters() if ".default." in name}
    with torch.no_grad():
        assert torch.equal(trainer.denoiser(x, t, prompt)[0], expected)  # at first the new one does nothing
    before = weights(trainer)
    trainer.train()
    assert trainer.state.log_history[0]["rewards/margins"] == 0
    after = weights(trainer)
    assert {name for name in after if not torch.equal(before[name], after[name])} == trainable
    assert {name for name, p in trainer.denoiser.named_parameters() if p.requires_grad} == trainable
    trainer.model.eval()
    with torch.no_grad():
        assert torch.equal(trainer.reference(trainer.model)(x, t, trainer.conditions(["a", "fox"])), expected)
        assert not torch.equal(trainer.denoiser(x, t, prompt)[0], expected)


def test_the_adapter_is_back_after_an_exception(tmp_path: Path) -> None:
    trainer = DPO.start(tmp_path, pipe=with_style(sd()), peft_config=LORA)

    def state() -> list[tuple[str, Any]]:
        return [(n, list(m.active_adapters)) for n, m in trainer.denoiser.named_modules() if hasattr(m, "lora_A")] + [
            (n, p.requires_grad) for n, p in trainer.denoiser.named_parameters()
        ]

    before = state()
    with pytest.raises(RuntimeError, match="boom"), adapter_off(trainer.denoiser, "default"):
        assert state() != before
        raise RuntimeError("boom")
    assert state() == before


def test_layers_of_a_lora_are_filled_in(tmp_path: Path) -> None:
    trainer = DPO.start(tmp_path, pipe=PIPELINES["sd3"], peft_config=LoraConfig(r=2, task_type="CAUSAL_LM"))
    names = {name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for name in weights(trainer) if ".lora_" in name}
    assert {"to_q", "to_k", "to_v", "0", "add_q_proj", "add_k_proj", "add_v_proj"} <= names
    given = LoraConfig(r=2, lora_dropout=0.5, target_modules=["to_q"])
    trainer = DPO.start(tmp_path, peft_config=given, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["rewards/margins"] == 0
    assert given.lora_dropout == 0.5  # the user's object is as it was
    assert get_adapter_name(trainer.denoiser) == "default_1"


def test_a_reference_of_one_s_own(tmp_path: Path) -> None:
    other = sd()
    with torch.no_grad():
        other.unet.conv_out.weight.mul_(1.5)
    for ref_model in (other, other.unet):
        trainer = INVERSION.start(tmp_path, arguments={"ref_model": ref_model}, target="trajectory", max_steps=1)
        assert_same(weights(trainer), dict(sd().unet.named_parameters()))
        trainer.train()
        assert trainer.state.log_history[0]["rewards/margins"] != 0
    assert torch.equal(other.unet.conv_out.weight, sd().unet.conv_out.weight * 1.5)
    with pytest.raises(ValueError, match="`ref_model` and `peft_config`"):
        DPO.start(tmp_path, arguments={"ref_model": other}, peft_config=LORA)
    with pytest.raises(ValueError, match="`ref_model` is the model"):
        DPO.start(tmp_path, pipe=other, arguments={"ref_model": other})


def test_reversed_sign_is_the_opposite_margin(tmp_path: Path) -> None:
    one, other = (
        displaced(INVERSION.start(tmp_path, dataset=latent_pairs(), reverse_sign=flag)) for flag in (False, True)
    )
    inputs = batch_of(one, [0, 1])
    assert torch.equal(margins(one, inputs), -margins(other, inputs))


# Other input


def test_a_stream_trains(tmp_path: Path) -> None:
    trainer = SMPO.start(tmp_path, dataset=pairs().to_iterable_dataset(), max_steps=2)
    trainer.train()
    assert len(curve(trainer)) == 2
    with pytest.raises(ValueError, match="`dispatch_batches` would cut"):
        DPO.start(tmp_path, accelerator_config={"dispatch_batches": True})
    with pytest.raises(ValueError, match="a stream was given"):
        DPO.start(tmp_path, dataset=pairs().to_iterable_dataset(), precompute_latents=True)


def test_an_architecture_of_one_s_own(tmp_path: Path) -> None:
    class Odd(type(sd().unet)):
        pass

    pipe = sd()
    pipe.unet.__class__ = Odd
    trainer = DPO.start(tmp_path, pipe=pipe, max_steps=1)
    trainer.train()
    assert curve(trainer)


def test_latents_without_encoders(tmp_path: Path) -> None:
    pipe = sdxl()
    parts = pipe.components | dict.fromkeys(("text_encoder", "text_encoder_2", "vae"))
    data = latent_pairs(width=32, pooled=16)

    def bare() -> Any:
        return type(pipe)(**parts)

    trainer = INVERSION.start(tmp_path, pipe=bare(), dataset=data, max_steps=1)  # no prompt for XL is zeros
    trainer.train()
    assert curve(trainer)
    with pytest.raises(ValueError, match="`prompt_dropout` needs text encoders"):
        DPO.start(tmp_path, pipe=bare(), dataset=data)
    with pytest.raises(ValueError, match="no `vae`"):
        DPO.start(tmp_path, pipe=bare(), dataset=pairs())
    parts |= {"force_zeros_for_empty_prompt": False}
    trainer = INVERSION.start(tmp_path, pipe=bare(), dataset=data, max_steps=1)
    with pytest.raises(ValueError, match="`guidance_scale` needs text encoders"):
        trainer.train()


def test_xl_is_told_the_size_it_sees(tmp_path: Path) -> None:
    trainer = DPO.start(tmp_path, pipe=sdxl, max_steps=1)
    told: list[torch.Tensor] = []
    trainer.denoiser.register_forward_pre_hook(
        lambda m, args, kwargs: told.append(kwargs["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    trainer.train()
    assert told[-1].shape == (8, 6)
    assert told[-1][3].tolist() == [16, 16, 0, 0, 16, 16]


def test_flux_is_told_sigma_and_its_guidance(tmp_path: Path) -> None:
    trainer = DPO.start(tmp_path, pipe=flux, peft_config=LORA, embedded_guidance=2.5)
    seen: list[dict[str, Any]] = []
    trainer.denoiser.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([250.0, 1000.0])
    found = trainer.model(x, t, trainer.conditions(["a", "b"]))
    assert found.shape == x.shape
    seen = seen[-1:]
    assert seen[0]["timestep"].tolist() == [0.25, 1.0]
    assert seen[0]["guidance"].tolist() == [2.5, 2.5]
    assert seen[0]["hidden_states"].shape == (2, 16, 16)


def test_levels_are_those_of_the_scheduler(tmp_path: Path) -> None:
    size = torch.zeros(1, 4, 8, 8)
    for family, pipe in PIPELINES.items():
        trainer = DPO.start(tmp_path, pipe=pipe, peft_config=LORA)
        levels = trainer.levels(size)
        assert levels.num_steps == 1000
        if family.startswith("sd") and family != "sd3":
            torch.testing.assert_close(levels.a[1:] ** 2, trainer.pipe.scheduler.alphas_cumprod)
        else:
            assert levels.s[-1] == 1
            assert levels.s[0] == 0
        if family == "sd3":
            torch.testing.assert_close(levels.s[1:].flip(0), trainer.pipe.scheduler.sigmas)
    inverting = SMPO.start(tmp_path, pipe=flux, peft_config=LORA)
    stock = flux()
    stock.set_progress_bar_config(disable=True)
    stock("fox", height=16, width=16, num_inference_steps=4, output_type="latent")
    torch.testing.assert_close(inverting.levels(size).s.flip(0), stock.scheduler.sigmas, rtol=0, atol=1e-6)


def test_odd_resolutions_are_rounded(tmp_path: Path) -> None:
    trainer = DPO.start(tmp_path, pipe=PIPELINES["sd3"], peft_config=LORA, resolution=15)
    assert trainer.data_collator.resolution == 12  # 2 pixels a latent, 2 latents a patch
    assert batch_of(trainer, [0])["pixel_values"].shape == (2, 3, 12, 12)


def test_columns_of_evaluation_data_are_found_whatever_else_there_is(tmp_path: Path) -> None:
    trainer = DPO.start(tmp_path, dataset=pairs(4))
    raw = pairs(4).rename_columns({"image_chosen": "chosen", "image_rejected": "rejected"})
    numbered = raw.add_column("index", [7, 7, 7, 7])
    expected = trainer.evaluate(raw)["eval_loss"]
    assert trainer.evaluate(numbered)["eval_loss"] == expected
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] == expected


def test_one_row_is_enough(tmp_path: Path) -> None:
    trainer = DPO.start(tmp_path, dataset=pairs(1), max_steps=2)
    trainer.train()
    assert len(curve(trainer)) == 2


# Bad input


@pytest.mark.parametrize(
    ("config", "settings", "named"),
    [
        (DiffusionDPOConfig, {"beta": 0.0}, "beta"),
        (DiffusionDPOConfig, {"beta": math.nan}, "beta"),
        (DiffusionDPOConfig, {"prompt_dropout": 1.5}, "prompt_dropout"),
        (DiffusionDPOConfig, {"vae_batch_size": 0}, "vae_batch_size"),
        (DiffusionDPOConfig, {"random_flip": True, "precompute_latents": True}, "random_flip"),
        (InversionDPOConfig, {"num_inversion_steps": 0}, "num_inversion_steps"),
        (InversionDPOConfig, {"num_train_steps_per_pair": 81}, "num_train_steps_per_pair"),
        (InversionDPOConfig, {"num_train_steps_per_pair": 0}, "num_train_steps_per_pair"),
        (InversionDPOConfig, {"precompute_inversion": True, "num_train_steps_per_pair": 5}, "that are kept"),
        (InversionDPOConfig, {"precompute_inversion": True, "num_cached_points": 81}, "num_cached_points"),
        (InversionDPOConfig, {"precompute_inversion": True, "random_flip": True}, "random_flip"),
        (InversionDPOConfig, {"precompute_inversion": True, "prompt_dropout": 0.1}, "prompt_dropout"),
        (InversionDPOConfig, {"target": "noise"}, "target"),
        (InversionDPOConfig, {"inversion_model": "base"}, "inversion_model"),
        (InversionDPOConfig, {"inversion_model": "policy"}, "target"),
        (InversionDPOConfig, {"num_renoise_steps": 1}, "num_renoise_steps"),
        (InversionDPOConfig, {"init_noise": -1.0}, "init_noise"),
        (SmPOConfig, {"precompute_inversion": True}, "precompute_inversion"),
        (SmPOConfig, {"label_sharpness": 0.0}, "label_sharpness"),
        (SmPOConfig, {"score_min": 1.0}, "score_min"),
    ],
)
def test_bad_settings_are_named(config: type, settings: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=named):
        config(str(tmp_path), use_cpu=True, **settings)


def test_settings_that_do_not_fit_the_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`guidance_scale` is 2.0, but the denoiser is distilled"):
        INVERSION.start(tmp_path, pipe=flux)
    with pytest.raises(ValueError, match="`num_inversion_steps` is 2000, but there are 1000"):
        INVERSION.start(tmp_path, num_inversion_steps=2000)
    with pytest.raises(ValueError, match="save_full_pipeline"):
        DPO.start(tmp_path, peft_config=LORA, save_full_pipeline=True)
    with pytest.raises(ValueError, match="`random_flip` needs pictures"):
        DPO.start(tmp_path, dataset=latent_pairs(), random_flip=True)


def test_schedulers_that_cannot_be_used(tmp_path: Path) -> None:
    pipe = sd()
    pipe.scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe.scheduler.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match="`prediction_type` is 'score'"):
        DPO.start(tmp_path, pipe=pipe)
    pipe.register_modules(scheduler=None)
    with pytest.raises(ValueError, match="has neither"):
        DPO.start(tmp_path, pipe=pipe)


def test_adapters_that_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="LoKrConfig"):
        DPO.start(tmp_path, peft_config=LoKrConfig())
    with pytest.raises(ValueError, match="modules_to_save"):
        DPO.start(tmp_path, peft_config=LoraConfig(modules_to_save=["conv_out"]))
    for bias in ("all", "lora_only"):
        with pytest.raises(ValueError, match=f"`bias` is '{bias}', but a LoRA file of diffusers holds no biases"):
            DPO.start(tmp_path, peft_config=LoraConfig(bias=bias))
    for way in ("pissa", "pissa_niter_4", "olora"):
        with pytest.raises(ValueError, match=f"`init_lora_weights` is '{way}', which moves the model's own weights"):
            DPO.start(tmp_path, peft_config=LoraConfig(init_lora_weights=way))
    with pytest.raises(ValueError, match="has the adapters"):
        DPO.start(tmp_path, pipe=with_style(sd()))
    taken = sd()
    taken.unet.add_adapter(LoraConfig(target_modules=["to_q"]))
    with pytest.raises(ValueError, match="adapter named 'default' already"):
        DPO.start(tmp_path, pipe=taken, peft_config=LORA)


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": str(tmp_path / "none.png"), "rejected": str(tmp_path / "none.png")}]
    picture(0).save(tmp_path / "some.png")
    with pytest.raises(ValueError, match=r"`chosen` of row 0: The picture .*none\.png cannot be read"):
        DPO.start(tmp_path, dataset=Dataset.from_list(rows))


def test_every_name_is_public() -> None:
    import alignext

    for cls in (DiffusionDPOTrainer, InversionDPOTrainer, SmPOTrainer, DiffusionDPOConfig, SmPOConfig):
        assert getattr(alignext, cls.__name__) is cls
    assert isinstance(sd(), StableDiffusionPipeline)
