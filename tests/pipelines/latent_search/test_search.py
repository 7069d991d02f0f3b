# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latent search inside the stock loops, on tiny random models: every pipeline it is promised for."""

import copy
import functools
import math

import pytest
import torch
from diffusers import DDIMScheduler, FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline
from diffusers.utils import logging
from PIL import Image

from alignext.diffusion import decoders as decode
from alignext.logs import warn_once
from alignext.pipelines.latent_search import LatentSearch, StableDiffusionSearchPipeline
from alignext.pipelines.rival import RIVALPipeline
from alignext.search import RandomNoiseSearch, SearchConfig, ZeroOrderNoiseSearch

from .. import contract, tiny
from .tiny_models import BUILDERS, build


pytestmark = [
    # Configurations of some stock classes are read the old way inside diffusers, and one pipeline is old itself.
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

NAMES = pytest.mark.parametrize("name", BUILDERS)
# Loops over pictures, over packed latents and over clips stand for the others, each of which is run once already.
SOME = pytest.mark.parametrize(
    "name", [n if n in ("sd", "flux", "latte") else pytest.param(n, marks=pytest.mark.slow) for n in BUILDERS]
)
WITHOUT_LORA = ("latte", "text-to-video-sd")  # diffusers loads none for them
VIDEO = [name for name in BUILDERS if name not in ("sd", "sdxl", "sd3", "flux")]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def contrast(images, prompts):
    """Something that differs between candidates."""
    return images.flatten(1).float().std(1) + images.flatten(1).float().mean(1)


def configured(**settings):
    return SearchConfig(**{"num_beams": 2, "num_candidates": 2, "lookahead_steps": 2} | settings)


def run(pipe, call, config=None, reward=contrast, prompt="a fox", **kwargs):
    arguments = {"num_inference_steps": 3, "output_type": "pt", "generator": seeded()} | call | kwargs
    return LatentSearch(pipe, reward, config or configured())(prompt, **arguments)


def denoiser_name(pipe):
    return "unet" if hasattr(pipe, "unet") else "transformer"


def denoisers(pipe):
    return [getattr(pipe, n) for n in ("unet", "transformer", "transformer_2") if getattr(pipe, n, None) is not None]


class Rows:
    """Counts the rows that the denoisers compute; a module's own hooks would see those that are asked for."""

    def __init__(self, pipe):
        self.total, self.largest = 0, 0
        for module in denoisers(pipe):
            module.forward = self.counted(module.forward)

    def counted(self, forward):
        @functools.wraps(forward)
        def wrapped(*args, **kwargs):
            rows = len(args[0] if args else kwargs.get("hidden_states", kwargs.get("sample")))
            self.total, self.largest = self.total + rows, max(self.largest, rows)
            return forward(*args, **kwargs)

        return wrapped


# ------------------------------------------------------------------------------------------------ every stock pipeline


@NAMES
def test_runs_end_to_end_and_returns_what_it_scored(name):
    pipe, call = build(name)
    stock, scheduler, config = (
        pipe("a fox", num_inference_steps=1, output_type="pt", **call),
        pipe.scheduler,
        pipe.config,
    )
    rows = Rows(pipe)
    out = run(pipe, call)
    assert type(out) is type(stock) and out[0].shape == stock[0].shape and out[0].isfinite().all()
    assert pipe.scheduler is scheduler and pipe.config == config
    assert [entry["node"] for entry in out.history] == [1, 2]
    torch.testing.assert_close(out.rewards[:, 0], contrast(out[0], None), atol=1e-4, rtol=1e-4)
    # Without an offset the last timestep is 0, from where there is nothing to look ahead to.
    last = 1 if name in ("animatediff", "latte") else 2
    assert out.nfe == 2 + 4 * 2 + 4 * last and out.reward_evals == 4 + 4 + (2 if last == 2 else 0)
    # A guidance pair counts once; Flux and HunyuanVideo are distilled and have none.
    assert rows.total == out.nfe * (1 if name in ("flux", "hunyuan") else 2)
    assert out.rewards.dtype == torch.float32 and out.rewards.shape == (1, 1)


@SOME
def test_a_budget_of_one_is_the_stock_pipeline_bit_for_bit(name):
    pipe, call = build(name)
    stock = pipe("a fox", num_inference_steps=3, output_type="pt", generator=(g := seeded()), **call)[0]
    out = run(pipe, call, SearchConfig(num_beams=1, num_candidates=1), generator=(ours := seeded()))
    assert torch.equal(out[0], stock) and torch.equal(g.get_state(), ours.get_state())
    assert torch.equal(run(pipe, call, configured(strategy="none"))[0], stock)


@SOME
def test_one_candidate_without_noise_is_the_stock_sampler(name):
    """eta 0 and one beam, through the engine: what the deterministic stock schedulers give, but for the last move."""
    pipe, call = build(name)
    if name in ("wan-2.1", "wan-2.2"):
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)  # UniPC is of second order
    # Stock takes t - 1000 // T for the next timestep, which it is for 4 steps.
    call = call | {"num_inference_steps": 4} | ({"use_dynamic_cfg": True} if name == "cogvideox" else {})
    if name in ("sd", "sdxl", "text-to-video-sd"):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, set_alpha_to_one=True, steps_offset=0)
    stock = pipe("a fox", output_type="pt", generator=seeded(), **call)[0]
    config = SearchConfig(num_beams=1, num_candidates=1, eta=0.0, force_engine=True)
    torch.testing.assert_close(run(pipe, call, config)[0], stock, atol=2e-4, rtol=1e-3)


@SOME
def test_chunks_change_nothing(name):
    results = []
    for size in (None, 1 if name in ("animatediff", "latte", "flux") else 3):  # these send a row per frame, or ids
        pipe, call = build(name)
        rows = Rows(pipe)
        results.append(run(pipe, call, configured(model_batch_size=size), prompt=["a fox", "a dog"]))
    whole, parts = results
    torch.testing.assert_close(parts[0], whole[0], atol=1e-3, rtol=1e-3)
    assert parts.nfe == whole.nfe and rows.largest <= 3
    for ours, theirs in zip(parts.history, whole.history, strict=True):
        assert torch.equal(ours["parents"], theirs["parents"])


@pytest.mark.slow
@NAMES
def test_offloaded_pipeline_gives_the_same_result(name):
    pipe, call = build(name)
    contract.check_offload(pipe, lambda: run(pipe, call)[0], denoiser_name(pipe))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in WITHOUT_LORA])
def test_lora_is_used(name, tmp_path):
    pipe, call = build(name)
    config = configured(
        eta=0.5
    )  # with more, little is left of the first steps, the only ones of Wan 2.2's `transformer`
    contract.check_lora(pipe, lambda: run(pipe, call, config)[0], denoiser_name(pipe), tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in ("sd", "flux", "wan-2.2")])
def test_compiled_pipeline_gives_the_same_result(name):
    pipe, call = build(name)
    contract.check_compiled(pipe, lambda: run(pipe, call)[0], denoiser_name(pipe), "model")


@SOME
def test_prompts_do_not_mix(name):
    pipe, call = build(name)
    prompts = ["a fox", "a green dog"]
    both = run(pipe, call, prompt=prompts, generator=[seeded(3), seeded(4)])
    for p in (0, 1):
        one = run(pipe, call, prompt=prompts[p], generator=[seeded(3 + p)])
        torch.testing.assert_close(both[0][p], one[0][0], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(both.rewards[p], one.rewards[0], atol=1e-3, rtol=1e-3)


@SOME
@pytest.mark.parametrize("strategy", ["best_of_n", "smc", "local", "greedy"])
def test_strategies(name, strategy):
    pipe, call = build(name)
    rows = Rows(pipe)
    out = run(pipe, call, configured(strategy=strategy, lookahead_steps=1))
    starts = {"best_of_n": 4, "smc": 4, "local": 2, "greedy": 1}[strategy]
    assert out.nfe == starts + 8 and rows.total == out.nfe * (1 if name in ("flux", "hunyuan") else 2)
    torch.testing.assert_close(out.rewards[:, 0], contrast(out[0], None), atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------- outputs


def test_larger_is_better_and_the_order_is_best_first():
    pipe, call = build("sd")
    light = run(pipe, call, configured(num_beams=3), lambda x, p: x.mean((1, 2, 3)), num_images_per_prompt=3)
    dark = run(pipe, call, configured(num_beams=3), lambda x, p: -x.mean((1, 2, 3)), num_images_per_prompt=3)
    assert light.images.mean() > dark.images.mean()
    assert light.rewards.shape == (1, 3) and light.rewards[0].tolist() == sorted(light.rewards[0], reverse=True)
    torch.testing.assert_close(light.rewards[0], light.images.mean((1, 2, 3)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["sd", "latte"])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("budget", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_output_types(name, output_type, budget):
    pipe, call = build(name)
    stock = pipe(["a fox", "a dog"], num_inference_steps=2, output_type=output_type, **call)
    out = run(pipe, call, SearchConfig.from_budget(budget), prompt=["a fox", "a dog"], output_type=output_type)
    assert type(out[0]) is type(stock[0]) and len(out[0]) == 2
    assert out.rewards.shape == (2, 1)
    if isinstance(stock[0], torch.Tensor):
        assert out[0].shape == stock[0].shape and out[0].dtype == stock[0].dtype
    expected = pipe(["a fox", "a dog"], num_inference_steps=2, output_type=output_type, return_dict=False, **call)
    as_tuple = run(pipe, call, SearchConfig.from_budget(budget), output_type=output_type, return_dict=False)
    assert len(as_tuple) == len(expected) + 4


def test_latent_rewards_see_latents_and_nothing_is_decoded():
    pipe, call = build("sd")
    shapes = []

    def of_latents(latents, prompts):
        shapes.append(tuple(latents.shape))
        return latents.mean((1, 2, 3))

    of_latents.input_type = "latent"
    decoded = []
    pipe.vae.decode = decoded.append
    out = run(pipe, call, reward=of_latents, output_type="latent")
    assert set(shapes) == {(4, 4, 8, 8), (2, 4, 8, 8)} and decoded == []
    torch.testing.assert_close(out.rewards[0], out.images.mean((1, 2, 3)))


def test_rewards_are_told_prompts_latents_and_progress():
    pipe, call = build("sd")
    seen = []

    def watched(images, prompts, timestep_fraction, latents, is_final):
        seen.append((tuple(images.shape), prompts, latents.shape[1:], is_final))
        assert 0 <= images.min() and images.max() <= 1 and images.dtype == torch.float32
        assert 0 < timestep_fraction < 1
        return torch.tensor([len(prompt) for prompt in prompts])

    out = run(pipe, call, configured(reward_batch_size=3), watched, prompt=["a", "bbb"])
    assert seen[0][1] == ["a"] * 3 and seen[1][1] == ["a", "bbb", "bbb"] and seen[2][1] == ["bbb"] * 2
    assert seen[-1][3] and not seen[0][3]
    assert out.rewards.tolist() == [[1.0], [3.0]]


def test_embeddings_instead_of_prompts():
    for name in ("sd", "sdxl", "sd3", "ltx"):
        pipe, call = build(name)
        if name == "ltx":
            embeds = pipe.encode_prompt(["a fox", "a dog"], max_sequence_length=16, device="cpu")
            names = (
                "prompt_embeds",
                "prompt_attention_mask",
                "negative_prompt_embeds",
                "negative_prompt_attention_mask",
            )
        else:
            extra = {"sdxl": {"prompt_2": None}, "sd3": {"prompt_2": None, "prompt_3": None}}.get(name, {})
            arguments = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True} | extra
            embeds = pipe.encode_prompt(["a fox", "a dog"], **arguments)
            names = (
                "prompt_embeds",
                "negative_prompt_embeds",
                "pooled_prompt_embeds",
                "negative_pooled_prompt_embeds",
            )
        given = dict(zip(names, embeds, strict=False))
        texts = []

        def watched(images, prompts, texts=texts):
            texts.append(prompts)
            return contrast(images, prompts)

        ours = run(pipe, call, reward=watched, prompt=None, **given)
        assert set(texts) == {None}
        torch.testing.assert_close(ours[0], run(pipe, call, prompt=["a fox", "a dog"])[0], atol=1e-4, rtol=1e-4)


def test_given_latents():
    pipe, call = build("sd")
    z = torch.randn(4, 4, 8, 8, generator=seeded(9))
    one = run(pipe, call, latents=z[:1])
    per_beam = run(pipe, call, latents=z[:1].expand(2, -1, -1, -1))
    torch.testing.assert_close(one.images, per_beam.images)
    assert one.nfe == 18
    per_slot = run(pipe, call, latents=z)
    assert per_slot.nfe == 20  # four starts that all count
    with pytest.raises(ValueError, match="must have 1, 2 or 4 rows"):
        run(pipe, call, latents=z[:3])


def test_starts_are_the_first_that_stock_would_draw():
    pipe, call = build("sd")
    z = torch.randn(4, 4, 8, 8, generator=seeded())
    fresh = seeded()
    torch.randn(4, 4, 8, 8, generator=fresh)
    torch.testing.assert_close(run(pipe, call).images, run(pipe, call, latents=z[:2], generator=fresh).images)


def test_injected_noise():
    pipe, call = build("sd")
    asked = []

    def sampler(node, shape):
        asked.append((node, tuple(shape)))
        return torch.randn(shape, generator=seeded(node))

    z = torch.randn(2, 4, 8, 8, generator=seeded(9))
    arguments = {"num_inference_steps": 3, "output_type": "pt", "latents": z} | call
    first = LatentSearch(pipe, contrast, configured())("a fox", noise_sampler=sampler, **arguments)
    assert asked == [(0, (4, 4, 8, 8)), (1, (4, 4, 8, 8))]
    again = LatentSearch(pipe, contrast, configured())("a fox", noise_sampler=sampler, **arguments)
    assert torch.equal(first.images, again.images)


def test_own_eta_of_the_pipeline_does_not_count():
    for name in ("sd", "cogvideox"):
        pipe, call = build(name)
        results = [run(pipe, call, eta=eta) for eta in (0.0, 1.0)]
        assert torch.equal(results[0][0], results[1][0])
        assert all(entry["rewards"].unique().numel() > 2 for entry in results[0].history)


def test_bfloat16_loop_and_float32_step():
    pipe, call = build("sd")
    pipe.to(torch.bfloat16)
    out = run(pipe, call, output_type="latent")
    assert out.images.dtype == torch.bfloat16 and out.images.isfinite().all()
    torch.testing.assert_close(
        run(pipe, call).rewards[:, 0], contrast(run(pipe, call).images, None), atol=1e-2, rtol=1e-2
    )


def test_a_tiny_decoder_for_scoring():
    pipe, call = build("sd")
    calls = []

    def tiny_decoder(latents, owner):
        assert owner is pipe
        calls.append(len(latents))
        return latents[:, :3].sigmoid()

    searched = LatentSearch(pipe, contrast, configured(decode_batch_size=3), decode_fn=tiny_decoder)
    out = searched("a fox", num_inference_steps=3, output_type="pt", generator=seeded(), **call)
    assert calls == [3, 1, 3, 1, 2] and out.images.shape == (1, 3, 16, 16)


@pytest.mark.slow
def test_as_many_are_decoded_at_once_as_make_up_a_picture_of_a_megapixel(monkeypatch):
    """The default changes how often the decoder is called, and no bit of what comes out."""

    def decoded(pixels, **settings):
        pipe, call = build("sd")
        monkeypatch.setattr("alignext.pipelines.latent_search.reward.DECODED_PIXELS", pixels)
        decode, calls = pipe.vae.decode, []
        pipe.vae.decode = lambda z, **kwargs: calls.append(len(z)) or decode(z, **kwargs)
        return run(pipe, call, configured(num_beams=4, **settings)), calls[:-1]  # the last is of the winner

    one, calls = decoded(1024 * 1024, decode_batch_size=1)
    assert calls == [1] * 20
    default, calls = decoded(1024 * 1024)
    assert calls == [8, 8, 4]
    assert torch.equal(one.images, default.images) and torch.equal(one.rewards, default.rewards)
    # Before the first picture, sixteen pixels are expected of each of the 4 x 8 x 8 numbers; there is one of each.
    assert decoded(16 * 16 * 8)[1] == [1, 7, 8, 4]
    assert decoded(16)[1] == [1] * 20


def test_sits_on_the_timesteps_that_stock_corrects(tmp_path):
    """A scheduler's file without `steps_offset`: stock sets it to 1, and so does the search, also after saving."""
    parts = tiny.sd_components()
    config = {k: v for k, v in parts["scheduler"].config.items() if k not in ("steps_offset", "clip_sample")}
    with pytest.warns(FutureWarning):
        pipe = StableDiffusionPipeline(**parts | {"scheduler": DDIMScheduler.from_config(config)})
    pipe.set_progress_bar_config(disable=True)
    search = LatentSearch(pipe, contrast, configured(lookahead_steps=1))
    arguments = {"num_inference_steps": 5, "output_type": "pt"}
    found = search("a fox", generator=seeded(), **arguments)
    pipe.scheduler.set_timesteps(5)
    assert search.scheduler.timesteps.tolist() == pipe.scheduler.timesteps.tolist() == [801, 601, 401, 201, 1]
    pipe.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    loaded = LatentSearch(again, contrast, configured(lookahead_steps=1))("a fox", generator=seeded(), **arguments)
    assert torch.equal(found.images, loaded.images)


def test_messages_follow_the_verbosity_of_diffusers(caplog):
    pipe, call = build("sd")
    for quiet in (False, True):
        warn_once.cache_clear()
        before = logging.get_verbosity()
        logging.set_verbosity_error() if quiet else logging.set_verbosity_warning()
        try:
            run(pipe, call, reward=lambda images, prompts: [math.nan, *[1.0] * (len(images) - 1)])
        finally:
            logging.set_verbosity(before)
        assert (caplog.text == "") if quiet else (caplog.text.count("loses variance") == 1)
        assert (caplog.text == "") if quiet else (caplog.text.count("NaN or -inf") == 1)
        caplog.clear()


def test_an_unknown_pipeline_decodes_through_its_own_call(monkeypatch):
    pipe, call = build("sd")

    known = run(pipe, call)
    monkeypatch.setattr(decode, "_DECODERS", {})
    encode, encoded = pipe.text_encoder.forward, []
    pipe.text_encoder.forward = lambda *args, **kwargs: encoded.append(1) or encode(*args, **kwargs)
    fallback = run(pipe, call)
    # With and without the prompt, for the search, for decoding four samples and two, and for what comes back.
    assert len(encoded) == 2 * 4
    torch.testing.assert_close(fallback.images, known.images)
    torch.testing.assert_close(fallback.rewards, known.rewards, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["sd", *(pytest.param(n, marks=pytest.mark.slow) for n in ("flux", "text-to-video-sd", "ltx"))]
)
@pytest.mark.parametrize("method", [RandomNoiseSearch(rounds=2), ZeroOrderNoiseSearch(rounds=2, neighbors=2)])
def test_search_over_the_initial_noise(name, method):
    pipe, call = build(name)
    tries = {RandomNoiseSearch: {6}, ZeroOrderNoiseSearch: {5, 6}}[type(method)]
    out = run(pipe, call, method, prompt=["a fox", "a green dog"], generator=[seeded(1), seeded(2)])
    steps = len(pipe.scheduler.timesteps)
    assert out.nfe == steps * out.reward_evals and out.reward_evals in {a + b for a in tries for b in tries}
    torch.testing.assert_close(out.rewards[:, 0], contrast(out[0], None), atol=1e-3, rtol=1e-3)
    for p in (0, 1):
        rounds = [entry["rewards"].max() for entry in out.history if entry["prompt"] == p]
        torch.testing.assert_close(out.rewards[p, 0], max(rounds))
        one = run(pipe, call, method, prompt=["a fox", "a green dog"][p], generator=seeded(p + 1))
        torch.testing.assert_close(one.rewards[0], out.rewards[p], atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="Leave them out"):
        run(pipe, call, method, latents=torch.zeros(1))


# ------------------------------------------------------------------------------------------ leaving no trace, stopping


class Stop(BaseException):
    pass


def test_nothing_stays_behind_after_an_exception():
    pipe, call = build("sd")
    before = {k: dict(vars(m)) for k, m in pipe.unet.named_modules()}
    state, scheduler, config = dict(vars(pipe)), pipe.scheduler, pipe.config

    def failing(images, prompts):
        raise Stop

    with pytest.raises(Stop):
        run(pipe, call, configured(model_batch_size=1), failing)
    assert pipe.scheduler is scheduler and pipe.config == config
    assert pipe._progress_bar_config == state["_progress_bar_config"]
    assert {k: dict(vars(m)) for k, m in pipe.unet.named_modules()} == before


@pytest.mark.parametrize("name", ["sd", "text-to-video-sd"])
@pytest.mark.parametrize("when", [1, 3])
def test_an_interrupt_returns_the_best_so_far(name, when):
    pipe, call = build(name)
    count = []

    def interrupted(images, prompts):
        count.append(len(images))
        if len(count) == when + 1:
            raise KeyboardInterrupt
        return contrast(images, prompts)

    out = run(pipe, call, reward=interrupted, num_inference_steps=6)
    assert out.interrupted and len(out.history) == when
    assert out.rewards[0, 0] == out.history[-1]["rewards"].max()
    torch.testing.assert_close(out.rewards[:, 0], contrast(out[0], None), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "config",
    [configured(), configured(strategy="none"), configured(strategy="best_of_n"), RandomNoiseSearch(rounds=1)],
    ids=["search", "stock", "best of n", "noise"],
)
def test_what_ran_to_its_end_says_so(config):
    pipe, call = build("sd")
    out = run(pipe, call, config)
    assert out.interrupted is False and list(out)[-1] == "interrupted"
    assert len(run(pipe, call, config, return_dict=False)) == len(out) - 1 + ("nsfw_content_detected" not in out)


def test_an_interrupt_before_anything_is_scored_is_an_interrupt():
    pipe, call = build("sd")

    def forward(*args, **kwargs):
        raise KeyboardInterrupt

    pipe.unet.forward = forward
    with pytest.raises(KeyboardInterrupt):
        run(pipe, call)


def test_the_interrupt_flag_of_the_pipeline():
    pipe, call = build("sd")

    def stop(owner, i, t, tensors):
        assert owner is pipe
        owner._interrupt = i == 4
        return tensors

    out = run(pipe, call, num_inference_steps=6, callback_on_step_end=stop)
    assert out.interrupted and len(out.history) == 2
    torch.testing.assert_close(out.rewards[:, 0], contrast(out[0], None), atol=1e-4, rtol=1e-4)


def test_one_progress_bar_with_evaluations_and_the_best_reward(capsys):
    pipe, call = build("sd")
    pipe.set_progress_bar_config(disable=False, mininterval=0)
    run(pipe, call)
    shown = capsys.readouterr().err
    assert "5/5" in shown and "nfe=18" in shown and "best=" in shown and shown.count(" 0it [") == 1
    pipe.set_progress_bar_config(disable=True)
    run(pipe, call)
    assert capsys.readouterr().err == ""


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "arguments, text",
    [
        (
            {"num_images_per_prompt": 3},
            "3 outputs per prompt were asked for and 2 survive with `strategy='beam'`. Raise `num_beams`",
        ),
        (
            {"num_images_per_prompt": 2, "config": configured(strategy="greedy")},
            "1 survive with `strategy='greedy'`, whatever the budget. Take 'beam', or ask for one",
        ),
        (
            {"num_images_per_prompt": 2, "config": RandomNoiseSearch(rounds=1)},
            "1 survive with RandomNoiseSearch. Ask for one",
        ),
        ({"generator": [seeded(), seeded()]}, "one for each of 1 prompts, received 2"),
        ({"prompt": None}, "`prompt` must be a string or a list"),
    ],
)
def test_bad_calls_are_named(arguments, text):
    pipe, call = build("sd")
    with pytest.raises(ValueError, match=text):
        run(pipe, call, **arguments)


@pytest.mark.parametrize(
    "wrong, right",
    [("steps", "num_inference_steps"), ("guidance_scal", "guidance_scale"), ("noise_smapler", "noise_sampler")],
)
def test_misspelt_arguments_are_named_with_the_right_one(wrong, right):
    pipe, _ = build("sd")  # its call swallows what it does not know
    with pytest.raises(TypeError, match=f"has no argument `{wrong}`. Use `{right}`"):
        LatentSearch(pipe, contrast)("a fox", **{wrong: 3})
    ours = StableDiffusionSearchPipeline(**pipe.components, requires_safety_checker=False)
    with pytest.raises(TypeError, match=r"has no argument `reward_func`. Use `reward_fn`"):
        ours("a fox", reward_func=contrast)


@pytest.mark.parametrize(
    "config",
    [configured(), configured(strategy="best_of_n"), RandomNoiseSearch(rounds=1)],
    ids=["beam", "best", "noise"],
)
def test_a_prompt_without_a_finite_reward_has_no_best(config):
    pipe, call = build("sd")
    with pytest.raises(ValueError, match="no finite number for any sample of a prompt"):
        run(pipe, call, config, lambda images, prompts: [float("nan") if "cat" in p else 1.0 for p in prompts],
            prompt=["a fox", "a cat"])  # fmt: skip


def test_bad_rewards_and_pipelines_are_named():
    pipe, call = build("sd")
    with pytest.raises(ValueError, match="`reward_fn` must be callable"):
        LatentSearch(pipe, "brightness")
    with pytest.raises(ValueError, match="returned None"):
        run(pipe, call, reward=lambda images, prompts: None)
    with pytest.raises(TypeError, match="must be a diffusers pipeline"):
        run(torch.nn.Linear(1, 1), call)
    animated, call = build("animatediff")
    animated.enable_free_init()
    with pytest.raises(ValueError, match="FreeInit"):
        run(animated, call)


@pytest.mark.parametrize(
    "name, argument",
    [("sd", {"ip_adapter_image_embeds": [torch.zeros(1)]}), ("sdxl", {"denoising_end": 0.5})],
)
def test_what_is_not_supported_is_not_implemented(name, argument):
    pipe, call = build(name)
    with pytest.raises(NotImplementedError, match=f"`{next(iter(argument))}` .* Leave it out"):
        run(pipe, call, **argument)


def test_a_pipeline_that_steps_a_scheduler_of_its_own_is_refused_before_an_evaluation():
    pipe = RIVALPipeline(**tiny.sd_components())
    pipe.set_progress_bar_config(disable=True)
    rows, scheduler = Rows(pipe), pipe.scheduler
    reference = Image.new("RGB", (16, 16), "red")
    for config in (configured(), configured(strategy="best_of_n"), RandomNoiseSearch(rounds=1)):
        with pytest.raises(NotImplementedError, match="RIVALPipeline cannot be searched in this call: it steps"):
            run(pipe, {}, config, reference_image=reference)
    assert rows.total == 0 and pipe.scheduler is scheduler


def test_a_loop_that_copies_the_scheduler_or_never_asks_for_timesteps_is_refused():
    """As those do that denoise sound beside pictures, or make a scheduler inside the call."""

    class Copies(StableDiffusionPipeline):
        def prepare_extra_step_kwargs(self, *args):
            copy.deepcopy(self.scheduler)

    class Makes(StableDiffusionPipeline):
        def __call__(self, prompt, generator=None, output_type="pil", return_dict=True, **kwargs):
            other = DDIMScheduler.from_config(self.scheduler.config)
            other.set_timesteps(2)
            self.unet(torch.zeros(4, 4, 8, 8), other.timesteps[0], torch.zeros(4, 16, 16))

    for cls, text in ((Copies, "copies its scheduler"), (Makes, "steps a scheduler of its own")):
        pipe = cls(**tiny.sd_components())
        pipe.set_progress_bar_config(disable=True)
        rows = Rows(pipe)
        with pytest.raises(NotImplementedError, match=text):
            run(pipe, {})
        assert rows.total == 0


def test_a_pipeline_without_a_scheduler_is_refused():
    pipe, call = build("sd")
    pipe.scheduler = None
    with pytest.raises(NotImplementedError, match="StableDiffusionPipeline has no `scheduler`"):
        run(pipe, call)


def test_a_cached_denoiser_is_refused():
    pipe, call = build("flux")
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="disable_cache"):
        run(pipe, call)
