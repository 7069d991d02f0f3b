# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Log-probabilities of a low-rank head, against the same thing with all logits in memory."""

import pytest
import torch

from alignext.functional import low_rank_head
from alignext.functional.low_rank_head import low_rank_log_probs


def inputs(dtype=torch.float64, n=9, v=23, d=6, r=3):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    tensors = [randn(n, d), randn(n, r), randn(v, d), randn(v, r)]
    targets = torch.randint(v, (n,), generator=generator)
    targets[0], targets[1] = 0, v - 1
    return *[t.requires_grad_() for t in tensors], targets, randn(v)


def dense(hidden, down, weight, up, bias, scale, cap):
    logits = (hidden @ weight.T + down @ up.T + (0 if bias is None else bias)) * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.parametrize("tile", [5, 23, 100])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, None), (1.0, 2.0), (3.0, 5.0)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_is_the_dense_one(monkeypatch, tile, scale, cap, with_bias):
    monkeypatch.setattr(low_rank_head, "TOKENS", 4)  # tiles of tokens, too
    hidden, down, weight, up, targets, bias = inputs()
    bias = bias if with_bias else None
    out = low_rank_log_probs(
        hidden, down, weight, up, targets, bias=bias, logit_scale=scale, softcap=cap, vocabulary_tile=tile
    )
    logits = dense(hidden, down, weight, up, bias, scale, cap)
    logp = logits.log_softmax(-1)
    expected = logp.gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(out.log_probs, expected)
    torch.testing.assert_close(out.entropy, -(logp.exp() * logp).sum(-1))
    torch.testing.assert_close(out.mean_logits, logits.mean(-1))
    assert torch.equal(out.is_top1, logits.argmax(-1) == targets)

    gradient = torch.linspace(-1, 2, len(hidden), dtype=torch.float64)
    ours = torch.autograd.grad((out.log_probs * gradient).sum(), [hidden, down, up], retain_graph=True)
    theirs = torch.autograd.grad((expected * gradient).sum(), [hidden, down, up])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.grad(out.log_probs.sum(), weight, allow_unused=True) == (None,)  # frozen


def test_of_no_tokens_is_empty_and_its_gradient_zero():
    hidden, down, weight, up, targets, _ = inputs()
    out = low_rank_log_probs(hidden[:0], down[:0], weight, up, targets[:0])
    assert out.log_probs.shape == (0,)
    gradient = torch.autograd.grad(out.log_probs.sum(), up)[0]
    assert torch.equal(gradient, torch.zeros_like(up))


def test_a_tie_goes_to_the_first():
    zeros = torch.zeros(2, 3)
    targets = torch.tensor([0, 6])
    out = low_rank_log_probs(zeros, zeros, torch.zeros(7, 3), torch.zeros(7, 3), targets, vocabulary_tile=3)
    assert out.is_top1.tolist() == [True, False]


def test_half_precision_is_summed_in_single():
    exact = low_rank_log_probs(*inputs(v=2000)[:5], vocabulary_tile=700).log_probs
    half = low_rank_log_probs(*inputs(torch.bfloat16, v=2000)[:5], vocabulary_tile=700).log_probs
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, atol=0.1, rtol=0.02)  # of logits rounded to bfloat16


def test_no_gradient_of_the_size_of_the_head_is_made():
    """Bytes, by what is saved for the backward pass and by the largest tensor made on the way."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else (out,):
                made = isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() not in known
                self.elements = max(self.elements, value.numel() if made else 0)
            return out

    n, v, d, r = 5, 4000, 64, 2
    tensors = [torch.randn(n, d), torch.randn(n, r), torch.randn(v, d), torch.randn(v, r)]
    tensors = [t.requires_grad_(i != 2) for i, t in enumerate(tensors)]
    known = {t.untyped_storage().data_ptr() for t in tensors}
    with Largest() as largest:
        out = low_rank_log_probs(*tensors, torch.arange(n), vocabulary_tile=1000)
        out.log_probs.sum().backward()
    assert largest.elements <= max(n * 1000, v * r, n * d)  # a tile, or a low-rank factor; v * d is 256,000
