# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""A scheduler that is rebuilt keeps the values that the original works with."""

import copy

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)

from alignext.diffusion.levels import inversion_levels, training_levels
from alignext.diffusion.schedulers import rebuild_scheduler

from ..pipelines.tiny import sd_components
from ..trainers.diffusion_preference.tiny import flux, sd3


BARE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # as some old checkpoints have it


@pytest.fixture
def corrected() -> StableDiffusionPipeline:
    """The stock constructor sets `steps_offset` to 1 and `clip_sample` to False on a scheduler that lacks both."""
    with pytest.warns(FutureWarning, match="steps_offset|clip_sample"):
        return StableDiffusionPipeline(**sd_components() | {"scheduler": DDIMScheduler(**BARE)})


@pytest.mark.parametrize("cls", [DDIMScheduler, DDIMInverseScheduler, PNDMScheduler, LCMScheduler])
def test_corrected_values_stay(corrected: StableDiffusionPipeline, cls: type) -> None:
    rebuilt = rebuild_scheduler(corrected.scheduler, cls)
    assert type(rebuilt) is cls
    assert rebuilt.config.steps_offset == 1
    assert not rebuilt.config.get("clip_sample", False)
    assert rebuilt.config.set_alpha_to_one
    if cls is DDIMScheduler:
        for scheduler in (rebuilt, corrected.scheduler):
            scheduler.set_timesteps(5)
        assert rebuilt.timesteps.tolist() == corrected.scheduler.timesteps.tolist() == [801, 601, 401, 201, 1]


def test_the_inverse_climbs_the_steps_of_the_pipeline(corrected: StableDiffusionPipeline) -> None:
    inverse = rebuild_scheduler(corrected.scheduler, DDIMInverseScheduler)
    for scheduler in (inverse, corrected.scheduler):
        scheduler.set_timesteps(5)
    assert torch.equal(inverse.timesteps, corrected.scheduler.timesteps.flip(0))
    far = torch.full((1, 4, 2, 2), 30.0)  # a prediction that clipping would change
    up = inverse.step(far, inverse.timesteps[0], far, return_dict=False)[0]
    down = corrected.scheduler.step(far, inverse.timesteps[0], up, return_dict=False)[0]
    assert torch.allclose(down, far, rtol=1e-4)


def test_saving_and_loading_changes_nothing(corrected: StableDiffusionPipeline, tmp_path) -> None:
    corrected.scheduler.save_pretrained(tmp_path)
    loaded = DDIMScheduler.from_pretrained(tmp_path)
    for cls in (DDIMScheduler, DDIMInverseScheduler, EulerDiscreteScheduler):
        before, after = (rebuild_scheduler(scheduler, cls) for scheduler in (corrected.scheduler, loaded))
        names = set(before.config) - {"_use_default_values", "_class_name", "_diffusers_version"}
        assert {name: before.config[name] for name in names} == {name: after.config[name] for name in names}


def test_spacing_of_another_class_stays() -> None:
    euler = EulerDiscreteScheduler(**BARE)  # its default spacing is not that of DDIM
    ddim = rebuild_scheduler(euler, DDIMScheduler, clip_sample=False)
    ddim.set_timesteps(4)
    assert ddim.timesteps.tolist() == [999, 666, 333, 0]


def test_the_original_stays(corrected: StableDiffusionPipeline) -> None:
    corrected.scheduler.set_timesteps(3)
    before = copy.deepcopy(vars(corrected.scheduler))
    rebuilt = rebuild_scheduler(corrected.scheduler, timestep_spacing="trailing")
    assert rebuilt.config.timestep_spacing == "trailing"
    assert rebuilt.num_inference_steps is None
    assert str(vars(corrected.scheduler)) == str(before)


def test_a_shift_set_by_hand_stays() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.5)
    scheduler.set_shift(3.0)
    rebuilt = rebuild_scheduler(scheduler)
    for each in (scheduler, rebuilt):
        each.set_timesteps(4)
    assert torch.equal(rebuilt.sigmas, scheduler.sigmas)
    assert rebuild_scheduler(scheduler, shift=2.0).shift == 2.0


def test_unknown_changes_are_named() -> None:
    with pytest.raises(TypeError, match=r"`clip_samples` is no argument of DDIMScheduler.*clip_sample"):
        rebuild_scheduler(DDIMScheduler(**BARE), clip_samples=False)


def test_levels_follow_the_corrected_offset(corrected: StableDiffusionPipeline) -> None:
    levels = inversion_levels(corrected, 5, (8, 8))
    assert levels.timesteps.tolist() == [1, 201, 401, 601, 801]


@pytest.mark.parametrize("make", [sd3, flux])
def test_flow_levels_follow_a_shift_set_by_hand(make) -> None:
    pipe = make()
    pipe.scheduler.set_shift(2.0)
    pipe.scheduler.set_timesteps(4, **({"mu": 0.5} if pipe.scheduler.config.use_dynamic_shifting else {}))
    kept = pipe.scheduler.sigmas.clone()
    levels = inversion_levels(pipe, 4, (8, 8))
    if not pipe.scheduler.config.use_dynamic_shifting:
        assert torch.equal(levels.s.flip(0), kept.double())
    assert torch.equal(pipe.scheduler.sigmas, kept)
    assert len(training_levels(pipe, (8, 8)).s) == 1001
