# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""FADE of pipelines: identities on several families, what is scored, and refusals."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    StableDiffusionPipeline,
)

from alignext.evaluation import fade_score
from alignext.functional.elbo import kl_gap
from tests.pipelines import tiny
from tests.pipelines.latent_search import tiny_models


FEW = {"num_samples": 2, "num_timesteps": 3, "num_inference_steps": 2, "progress": False}
PROMPTS = ["a fox", "an owl at night"]


def another(pipe: Any) -> Any:
    """The same pipeline with a denoiser of its own."""
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    other = copy.copy(pipe)
    setattr(other, name, copy.deepcopy(getattr(pipe, name)))
    return other


def moved(pipe: Any, by: float = 0.05) -> Any:
    other = another(pipe)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in (other.unet if hasattr(other, "unet") else other.transformer).parameters():
            p.add_(by * torch.randn(p.shape, generator=generator))
    return other


@pytest.fixture(scope="module")
def sd() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline(**tiny.sd_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build(name: str) -> tuple[Any, dict[str, Any]]:
    return tiny_models.build(name)[0], tiny_models.BUILDERS[name][1]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("sdxl", "flux") else pytest.mark.slow)
        for name in ("sdxl", "flux", "sd3", "wan-2.1", "ltx", "cogvideox", "latte", "animatediff", "hunyuan")
    ],
)
def test_a_copy_is_at_distance_zero_and_directions_are_exchanged(name: str):
    pipe, call = build(name)
    call = {k: v for k, v in call.items() if k != "num_inference_steps"}
    assert fade_score(another(pipe), pipe, PROMPTS[:1], **FEW, **call).total.mean == 0
    other = moved(pipe)
    one, back = (fade_score(*pair, PROMPTS[:1], **FEW, **call) for pair in ((other, pipe), (pipe, other)))
    assert one.forward == back.reverse and one.reverse == back.forward
    assert one.forward.mean > 0 and one.reverse.mean > 0


@pytest.mark.slow
def test_only_latents_are_scored_and_nothing_stays(sd, monkeypatch):
    for name in ("encode", "decode"):
        monkeypatch.setattr(type(sd.vae), name, lambda *args, **kwargs: pytest.fail("went through the VAE"))
    sd.unet.train()
    sd.unet.conv_in.eval()
    modes, scheduler = [m.training for m in sd.unet.modules()], sd.scheduler
    timesteps, state = scheduler.timesteps.clone(), torch.random.get_rng_state()
    first = fade_score(moved(sd), sd, PROMPTS, **FEW)
    assert fade_score(moved(sd), sd, PROMPTS, **FEW).total == first.total
    assert fade_score(moved(sd), sd, PROMPTS, seed=1, **FEW).total != first.total
    assert [m.training for m in sd.unet.modules()] == modes and sd.scheduler is scheduler
    assert torch.equal(scheduler.timesteps, timesteps) and torch.equal(torch.random.get_rng_state(), state)
    assert "forward" not in vars(sd.unet)
    sd.unet.eval()


def test_the_bound_and_the_gap_agree_within_their_errors_for_a_true_denoiser():
    """A network that is the mean of the noise given x: then both estimate one number. Data: x0 = c + d z."""
    pipes = []
    for centre in (0.0, 0.3):
        pipe = StableDiffusionPipeline(**tiny.sd_components())
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=True)
        abar = pipe.scheduler.alphas_cumprod

        def forward(x, t, *args, centre=centre, abar=abar, **kwargs):
            a2 = abar[t.long()].view(-1, 1, 1, 1) if t.ndim else abar[t.long()]
            # N(centre, 1): x0 given x has mean centre + a (x - a centre), and n = s x + ... of unit variance
            a, s = a2.sqrt(), (1 - a2).sqrt()
            return (s * (x - a * centre),)

        pipe.unet.forward = forward
        pipes.append(pipe)
    p, q = pipes
    many = FEW | {"num_samples": 8, "num_timesteps": 60, "num_inference_steps": 50}
    found = {e: fade_score(q, p, ["a fox"], estimator=e, **many) for e in ("gap", "elbo", "path")}
    expected = 0.5 * 0.3**2 * 4 * 8 * 8  # of two Gaussians in 256 dimensions
    assert found["gap"].forward.mean == pytest.approx(expected, rel=0.05)
    assert found["gap"].reverse.mean == pytest.approx(expected, rel=0.05)
    bound = found["elbo"].forward
    assert abs(bound.mean - expected) < 4 * bound.stderr and bound.stderr > found["gap"].forward.stderr
    # Along 50 random steps the divergence is that of the coarser chain, an upper bound.
    assert expected < found["path"].forward.mean < 2.5 * expected
    assert 0 < found["gap"].near_share < 1


def test_a_term_of_a_path_is_the_divergence_of_the_schedulers_own_step():
    """|mu_p - mu_q|^2 / (2 sigma^2) of `DDPMScheduler.step`, from outputs of both models."""
    scheduler = DDPMScheduler(variance_type="fixed_small", clip_sample=False)
    scheduler.set_timesteps(50)
    t, then = scheduler.timesteps[10:12]
    x, of_p, of_q = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)).double() for i in range(3))
    steps = [scheduler.step(e, t, x, generator=torch.Generator().manual_seed(0)).prev_sample for e in (of_p, of_q)]
    variance = scheduler._get_variance(t)
    expected = (steps[0] - steps[1]).square().sum() / (2 * variance)  # the same noise in both
    now, after = scheduler.alphas_cumprod.double()[torch.stack([t, then])]
    weight = (after / (1 - after) - now / (1 - now)) / 2
    found = weight * kl_gap(of_p, of_q, x, now.sqrt(), (1 - now).sqrt(), "epsilon")
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=0)


def test_classes_may_stand_for_prompts():
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10, norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip
    torch.nn.init.normal_(transformer.proj_out_2.weight)
    pipe = DiTPipeline(transformer.eval(), tiny.vae(), DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    found = fade_score(moved(pipe), pipe, [3, 7], **FEW)
    assert found.forward.mean > 0 and len(found.forward.per_prompt) == 2
    assert fade_score(another(pipe), pipe, [3, 7], **FEW).total.mean == 0


@pytest.mark.slow
def test_a_guided_sampler_and_no_likelihood_are_said(sd):
    with pytest.warns(UserWarning, match=r"guidance_scale=3.0.*no divergence"):
        guided = fade_score(moved(sd), sd, PROMPTS, guidance_scale=3.0, **FEW)
    with pytest.warns(UserWarning, match="no likelihood"):
        fade_score(moved(sd), sd, PROMPTS, weighting="uniform", **FEW)
    assert guided.total != fade_score(moved(sd), sd, PROMPTS, **FEW).total


def other_levels(pipe: Any) -> Any:
    other = another(pipe)
    other.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, beta_end=0.02)
    return other


def other_prediction(pipe: Any) -> Any:
    other = another(pipe)
    other.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction")
    return other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": lambda pipe: pipe}, "is `reference`, or has its denoiser"),
        ({"model": other_levels}, "must have one noise schedule"),
        ({"model": other_prediction}, "predicts 'v_prediction', but `reference` 'epsilon'"),
        ({"model": lambda pipe: pipe.unet}, "but `reference` is for pictures"),
        ({"reference": lambda pipe: "base"}, "`reference` must be a pipeline"),
        ({"prompts": []}, "`prompts` must be a list with at least one"),
        ({"prompts": "a fox"}, "`prompts` must be a list"),
        ({"prompts": [{"prompt": "a fox"}]}, r"row with the columns \['prompt'\]"),
        ({"num_smples": 3}, "has no `num_smples`"),
        ({"reference": lambda pipe: Path("sd")}, r"`reference` must be a model .* Pass `DiffusionPipeline.from_pre"),
        ({"num_timesteps": 0}, "`num_timesteps` must be an integer of at least 1"),
        ({"weighting": "snr"}, "`weighting` must be 'likelihood' or 'uniform'"),
        ({"estimator": "mc"}, "`estimator` must be one of gap, elbo, path"),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(sd, monkeypatch, change, message):
    monkeypatch.setattr(type(sd.unet), "forward", lambda *args, **kwargs: pytest.fail("was called"))
    given = {"model": another, "reference": lambda pipe: pipe, "prompts": PROMPTS, **FEW} | change
    given |= {name: given[name](sd) for name in ("model", "reference")}
    with pytest.raises(ValueError, match=message):
        fade_score(**given)


def test_flows_have_no_path_and_two_experts_no_distance():
    pipe, _ = build("flux")
    with pytest.raises(NotImplementedError, match="a flow has no random steps"):
        fade_score(moved(pipe), pipe, ["a fox"], estimator="path", **FEW)
    pipe, _ = build("wan-2.1")
    pipe.transformer_2 = pipe.transformer
    with pytest.raises(NotImplementedError, match="two denoisers"):
        fade_score(another(pipe), pipe, ["a fox"], **FEW)


def test_nan_is_an_error(sd):
    broken = another(sd)
    broken.unet.conv_out.bias.data[:] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        fade_score(broken, sd, PROMPTS[:1], **FEW)
    with pytest.raises(ValueError, match="not finite"):
        fade_score(sd, broken, PROMPTS[:1], **FEW)
