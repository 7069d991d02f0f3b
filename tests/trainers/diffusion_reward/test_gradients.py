# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The gradient of a reward through a stock call is that of a loop written by hand, and what keeps it small."""

from pathlib import Path

import pytest
import torch

from alignext.trainers.diffusion_reward.rollout import around_denoisers

from .loops import LOOPS
from .tiny import PIPELINES, STEPS, Saved, first_batch, flat_gradient, gradient, near_grey, trainer


GUIDANCE = 3.0


def starting_noise(batch) -> torch.Tensor:
    return torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in batch.generators("start")])


FAST = {("sd", 1), ("sd", STEPS), ("flux", 2)}


@pytest.mark.parametrize(
    ("family", "K"),
    [pytest.param(f, K, marks=[pytest.mark.slow] * ((f, K) not in FAST)) for f in LOOPS for K in (1, 2, STEPS)],
)
def test_gradient_is_that_of_a_loop_by_hand(family: str, K: int, tmp_path: Path) -> None:
    made = trainer(tmp_path, pipe=family, backprop_steps=K, guidance_scale=GUIDANCE)
    batch = first_batch(made)
    ours = gradient(made, batch)
    made.denoiser.zero_grad()
    image = LOOPS[family](made.pipe, batch.prompts, starting_noise(batch), STEPS, K, GUIDANCE)
    (-near_grey(image, batch.prompts).mean()).backward()
    theirs = flat_gradient(made.denoiser)
    assert theirs.norm() > 5e-3
    assert (ours - theirs).abs().max() < 1e-6
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()


def test_pictures_do_not_depend_on_steps_with_a_gradient_or_on_checkpoints(tmp_path: Path) -> None:
    """Nor do gradients on checkpoints. The picture is the stock pipeline's, bit for bit."""
    pictures: list[torch.Tensor] = []

    def noting(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        pictures.append(images.detach().clone())
        return near_grey(images, prompts)

    noting.differentiable = True  # ty: ignore[unresolved-attribute]
    made = trainer(tmp_path, reward_funcs=noting, guidance_scale=GUIDANCE)
    batch = first_batch(made)
    for made.args.rule in (1, STEPS):
        found = []
        for made.args.step_checkpointing, blocks in ((False, False), (True, False), (False, True), (True, True)):
            (made.denoiser.enable_gradient_checkpointing if blocks else made.denoiser.disable_gradient_checkpointing)()
            found.append(gradient(made, batch))
        assert all(torch.equal(other, found[0]) for other in found)
    assert len(pictures) == 8
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)
    pipe = PIPELINES["sd"]()
    stock = pipe(
        batch.prompts, num_inference_steps=STEPS, height=16, width=16, guidance_scale=GUIDANCE, output_type="pt",
        generator=batch.generators("start"),
    ).images  # fmt: skip
    # The VAE decodes sample after sample here.
    assert torch.allclose(pictures[0], stock, atol=1e-6)
    assert torch.equal(made.decode(made.rollout(batch.prompts, batch.generators("start")).latents, "a"), pictures[0])


def kept(folder: Path, T: int, blocks: bool = False, **settings) -> int:
    """Bytes that autograd keeps of the denoiser's calls when all steps carry the gradient."""
    made = trainer(folder, backprop_steps="all", num_inference_steps=T, **settings)
    if blocks:
        made.denoiser.enable_gradient_checkpointing()
    batch = first_batch(made)
    with Saved() as saved, made._around(checkpointing=made.args.step_checkpointing):
        latents = made._latents(batch)
    assert latents.requires_grad
    return saved.bytes


def test_checkpoints_keep_less_and_of_steps_next_to_nothing(tmp_path: Path) -> None:
    nothing, blocks = (kept(tmp_path, 4, of, step_checkpointing=False) for of in (False, True))
    steps, twice = (kept(tmp_path, T, step_checkpointing=True) for T in (4, 8))
    assert nothing > 3 * blocks > 3 * steps
    # Four more steps keep the input of four more calls (two samples, with and without prompt, and what the guidance
    # and the scheduler multiply), which does not depend on the network.
    latents = 2 * 4 * 8 * 8 * 4
    assert twice - steps <= 4 * 12 * latents
    assert kept(tmp_path, 8, step_checkpointing=False) - nothing > 0.9 * nothing


def test_nothing_stays_after_an_exception(tmp_path: Path) -> None:
    made = trainer(tmp_path, backprop_steps=2)
    batch, denoiser = first_batch(made), made.denoiser
    forward, calls = type(denoiser).forward, []

    def failing(self, *args, **kwargs):
        calls.append(torch.is_grad_enabled())
        if len(calls) == 2:
            raise RuntimeError("in the second step")
        return forward(self, *args, **kwargs)

    patched = pytest.MonkeyPatch()
    for enabled in (True, False):
        calls.clear()
        with patched.context() as patch, torch.set_grad_enabled(enabled):
            patch.setattr(type(denoiser), "forward", failing)
            with pytest.raises(RuntimeError, match="in the second step"):
                made.training_loss(made.model, batch)
            assert torch.is_grad_enabled() is enabled
        assert calls == [False, True]
    assert not {"forward", "prepare_latents", "scheduler_step"} & (vars(denoiser).keys() | vars(made.pipe).keys())
    assert "step" not in vars(made.pipe.scheduler)
    assert gradient(made, batch).norm() > 0


def test_calls_without_a_graph_are_left_alone(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    with around_denoisers(made.pipe, "unet", checkpointing=True, base=made._base) as distances, torch.no_grad():
        made.rollout(["a"], [torch.Generator()])
    assert distances == []


@pytest.mark.parametrize("family", ["sd", pytest.param("flux", marks=pytest.mark.slow)])
def test_low_variance_form_averages_over_noises(family: str, tmp_path: Path) -> None:
    """A gradient of each noise added to the finished sample; the network is called once more for each."""
    calls, made = [], trainer(tmp_path, pipe=family, backprop_steps=1, num_last_noises=3)
    hook = made.denoiser.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    made.args.step_checkpointing = False
    together = gradient(made)
    hook.remove()
    assert calls == [False] * STEPS + [True] * 3
    alone = []
    normal = type(first_batch(made)).normal
    for number in range(3):
        made.args.num_last_noises = 2
        batch = first_batch(made)
        object.__setattr__(batch, "normal", lambda what, like, b=batch, n=number: normal(b, f"last noise {n}", like))
        alone.append(gradient(made, batch))
    assert torch.allclose(torch.stack(alone).mean(0), together, atol=1e-6)
    assert not torch.allclose(alone[0], alone[1], atol=1e-5)
