# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Any family's own loop gives gradients, pictures that do not depend on them, and steps whose means come again."""

import inspect
from typing import Any

import pytest
import torch

from alignext.diffusion.levels import prediction_type
from alignext.diffusion.recording import stock_class, without_guidance
from alignext.trainers.diffusion_reward.rollout import Rollout, around_denoisers
from alignext.trainers.diffusion_reward.steps import PolicyScheduler
from tests.diffusion import families

from .tiny import Saved


STEPS, ROWS = 2, 2
# Those that edit need a picture for each prompt, which is no data of these trainers.
EDITING = ("kontext", "fill", "flux2-editing", "qwen-image-edit", "qwen-image-edit-plus")
TEXT_ONLY = [name for name in families.FAMILIES if name not in EDITING]


class Given(Rollout):
    """With embeddings in the place of texts, where the family's tiny pipeline has no encoders."""

    def __init__(self, name: str, pipe: Any) -> None:
        self.name = name
        known = inspect.signature(stock_class(pipe).__call__).parameters
        # There is nothing to encode an empty prompt with; texts have their guidance in other tests.
        super().__init__(pipe, num_inference_steps=STEPS, **without_guidance(pipe, known))

    def _arguments(self, prompts: Any) -> dict[str, Any]:
        given = families.call(self.name, len(prompts))
        given.pop("generator")
        return self.call | given


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(ROWS)]


def rollout_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Rollout:
    families.small_pictures(monkeypatch)
    pipe = families.build(name)
    return Given(name, pipe)


def has_callback(name: str) -> bool:
    return "callback_on_step_end" in inspect.signature(stock_class(families.build(name)).__call__).parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT_ONLY)
def test_gradients_pictures_and_policies(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_callback(name):
        with pytest.raises(ValueError, match="`model` must be a pipeline whose call takes `callback_on_step_end`"):
            rollout_of(name, monkeypatch)
        return
    rollout, prompts = rollout_of(name, monkeypatch), ["a", "b"]
    pipe = rollout.pipe
    trained = next(n for n in ("transformer_2", "unet", "transformer") if getattr(pipe, n, None) is not None)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    getattr(pipe, trained).requires_grad_(True)
    plain = rollout(prompts, generators())
    with around_denoisers(pipe, trained, checkpointing=True), Saved() as saved:
        rolled = rollout(prompts, generators(), backprop_steps=1)
    assert torch.equal(rolled.latents, plain.latents) and not plain.latents.requires_grad and saved.bytes > 0
    images = rollout.decode(rolled.latents, prompts[0], 1)
    assert images.shape[0] == ROWS and images.shape[-3] == 3 and images.ndim in (4, 5)
    assert 0 <= images.min() and images.max() <= 1
    images.mean().backward()
    assert any(p.grad is not None and p.grad.any() for p in getattr(pipe, trained).parameters())

    policy = PolicyScheduler(pipe.scheduler, eta=1.0, noise_level=0.7, generators=generators())
    rolled = rollout(prompts, generators(), scheduler=policy)
    assert len(policy.means) == STEPS and policy.flow == (prediction_type(pipe.scheduler) == "flow_prediction")
    states = [state.to(rolled.start.dtype) for state in policy.states[:STEPS]]
    with torch.no_grad():
        said = rollout.replay(prompts, policy.timesteps, states)
    for i, prediction in enumerate(said):
        assert torch.equal(policy.mean(i, policy.states[i], prediction), policy.means[i])
