# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""DiversityEvaluator, the curve of a training, and the sweep of a LoRA's weight."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from transformers import TrainerControl, TrainerState

from alignext import AlignPropConfig, AlignPropTrainer
from alignext.diffusion.drawing import draw
from alignext.evaluation import DiversityEvaluator, RewardHackingCallback, reward_hacking, reward_vs_scale
from alignext.functional.diversity import pairwise_distance
from alignext.rewards import brightness

from ..pipelines import tiny


IMAGES = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SETS = {"a fox": IMAGES[0], "a dog": IMAGES[1]}
COPIES = {name: images[:1].expand(4, 3, 16, 16) for name, images in SETS.items()}
CALL = {"num_inference_steps": 2, "height": 32, "width": 32}


def pixels(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1)


def test_copies_have_none_and_the_rest_what_the_functions_say():
    evaluator = DiversityEvaluator(pixels)
    found, none = evaluator(SETS), evaluator(COPIES)
    assert found.per_prompt["pairwise"].tolist() == pytest.approx(pairwise_distance(IMAGES.flatten(2)).tolist())
    assert found.num_images == 4 and found.prompts == ["a fox", "a dog"] and not found.deltas
    expected = {"pairwise": 0, "vendi": 1, "tonal": 0, "tonal/warmth": 0, "duplicates": 1}
    for name, value in expected.items():
        assert none.values[name] == pytest.approx(value, abs=1e-5)
        assert name == "duplicates" or found.values[name] > value + 1e-3
    assert found.values["tonal"] == pytest.approx(sum(v for k, v in found.values.items() if "tonal/" in k) / 4)


def test_deltas_to_a_base_are_prompt_by_prompt_with_an_interval():
    evaluator = DiversityEvaluator(pixels)
    found = evaluator(COPIES, base=SETS)
    assert found.deltas == evaluator(COPIES, base=evaluator(SETS)).deltas
    mean, low, high = found.deltas["pairwise"]
    assert low <= mean <= high < 0
    assert mean == pytest.approx(found.values["pairwise"] - evaluator(SETS).values["pairwise"])
    assert evaluator(SETS, base=SETS).deltas["vendi"] == (0, 0, 0)
    assert "minus base" in str(found) and "95 % interval" in str(found) and "2 prompts, 4 pictures" in str(found)


def test_pictures_of_any_kind_and_videos_by_their_middle_frame():
    from PIL import Image

    evaluator = DiversityEvaluator()
    assert evaluator.metrics == ["tonal", "duplicates"]
    arrays = (SETS["a fox"].permute(0, 2, 3, 1).numpy() * 255).round().astype("uint8")
    eight_bits = {"a fox": torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255}
    assert evaluator({"a fox": [Image.fromarray(a) for a in arrays]}).values == evaluator(eight_bits).values
    video = torch.stack([torch.zeros_like(IMAGES[0]), IMAGES[0], torch.ones_like(IMAGES[0])], 1)
    assert evaluator({"a fox": video}).values == evaluator({"a fox": IMAGES[0]}).values


@pytest.mark.parametrize(
    "sets, text",
    [
        ({}, "must have a prompt, received none"),
        ({"a": IMAGES[0], "b": IMAGES[0, :3]}, r"received \[3, 4\]"),
        ({"a": IMAGES[0, :1]}, r"two or more, received \[1\]"),
        ({"a": (IMAGES[0] * 255).byte()}, "of torch.uint8"),
    ],
)
def test_bad_sets_are_named(sets, text):
    with pytest.raises(ValueError, match=text):
        DiversityEvaluator()(sets)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="`metrics` must be of pairwise, vendi, tonal, duplicates, received 'fid'"):
        DiversityEvaluator(metrics=["fid"])
    with pytest.raises(ValueError, match="`encoder` must be given for the metric 'vendi'"):
        DiversityEvaluator(metrics=["vendi"])
    with pytest.raises(ValueError, match="`base` must have the same prompts and 4 pictures"):
        DiversityEvaluator()(SETS, base={"a fox": IMAGES[0]})
    trainer = Trained()
    for settings, text in (
        ({"every": 0}, "`every` must be an integer of at least 1"),
        ({"warn_share": 0.0}, "`warn_share` must be in"),
        ({"num_images": 1}, "`num_images` must be an integer of at least 2, received 1"),
        ({"metric": "duplicates"}, "`metric` must be a diversity of the evaluator"),
    ):
        with pytest.raises(ValueError, match=text):
            RewardHackingCallback(trainer, ["a fox"], brightness, **settings)
    with pytest.raises(ValueError, match="`prompts` must be a list of different texts"):
        RewardHackingCallback(trainer, ["a fox", "a fox"], brightness)
    with pytest.raises(ValueError, match=r"`trainer` must have `sample\(prompts, seeds\)`, received SimpleNamespace"):
        RewardHackingCallback(SimpleNamespace(), ["a fox"], brightness)
    with pytest.raises(ValueError, match="`num_inference_steps` is for a pipeline"):
        reward_vs_scale(trainer, ["a fox"], brightness, num_inference_steps=3)
    with pytest.raises(ValueError, match="`scales` must have a weight, received none"):
        reward_vs_scale(trainer, ["a fox"], brightness, scales=[])


# ------------------------------------------------------------------------------------------------------ of a training


class Trained:
    """What a trainer on rewards looks like from outside: the more trained, the brighter and the more alike."""

    def __init__(self) -> None:
        self.progress, self.state, self.asked = 0.0, TrainerState(), []

    def sample(self, prompts: list[str], seeds: list[int], scale: float | None = None) -> torch.Tensor:
        self.asked.append((list(prompts), list(seeds), scale))
        drawn = [torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(drawn).lerp(torch.ones(3, 16, 16), self.progress * (1 if scale is None else scale))

    def log(self, values: dict[str, float]) -> None:
        self.state.log_history.append({**values, "step": self.state.global_step})

    def run(self, callback: RewardHackingCallback, steps: int) -> None:
        callback.on_train_begin(None, self.state, TrainerControl())
        for _ in range(steps):
            self.state.global_step += 1
            self.progress = self.state.global_step / 10
            callback.on_step_end(None, self.state, TrainerControl())
        callback.on_train_end(None, self.state, TrainerControl())


def watched(trainer: Any, **settings: Any) -> RewardHackingCallback:
    evaluator = DiversityEvaluator(lambda images: images.flatten(1) - 0.5)
    return RewardHackingCallback(
        trainer, ["a fox", "a dog"], brightness, evaluator, every=2, num_images=3, seed=7,
        held_out={"dark": lambda images, prompts: 1 - images.mean((1, 2, 3))}, **settings,
    )  # fmt: skip


def test_the_curve_is_logged_and_a_fall_is_warned_of_once(monkeypatch, tmp_path):
    said: list[str] = []
    monkeypatch.setattr(reward_hacking.logger, "warning", said.append)
    trainer = Trained()
    callback = watched(trainer)
    trainer.run(callback, 5)
    assert [row["step"] for row in callback.curves] == [0, 2, 4, 5]
    for name, sign in (("reward", 1), ("dark", -1), ("pairwise", -1), ("tonal", -1)):
        values = [sign * row[name] for row in callback.curves]
        assert values == sorted(values) and len(set(values)) == 4
    logged = [row for row in trainer.state.log_history if "hacking/pairwise" in row]
    assert [row["hacking/reward"] for row in logged] == [row["reward"] for row in callback.curves]
    assert all(asked == trainer.asked[0] for asked in trainer.asked)
    assert trainer.asked[0] == (["a fox"] * 3 + ["a dog"] * 3, [7, 8, 9] * 2, None)
    assert (
        len(said) == 1 and "diversity (pairwise) of 2 prompts has fallen" in said[0] and "reward_vs_scale" in said[0]
    )
    callback.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_a_training_that_is_resumed_goes_on_with_its_curve():
    whole = Trained()
    expected = watched(whole)
    whole.run(expected, 6)
    first, second = Trained(), Trained()
    watched(first).on_train_begin(None, first.state, TrainerControl())
    first.state.global_step = 2
    first.progress = 0.2
    watched(first).on_step_end(None, first.state, TrainerControl())
    callback = watched(second)
    second.state, second.progress = first.state, 0.2
    second.log({"loss": 1.0})
    second.run(callback, 4)
    assert callback.curves == expected.curves


def test_the_sweep_of_a_trainer_and_what_to_choose(tmp_path):
    trainer = Trained()
    trainer.progress = 0.8
    found = reward_vs_scale(
        trainer, ["a fox", "a dog"], brightness, DiversityEvaluator(lambda x: x.flatten(1) - 0.5), scales=(0, 0.5, 1)
    )
    assert [asked[2] for asked in trainer.asked] == [0, 0.5, 1] and [row["scale"] for row in found.rows] == [0, 0.5, 1]
    assert found.metric == "pairwise" and found.best(keep=0.0) == 1 and found.best(keep=1.0) == 0
    kept = found.rows[1]["pairwise"] / found.rows[0]["pairwise"]
    assert found.best(keep=kept - 1e-6) == 0.5
    assert len(str(found).splitlines()) == 4 and "scale" in str(found)
    found.plot(tmp_path / "scales.svg")
    assert "<svg" in (tmp_path / "scales.svg").read_text()


def trained(folder: Any, steps: int, callback: bool, resume: bool = False) -> Any:
    """A trainer on rewards after some steps."""
    args = AlignPropConfig(
        output_dir=str(folder), max_steps=steps, num_inference_steps=2, backprop_steps=1, save_steps=1, seed=3,
        resolution=32, per_device_train_batch_size=1, logging_steps=1, report_to="none", use_cpu=True,
        disable_tqdm=True, activation_checkpointing=False,
    )  # fmt: skip
    trainer = AlignPropTrainer(
        StableDiffusionPipeline(**tiny.sd_components()),
        reward_funcs=brightness,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["a fox", "a dog"]}),
        peft_config=LoraConfig(r=2, target_modules=["to_q", "to_v"]),
    )
    if callback:
        trainer.add_callback(RewardHackingCallback(trainer, ["a fox", "a dog"], brightness, every=1, num_images=2))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def curve_of(trainer: Any) -> list[dict[str, float]]:
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, RewardHackingCallback)]
    return callback.curves


def test_a_trainer_is_watched_without_noticing_and_goes_on_where_it_was(tmp_path):
    plain, watched = trained(tmp_path / "plain", 2, False), trained(tmp_path / "watched", 2, True)
    pairs = zip(plain.model.named_parameters(), watched.model.named_parameters(), strict=True)
    assert all(name == other and torch.equal(p, q) for (name, p), (other, q) in pairs)
    curve = curve_of(watched)
    assert [row["step"] for row in curve] == [0, 1, 2]
    logged = [row for row in watched.state.log_history if "hacking/tonal" in row]
    assert [row["step"] for row in logged] == [0, 1, 2]
    assert [row["hacking/reward"] for row in logged] == [row["reward"] for row in curve]
    rewards = {row["step"]: row["reward"] for row in plain.state.log_history if "reward" in row}
    assert rewards == {row["step"]: row["reward"] for row in watched.state.log_history if "reward" in row}
    found = reward_vs_scale(watched, ["a fox", "a dog"], brightness, scales=(0, 1), num_images=2)
    assert [row["reward"] for row in found.rows] == pytest.approx([curve[0]["reward"], curve[2]["reward"]])
    # Stopped after a step, and resumed: its beginning is not measured again.
    half = trained(tmp_path / "half", 1, True)
    on = trained(tmp_path / "half", 2, True, resume=True)
    assert curve_of(half) == curve[:2] and curve_of(on) == curve


# ------------------------------------------------------------------------------------------------------ of a pipeline


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    found = StableDiffusionPipeline(**tiny.sd_components())
    found.set_progress_bar_config(disable=True)
    return found


def test_pictures_depend_on_their_own_seeds(pipe):
    state, scheduler = torch.random.get_rng_state(), pipe.scheduler
    together = draw(pipe, ["a fox", "a dog", "a fox"], [3, 4, 5], batch_size=2, **CALL)
    assert together.shape == (3, 3, 32, 32) and together.min() >= 0 and together.max() <= 1
    torch.testing.assert_close(draw(pipe, ["a dog"], [4], **CALL), together[1:2], atol=1e-4, rtol=0)
    stock = pipe("a dog", generator=torch.Generator().manual_seed(4), output_type="pt", **CALL).images
    assert torch.equal(draw(pipe, ["a dog"], [4], **CALL), stock)
    assert torch.equal(torch.random.get_rng_state(), state) and pipe.scheduler is scheduler
    sets = DiversityEvaluator().of_pipeline(pipe, ["a fox", "a dog"], 2, seed=3, **CALL)
    assert list(sets) == ["a fox", "a dog"] and sets["a dog"].shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match="one for each prompt, received 1 for 2 prompts"):
        draw(pipe, ["a fox", "a dog"], [1])


def test_the_sweep_of_a_pipeline_scales_its_lora_and_puts_it_back():
    pipe = StableDiffusionPipeline(**tiny.sd_components())
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="must have a LoRA, and this StableDiffusionPipeline has none active"):
        reward_vs_scale(pipe, ["a fox"], brightness, **CALL)
    base = draw(pipe, ["a fox"] * 2, [0, 1], **CALL)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    whole = draw(pipe, ["a fox"] * 2, [0, 1], **CALL)
    found = reward_vs_scale(pipe, ["a fox"], brightness, scales=(0, 1), num_images=2, **CALL)
    assert [row["reward"] for row in found.rows] == pytest.approx([x.mean().item() for x in (base, whole)], abs=1e-6)
    assert torch.equal(draw(pipe, ["a fox"] * 2, [0, 1], **CALL), whole)
