# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Identities and closed forms of the AlignedGen equations, in float64."""

import math

import pytest
import torch

from alignext.functional.alignedgen import (
    adain,
    grid_size,
    plain_attention,
    shared_attention,
    shifted_ids,
    sigma_squared,
    token_statistics,
)


B, N, HEADS, D = 3, 10, 2, 4
EXACT = {"rtol": 0, "atol": 1e-12}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qkv(tokens=N, seed=0):
    return tuple(randn(B, tokens, HEADS, D, seed=seed + i) for i in range(3))


def ids(h, w, dtype=torch.float32):
    return torch.tensor([[0, i, j] for i in range(h) for j in range(w)], dtype=dtype)


def by_hand(query, key, value):
    """Attention as a loop over images, heads and queries."""
    out = torch.empty_like(query)
    for b in range(len(query)):
        for head in range(query.shape[2]):
            for i in range(query.shape[1]):
                logits = torch.stack([query[b, i, head] @ k for k in key[b, :, head]]) / math.sqrt(query.shape[3])
                weights = logits.exp() / logits.exp().sum()
                out[b, i, head] = sum(w * v for w, v in zip(weights, value[b, :, head], strict=True))
    return out


class TestAdain:
    x, a = 3 * randn(B, N, HEADS, D) + 1, 0.5 * randn(1, N + 3, HEADS, D, seed=1) - 2

    def test_statistics_are_over_the_tokens_of_each_image_head_and_channel(self):
        mean, std = token_statistics(self.x)
        assert mean.shape == std.shape == (B, 1, HEADS, D)
        for b in range(B):
            for head in range(HEADS):
                for c in range(D):
                    values = self.x[b, :, head, c].tolist()
                    mu = sum(values) / N
                    var = sum((v - mu) ** 2 for v in values) / (N - 1)
                    assert mean[b, 0, head, c].item() == pytest.approx(mu, rel=1e-12)
                    assert std[b, 0, head, c].item() == pytest.approx(math.sqrt(var + 1e-5), rel=1e-12)

    def test_result_has_the_statistics_of_the_anchor(self):
        mean, std = token_statistics(adain(self.x, *token_statistics(self.a)))
        want_mean, want_std = token_statistics(self.a)
        torch.testing.assert_close(mean, want_mean.expand_as(mean), **EXACT)
        torch.testing.assert_close(std, want_std.expand_as(std), rtol=0, atol=1e-4)

    def test_formula(self):
        mean, std = token_statistics(self.a)
        own_mean = self.x.mean(1, keepdim=True)
        own_std = (self.x.var(1, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(adain(self.x, mean, std), (self.x - own_mean) / own_std * std + mean, **EXACT)

    def test_identity_for_the_anchor_itself(self):
        torch.testing.assert_close(adain(self.a, *token_statistics(self.a)), self.a, **EXACT)

    def test_images_do_not_mix(self):
        statistics = token_statistics(self.a)
        batch = adain(self.x, *statistics)
        for b in range(B):
            torch.testing.assert_close(adain(self.x[b : b + 1], *statistics), batch[b : b + 1], **EXACT)

    def test_a_single_token_has_no_variance_and_becomes_the_mean(self):
        one = randn(2, 1, HEADS, D)
        mean, std = token_statistics(one)
        assert torch.equal(mean, one) and torch.equal(std, torch.full_like(one, math.sqrt(1e-5)))
        anchor_mean, anchor_std = token_statistics(self.a)
        torch.testing.assert_close(adain(one, anchor_mean, anchor_std), anchor_mean.expand_as(one), **EXACT)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_computed_in_float32_and_comes_back(self, dtype):
        x, a = self.x.to(dtype), self.a.to(dtype)
        mean, std = token_statistics(a)
        assert mean.dtype == std.dtype == torch.float32
        expected = adain(x.float(), *token_statistics(a.float()))
        assert torch.equal(adain(x, mean, std), expected.to(dtype))


class TestSharedAttention:
    anchor = tuple(randn(1, 7, HEADS, D, seed=9 + i) for i in range(2))

    @pytest.mark.parametrize("style_lambda", [0.0, 0.5, 1.0, 1.1, 3.0])
    def test_formula(self, style_lambda):
        q, k, v = qkv()
        k_a, v_a = (x.expand(B, -1, -1, -1) for x in self.anchor)
        expected = by_hand(q, torch.cat([k, style_lambda * k_a], 1), torch.cat([v, v_a], 1))
        for value in (style_lambda, torch.tensor(style_lambda, dtype=torch.float64)):
            out = shared_attention(q, k, v, *self.anchor, style_lambda=value)
            torch.testing.assert_close(out, expected, **EXACT)

    def test_lambda_scales_keys_and_never_values(self):
        """With all logits of the anchor's keys equal by construction, lambda changes nothing."""
        q, k, v = qkv()
        k_a, v_a = self.anchor
        zero = torch.zeros_like(k_a)
        outs = [shared_attention(q, k, v, zero, v_a, style_lambda=x) for x in (0.0, 1.0, 5.0)]
        assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])

    def test_lambda_zero_is_not_off(self):
        """At 0 each of the anchor's tokens has the weight exp(0)."""
        q, k, v = qkv()
        logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(D)
        weights = logits.exp()
        total = weights.sum(-1, keepdim=True) + self.anchor[1].shape[1]
        expected = torch.einsum("bhqk,bkhd->bqhd", weights / total, v)
        expected += torch.einsum(
            "bhqo,bohd->bqhd", 1 / total, self.anchor[1].sum(1, keepdim=True).expand(B, -1, -1, -1)
        )
        out = shared_attention(q, k, v, *self.anchor, style_lambda=0.0)
        torch.testing.assert_close(out, expected, **EXACT)
        assert (out - plain_attention(q, k, v)).abs().max() > 1e-3

    def test_own_keys_again_are_a_bias_of_log_two(self):
        q, k, v = qkv()
        text = 4
        bias = torch.zeros(N, dtype=torch.float64)
        bias[text:] = math.log(2)
        logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(D) + bias
        expected = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v)
        for b in range(B):
            row = slice(b, b + 1)
            out = shared_attention(q[row], k[row], v[row], k[row, text:], v[row, text:])
            torch.testing.assert_close(out, expected[row], **EXACT)

    def test_targets_do_not_mix(self):
        q, k, v = qkv()
        batch = shared_attention(q, k, v, *self.anchor, style_lambda=1.1)
        for b in range(B):
            row = slice(b, b + 1)
            out = shared_attention(q[row], k[row], v[row], *self.anchor, style_lambda=1.1)
            torch.testing.assert_close(out, batch[row], **EXACT)

    def test_plain_attention(self):
        torch.testing.assert_close(plain_attention(*qkv()), by_hand(*qkv()), **EXACT)

    def test_given_attention_is_used(self):
        seen = []

        def attend(q, k, v):
            seen.append((q.shape[1], k.shape[1], v.shape[1]))
            return q

        shared_attention(*qkv(), *self.anchor, attend=attend)
        assert seen == [(N, N + 7, N + 7)]


class TestPositions:
    def test_shift_adds_to_every_axis(self):
        own = ids(2, 3)
        assert shifted_ids(own, (1, 2, 3)).tolist() == [[a + 1, r + 2, c + 3] for a, r, c in own.tolist()]

    @pytest.mark.parametrize(("h", "w"), [(4, 6), (6, 4), (1, 5), (1, 1)])
    def test_grid_of_positions(self, h, w):
        assert grid_size(ids(h, w)) == (h, w)
        assert grid_size(shifted_ids(ids(h, w), (0, 7, 9))) == (h, w)
        four = torch.cat([ids(h, w), torch.zeros(h * w, 1)], 1)
        assert grid_size(four) == (h, w)

    def test_half_precision_positions_stay_apart(self):
        own = ids(1, 200, torch.bfloat16)
        shifted = shifted_ids(own, (0, 0, 200))
        assert shifted.dtype == torch.float32
        assert shifted[:, 2].unique().tolist() == list(range(200, 400))
        assert len((own + 200)[:, 2].unique()) < 200  # what adding in place would do


class TestSchedules:
    def test_sigma_squared(self):
        assert sigma_squared(0.5) == 0.25
        assert torch.equal(sigma_squared(torch.tensor(0.5)), torch.tensor(0.25))
