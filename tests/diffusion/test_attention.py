# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Attention seen while a denoiser runs: what is seen is what was computed, and the denoiser does not notice."""

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import SlicedAttnProcessor

from alignext.diffusion.attention import AttentionCall, attention_seen, grid_of
from alignext.diffusion.denoiser import get_denoiser
from alignext.diffusion.recording import record_call
from tests.pipelines.latent_search import tiny_models


NAMES = ("sd", "sdxl", "sd3", "flux")


def call_of(name: str) -> tuple[Any, Any]:
    """The denoiser, and a call of it with two rows."""
    pipe = tiny_models.build(name)[0]
    settings = tiny_models.BUILDERS[name][1]
    recorded = record_call(pipe, prompt=["a fox", "an owl"], generator=torch.Generator().manual_seed(0), **settings)
    x = torch.randn(recorded.shape, generator=torch.Generator().manual_seed(1))
    denoiser = get_denoiser(pipe)

    @torch.no_grad()
    def run() -> torch.Tensor:
        return recorded(denoiser, x, torch.tensor([300.0, 500.0]))

    return denoiser, run


@pytest.mark.parametrize("name", NAMES)
def test_seeing_changes_no_bit_and_leaves_nothing(name: str):
    denoiser, run = call_of(name)
    stock, seen = run(), []
    hooks = [len(m._forward_pre_hooks) for m in denoiser.modules()]
    with attention_seen(denoiser, seen.append):
        assert torch.equal(run(), stock)
    assert [len(m._forward_pre_hooks) for m in denoiser.modules()] == hooks
    count = len(seen)
    run()
    assert len(seen) == count > 0
    names = [call.name for call in seen]
    assert len(set(names)) == len(names)  # each layer once
    for call in seen:
        probabilities = call.probabilities()
        assert probabilities.dtype == torch.float32 and len(probabilities) == 2
        torch.testing.assert_close(probabilities.sum(-1), torch.ones_like(probabilities[..., 0]))


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_probabilities_are_those_that_were_applied(name: str):
    """Attention of the identity gives back its own probabilities."""
    denoiser, run = call_of(name)
    seen: list[AttentionCall] = []
    with attention_seen(denoiser, seen.append):
        run()
    for call in seen:
        eye = torch.eye(call.key.shape[2]).expand(*call.key.shape[:2], -1, -1)
        applied = torch.nn.functional.scaled_dot_product_attention(
            call.query, call.key, eye, attn_mask=call.mask, scale=call.scale
        )
        torch.testing.assert_close(call.probabilities(), applied.mean(1), rtol=1e-4, atol=1e-6)
        part = call.probabilities(slice(1, 2), slice(0, 3))
        torch.testing.assert_close(part, applied.mean(1)[1:2, 0:3], rtol=1e-4, atol=1e-6)


def test_masked_keys_get_nothing():
    q, k = (torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(i)) for i in range(2))
    allowed = torch.tensor([True, False, True]).view(1, 1, 1, 3).expand(1, 1, 3, 3)
    for mask in (allowed, torch.where(allowed, 0.0, float("-inf"))):
        probabilities = AttentionCall("", None, q, k, mask, 0.5).probabilities()
        assert not probabilities[..., 1].any()
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(1, 3))


def test_cross_attention_of_a_u_net_knows_its_text():
    denoiser, run = call_of("sd")
    seen: list[AttentionCall] = []
    with attention_seen(denoiser, seen.append):
        run()
    assert {call.name.rsplit(".", 1)[1]: call.text is not None for call in seen} == {"attn1": False, "attn2": True}


def test_an_error_leaves_nothing_behind():
    denoiser, run = call_of("sd")

    def broken(call: AttentionCall) -> None:
        raise RuntimeError("looked away")

    with pytest.raises(RuntimeError, match="looked away"), attention_seen(denoiser, broken):
        run()
    assert not any(m._forward_pre_hooks for m in denoiser.modules())
    run()


def test_what_cannot_be_seen_is_refused():
    denoiser, run = call_of("sd")
    denoiser.set_attn_processor(SlicedAttnProcessor(1))
    with pytest.raises(NotImplementedError, match="default attention processors"):
        with attention_seen(denoiser, lambda call: None):
            run()
    denoiser.compile(backend="eager")
    with pytest.raises(NotImplementedError, match="compiled denoiser"):
        with attention_seen(denoiser, lambda call: None):
            pass


def test_grids_are_halved_latents():
    assert grid_of(64, (8, 8)) == (8, 8) and grid_of(8, (8, 4)) == (4, 2) and grid_of(6, (5, 3)) == (3, 2)
    assert grid_of(77, (8, 8)) is None and grid_of(100, (8, 8)) is None
