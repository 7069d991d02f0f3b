# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The denoiser's call in a stock loop, recorded: the loop's own calls are met bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from alignext.diffusion.recorded_call import RecordedCall
from alignext.diffusion.recording import DENOISERS, record_call

from . import families


# text-to-video-sd turns its latents into pictures before it steps.
NAMES = [name for name in families.FAMILIES if name != "text-to-video-sd"]
PACKED = {"flux", "kontext", "fill", "flux2", "flux2-editing", "flux2-klein", "qwen-image", "chroma", "ltx"}
PACKED |= {"qwen-image-edit", "qwen-image-edit-plus"}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    families.small_pictures(monkeypatch)


def without_guidance(name: str, pipe: Any) -> dict[str, float]:
    """The setting of the stock call that leaves classifier-free guidance out."""
    if any(getattr(getattr(pipe, part, None), "config", {}).get("guidance_embeds") for part in DENOISERS):
        return {}
    if "qwen" in name:
        return {"true_cfg_scale": 1.0}
    return {"guidance_scale": 0.0 if name == "z-image" else 1.0}


def rows(name: str) -> int:
    """Samples of a call. Qwen-Image-Edit-Plus takes one at a time."""
    return 1 if name == "qwen-image-edit-plus" else 2


@contextmanager
def watching_steps(scheduler: Any) -> Iterator[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Prediction, timestep and sample of every step of a scheduler."""
    steps, original = [], scheduler.step

    def step(model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        steps.append((model_output, timestep, sample))
        return original(model_output, timestep, sample, *args, **kwargs)

    scheduler.step = step
    try:
        yield steps
    finally:
        del scheduler.step


def stock_steps(name: str, pipe: Any, **call: Any) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The stock loop's predictions, timesteps and samples in three steps."""
    call = families.call(name, rows(name)) | without_guidance(name, pipe) | call
    with watching_steps(pipe.scheduler) as steps:
        pipe(**call, num_inference_steps=3, output_type="latent")
    return steps


def denoiser(pipe: Any, t: torch.Tensor) -> torch.nn.Module:
    """The network of this noise level: Wan 2.2 has two."""
    if getattr(pipe, "transformer_2", None) is not None and t < pipe.config.boundary_ratio * 1000:
        return pipe.transformer_2
    return getattr(pipe, "unet", None) or pipe.transformer


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_call_is_the_stock_loops_own(name: str):
    pipe = families.build(name)
    # Other latents than the loop's, but for Fill, which draws its masked picture's latents, too.
    recorded = record_call(pipe, **families.call(name, rows(name), seed=int(name != "fill")))
    steps = stock_steps(name, pipe)
    assert len(steps) == 3
    for prediction, t, sample in steps:
        with torch.no_grad():
            again = recorded(denoiser(pipe, t), sample, t)
        assert again.dtype == prediction.dtype and torch.equal(again, prediction)
        assert prediction.abs().max() > 0
    assert (len(recorded.shape) == 3) == (name in PACKED)


@pytest.mark.parametrize("name", ["sd", "flux", "z-image", "flux2-editing", "latte"])
def test_a_row_at_its_own_noise_level(name: str):
    """Training draws a level per row; the prediction for a row is that of the row alone at that level."""
    pipe = families.build(name)
    recorded = record_call(pipe, **families.call(name))
    x = torch.randn(recorded.shape, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([801, 201])
    with torch.no_grad():
        both = recorded(denoiser(pipe, t[0]), x, t)
        rows = [recorded(denoiser(pipe, t[0]), x, level)[i] for i, level in enumerate(t)]
    torch.testing.assert_close(both, torch.stack(rows), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(rows[0], recorded(denoiser(pipe, t[0]), x, t[1])[0])


def test_gradients_reach_the_denoiser():
    pipe = families.build("flux")
    recorded = record_call(pipe, **families.call("flux"))
    recorded(pipe.transformer, torch.randn(recorded.shape), 500.0).square().mean().backward()
    assert all(parameter.grad is not None for parameter in pipe.transformer.transformer_blocks.parameters())


def test_what_the_seam_sees_of_a_family():
    """Sign, lists of rows, appended pictures and units of time, read off rather than written down."""
    calls = {name: recorded(name) for name in ("sd", "z-image", "lumina2", "pixart-sigma", "kontext", "fill", "sana")}
    assert calls["z-image"].prediction.sign == calls["lumina2"].prediction.sign == -1
    assert calls["z-image"].latents.listed == 1
    assert calls["kontext"].latents.dim == 1 and calls["fill"].latents.dim == 2
    assert calls["sd"].latents.rest is None
    forms = {name: call.timestep.form for name, call in calls.items()}
    assert forms == {
        "sd": "t",
        "z-image": "(n - t) / n",
        "lumina2": "1 - t / n",
        "pixart-sigma": "t",
        "kontext": "t / n",
        "fill": "t / n",
        "sana": "t * n",
    }


def recorded(name: str) -> RecordedCall:
    return record_call(families.build(name), **families.call(name))


def test_the_embedded_guidance_is_told():
    pipe = families.build("flux")
    calls = [record_call(pipe, embedded_guidance=value, **families.call("flux")) for value in (None, 2.0)]
    assert [call.kwargs["guidance"].tolist() for call in calls] == [[3.5, 3.5], [2.0, 2.0]]


def test_half_precision_rounds_as_the_loop_does():
    """Flux casts the timestep to the latents' type before it divides."""
    pipe = families.build("flux").to(torch.bfloat16)
    recorded = record_call(pipe, **families.call("flux"))
    for prediction, t, sample in stock_steps("flux", pipe):
        with torch.no_grad():
            assert torch.equal(recorded(pipe.transformer, sample, t), prediction)


def test_the_pipeline_stays_as_it_was():
    pipe = families.build("sd")
    before = dict(vars(pipe)), dict(vars(pipe.unet)), pipe.scheduler, list(pipe.unet.children())
    record_call(pipe, **families.call("sd"))
    with pytest.raises(ValueError, match="has to be of type"):
        record_call(pipe, **families.call("sd") | {"prompt": 3})
    assert (dict(vars(pipe)), dict(vars(pipe.unet)), pipe.scheduler, list(pipe.unet.children())) == before


def test_other_latents_than_recorded():
    call = recorded("sd")
    with pytest.raises(
        ValueError, match=r"`latents` must have the recorded shape \(2, 4, 8, 8\), received \(1, 4, 8, 8\)"
    ):
        call(None, torch.zeros(1, 4, 8, 8), 1)


def test_latents_that_are_turned_before_the_step():
    with pytest.raises(ValueError, match=r"TextToVideoSDPipeline .* cannot be read off"):
        recorded("text-to-video-sd")


def test_a_loop_that_asks_twice_a_step():
    def again(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        pipe.unet(tensors["latents"], timestep, tensors["prompt_embeds"])
        return tensors

    watched = {"callback_on_step_end": again, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    with pytest.raises(ValueError, match=r"once a step.*StableDiffusionPipeline called it 4 times in 2 steps"):
        record_call(families.build("sd"), **families.call("sd"), **watched)


def test_a_pipeline_without_a_denoiser():
    pipe = families.build("sd")
    pipe.unet = None
    with pytest.raises(ValueError, match="`pipe` must have one of unet, transformer"):
        record_call(pipe, **families.call("sd"))
