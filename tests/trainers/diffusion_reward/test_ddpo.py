# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What `DDPOTrainer` does: the steps of its policy, their probabilities, and what an update is."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from peft import LoraConfig

from alignext.functional.ddpo import gaussian_kl, gaussian_log_prob
from alignext.trainers.diffusion_reward import DDPOConfig
from alignext.trainers.diffusion_reward.steps import PolicyScheduler
from alignext.training.lora import jitter

from ..contract import assert_same, curve
from ..diffusion import weights
from ..diffusion_preference.tiny import PIPELINES
from .tiny import first_batch, gradient, left_is_dark, trainer


LORA = LoraConfig(r=2, lora_alpha=2)
FAST = {("sd", torch.bfloat16), ("flux", torch.float32)}


def off(made) -> float:
    """How far ratios were from 1 in what was noted last."""
    return made.means("train")["ratio_off"]


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        pytest.param(f, d, marks=[pytest.mark.slow] * ((f, d) not in FAST))
        for f in PIPELINES
        for d in (torch.float32, torch.bfloat16)
    ],
    ids=str,
)
def test_the_ratio_is_one_before_the_first_update(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Exactly: the same calls, the same states, the same rounding."""
    pipe = PIPELINES[family]().to(dtype)
    made = trainer(tmp_path, "ddpo", pipe=pipe, peft_config=LORA)
    assert gradient(made).norm() > 0
    assert off(made) == 0
    jitter(made.denoiser, 0.3, 0)  # also away from the base model
    gradient(made)
    assert off(made) == 0


@pytest.mark.slow
def test_under_autocast_the_ratio_is_one_as_well(tmp_path: Path) -> None:
    made = trainer(tmp_path, "ddpo", bf16=True, max_steps=1, peft_config=LORA)
    made.train()
    assert made.state.log_history[0]["ratio_off"] == 0


@pytest.mark.parametrize("family", [pytest.param("sd", marks=pytest.mark.slow), "flux"])
def test_the_reward_rises_also_with_the_pipeline_s_own_sampler(family: str, tmp_path: Path) -> None:
    def darkness(images, prompts):
        return [-float(image.mean()) for image in images]

    settings = {"max_steps": 12, "per_device_train_batch_size": 4, "num_images_per_prompt": 8, "learning_rate": 2e-3}
    made = trainer(tmp_path, "ddpo", pipe=family, reward_funcs=darkness, per_device_eval_batch_size=24, **settings)
    words, seeds = [f"fox {i % 8}" for i in range(24)], range(24)
    before = made.sample(words, seeds).mean((1, 2, 3))
    made.train()
    rise = before - made.sample(words, seeds).mean((1, 2, 3))
    assert rise.mean() > 0.003 and (rise > 0).float().mean() > 0.9


@pytest.mark.parametrize("kind", ["ddim", "pndm", "euler"])
def test_steps_of_a_diffusion_model_are_those_of_ddim(kind: str) -> None:
    """Whatever scheduler the pipeline has."""
    base = {
        "ddim": lambda: DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        "pndm": lambda: PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        "euler": lambda: EulerDiscreteScheduler(steps_offset=1),
    }[kind]()
    policy = PolicyScheduler(base, eta=0.7, noise_level=0.0, generators=[torch.Generator().manual_seed(0)] * 2)
    policy.set_timesteps(6)
    known = DDIMScheduler(**{k: v for k, v in policy.base.config.items() if not k.startswith("_")})
    known.set_timesteps(6)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=g)
    for i, t in enumerate(known.timesteps):
        said = torch.randn(x.shape, generator=g)
        stepped = policy.step(said, t, x)[0]
        sd = policy.deviation(i)
        noise = (stepped - policy.means[i]) / sd if sd else torch.zeros_like(x)
        theirs = known.step(said, t, x, eta=0.7, variance_noise=noise).prev_sample
        assert torch.allclose(stepped, theirs, atol=1e-5)
        if sd:
            density = torch.distributions.Normal(policy.means[i], sd).log_prob(stepped).flatten(1).mean(1)
            assert torch.allclose(gaussian_log_prob(stepped, policy.means[i], sd), density, atol=1e-5)
        x = stepped
    assert policy.base.config.clip_sample is False


def test_without_noise_a_flow_is_drawn_as_the_pipeline_draws_it(tmp_path: Path) -> None:
    made = trainer(tmp_path, "ddpo", pipe="flux")
    batch = first_batch(made)
    stock = made.rollout(batch.prompts, batch.generators("start")).latents
    policy = PolicyScheduler(made.pipe.scheduler, eta=0.0, noise_level=0.0, generators=batch.generators("steps"))
    ours = made.rollout(batch.prompts, batch.generators("start"), scheduler=policy).latents
    assert torch.allclose(ours, stock, atol=1e-5)
    noisy = made.rollout(batch.prompts, batch.generators("start"), scheduler=made._policy(batch.generators("steps")))
    assert (noisy.latents - stock).abs().mean() > 0.05


def test_the_gradient_is_that_of_the_log_probabilities(tmp_path: Path) -> None:
    """By hand: sum_i A log N(x_i+1; mean(x_i), sd), with means from the denoiser itself."""
    made = trainer(tmp_path, "ddpo", num_images_per_prompt=2, guidance_scale=1.0)
    batch = first_batch(made, 1)
    ours = gradient(made, batch)
    trajectory, policy = made._sampled(batch), made._policy()
    policy.set_timesteps(**trajectory.schedule)
    made.denoiser.zero_grad()
    known, _ = made.pipe.encode_prompt(batch.prompts, "cpu", 1, False)
    terms = []
    for i in made._random_steps(policy):
        said = made.denoiser(trajectory.states[i], policy.timesteps[i], encoder_hidden_states=known).sample
        mean = policy.mean(i, trajectory.states[i], said)
        terms.append(trajectory.advantages * gaussian_log_prob(trajectory.states[i + 1], mean, policy.deviation(i)))
    (-torch.stack(terms).mean()).backward()
    theirs = torch.cat([p.grad.flatten() for p in made.denoiser.parameters()])
    assert trajectory.advantages.abs().tolist() == pytest.approx([1.0, 1.0], abs=0.02)
    assert theirs.norm() > 1e-3
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()


@pytest.mark.parametrize(
    "lora", [pytest.param(False, id="full", marks=pytest.mark.slow), pytest.param(True, id="lora")]
)
def test_the_divergence_is_exact(lora: bool, tmp_path: Path) -> None:
    made = trainer(tmp_path, "ddpo", kl_coef=2.0, peft_config=LORA if lora else None)
    batch = first_batch(made)
    losses = {}
    for std in (0.0, 0.3):
        jitter(made.denoiser, std, 0)
        for made.args.kl_coef in (0.0, 2.0):
            losses[made.args.kl_coef] = made.training_loss(made.model, batch).item()
        noted = made.means("train")["kl"]
        assert losses[2.0] - losses[0.0] == pytest.approx(2 * noted, rel=1e-3, abs=1e-6)
        assert (noted == 0) == (std == 0)
    trajectory, policy = made._sampled(batch), made._policy()
    policy.set_timesteps(**trajectory.schedule)
    steps = made._random_steps(policy)
    with torch.no_grad(), made._around():
        means = made._replayed(trajectory, policy, steps)
    with torch.no_grad(), made._around(base=made._base, as_base=True):
        base = made._replayed(trajectory, policy, steps)
    known = [gaussian_kl(m, b, policy.deviation(i)) for i, m, b in zip(steps, means, base, strict=True)]
    assert noted == pytest.approx(torch.stack(known).mean().item(), rel=1e-4)


@pytest.mark.slow
def test_a_divergence_in_the_reward(tmp_path: Path) -> None:
    made = trainer(tmp_path, "ddpo", peft_config=LORA, kl_coef=5.0, kl_in_reward=True)
    plain = trainer(tmp_path, "ddpo", peft_config=LORA)
    batch = first_batch(made)
    assert torch.equal(made._sampled(batch).advantages, plain._sampled(batch).advantages)  # at the base model
    for each in (made, plain):
        jitter(each.denoiser, 0.3, 0)
    without = plain._sampled(batch).advantages
    taken_off = made._sampled(batch).advantages
    assert made.means("train")["kl"] > 0 and not torch.allclose(taken_off, without, atol=1e-3)
    made.args.kl_normalise, made.args.kl_coef = "per_prompt", 0.2
    normalised = made._sampled(batch).advantages
    assert 0 < (normalised - without).abs().max() < 0.2 * 3


def test_prompts_without_a_difference_are_left_out(tmp_path: Path) -> None:
    def constant_for_one(images, prompts):
        return [
            0.5 if prompt == "fox 0" else float(image.mean()) for image, prompt in zip(images, prompts, strict=True)
        ]

    made = trainer(tmp_path, "ddpo", reward_funcs=constant_for_one)
    advantages = made._sampled(first_batch(made)).advantages
    assert not advantages[:4].any() and advantages[4:].abs().min() > 0
    assert made.means("train")["skipped"] == 0.5


def test_several_updates_on_the_same_samples(tmp_path: Path) -> None:
    draws = []

    def counting(images, prompts):
        draws.append(list(prompts))
        return left_is_dark(images, prompts)

    settings = {"num_iterations": 2, "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    made = trainer(tmp_path, "ddpo", reward_funcs=counting, **settings, num_train_steps=2)
    made.train()
    assert len(draws) == 2 and set(draws[0]) | set(draws[1]) == {f"fox {i}" for i in range(8)}
    logs = [log for log in made.state.log_history if "ratio_off" in log]
    assert [log["ratio_off"] == 0 for log in logs] == [True, False, True, False]
    assert logs[1]["clipped"] > 0
    assert "reward" in logs[0] and "reward" not in logs[1]


@pytest.mark.slow
def test_a_run_stopped_between_them_goes_on(tmp_path: Path) -> None:
    settings = {"num_iterations": 3, "max_steps": 5, "save_steps": 4, "save_strategy": "steps", "seed": 3}
    settings |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    made = trainer(tmp_path, "ddpo", **settings)
    made.train()
    assert (tmp_path / "checkpoint-4" / "trajectories-0.pt").is_file()
    again = trainer(tmp_path, "ddpo", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert curve(again) == curve(made)
    assert_same(weights(again), weights(made))


def test_steps_that_are_trained_change_from_update_to_update(tmp_path: Path) -> None:
    made = trainer(tmp_path, "ddpo", num_train_steps=2, num_inference_steps=6)
    chosen = []
    for made.state.global_step in range(20):
        steps = made._drawn_steps(list(range(6)))
        assert len(set(steps)) == 2 and steps == sorted(steps)
        chosen += steps
    assert set(chosen) == set(range(6))
    calls = []
    hook = made.denoiser.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    made.args.step_checkpointing = False
    gradient(made)
    hook.remove()
    assert calls == [False] * 6 + [True] * 2


@pytest.mark.slow
def test_settings_of_carve3d(tmp_path: Path) -> None:
    config = DDPOConfig.carve3d(output_dir=str(tmp_path), use_cpu=True, num_images_per_prompt=3)
    assert (config.num_images_per_prompt, config.num_inference_steps, config.kl_coef) == (3, 100, 0.2)
    assert (config.num_iterations, config.kl_in_reward, config.kl_normalise) == (1, True, "per_prompt")
    made = trainer(
        tmp_path, "ddpo", peft_config=LORA, num_images_per_prompt=3, kl_coef=config.kl_coef, kl_in_reward=True,
        kl_normalise=config.kl_normalise, max_steps=2,
    )  # fmt: skip
    made.train()
    assert [log["ratio_off"] for log in made.state.log_history if "ratio_off" in log] == [0, 0]


def test_evaluation_draws_with_the_pipeline_s_scheduler(tmp_path: Path) -> None:
    from ..diffusion import rewarded_prompts

    made = trainer(tmp_path, "ddpo", eval_dataset=rewarded_prompts(2))
    found = made.evaluate()
    made.model.eval()
    batch = made.batch(made.data_collator([made.eval_dataset[i] for i in range(2)]))
    latents = made.rollout(batch.prompts, batch.generators("start")).latents
    rewards = left_is_dark(made.decode(latents, "a").detach(), batch.prompts)
    assert found["eval_reward"] == pytest.approx(sum(rewards) / 2, rel=1e-5)
    assert found["eval_loss"] == pytest.approx(-found["eval_reward"])


def test_deviations_of_large_rewards_are_exact(tmp_path: Path) -> None:
    from ..diffusion import rewarded_prompts

    def far(images, prompts):
        return torch.tensor([-20000.0 if prompt == "fox 0" else -19998.0 for prompt in prompts])

    made = trainer(tmp_path, "ddpo", reward_funcs=far, eval_dataset=rewarded_prompts(2))
    found = made.evaluate()
    assert (found["eval_reward"], found["eval_reward_std"], found["eval_rewards/far_std"]) == (-19999.0, 1.0, 1.0)
