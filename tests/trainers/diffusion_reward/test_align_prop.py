# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What `AlignPropTrainer` does with rewards, levels, the base model and pictures."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

from alignext.diffusion.denoiser import adapter_off
from alignext.functional.direct_align import direct_align
from alignext.functional.predictions import add_noise
from alignext.rewards import brightness
from alignext.trainers.diffusion_reward.noise_levels import level_at
from alignext.training.lora import ADAPTER, jitter

from ..contract import curve
from ..diffusion_preference.tiny import PIPELINES, SIZE
from .tiny import STEPS, first_batch, gradient, near_grey, trainer


LORA = LoraConfig(r=2, lora_alpha=2)


def of_stock(pipe, prompts: list[str], seeds: list[int], T: int = STEPS) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.cat(
        [
            pipe(p, num_inference_steps=T, height=SIZE, width=SIZE, output_type="pt", generator=g).images
            for p, g in zip(prompts, generators, strict=True)
        ]
    )


def test_without_a_learning_rate_pictures_stay_the_stock_ones(tmp_path: Path) -> None:
    stock = of_stock(PIPELINES["sd"](), ["a", "an owl"], [3, 4])
    made = trainer(
        tmp_path,
        learning_rate=0.0,
        backprop_steps=1,
        max_steps=2,
        weight_decay=0.0,
        per_device_eval_batch_size=1,
        peft_config=LORA,
    )
    assert torch.equal(made.sample(["a", "an owl"], [3, 4]), stock)  # a fresh LoRA is the base model
    state = torch.get_rng_state()
    made.train()
    assert torch.equal(made.sample(["a", "an owl"], [3, 4]), stock)
    assert torch.equal(of_stock(made.pipeline, ["a", "an owl"], [3, 4]), stock)
    mode, state = made.denoiser.training, torch.get_rng_state()
    made.sample(["a"], [1])
    assert torch.equal(torch.get_rng_state(), state) and made.denoiser.training is mode


def test_scale_mixes_the_lora(tmp_path: Path) -> None:
    made = trainer(tmp_path, peft_config=LORA)
    base = made.sample(["a"], [0])
    jitter(made.denoiser, 0.3, 0)
    full, half = made.sample(["a"], [0]), made.sample(["a"], [0], scale=0.5)
    assert torch.equal(made.sample(["a"], [0], scale=0.0), base)
    assert torch.equal(made.sample(["a"], [0], scale=1.0), full)
    assert not torch.equal(half, base) and not torch.equal(half, full)
    assert torch.equal(made.sample(["a"], [0]), full)  # and is put back
    known = PIPELINES["sd"]()
    made.save_model()
    known.load_lora_weights(str(tmp_path))
    known.set_adapters("default_0", 0.5)
    assert torch.allclose(of_stock(known, ["a"], [0]), half, atol=1e-6)
    with pytest.raises(ValueError, match="`seeds` must have one for each of 1 prompts, received 2"):
        made.sample(["a"], [0, 1])
    with pytest.raises(ValueError, match="`scale` is the weight of a LoRA, and there is none"):
        trainer(tmp_path).sample(["a"], [0], scale=0.5)


def test_the_reward_rises(tmp_path: Path) -> None:
    settings = {"backprop_steps": 1, "num_inference_steps": 2, "max_steps": 8, "learning_rate": 3e-3}
    made = trainer(tmp_path, reward_funcs=brightness, per_device_train_batch_size=8, **settings)
    made.train()
    rewards = [log["reward"] for log in made.state.log_history if "reward" in log]
    assert all(b > a for a, b in zip(rewards, rewards[2:], strict=False)) and rewards[-1] > rewards[0] + 0.01


def test_rewards_see_pictures_in_range_with_their_columns(tmp_path: Path) -> None:
    seen = SimpleNamespace(images=[], words=[])

    def noting(images, prompts, weight):
        seen.images.append(images.detach())
        seen.words += zip(prompts, weight, strict=True)
        return images.mean((1, 2, 3)) * torch.tensor(weight)

    noting.differentiable = True
    from ..diffusion import rewarded_prompts

    data = rewarded_prompts().add_column("weight", [float(i) for i in range(8)])
    made = trainer(tmp_path, reward_funcs=[noting, near_grey], reward_weights=[2.0, 0.5], train_dataset=data)
    made.args.num_images_per_prompt = 2
    batch = first_batch(made)
    made.training_loss(made.model, batch)
    assert seen.words == [("fox 0", 0.0), ("fox 0", 0.0), ("fox 1", 1.0), ("fox 1", 1.0)]
    (images,) = seen.images
    assert 0 <= images.min() and images.max() <= 1
    means = made.means("train")
    assert means["reward"] == pytest.approx(2 * means["rewards/noting"] + 0.5 * means["rewards/near_grey"], rel=1e-5)
    assert means["rewards/noting_std"] > 0 and means["diversity"] > 0
    latents = made.rollout(batch.prompts, batch.generators("start")).latents
    decoded = made.pipe.vae.decode(latents / made.pipe.vae.config.scaling_factor).sample
    assert torch.allclose(made.pipe.image_processor.postprocess(decoded, "pt"), images, atol=1e-6)


def test_saturated_pixels_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = PIPELINES["sd"]()
    pipe.vae.decoder.conv_out.weight.data *= 1000  # pictures of black and white
    made = trainer(tmp_path, pipe=pipe)
    with caplog.at_level(logging.WARNING):
        made.training_loss(made.model, first_batch(made))
    assert made.means("train")["clamped"] > 0.5
    assert any("where no gradient passes" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_divergence_is_that_from_the_base_model(lora: bool, tmp_path: Path) -> None:
    made = trainer(tmp_path, kl_coef=0.5, backprop_steps=1, peft_config=LORA if lora else None)
    plain = trainer(tmp_path, backprop_steps=1, peft_config=LORA if lora else None)
    assert torch.equal(gradient(made), gradient(plain))  # at the base model
    assert made.means("train")["kl"] == 0
    jitter(made.denoiser, 0.3, 0)
    batch, outputs = first_batch(made), []
    hook = made.denoiser.register_forward_hook(
        lambda module, args, kwargs, output: outputs.append((args, kwargs, output[0].detach())), with_kwargs=True
    )
    made.args.step_checkpointing = False
    loss = made.training_loss(made.model, batch)
    hook.remove()
    args, kwargs, said = outputs[STEPS - 1]
    with torch.no_grad():
        if lora:
            with adapter_off(made.denoiser, ADAPTER):
                base = made.denoiser(*args, **kwargs)[0]
        else:
            base = made.ref_denoiser.denoiser(*args, **kwargs)[0]
    known = (said - base).square().mean().item()
    means = made.means("train")
    assert means["kl"] == pytest.approx(known, rel=1e-5) and known > 0
    assert loss.item() == pytest.approx(-means["reward"] + 0.5 * known, rel=1e-5)


# Direct-Align


@pytest.mark.parametrize("family", [pytest.param("sd", marks=pytest.mark.slow), "flux"])
def test_direct_align_takes_one_call_with_a_gradient(family: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, pipe=family, reward_gradient="direct_align", step_checkpointing=False)
    calls = []
    hook = made.denoiser.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    assert gradient(made).norm() > 0
    hook.remove()
    assert calls == [False] * STEPS + [True]
    frozen = [part for name, part in made.pipe.components.items() if isinstance(part, torch.nn.Module)]
    for part in frozen:
        if part is not made.denoiser:
            assert all(parameter.grad is None for parameter in part.parameters())


def test_direct_align_of_a_flow_by_hand(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, pipe="flux", num_inference_steps=4, reward_gradient="direct_align", direct_align_levels=[0.6, 0.6]
    )
    batch = first_batch(made)
    rolled = made.rollout(batch.prompts, batch.generators("start"))
    sigmas = rolled.scheduler.sigmas.tolist()  # 0.6 of the schedule lies between the levels 2.4 steps from its end
    s = sigmas[-3] + 0.4 * (sigmas[-4] - sigmas[-3])
    below = sigmas[-3]  # a tenth of the schedule is 0.4 of a step
    x = add_noise(rolled.latents, rolled.start, 1 - s, s)
    pipe, n = made.pipe, len(x)
    embeds, pooled, text_ids = pipe.encode_prompt(batch.prompts, None, device="cpu", max_sequence_length=16)
    ids = pipe._prepare_latent_image_ids(n, 4, 4, "cpu", torch.float32)
    said = pipe.transformer(
        x, timestep=torch.full((n,), s), guidance=torch.full((n,), 3.5), pooled_projections=pooled,
        encoder_hidden_states=embeds, txt_ids=text_ids, img_ids=ids,
    ).sample  # fmt: skip
    known = direct_align(said, x, rolled.start, (1 - s, s), (1 - below, below), "flow_prediction")
    assert torch.allclose(made._latents(batch), known, atol=2e-5)


def test_direct_align_with_an_exact_network_gives_back_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the level, the family, the kind of prediction."""
    for family in ("sd", "sd3"):
        made = trainer(tmp_path, pipe=family, reward_gradient="direct_align", eta=None)
        batch = first_batch(made)
        rolled = made.rollout(batch.prompts, batch.generators("start"))
        exact = rolled.start if family == "sd" else rolled.start - rolled.latents
        monkeypatch.setattr(made.rollout, "replay", lambda *_, exact=exact: [exact])
        for level in (0.1, 0.5, 0.9):
            made.args.direct_align_levels = [level, level]
            assert torch.allclose(made._latents(batch), rolled.latents, atol=1e-5)


def test_levels_lie_on_the_schedule() -> None:
    scheduler = PIPELINES["sd3"]().scheduler
    scheduler.set_timesteps(10)
    for place, i in ((1.0, 0), (0.5, 5), (0.1, 9)):
        t, (a, s) = level_at(scheduler, place)
        assert t.item() == pytest.approx(scheduler.timesteps[i].item(), rel=1e-6) and s == scheduler.sigmas[i]
        assert a == 1 - s
    assert level_at(scheduler, 0.0)[1] == level_at(scheduler, -0.2)[1] == (1.0, 0.0)
    scheduler = PIPELINES["sd"]().scheduler
    t, (a, s) = level_at(scheduler, 0.5)
    assert t == 500 and a**2 == pytest.approx(scheduler.alphas_cumprod[500].item()) and a**2 + s**2 == pytest.approx(1)


def test_the_level_and_the_truncation_are_those_of_the_update(tmp_path: Path) -> None:
    """Not of a row: processes do equal work, and micro-batches are one batch."""
    made = trainer(tmp_path, backprop_steps="uniform")
    drawn = [made._drawn("backprop_steps") for made.state.global_step in range(5)]
    assert len(set(drawn)) == 5
    assert drawn[3] == trainer_at(made, 3)


def trainer_at(made, step: int) -> float:
    made.state.global_step = step
    return made._drawn("backprop_steps")


def test_a_function_of_prompts_is_a_stream(tmp_path: Path) -> None:
    made = trainer(tmp_path, train_dataset=lambda: ("a fox", {"weight": 2.0}), max_steps=2, backprop_steps=1)
    assert first_batch_of_stream(made) == ["a fox", "a fox"]
    made.train()
    assert len(curve(made)) == 2


def first_batch_of_stream(made) -> list[str]:
    return next(iter(made.get_train_dataloader()))["prompts"]


@pytest.mark.slow
def test_a_safety_checker_is_not_run(tmp_path: Path) -> None:
    pipe = PIPELINES["sd"]()

    def refusing(*_, **__):
        raise AssertionError("it would blacken pictures")

    pipe.safety_checker = refusing
    assert isinstance(pipe, StableDiffusionPipeline)
    assert gradient(trainer(tmp_path, pipe=pipe)).norm() > 0


@pytest.mark.slow
def test_other_weights_than_float32(tmp_path: Path) -> None:
    """A pipeline in bfloat16: the LoRA is float32, all weights are where they are trained, and the VAE if it must."""
    for lora in (LORA, None):
        pipe = PIPELINES["sd"]().to(torch.bfloat16)
        pipe.vae.register_to_config(force_upcast=True)
        made = trainer(tmp_path, pipe=pipe, peft_config=lora, kl_coef=0.1, max_steps=1)
        made.train()
        assert pipe.vae.dtype == torch.float32
        assert {p.dtype for p in made.denoiser.parameters() if p.requires_grad} == {torch.float32}
        assert curve(made)[0][2] > 0 and made.sample(["a"], [0]).dtype == torch.float32
