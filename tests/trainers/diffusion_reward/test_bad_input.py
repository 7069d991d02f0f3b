# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What trainers on rewards say to wrong settings, rewards, pipelines and prompts."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset

from alignext.rewards import compressibility
from alignext.rewards.protocol import RewardError
from alignext.trainers.diffusion_reward import AlignPropConfig, DDPOConfig

from ..diffusion_preference.tiny import PIPELINES, flux
from .tiny import first_batch, gradient, trainer


SETTINGS = [
    (AlignPropConfig, {"backprop_steps": 0}, "`backprop_steps` must be a number of steps of 1 or more"),
    (AlignPropConfig, {"reward_gradient": "first_k"}, "`reward_gradient` must be 'last_k' or 'direct_align'"),
    (AlignPropConfig, {"num_last_noises": 0}, "`num_last_noises` must be at least 1, received 0"),
    (AlignPropConfig, {"num_last_noises": 2}, "`num_last_noises` is 2, .* set `backprop_steps` to 1"),
    (AlignPropConfig, {"direct_align_levels": [0.0, 0.5]}, r"`direct_align_levels` must be .* in \(0, 1\)"),
    (AlignPropConfig, {"direct_align_step": 0.0}, r"`direct_align_step` must be in \(0, 1\], received 0.0"),
    (AlignPropConfig, {"kl_coef": -1.0}, "`kl_coef` must be 0 or more, received -1.0"),
    (AlignPropConfig, {"reward_target": 1.0, "reward_margin": 1.0}, "Give one of them"),
    (AlignPropConfig, {"guidance_scale": -1.0}, "`guidance_scale` must be 0 or more, received -1.0"),
    (AlignPropConfig, {"num_inference_steps": 0}, "`num_inference_steps` must be at least 1, received 0"),
    (AlignPropConfig, {"vae_decode_batch_size": 0}, "`vae_decode_batch_size` must be at least 1"),
    (AlignPropConfig, {"call_arguments": "{clip_skip: 1}"}, "`call_arguments` must be JSON"),
    (AlignPropConfig, {"call_arguments": ["clip_skip"]}, "`call_arguments` must be a dictionary"),
    (DDPOConfig, {"num_images_per_prompt": 1}, "`num_images_per_prompt` must be at least 2, received 1"),
    (DDPOConfig, {"num_iterations": 0}, "`num_iterations` must be at least 1, received 0"),
    (DDPOConfig, {"num_train_steps": 0}, "`num_train_steps` must be at least 1, received 0"),
    (DDPOConfig, {"clip_range": 0.0}, "`clip_range` must be positive, received 0.0"),
    (DDPOConfig, {"min_group_std": -1.0}, "`min_group_std` must be 0 or more"),
    (DDPOConfig, {"kl_normalise": "batch"}, "`kl_normalise` must be 'none' or 'per_prompt', received 'batch'"),
    (DDPOConfig, {"kl_normalise": "per_prompt"}, "Set `kl_in_reward`"),
]


@pytest.mark.parametrize(("config", "settings", "said"), SETTINGS, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_settings(config, settings: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        config(str(tmp_path), use_cpu=True, **settings)


def no_callback():
    from diffusers import DanceDiffusionPipeline

    pipe = PIPELINES["sd"]()
    pipe.__class__ = type("Other", (DanceDiffusionPipeline, type(pipe)), {})
    return pipe


def distilled():
    return flux(guidance_embeds=False)


def constant(images, prompts):
    return images.mean((1, 2, 3))


constant.differentiable = True  # ty: ignore[unresolved-attribute]


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("alignprop", {"backprop_steps": 5}, "`backprop_steps` must be at most `num_inference_steps`, 3, received 5"),
        (
            "alignprop",
            {"reward_funcs": compressibility},
            "must be differentiable, and `CompressibilityReward`.*DDPOTrainer",
        ),
        (
            "alignprop",
            {"call_arguments": {"negative_promt": "blur"}},
            r"has no `negative_promt`\. Did you mean negative_prompt\?",
        ),
        ("alignprop", {"call_arguments": {"prompt": "a fox"}}, "`call_arguments` must not have `prompt`"),
        ("alignprop", {"reward_funcs": []}, "`reward_funcs` must have a reward"),
        ("alignprop", {"reward_funcs": "clip"}, "must be callable"),
        ("alignprop", {"reward_weights": [1.0, 2.0]}, "`reward_weights` must be as many .* 1, received 2"),
        ("alignprop", {"pipe": no_callback}, "`model` must be a pipeline whose call takes `callback_on_step_end`"),
        ("alignprop", {"pipe": "flux", "eta": 0.5}, "`eta` is 0.5, and the call of FluxPipeline takes none"),
        ("alignprop", {"pipe": distilled, "guidance_scale": 3.0}, "`guidance_scale` is 3.0, .* distilled"),
        ("ddpo", {"eta": 0.0}, "`eta` must be positive, received 0.0: without noise"),
        ("ddpo", {"pipe": "flux", "noise_level": 0.0}, "`noise_level` must be positive, received 0.0"),
        ("ddpo", {"num_train_steps": 5}, "`num_train_steps` must be at most the 3 steps there are, received 5"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_and_pipeline(kind: str, settings: dict, said: str, tmp_path: Path) -> None:
    if callable(settings.get("pipe")):
        settings = settings | {"pipe": settings["pipe"]()}
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, kind, **settings)


def of_latents(images, prompts):
    return images


of_latents.input_type = "latent"  # ty: ignore[unresolved-attribute]


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (lambda images, prompts: images.detach().mean((1, 2, 3)), "returned a detached tensor"),
        (lambda images, prompts: images.mean((0, 1)), "must return 2 real numbers"),
        (lambda images, prompts: images.mean((1, 2, 3)) / 0, "returned no finite number for sample 0"),
        (lambda images, prompts: images.nonsense, "raised AttributeError"),
        (lambda images, prompts, weight: images.mean(), "takes .*weight"),
    ],
    ids=["detached", "shape", "infinite", "raises", "column"],
)
def test_rewards(reward, said: str, tmp_path: Path) -> None:
    reward.differentiable = True
    with pytest.raises(RewardError, match=said):
        gradient(trainer(tmp_path, reward_funcs=reward))


def test_rewards_of_latents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be of pictures, and `of_latents`.* is one of latents"):
        trainer(tmp_path, "ddpo", reward_funcs=of_latents)


def test_rewards_of_a_policy_must_be_finite(tmp_path: Path) -> None:
    made = trainer(tmp_path, "ddpo", reward_funcs=lambda images, prompts: [float("nan")] * len(images))
    with pytest.raises(RewardError, match=r"returned no finite number for sample 0 \('fox 0'\)"):
        made.training_loss(made.model, first_batch(made))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            Dataset.from_dict({"prompt": ["a fox", " "]}),
            "must have a text in the column 'prompt', received ' ' at row 1",
        ),
        (Dataset.from_dict({"text": ["a fox"]}), r"found \['text'\], expected 'prompt'"),
        (["a fox"], "must be a `Dataset` or an `IterableDataset`, received a list"),
    ],
    ids=["empty", "column", "list"],
)
def test_prompts(data, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, train_dataset=data)


def test_data_that_cannot_be_gone_over_again(tmp_path: Path) -> None:
    stream = IterableDataset.from_generator(lambda: iter([{"prompt": "a fox"}] * 8))
    with pytest.raises(
        ValueError, match="`num_iterations` goes over rows several times, and `train_dataset` is a stream"
    ):
        trainer(tmp_path, "ddpo", train_dataset=stream, num_iterations=2).train()
    with pytest.raises(ValueError, match="as many rows as an update takes, 16, received 8"):
        trainer(tmp_path, "ddpo", per_device_train_batch_size=16, num_iterations=2).train()


def test_no_gradient_reaches_the_network_in_training(tmp_path: Path) -> None:
    """As where the last steps belong to the other expert of Wan 2.2."""
    made = trainer(tmp_path, backprop_steps=1)
    for parameter in made.denoiser.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match=r"No step that carries the gradient calls `unet`.*Raise `backprop_steps`"):
        made.training_loss(made.model, first_batch(made))
    assert torch.is_grad_enabled()
