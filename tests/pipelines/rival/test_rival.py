# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""RIVAL on a tiny random Stable Diffusion: the traps of the method, each as the test that exposes it.

The yardstick is `joint_batch`, the method written out from the paper.
"""

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionPipeline

from alignext.pipelines.rival import RIVALInversion, RIVALPipeline, alignment
from tests.pipelines.rival.joint import Recorder, T, generator, joint_batch, latents_for, run
from tests.pipelines.tiny import SIZE, sd_components


@pytest.fixture
def pipe():
    pipe = RIVALPipeline(**sd_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def picture():
    return torch.rand(3, SIZE, SIZE, generator=generator(7))


def embed(pipe, prompt):
    return pipe.encode_prompt(prompt, pipe.device, 1, False)[0]


# ----------------------------------------------------------------------- traps 2, 5, 8: agreement with the joint batch

SETTINGS = {
    "variation": dict(t_inject=1000),
    "all three gates": dict(t_align=300, t_inject=700),
    "replace only": dict(t_align=-1, t_inject=1000, t_early=1000),
    "concat only": dict(t_align=1000, t_early=1000),
    "alignment only": dict(t_inject=-1, t_align=-1, t_early=400),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("reference_prompt", ["", "a blue bird"])
@pytest.mark.parametrize("w", [5.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_agrees_with_the_joint_batch(pipe, picture, name, reference_prompt, w):
    inversion = pipe.invert(picture, reference_prompt, T)
    x_T = latents_for(pipe, 2)
    ours = run(pipe, inversion=inversion, latents=x_T, num_images_per_prompt=2, guidance_scale=w, **SETTINGS[name])
    expected = joint_batch(pipe, inversion, "a red fox", x_T, w=w, **SETTINGS[name])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        "mixed branches",
        "chain off by one",
        "alignment before guidance",
        "guided reference noise",
        "unconditional reference noise",
        "global statistics",
    ],
)
def test_the_joint_batch_tells_mistakes_apart(pipe, picture, wrong):
    inversion = pipe.invert(picture, "a blue bird", T)
    x_T = latents_for(pipe)
    right = run(pipe, inversion=inversion, latents=x_T)
    assert (joint_batch(pipe, inversion, "a red fox", x_T, wrong=wrong) - right).abs().max() > 0.05


def test_reference_rows_are_the_chain_at_the_same_timestep(pipe, picture, monkeypatch):
    inversion = pipe.invert(picture, "a blue bird", T)
    recorder = Recorder(pipe, monkeypatch)
    run(pipe, inversion=inversion)
    assert len(recorder.calls) == T
    for t, sample, _ in recorder.calls:
        k = inversion.timesteps.tolist().index(t) + 1
        assert torch.equal(sample[2:], torch.cat([inversion.latents[k]] * 2))


# ---------------------------------------------------------------------------------------- trap 3: inversion arithmetic


def test_constant_noise_comes_back_to_the_picture(pipe, monkeypatch):
    noise, calls = torch.randn(1, 4, 8, 8, generator=generator(9)), []

    def constant(sample, t, **kwargs):
        calls.append((len(sample), int(t)))
        return (noise.expand_as(sample),)

    monkeypatch.setattr(pipe.unet, "forward", constant)
    z_0 = torch.cat([latents_for(pipe), latents_for(pipe, seed=4)])
    inversion = pipe.invert(latents=z_0, num_inference_steps=T)
    assert torch.equal(inversion.latents[0], z_0)
    assert calls == [(2, t) for t in inversion.timesteps.tolist()]  # T calls of R rows, no guidance
    pipe.scheduler.set_timesteps(T)
    x = inversion.latents[-1]
    for t in pipe.scheduler.timesteps:
        x = pipe.scheduler.step(noise.expand_as(x), t, x).prev_sample
    torch.testing.assert_close(x, z_0, rtol=0, atol=1e-4)


def test_chain_is_the_written_out_ddim_inversion(pipe, picture):
    inversion = pipe.invert(picture, "a blue bird", T)
    abar, delta = pipe.scheduler.alphas_cumprod, 1000 // T
    z = inversion.latents[0]
    with torch.no_grad():
        for k, tau in enumerate(range(1, 1000, delta), start=1):
            a_s = abar[tau - delta] if tau >= delta else abar[0]
            e = pipe.unet(z, tau, encoder_hidden_states=inversion.prompt_embeds).sample
            z = abar[tau].sqrt() * (z - (1 - a_s).sqrt() * e) / a_s.sqrt() + (1 - abar[tau]).sqrt() * e
            torch.testing.assert_close(inversion.latents[k], z, rtol=1e-5, atol=1e-5)
    assert inversion.latents.dtype == torch.float32 and inversion.timesteps.tolist() == list(range(1, 1000, delta))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_diffusers_inverse_grid_is_ours(pipe, picture, spacing):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing=spacing)
    inversion = pipe.invert(picture, num_inference_steps=T)
    pipe.scheduler.set_timesteps(T)
    assert inversion.timesteps.tolist() == pipe.scheduler.timesteps.flip(0).tolist()
    assert isinstance(DDIMInverseScheduler.from_config(pipe.scheduler.config), DDIMInverseScheduler)
    run(pipe, inversion=inversion)  # and it runs on that grid


# ------------------------------------------------------------------------------------------------------- trap 4: gates


@pytest.mark.parametrize(
    ("steps", "task", "plain", "replace", "concat", "aligned"),
    [
        (50, "variation", 0, 19, 31, 20),
        pytest.param(50, "text2image", 1, 18, 31, 20, marks=pytest.mark.slow),
        (20, "variation", 0, 7, 13, 8),
        pytest.param(10, "variation", 0, 3, 7, 4, marks=pytest.mark.slow),
        pytest.param(30, "variation", 0, 11, 19, 11, marks=pytest.mark.slow),
    ],
)
def test_gates_per_step(pipe, picture, monkeypatch, steps, task, plain, replace, concat, aligned):
    recorder = Recorder(pipe, monkeypatch)
    first = run(pipe, reference_image=picture, num_inference_steps=steps, task=task, generator=generator())
    modes = [mode for mode, _ in recorder.modes]
    assert (modes.count("plain"), modes.count("replace"), modes.count("concat")) == (plain, replace, concat)
    assert sum(active for _, active in recorder.modes) == aligned
    # A counter that leaks into the next call (T = 30 does not divide 1000) would change the second result.
    assert torch.equal(
        first, run(pipe, reference_image=picture, num_inference_steps=steps, task=task, generator=generator())
    )


# ------------------------------------------------------------------------------------------- trap 6: self-reference


def test_self_reference_is_the_identity(pipe, picture):
    """Same latents, same prompt, no guidance: replace, concat and plain agree, and the alignment changes nothing."""
    inversion = pipe.invert(picture, "a red fox", T)
    one_step = {}
    for mode, knobs in {
        "plain": dict(t_align=-1, t_inject=-1, t_early=1000),
        "replace": dict(t_align=-1, t_inject=1000, t_early=1000),
        "concat": dict(t_align=1000, t_inject=1000, t_early=1000),
        "alignment": dict(t_align=-1, t_inject=-1, t_early=-1),
    }.items():
        first = []
        run(
            pipe,
            inversion=inversion,
            latents=inversion.latents[-1],
            guidance_scale=1.0,
            callback_on_step_end=lambda pipe, i, t, kwargs, first=first: first.append(kwargs["latents"]) or kwargs,
            **knobs,
        )
        one_step[mode] = first[0]
    for mode, latents in one_step.items():
        torch.testing.assert_close(latents, one_step["plain"], rtol=0, atol=1e-5, msg=mode)


# -------------------------------------------------------------------------------------- traps 9, 10: draws and batches


def test_same_seed_same_images(pipe, picture):
    a, b, c = (run(pipe, reference_image=picture, generator=generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize(
    "init", ["shuffle", "inverted", *(pytest.param(init, marks=pytest.mark.slow) for init in ("gaussian", "noise"))]
)
def test_a_list_of_generators_is_one_per_image(pipe, picture, init):
    batch = run(
        pipe, reference_image=picture, init=init, num_images_per_prompt=2, generator=[generator(0), generator(1)]
    )
    for i, seed in enumerate((0, 1)):
        single = run(pipe, reference_image=picture, init=init, generator=[generator(seed)])
        torch.testing.assert_close(batch[i : i + 1], single, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_several_images_equal_single_runs(pipe, picture):
    x_T = latents_for(pipe, 3)
    together = run(pipe, reference_image=picture, latents=x_T, num_images_per_prompt=3)
    for i in range(3):
        alone = run(pipe, reference_image=picture, latents=x_T[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize("task", ["variation", "text2image"])
def test_several_references_equal_separate_runs(pipe, task):
    pictures = [torch.rand(3, SIZE, SIZE, generator=generator(s)) for s in (7, 8)]
    prompts, x_T = ["a red fox", "a blue bird"], latents_for(pipe, 4)
    together = run(pipe, prompts, reference_image=pictures, latents=x_T, num_images_per_prompt=2, task=task)
    for i in range(2):
        rows = slice(2 * i, 2 * i + 2)
        alone = run(
            pipe, prompts[i], reference_image=pictures[i], latents=x_T[rows], num_images_per_prompt=2, task=task
        )
        torch.testing.assert_close(together[rows], alone, rtol=0, atol=1e-3)
    shared = run(pipe, "a red fox", reference_image=pictures, latents=x_T[:2], task=task)
    alone = run(pipe, "a red fox", reference_image=pictures[1], latents=x_T[1:2], task=task)
    torch.testing.assert_close(shared[1:], alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize("prompt", ["a red fox", ["a red fox"]])
def test_several_references_share_a_negative_prompt(pipe, prompt):
    pictures = [torch.rand(3, SIZE, SIZE, generator=generator(s)) for s in (7, 8)]
    x_T, given = latents_for(pipe, 2), {"reference_prompt": "a bird", "negative_prompt": "a house"}
    shared = run(pipe, prompt, reference_image=pictures, latents=x_T, **given)
    for i in range(2):
        alone = run(pipe, "a red fox", reference_image=pictures[i], latents=x_T[i : i + 1], **given)
        torch.testing.assert_close(shared[i : i + 1], alone, rtol=0, atol=1e-3)
    without = run(pipe, prompt, reference_image=pictures, latents=x_T, reference_prompt="a bird")
    assert not torch.allclose(shared, without, atol=1e-3)


def test_several_prompts_share_one_reference(pipe, picture):
    x_T = latents_for(pipe, 2)
    together = run(pipe, ["a red fox", "a blue bird"], reference_image=picture, reference_prompt="", latents=x_T)
    alone = run(pipe, "a blue bird", reference_image=picture, reference_prompt="", latents=x_T[1:])
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="reference_prompt"):
        run(pipe, ["a red fox", "a blue bird"], reference_image=picture, latents=x_T)


# ------------------------------------------------------------------------------------------------ trap 11: no guidance


def test_injection_works_without_guidance(pipe, picture):
    kwargs = dict(reference_image=picture, latents=latents_for(pipe), guidance_scale=1.0)
    assert (run(pipe, **kwargs) - run(pipe, **kwargs, t_inject=-1, t_align=-1, t_early=1000)).abs().max() > 0.05


def test_guidance_switched_off_half_way_keeps_working(pipe, picture, monkeypatch):
    from diffusers.callbacks import SDCFGCutoffCallback

    recorder = Recorder(pipe, monkeypatch)
    run(
        pipe,
        reference_image=picture,
        callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=4),
    )
    assert recorder.rows()[T:] == [4] * 5 + [2] * 5


# ------------------------------------------------------------------------------------------------- trap 12: inpainting


@pytest.fixture
def mask():
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., 4:12, 2:10] = 1
    return mask


def test_inpainting_keeps_what_is_not_repainted(pipe, picture, mask):
    inversion = pipe.invert(picture, num_inference_steps=T)
    keep = torch.nn.functional.interpolate(mask, scale_factor=1 / pipe.vae_scale_factor)[0, 0] < 0.5
    seen = []
    run(
        pipe,
        inversion=inversion,
        task="inpainting",
        mask_image=mask,
        generator=generator(),
        callback_on_step_end=lambda pipe, i, t, kwargs: seen.append(kwargs["latents"].clone()) or kwargs,
    )
    for i, latents in enumerate(seen):
        assert torch.equal(latents[0][:, keep], inversion.latents[T - i - 1, 0][:, keep])
        assert not torch.equal(latents[0][:, ~keep], inversion.latents[T - i - 1, 0][:, ~keep])


def test_inpainting_agrees_with_the_joint_batch(pipe, picture, mask):
    inversion, x_T = pipe.invert(picture, num_inference_steps=T), latents_for(pipe)
    ours = run(pipe, inversion=inversion, latents=x_T, task="inpainting", mask_image=mask)
    keep = torch.nn.functional.interpolate(mask, scale_factor=1 / pipe.vae_scale_factor) < 0.5
    torch.testing.assert_close(ours, joint_batch(pipe, inversion, "a red fox", x_T, keep=keep), rtol=0, atol=1e-3)


def test_inverting_the_mask_changes_the_rest(pipe, picture, mask):
    kwargs = dict(reference_image=picture, task="inpainting", latents=latents_for(pipe))
    a, b = run(pipe, **kwargs, mask_image=mask), run(pipe, **kwargs, mask_image=1 - mask)
    assert (a != b).any(1).all()


@pytest.mark.slow
def test_repainting_everything_is_a_variation(pipe, picture, mask):
    kwargs = dict(reference_image=picture, latents=latents_for(pipe))
    all_white = run(pipe, **kwargs, task="inpainting", mask_image=torch.ones_like(mask))
    assert torch.equal(all_white, run(pipe, **kwargs, task="inpainting", mask_image=torch.ones_like(mask)))
    variation = run(pipe, **kwargs, task="variation", guidance_scale=5.0, reference_prompt="")
    torch.testing.assert_close(all_white, variation, rtol=0, atol=0)


# --------------------------------------------------------------------------- traps 14, 15: sharing and reuse, and cost


def test_null_reference_needs_one_row(pipe, picture, monkeypatch):
    inversion, x_T = pipe.invert(picture, "", T), latents_for(pipe)
    assert inversion.is_null
    recorder = Recorder(pipe, monkeypatch)
    shared = run(pipe, inversion=inversion, latents=x_T)
    assert recorder.rows() == [3] * T
    monkeypatch.setattr(RIVALInversion, "is_null", False)
    recorder.calls.clear()
    two_rows = run(pipe, inversion=inversion, latents=x_T)
    assert recorder.rows() == [4] * T
    torch.testing.assert_close(shared, two_rows, rtol=0, atol=1e-3)


@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize(("reference_prompt", "reference_rows"), [("", 1), ("a blue bird", 2)])
def test_unet_rows(pipe, picture, monkeypatch, N, reference_prompt, reference_rows):
    recorder = Recorder(pipe, monkeypatch)
    run(pipe, reference_image=picture, reference_prompt=reference_prompt, num_images_per_prompt=N)
    assert sum(recorder.rows()) == T + (reference_rows + 2 * N) * T
    assert len(recorder.calls) == 2 * T  # the reference's rows are in the images' calls


@pytest.mark.parametrize("reference_prompt", ["", "a blue bird"])
def test_one_call_for_both_is_two_calls(pipe, picture, monkeypatch, reference_prompt):
    kwargs = dict(reference_image=picture, reference_prompt=reference_prompt, num_images_per_prompt=2, t_inject=900)
    x_T = latents_for(pipe, 2)
    together = run(pipe, latents=x_T, **kwargs)
    monkeypatch.setattr(alignment, "_joined", lambda call, reference: None)
    recorder = Recorder(pipe, monkeypatch)
    torch.testing.assert_close(run(pipe, latents=x_T, **kwargs), together, rtol=0, atol=1e-4)
    assert recorder.rows()[T:] == [2 if reference_prompt else 1, 4] * T


@pytest.mark.parametrize("differs", ["size", "length of the text", "images of a control"])
def test_rows_that_do_not_go_together_are_two_calls(differs):
    call = {"sample": torch.zeros(2, 4, 8, 8), "encoder_hidden_states": torch.zeros(2, 7, 3), "timestep_cond": None}
    reference = {"sample": torch.ones(1, 4, 8, 8), "encoder_hidden_states": torch.ones(1, 7, 3)}
    reference["added_cond_kwargs"] = None
    joint = alignment._joined(call, reference)
    assert joint["sample"].shape == (3, 4, 8, 8) and joint["encoder_hidden_states"].flatten(1).sum(1).tolist() == [
        0.0,
        0.0,
        21.0,
    ]
    other = {
        "size": {"sample": torch.zeros(2, 4, 8, 6)},
        "length of the text": {"encoder_hidden_states": torch.zeros(2, 9, 3)},
        "images of a control": {"controls": torch.zeros(2, 3)},
    }[differs]
    assert alignment._joined(call | other, reference) is None


def test_reference_pass_is_skipped_or_halved_where_nothing_needs_it(pipe, picture, monkeypatch):
    inversion = pipe.invert(picture, "a blue bird", T)
    recorder = Recorder(pipe, monkeypatch)
    run(pipe, inversion=inversion, t_align=-1, t_inject=400, t_early=700)
    rows = dict.fromkeys(inversion.timesteps.tolist(), 0)
    for t, sample, _ in recorder.calls:
        rows[t] += len(sample)
    for t, n in rows.items():
        assert n == 2 + (2 if t - 1 <= 400 else 1 if t > 700 else 0)


def test_reusing_an_inversion_changes_nothing(pipe, picture, tmp_path):
    fresh = run(pipe, reference_image=picture, generator=generator())
    inversion = pipe.invert(picture, "a red fox", T)
    assert torch.equal(run(pipe, inversion=inversion, generator=generator()), fresh)
    assert torch.equal(run(pipe, reference_image=inversion, num_inference_steps=T, generator=generator()), fresh)
    inversion.save(tmp_path / "inversion.safetensors")
    loaded = RIVALInversion.load(tmp_path / "inversion.safetensors")
    assert torch.equal(run(pipe, inversion=loaded, generator=generator()), fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["inversion.safetensors"]


def test_keys_recorded_during_inversion_are_not_equivalent(pipe, picture):
    """(z_{k-1}, tau_k), as the inversion sees it, instead of (z_k, tau_k)."""
    inversion, x_T = pipe.invert(picture, "a red fox", T), latents_for(pipe)
    stale = joint_batch(pipe, inversion, "a red fox", x_T, wrong="chain off by one")
    assert (run(pipe, inversion=inversion, latents=x_T) - stale).abs().max() > 0.05


def test_an_unfinished_save_leaves_the_old_file(pipe, picture, tmp_path, monkeypatch):
    path = tmp_path / "inversion.safetensors"
    path.write_text("precious")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    inversion = pipe.invert(picture, num_inference_steps=2)
    monkeypatch.setattr("alignext.hub_files.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        inversion.save(path)
    assert path.read_text() == "precious"


# ------------------------------------------------------------------------------------------- trap 16: other processors


@pytest.mark.parametrize("how", ["sliced", "fused", "vanilla"])
def test_other_attention_processors_give_the_same(pipe, picture, how):
    from diffusers.models.attention_processor import AttnProcessor

    x_T = latents_for(pipe, 2)
    expected = run(pipe, reference_image=picture, latents=x_T, num_images_per_prompt=2, t_inject=800)
    if how == "sliced":
        pipe.enable_attention_slicing(1)
    elif how == "fused":
        pipe.fuse_qkv_projections()
    else:
        pipe.unet.set_attn_processor(AttnProcessor())
    got = run(pipe, reference_image=picture, latents=x_T, num_images_per_prompt=2, t_inject=800)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


# ---------------------------------------------------------------------------------------------------- strengths (ours)


@pytest.mark.slow
def test_strengths_have_their_ends(pipe, picture):
    kwargs = dict(reference_image=picture, latents=latents_for(pipe))
    paper = run(pipe, **kwargs)
    assert torch.equal(run(pipe, **kwargs, adain_strength=1.0, reference_weight=1.0), paper)
    assert torch.equal(run(pipe, **kwargs, adain_strength=0), run(pipe, **kwargs, t_early=1000))
    concat = dict(t_align=1000, t_early=1000)
    dropped = run(pipe, **kwargs, **concat, reference_weight=0)
    plain = run(pipe, **kwargs, t_align=-1, t_inject=-1, t_early=1000)
    torch.testing.assert_close(dropped, plain, rtol=0, atol=1e-4)
    assert (run(pipe, **kwargs, **concat, reference_weight=0.3) - dropped).abs().max() > 0.01


# -------------------------------------------------------------------------------------------------------- v-prediction


def test_v_prediction_aligns_the_noise_it_implies(pipe, picture):
    """The same network read as v: one aligned step equals the step from epsilon computed by hand."""
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction")
    inversion, x_T = pipe.invert(picture, "", T), latents_for(pipe)
    first = []
    run(
        pipe,
        inversion=inversion,
        latents=x_T,
        guidance_scale=1.0,
        t_align=-1,
        t_inject=-1,
        callback_on_step_end=lambda pipe, i, t, kwargs: first.append(kwargs["latents"]) or kwargs,
    )
    t = inversion.timesteps[-1]
    a = pipe.scheduler.alphas_cumprod[t]
    with torch.no_grad():
        v_R = pipe.unet(inversion.latents[-1], t, encoder_hidden_states=inversion.prompt_embeds).sample
        v_G = pipe.unet(x_T, t, encoder_hidden_states=embed(pipe, "a red fox")).sample
    e_R, e_G = (a.sqrt() * v + (1 - a).sqrt() * x for v, x in ((v_R, inversion.latents[-1]), (v_G, x_T)))
    var_R, mu_R = torch.var_mean(e_R, (2, 3), keepdim=True)
    var_G, mu_G = torch.var_mean(e_G, (2, 3), keepdim=True)
    e = (e_G - mu_G) * ((var_R + 1e-5) / (var_G + 1e-5)).sqrt() + mu_R
    a_next = pipe.scheduler.alphas_cumprod[t - 1000 // T]
    x_0 = (x_T - (1 - a).sqrt() * e) / a.sqrt()
    expected = a_next.sqrt() * x_0 + (1 - a_next).sqrt() * e
    torch.testing.assert_close(first[0], expected, rtol=1e-4, atol=1e-3)


# ---------------------------------------------------------------------------------------------------- other schedulers


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_other_schedulers_are_swapped_and_put_back(pipe, picture, name):
    import diffusers

    config = {key: pipe.scheduler.config[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    x_T = latents_for(pipe)
    expected = run(pipe, reference_image=picture, latents=x_T)
    pipe.scheduler = other = getattr(diffusers, name)(**config)
    assert torch.equal(run(pipe, reference_image=picture, latents=x_T), expected)
    assert pipe.scheduler is other and pipe.config["scheduler"][1] == name


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")  # of the stock class
@pytest.mark.parametrize("left_out", [["steps_offset"], ["clip_sample"], ["steps_offset", "clip_sample"]])
def test_values_that_the_stock_pipeline_corrects_hold_in_the_inversion(pipe, picture, left_out):
    """A configuration without them steps where one with the stock values steps, and is not clipped."""
    expected = pipe.invert(picture, num_inference_steps=T)
    config = {k: v for k, v in pipe.scheduler.config.items() if k not in left_out and not k.startswith("_")}
    config["_use_default_values"] = left_out
    bare = RIVALPipeline(**pipe.components | {"scheduler": DDIMScheduler.from_config(config)})
    bare.set_progress_bar_config(disable=True)
    inversion = bare.invert(picture, num_inference_steps=T)
    assert torch.equal(inversion.timesteps, expected.timesteps)
    assert torch.equal(inversion.latents, expected.latents)
    assert run(bare, reference_image=picture).isfinite().all()


# ----------------------------------------------------------------------------------------------- as the stock pipeline


@pytest.mark.parametrize("without", [[], ["vae"]])
def test_without_a_reference_it_is_the_stock_call(pipe, without):
    if without:
        pipe.register_modules(vae=None)
    stock = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    for kwargs in ({}, {"num_images_per_prompt": 2, "guidance_rescale": 0.5}, {"latents": latents_for(pipe)}):
        call = {"num_inference_steps": 3, "output_type": "latent", **kwargs}
        ours, expected = (p("a red fox", generator=generator(), **call).images for p in (pipe, stock))
        assert torch.equal(ours, expected)


def test_latents_need_no_vae(pipe, picture):
    inversion, x_T = pipe.invert(picture, "", T), latents_for(pipe)
    expected = run(pipe, inversion=inversion, latents=x_T)
    pipe.register_modules(vae=None)
    assert torch.equal(run(pipe, inversion=inversion, latents=x_T), expected)
    again = pipe.invert(latents=inversion.latents[0], num_inference_steps=T)
    assert torch.equal(again.latents, inversion.latents)


# ---------------------------------------------------------------------------------------------------- kinds of picture


def test_every_kind_of_picture_gives_the_same(pipe):
    import numpy as np
    import PIL.Image

    array = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    tensor = torch.from_numpy(array).permute(2, 0, 1) / 255
    pictures = [array, PIL.Image.fromarray(array), array / 255.0, tensor, tensor[None], [tensor], array[None]]
    chains = [pipe.invert(p, num_inference_steps=2).latents for p in pictures]
    for chain in chains[1:]:
        torch.testing.assert_close(chain, chains[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK", "I;16"])
def test_any_pil_mode_and_shape(pipe, mode):
    import PIL.Image

    image = PIL.Image.new(mode, (70, 45))
    inversion = pipe.invert(image, num_inference_steps=2)
    assert inversion.latents.shape == (3, 1, 4, 8, 8) and inversion.latents.isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(16, 24), (32, 16)])
def test_other_sizes(pipe, picture, height, width):
    images = run(pipe, reference_image=picture, height=height, width=width)
    scale = pipe.vae_scale_factor
    assert images.shape[-2:] == (height // scale, width // scale)
    inversion = pipe.invert(picture, num_inference_steps=T)
    assert run(pipe, inversion=inversion, height=height, width=width).shape == images.shape


def test_prompt_embeddings_replace_prompts(pipe, picture):
    x_T, text = latents_for(pipe), embed(pipe, "a red fox")
    expected = run(pipe, reference_image=picture, latents=x_T)
    given = dict(prompt_embeds=text, negative_prompt_embeds=embed(pipe, ""))
    assert torch.equal(run(pipe, None, reference_image=picture, latents=x_T, **given), expected)
    inversion = pipe.invert(picture, None, T, **given)
    assert torch.equal(run(pipe, None, inversion=inversion, latents=x_T, **given), expected)
    from_latents = pipe.invert(None, None, T, latents=inversion.latents[0], **given)
    assert torch.equal(from_latents.latents, inversion.latents)
    pipe.register_modules(text_encoder=None, tokenizer=None)
    assert torch.equal(run(pipe, None, inversion=inversion, latents=x_T, **given), expected)
    with pytest.raises(ValueError, match="no text encoder"):
        run(pipe, None, reference_image=picture, **given)
