# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Identities and closed forms of the RIVAL equations, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from alignext.functional.rival import (
    adain,
    attention_mode,
    cross_image_attention,
    match_gaussian,
    shuffle_hole,
    shuffle_latents,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(x):
    return torch.var_mean(x, dim=(-2, -1), keepdim=True)


class TestAdain:
    eps = 1e-5
    e_G, e_R = 3 * randn(3, 4, 8, 8) + 1, 0.5 * randn(3, 4, 8, 8, seed=1) - 2

    def test_moments_have_their_closed_form(self):
        var_G, _ = moments(self.e_G)
        var_R, mu_R = moments(self.e_R)
        var, mu = moments(adain(self.e_G, self.e_R))
        torch.testing.assert_close(mu, mu_R, rtol=0, atol=1e-14)
        torch.testing.assert_close(var, var_G / (var_G + self.eps) * (var_R + self.eps), rtol=1e-12, atol=0)

    def test_idempotent_up_to_eps(self):
        once = adain(self.e_G, self.e_R)
        torch.testing.assert_close(adain(once, self.e_R), once, rtol=0, atol=1e-3)

    def test_invariant_to_scale_and_shift(self):
        scaled = adain(7 * self.e_G + 3, self.e_R)
        torch.testing.assert_close(scaled, adain(self.e_G, self.e_R), rtol=0, atol=1e-5)

    def test_identity_on_the_reference_itself(self):
        torch.testing.assert_close(adain(self.e_R, self.e_R), self.e_R, rtol=0, atol=1e-14)

    def test_constant_channel_becomes_the_reference_mean(self):
        constant = torch.full_like(self.e_G, 5.0)
        out = adain(constant, self.e_R)
        torch.testing.assert_close(out, moments(self.e_R)[1].expand_as(out), rtol=0, atol=1e-12)

    def test_images_and_channels_do_not_mix(self):
        batch = adain(self.e_G, self.e_R)
        for i in range(3):
            assert torch.equal(batch[i : i + 1], adain(self.e_G[i : i + 1], self.e_R[i : i + 1]))
        by_channel = torch.cat(
            [adain(g, r) for g, r in zip(self.e_G.split(1, 1), self.e_R.split(1, 1), strict=True)], 1
        )
        assert torch.equal(batch, by_channel)
        # Statistics over all channels together give something else: the test above can fail.
        joint = adain(self.e_G.flatten(1)[:, None, None], self.e_R.flatten(1)[:, None, None]).view_as(batch)
        assert (joint - batch).abs().max() > 0.1

    def test_strength_interpolates_and_zero_is_the_input(self):
        assert adain(self.e_G, self.e_R, strength=0) is self.e_G
        half = adain(self.e_G, self.e_R, strength=0.5)
        torch.testing.assert_close(half, (self.e_G + adain(self.e_G, self.e_R)) / 2)

    def test_half_precision_is_computed_in_float32(self):
        e_G, e_R = (1e3 * self.e_G).half(), (1e3 * self.e_R).half()  # squares overflow float16
        out = adain(e_G, e_R)
        assert out.dtype == torch.float16
        torch.testing.assert_close(out, adain(e_G.float(), e_R.float()).half(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("t", "mode"), [(1000, "replace"), (601, "replace"), (600, "concat"), (0, "concat"), (1001, "plain")]
)
def test_attention_mode_boundaries(t, mode):
    assert attention_mode(t, t_align=600, t_inject=1000) == mode


@pytest.mark.parametrize("T", [50, 30, 20, 10])
@pytest.mark.parametrize(("t_align", "t_inject"), [(600, 1000), (600, 960), (600, 900), (600, -1), (-1, 1000)])
def test_gate_counts(T, t_align, t_inject):
    """Modes over a leading grid with offset 1: counted from the released counter `1000 - (i + 1) * (1000 // T)`."""
    delta = 1000 // T
    grid = [delta * i + 1 for i in range(T)]
    modes = [attention_mode(t - 1, t_align, t_inject) for t in grid]
    gates = [delta * i for i in range(T)]
    assert modes.count("plain") == sum(g > t_inject for g in gates)
    assert modes.count("concat") == sum(g <= min(t_align, t_inject) for g in gates)
    if T == 50 and t_align == 600 and t_inject > 0:  # the published table
        expected = {1000: (0, 19, 31), 960: (1, 18, 31), 900: (4, 15, 31)}[t_inject]
        assert tuple(map(modes.count, ("plain", "replace", "concat"))) == expected


class TestCrossImageAttention:
    G, M, heads, n, d = 2, 3, 2, 5, 4
    query, key, value = randn(6, 2, 5, 4), randn(6, 2, 5, 4, seed=1), randn(6, 2, 5, 4, seed=2)
    key_R, value_R = randn(2, 2, 7, 4, seed=3), randn(2, 2, 7, 4, seed=4)

    def brute_force(self, weight=None):
        """Row by row, softmax written out; `weight` None replaces."""
        rows = []
        for row in range(self.G * self.M):
            K, V = self.key_R[row // self.M], self.value_R[row // self.M]
            bias = torch.zeros(K.shape[1], dtype=torch.float64)
            if weight is not None:
                bias = torch.cat([bias + math.log(weight), torch.zeros(self.n, dtype=torch.float64)])
                K, V = torch.cat([K, self.key[row]], 1), torch.cat([V, self.value[row]], 1)
            logits = self.query[row] @ K.transpose(1, 2) / math.sqrt(self.d) + bias
            rows.append(logits.softmax(-1) @ V)
        return torch.stack(rows)

    def test_replace(self):
        out = cross_image_attention(self.query, None, None, self.key_R, self.value_R)
        torch.testing.assert_close(out, self.brute_force())

    @pytest.mark.parametrize("weight", [1.0, 0.3, 2.0])
    def test_concat(self, weight):
        out = cross_image_attention(
            self.query, self.key, self.value, self.key_R, self.value_R, reference_weight=weight
        )
        torch.testing.assert_close(out, self.brute_force(weight))

    def test_zero_weight_is_own_attention(self):
        out = cross_image_attention(self.query, self.key, self.value, self.key_R, self.value_R, reference_weight=0)
        assert torch.equal(out, F.scaled_dot_product_attention(self.query, self.key, self.value))

    def test_concatenating_a_copy_of_itself_changes_nothing(self):
        out = cross_image_attention(self.query, self.key, self.value, self.key, self.value)
        torch.testing.assert_close(out, F.scaled_dot_product_attention(self.query, self.key, self.value))


class TestInitialLatents:
    z_T = randn(4, 6, 5)

    def generator(self, seed=0):
        return torch.Generator().manual_seed(seed)

    def test_shuffle_permutes_positions_of_all_channels_together(self):
        x_T = shuffle_latents(self.z_T, generator=self.generator())
        assert x_T.shape == self.z_T.shape and not torch.equal(x_T, self.z_T)
        for x, z in zip(x_T, self.z_T, strict=True):
            assert torch.equal(x.flatten().sort().values, z.flatten().sort().values)
        vectors = {tuple(v.tolist()) for v in self.z_T.flatten(1).T}
        assert {tuple(v.tolist()) for v in x_T.flatten(1).T} == vectors

    def test_shuffle_is_seeded(self):
        again = [shuffle_latents(self.z_T, generator=self.generator(s)) for s in (0, 0, 1)]
        assert torch.equal(again[0], again[1]) and not torch.equal(again[0], again[2])

    def test_shuffle_to_another_size_draws_positions(self):
        x_T = shuffle_latents(self.z_T, (9, 7), self.generator())
        assert x_T.shape == (4, 9, 7)
        vectors = {tuple(v.tolist()) for v in self.z_T.flatten(1).T}
        assert {tuple(v.tolist()) for v in x_T.flatten(1).T} <= vectors

    def test_hole_gets_its_own_values_and_the_rest_stays(self):
        repaint = torch.zeros(6, 5, dtype=torch.bool)
        repaint[1:4, 2:5] = True
        shuffled = shuffle_latents(self.z_T, generator=self.generator())
        x_T = shuffle_hole(shuffled, self.z_T, repaint, self.generator(1))
        assert torch.equal(x_T[:, ~repaint], shuffled[:, ~repaint])
        hole = {tuple(v.tolist()) for v in self.z_T[:, repaint].T}
        assert {tuple(v.tolist()) for v in x_T[:, repaint].T} == hole
        assert not torch.equal(x_T[:, repaint], self.z_T[:, repaint])

    def test_gaussian_takes_mean_and_deviation_per_channel(self):
        noise = adain(randn(4, 64, 64, seed=5)[None], randn(1, 4, 400, 400, seed=6))[0]
        sigma, mu = torch.std_mean(self.z_T, dim=(-2, -1))
        var, mean = moments(match_gaussian(noise, self.z_T))
        torch.testing.assert_close(mean.flatten(), mu, rtol=0, atol=2e-2)
        torch.testing.assert_close(var.sqrt().flatten(), sigma, rtol=2e-2, atol=0)
