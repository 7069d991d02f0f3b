# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latent search on the families in use today, none of which the search knows by name."""

import pytest
import torch

from alignext.diffusion.calls import take
from alignext.pipelines.latent_search import LatentSearch
from alignext.search import RandomNoiseSearch, SearchConfig, ZeroOrderNoiseSearch
from tests.diffusion import families

from . import tiny_models
from .test_search import Rows, configured, contrast, seeded


def negative(rows, mask=None, mask_name="negative_prompt_attention_mask"):
    masks = {} if mask is None else {mask_name: mask}
    return {
        "negative_prompt": None, "negative_prompt_embeds": -families.texts(rows), "guidance_scale": 2.0, **masks,
    }  # fmt: skip


# What turns on guidance by a second pass, for families that are not distilled.
GUIDANCE = {
    "flux2": lambda n: {},
    "flux2-klein": lambda n: {"negative_prompt_embeds": -families.texts(n), "guidance_scale": 2.0},
    "z-image": lambda n: {
        "prompt": ["a fox"] * n, "negative_prompt_embeds": [*-families.texts(n)], "guidance_scale": 2.0,
    },
    "qwen-image": lambda n: {
        "negative_prompt_embeds": -families.texts(n), "negative_prompt_embeds_mask": families.mask(n),
        "true_cfg_scale": 2.0,
    },
    "sana": lambda n: negative(n, families.mask(n)),
    "pixart-sigma": lambda n: negative(n, families.mask(n)),
    "chroma": lambda n: negative(n, families.mask(n).bool()),
    "kontext": lambda n: {},
    "flux2-editing": lambda n: {},
    "qwen-image-edit": lambda n: {"true_cfg_scale": 1.0},
    "lumina2": lambda n: negative(n, families.mask(n)),
    "hunyuan-dit": lambda n: negative(n, families.mask(n)) | {
        "negative_prompt_embeds_2": -families.texts(n), "negative_prompt_attention_mask_2": families.mask(n),
    },
    "cogview4": negative,
}  # fmt: skip
REFUSED = ("fill", "qwen-image-edit-plus")
FAST = ("flux2", "flux2-klein", "z-image", "qwen-image", "sana", "pixart-sigma", "chroma")
NAMES = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in GUIDANCE]
)
SOME = pytest.mark.parametrize(
    "name", [name if name in ("flux2", "sana") else pytest.param(name, marks=pytest.mark.slow) for name in GUIDANCE]
)
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    families.small_pictures(monkeypatch)


def build(name):
    return families.build(name), families.call(name, 2) | GUIDANCE[name](2)


def run(pipe, call, config=None, **changes):
    arguments = call | {"num_inference_steps": 3, "output_type": "pt", "generator": seeded()} | changes
    return LatentSearch(pipe, contrast, config or configured())(**arguments)


@NAMES
def test_runs_end_to_end_and_returns_what_it_scored(name):
    pipe, call = build(name)
    stock = pipe(**call, num_inference_steps=1, output_type="pt")
    state, scheduler, config = set(vars(pipe)), pipe.scheduler, pipe.config
    rows = Rows(pipe)
    out = run(pipe, call)
    assert type(out) is type(stock) and out[0].shape == stock[0].shape and out[0].isfinite().all()
    assert pipe.scheduler is scheduler and pipe.config == config and set(vars(pipe)) == state
    assert [entry["node"] for entry in out.history] == [1, 2]
    assert all(entry["rewards"].unique().numel() > 4 for entry in out.history)
    torch.testing.assert_close(out.rewards[:, 0], contrast(out[0], None), atol=1e-4, rtol=1e-4)
    last = 1 if name == "hunyuan-dit" else 2  # its last timestep is 0, from where there is nothing to look ahead to
    assert out.nfe == 2 * (2 + 4 * 2 + 4 * last)
    guided = GUIDANCE[name](2).keys() & {"negative_prompt_embeds"}
    assert rows.total == out.nfe * (2 if guided else 1)


@SOME
def test_a_budget_of_one_is_the_stock_pipeline_bit_for_bit(name):
    pipe, call = build(name)
    for output_type in ("pt", "latent"):
        changes = {"num_inference_steps": 2, "output_type": output_type}
        stock = pipe(**call | changes | {"generator": seeded()})[0]
        out = run(pipe, call, SearchConfig(num_beams=1, num_candidates=1), **changes)
        assert torch.equal(out[0], stock) and out.rewards.shape == (2, 1)


@SOME
def test_prompts_do_not_mix_and_chunks_change_nothing(name):
    pipe, call = build(name)
    both = run(pipe, call, generator=[seeded(3), seeded(4)])
    rows = Rows(pipe)
    parts = run(pipe, call, configured(model_batch_size=3), generator=[seeded(3), seeded(4)])
    assert rows.largest <= 3
    torch.testing.assert_close(parts[0], both[0], atol=1e-3, rtol=1e-3)
    for p in (0, 1):
        one = run(pipe, take(call, [p]), generator=[seeded(3 + p)])
        torch.testing.assert_close(both[0][p], one[0][0], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(both.rewards[p], one.rewards[0], atol=1e-3, rtol=1e-3)


@SOME
@pytest.mark.parametrize(
    "config",
    [configured(strategy="best_of_n"), RandomNoiseSearch(rounds=1), ZeroOrderNoiseSearch(rounds=1, neighbors=1)],
    ids=["best", "random", "zero-order"],
)
def test_searches_with_the_stock_sampler(name, config):
    pipe, call = build(name)
    out = run(pipe, call, config)
    assert out.nfe == 3 * out.reward_evals == 3 * (8 if isinstance(config, SearchConfig) else 4)
    assert "prepare_latents" not in vars(pipe) and "step" not in vars(pipe.scheduler)
    assert out.rewards.unique().numel() == 2
    torch.testing.assert_close(out.rewards[:, 0], contrast(out[0], None), atol=1e-4, rtol=1e-4)


def test_given_latents_are_in_the_layout_of_the_stock_call():
    pipe, call = build("flux2")
    z = torch.randn(2, 16, 4, 4, generator=seeded(9))
    one, per_beam = (run(pipe, call, latents=given) for given in (z, z.repeat_interleave(2, 0)))
    assert torch.equal(one[0], per_beam[0]) and not torch.equal(one[0], run(pipe, call)[0])


def test_every_family_that_trains_is_a_row_of_the_search():
    """Those that take texts are in test_search.py."""
    assert {*GUIDANCE, *REFUSED, *tiny_models.BUILDERS} == set(families.FAMILIES)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_searched_is_refused_before_an_evaluation(name):
    """Inpainting starts from a picture; Qwen-Image-Edit-Plus takes one sample at a time."""
    pipe = families.build(name)
    rows = Rows(pipe)
    with pytest.raises((NotImplementedError, ValueError), match=r"`strength` starts from|only supports batch_size=1"):
        run(pipe, families.call(name, 2))
    assert rows.total == 0
