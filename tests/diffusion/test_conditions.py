# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What a denoiser is told of each sample: captured once and alone, and put together for a batch."""

from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from alignext.diffusion import conditions as module
from alignext.diffusion.conditions import Conditions
from alignext.diffusion.recording import capture_call, record_call
from alignext.diffusion.rows import ONE_AT_A_TIME, ROWS, SHARED, join, key, row_pattern
from alignext.diffusion.sizes import Size

from ..trainers.diffusion_preference.tiny import PIPELINES, SIZE, flux, sd, sdxl
from . import families


PROMPTS = ["a fox", "", "two owls, flat style"]
CPU, SINGLE = torch.device("cpu"), torch.float32


@pytest.fixture(params=PIPELINES)
def pipe(request: pytest.FixtureRequest) -> DiffusionPipeline:
    return PIPELINES[request.param]()


def told(conditions: Conditions, samples: list[Any]) -> dict[str, Any]:
    """Arguments of the denoiser's call for these samples, which go through it together."""
    ((rows, call, _),) = conditions.groups(conditions(samples), CPU, SINGLE)
    assert rows == list(range(len(samples)))
    return {**dict(enumerate(call.args)), **call.kwargs}


def embeds(pipe: DiffusionPipeline, **given: Any) -> Conditions:
    return Conditions(pipe, Size(SIZE, SIZE), max_sequence_length=16, **given)


def test_prompts_are_told_as_in_sampling(pipe: DiffusionPipeline):
    seen: dict[str, torch.Tensor] = {}

    def look(_: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        seen.update(kwargs)

    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    handle = denoiser.register_forward_pre_hook(look, with_kwargs=True)
    pipe.set_progress_bar_config(disable=True)
    pipe("a fox", num_inference_steps=1, guidance_scale=5.0, output_type="latent", height=SIZE, width=SIZE)
    handle.remove()
    conditions = Conditions(pipe, Size(SIZE, SIZE))
    guided = "Flux" not in type(pipe).__name__
    found, nothing = told(conditions, PROMPTS), told(conditions, [conditions.unconditional("a fox")])
    text = seen["encoder_hidden_states"]
    assert torch.allclose(text[-1], found["encoder_hidden_states"][0], atol=1e-5)
    assert not torch.allclose(text[-1], found["encoder_hidden_states"][2])
    if guided:
        assert torch.allclose(text[0], nothing["encoder_hidden_states"][0], atol=1e-5)


def test_no_prompt_is_zeros_for_xl_unless_the_checkpoint_says_otherwise():
    pipe = sdxl()
    conditions = embeds(pipe)
    nothing = told(conditions, [conditions.unconditional("a fox")])
    assert not nothing["encoder_hidden_states"].any() and not nothing["added_cond_kwargs"]["text_embeds"].any()
    assert told(conditions, [""])["encoder_hidden_states"].any()  # an empty prompt is none
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    assert conditions.unconditional("a fox") == {"prompt": ""}


def test_the_length_for_t5():
    assert told(Conditions(flux(), Size(16, 16), max_sequence_length=8), ["a"])["encoder_hidden_states"].shape[1] == 8
    assert told(Conditions(sd(), Size(16, 16), max_sequence_length=8), ["a"])["encoder_hidden_states"].shape[1] == 16


def test_a_sample_is_captured_once_and_alone(monkeypatch: pytest.MonkeyPatch):
    calls: list[Any] = []
    original = module.capture_call
    monkeypatch.setattr(module, "capture_call", lambda *a, **k: calls.append(k["prompt"]) or original(*a, **k))
    conditions = embeds(sdxl(), max_kept=2)
    first = conditions(["a", "b", "a"]).tolist()
    assert first == [0, 1, 0]
    assert calls.count("a") == 1 and calls.count("b") == 1  # and one of them twice at once, to see where rows are
    calls.clear()
    assert conditions(["b", "a"]).tolist() == [1, 0]
    assert not calls
    assert conditions(["c"]).tolist() == [2] and calls == ["c"]
    assert conditions(["c", "b"]).tolist() == [2, 1] and calls == ["c"]
    assert conditions(["a"]).tolist() == [3] and calls == ["c", "a"]  # the oldest went


def test_a_batch_is_what_the_stock_call_makes_of_it(pipe: DiffusionPipeline):
    conditions = embeds(pipe)
    numbers = conditions(PROMPTS)
    ((_, call, template),) = conditions.groups(numbers, CPU, SINGLE)
    size = {"height": SIZE, "width": SIZE, "max_sequence_length": 16}
    size = size if "Flux" in type(pipe).__name__ or "3" in type(pipe).__name__ else {"height": SIZE, "width": SIZE}
    whole = record_call(pipe, prompt=PROMPTS, **size, generator=torch.Generator().manual_seed(0))
    denoiser, x = getattr(pipe, "unet", None) or pipe.transformer, torch.randn(call.shape)
    with torch.no_grad():
        one, other = call(denoiser, x, 500.0), whole(denoiser, x, 500.0)
    assert call.shape == whole.shape and torch.allclose(one, other, atol=1e-5)
    assert torch.equal(template.pack(template.unpack(x)), x)


def test_rows_of_other_lengths_go_one_after_another():
    pipe = families.build("qwen-image")
    conditions, texts = Conditions(pipe, Size(16, 16)), families.texts(3)
    masks = [torch.ones(6).long(), torch.tensor([1, 1, 1, 1, 0, 0]), torch.ones(6).long()]
    samples = [{"prompt_embeds": t, "prompt_embeds_mask": m} for t, m in zip(texts, masks, strict=True)]
    samples[2] = {"prompt_embeds": texts[2, :4], "prompt_embeds_mask": masks[2][:4]}
    groups = conditions.groups(conditions([*samples, samples[0]]), CPU, SINGLE)
    assert sorted(rows for rows, *_ in groups) == [[0, 3], [1], [2]]


def test_capturing_leaves_the_pipeline_alone():
    pipe = sd()
    before = dict(vars(pipe)), dict(vars(pipe.unet)), pipe.scheduler
    state = torch.get_rng_state()
    embeds(pipe)(["a fox"])
    assert (dict(vars(pipe)), dict(vars(pipe.unet)), pipe.scheduler) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_the_denoiser_does_not_run_in_a_capture():
    pipe = sd()
    pipe.unet.forward = lambda *args, **kwargs: pytest.fail("the denoiser ran")
    capture = capture_call(pipe, prompt="a fox", height=SIZE, width=SIZE)
    assert capture.kwargs["encoder_hidden_states"].shape == (1, 16, 16)


def test_a_vae_that_is_elsewhere_does_not_matter():
    pipe = sd()
    expected = capture_call(pipe, prompt="a fox", height=SIZE, width=SIZE).kwargs["encoder_hidden_states"]
    pipe.vae.to("meta")  # the first of its models, whose device stock code takes for that of all
    capture = capture_call(pipe, prompt="a fox", height=SIZE, width=SIZE)
    assert torch.equal(capture.kwargs["encoder_hidden_states"], expected)


def test_patterns_of_rows():
    one = ((torch.ones(1, 3), [torch.ones(2)]), {"ids": torch.arange(4), "mask": None, "shapes": [[(1, 2)]]}, None)
    two = (
        (torch.ones(2, 3), [torch.ones(2)] * 2),
        {"ids": torch.arange(4), "mask": None, "shapes": [[(1, 2)]] * 2},
        None,
    )
    pattern = row_pattern(one, two)
    assert pattern == ((ROWS, ROWS), {"ids": SHARED, "mask": SHARED, "shapes": ROWS}, SHARED)
    joined = join(pattern, [one, one, one])
    assert joined[0][0].shape == (3, 3) and len(joined[0][1]) == len(joined[1]["shapes"]) == 3
    longer = ((torch.ones(1, 4), [torch.ones(5)]), {**one[1], "ids": torch.arange(4)}, None)
    assert key(pattern, one) != key(pattern, longer)
    assert key(pattern, one) != key(pattern, (one[0], {**one[1], "ids": torch.arange(4) + 1}, None))
    # Frames of two samples in turn: one after the other is not the same.
    turned = row_pattern(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [1.0], [2.0], [2.0]]))
    assert turned == ONE_AT_A_TIME
