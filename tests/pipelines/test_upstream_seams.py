# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What the pipelines rely on in those they extend, beyond names and parameters: those stand in `tests/seams.py`."""

import functools
import inspect

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from diffusers.models.attention_processor import Attention
from diffusers.utils.torch_utils import randn_tensor

from alignext import aligned_attention

from ..seams import parameters, resolve
from . import tiny


SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@pytest.mark.parametrize("pipeline", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_pipelines_are_called_with_everything_by_name(pipeline: str) -> None:
    # what RIVAL pops and what it fills in is found by binding the stock signature
    assert "latents" in inspect.signature(resolve(f"diffusers.{pipeline}.__call__")).parameters
    assert all(not name.startswith("*") or name == "**kwargs" for name in parameters(f"diffusers.{pipeline}.__call__"))


def test_attention_has_the_parts_a_processor_uses() -> None:
    attention = Attention(query_dim=8, heads=2, dim_head=4)
    names = (
        "processor heads to_q to_k to_v to_out norm_q norm_k group_norm spatial_norm residual_connection "
        "rescale_output_factor"
    )
    assert not [name for name in names.split() if not hasattr(attention, name)]
    assert len(attention.to_out) == 2


def test_attention_passes_on_only_what_the_processor_names() -> None:
    seen = {}

    class Processor:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, extra=None):
            seen.update(extra=extra, encoder_hidden_states=encoder_hidden_states)
            return hidden_states

    attention = Attention(query_dim=8, heads=2, dim_head=4)
    attention.set_processor(Processor())
    hidden = torch.zeros(1, 3, 8)
    attention(hidden, extra=5)
    assert seen == {"extra": 5, "encoder_hidden_states": None}


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_our_copy_of_the_flux_processor_is_the_installed_one(double: bool, fused: bool) -> None:
    # what an anchor without targets computes is the stock result, from our copy of the processor's lines
    model, ids = tiny.flux_transformer(), torch.tensor([[0.0, i, j] for i in range(2) for j in range(3)])
    if fused:
        model.fuse_qkv_projections()
    call = {
        "hidden_states": torch.randn(1, 6, 16),
        "encoder_hidden_states": torch.randn(1, 4, tiny.TEXT_DIM),
        "pooled_projections": torch.randn(1, tiny.TEXT_DIM),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]),
        "img_ids": ids,
        "txt_ids": torch.zeros(4, 3),
    }
    expected, used = model(**call).sample, []
    with aligned_attention(model, share_blocks="double" if double else "single") as sharing:
        original = sharing.attention
        sharing.attention = lambda *args, **kwargs: used.append(1) or original(*args, **kwargs)
        assert torch.equal(model(**call).sample, expected)
    assert len(used) == (2 if double else 3)


def test_flow_scheduler_numbers_its_steps_and_makes_new_timesteps_for_each_loop() -> None:
    # what tells a step's first call from its second is the scheduler's index, None before the first step
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    first = scheduler.timesteps
    assert scheduler.step_index is None and scheduler.begin_index is None
    for i, t in enumerate(scheduler.timesteps):
        scheduler.step(torch.zeros(1, 2), t, torch.zeros(1, 2))
        assert scheduler.step_index == i + 1
    scheduler.set_timesteps(3)
    assert scheduler.timesteps is not first and scheduler.step_index is None
    torch.testing.assert_close(scheduler.timesteps / 1000, scheduler.sigmas[:3])


def test_loop_finds_eta_behind_a_wrapped_step() -> None:
    class Loop:
        scheduler = DDIMScheduler(**SCHEDULER)

    step = Loop.scheduler.step
    Loop.scheduler.step = functools.wraps(step)(lambda *args, **kwargs: step(*args, **kwargs))
    found = StableDiffusionPipeline.prepare_extra_step_kwargs(Loop, None, 0.5)
    assert found == {"generator": None, "eta": 0.5}
    Loop.scheduler.step = lambda *args, **kwargs: step(*args, **kwargs)
    assert StableDiffusionPipeline.prepare_extra_step_kwargs(Loop, None, 0.5) == {}


@pytest.mark.parametrize("steps", [10, 30, 50])
def test_inverse_scheduler_climbs_the_grid_that_ddim_descends(steps: int) -> None:
    ddim = DDIMScheduler(**SCHEDULER)
    inverse = DDIMInverseScheduler.from_config(ddim.config)
    ddim.set_timesteps(steps)
    inverse.set_timesteps(steps)
    assert torch.equal(inverse.timesteps, ddim.timesteps.flip(0))
    sample, noise = torch.ones(1, 4, 2, 2), torch.full((1, 4, 2, 2), 0.3)
    for t in inverse.timesteps:
        up = inverse.step(noise, t, sample, return_dict=False)[0]
        down = ddim.step(noise, t, up, return_dict=False)[0]
        assert torch.allclose(down, sample, atol=1e-4)
        sample = up


def test_a_config_without_the_keys_clips() -> None:
    # why the scheduler that RIVAL puts in place sets them itself
    bare = {key: value for key, value in SCHEDULER.items() if key not in ("clip_sample", "set_alpha_to_one")}
    config = DDIMScheduler.from_config(bare).config
    assert config.clip_sample
    assert config.set_alpha_to_one


def test_a_list_of_generators_draws_row_by_row() -> None:
    generators = [torch.Generator().manual_seed(i) for i in (0, 1)]
    together = randn_tensor((2, 4, 2, 2), generator=generators, device=torch.device("cpu"), dtype=torch.float32)
    for i in (0, 1):
        alone = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(i))
        assert torch.equal(together[i : i + 1], alone)
