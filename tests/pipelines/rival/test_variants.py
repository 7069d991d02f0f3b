# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""RIVAL on Stable Diffusion XL and with ControlNet, and the tasks beside variation, on tiny random models."""

import inspect

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, MultiControlNetModel

from alignext import RIVALControlNetPipeline, RIVALPipeline, RIVALXLControlNetPipeline, RIVALXLPipeline, hub
from alignext.pipelines.rival import alignment
from tests.pipelines import tiny
from tests.pipelines.rival.joint import Recorder, T, encode, generator, joint_batch, latents_for, run
from tests.pipelines.tiny import SIZE


CLASSES = {
    "sd": (RIVALPipeline, tiny.sd_components),
    "xl": (RIVALXLPipeline, tiny.sdxl_components),
    "sd-controlnet": (RIVALControlNetPipeline, lambda: tiny.with_controlnet(tiny.sd_components())),
    "xl-controlnet": (RIVALXLControlNetPipeline, lambda: tiny.with_controlnet(tiny.sdxl_components())),
}
SLOW = pytest.mark.slow
# The class that is both stands for each of them: the others, where they only repeat it, are slow.
XL = [pytest.param("xl", marks=SLOW), "xl-controlnet"]
CONTROL = [pytest.param("sd-controlnet", marks=SLOW), "xl-controlnet"]
EACH = [pytest.param("xl", marks=SLOW), *CONTROL]
NEUTRAL = dict(t_inject=-1, t_align=-1, t_early=1000)
CLOSE = dict(rtol=0, atol=1e-3)


def build(variant):
    cls, components = CLASSES[variant]
    pipe = cls(**components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise_picture(seed, n=None):
    return torch.rand(*([] if n is None else [n]), 3, SIZE, SIZE, generator=generator(seed))


def control_of(variant):
    return {"image": noise_picture(8, 1)} if variant.endswith("controlnet") else {}


@pytest.fixture
def picture():
    return noise_picture(7)


# ------------------------------------------------------------------------------------------- traps 1, 2, 5, 8 on each


@pytest.mark.parametrize("variant", EACH)
@pytest.mark.parametrize("reference_prompt", [pytest.param("", marks=pytest.mark.slow), "a blue bird"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"t_align": 300, "t_inject": 700}, pytest.param({"w": 1.0}, marks=pytest.mark.slow)],
    ids=["default", "all gates", "no guidance"],
)
def test_agrees_with_the_joint_batch(variant, picture, reference_prompt, settings):
    pipe = build(variant)
    inversion, x_T = pipe.invert(picture, reference_prompt, T), latents_for(pipe, 2)
    control = control_of(variant)
    settings = {"w": 5.0, "t_align": 600, "t_early": 600, "t_inject": 1000} | settings
    expected = joint_batch(pipe, inversion, "a red fox", x_T, control=control.get("image"), **settings)
    w = settings.pop("w")
    ours = run(
        pipe, inversion=inversion, latents=x_T, num_images_per_prompt=2, guidance_scale=w, **settings, **control
    )
    torch.testing.assert_close(ours, expected, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "wrong"),
    [
        ("xl", "no time ids"),
        ("xl", "mixed branches"),
        *((f"{base}-controlnet", "control of the reference") for base in ("sd", "xl")),
    ],
)
def test_the_joint_batch_tells_mistakes_apart(variant, wrong, picture):
    pipe = build(variant)
    inversion, x_T, control = pipe.invert(picture, "a blue bird", T), latents_for(pipe), control_of(variant)
    right = run(pipe, inversion=inversion, latents=x_T, t_early=600, **control)
    mistaken = joint_batch(pipe, inversion, "a red fox", x_T, control=control.get("image"), wrong=wrong)
    assert (mistaken - right).abs().max() > 0.01


# ------------------------------------------------------------------------------------------------- Stable Diffusion XL


@pytest.mark.slow
@pytest.mark.parametrize("zeros", [True, False])
def test_null_reference_is_the_unconditional_embedding_of_the_pipeline(zeros, picture, monkeypatch):
    pipe = build("xl")
    pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    inversion = pipe.invert(picture, "", T)
    assert inversion.is_null and bool(inversion.prompt_embeds.any()) != zeros
    _, null, _, pooled_null = encode(pipe, "a red fox")
    assert torch.equal(inversion.prompt_embeds, null) and torch.equal(inversion.pooled_prompt_embeds, pooled_null)
    recorder = Recorder(pipe, monkeypatch)
    run(pipe, inversion=inversion)
    assert recorder.rows() == [3] * T


def test_a_second_prompt_alone_is_not_null(picture):
    pipe = build("xl")
    inversion = pipe.invert(picture, "", 2, prompt_2="a blue bird")
    assert not inversion.is_null and not torch.equal(
        inversion.prompt_embeds, pipe.invert(picture, "", 2).prompt_embeds
    )


@pytest.mark.parametrize("variant", XL)
def test_reference_rows_carry_their_own_size_and_pooled_embeddings(variant, picture, monkeypatch):
    pipe = build(variant)
    inversion = pipe.invert(picture, "a blue bird", T)
    recorder = Recorder(pipe, monkeypatch)
    run(pipe, inversion=inversion, height=24, width=16, **control_of(variant))
    passes, loop = recorder.calls[::2], recorder.calls[1::2]  # of another size: two calls a step
    assert len(passes) == T
    pooled = torch.cat([inversion.negative_pooled_prompt_embeds, inversion.pooled_prompt_embeds])
    for (_, _, ours), (_, _, reference) in zip(loop, passes, strict=True):
        assert ours["added_cond_kwargs"]["time_ids"].tolist() == [[24, 16, 0, 0, 24, 16]] * 2
        assert reference["added_cond_kwargs"]["time_ids"].tolist() == [[SIZE, SIZE, 0, 0, SIZE, SIZE]] * 2
        assert torch.equal(reference["added_cond_kwargs"]["text_embeds"], pooled)


@pytest.mark.slow
def test_inversion_runs_with_pooled_embeddings_and_is_reused(picture, tmp_path):
    pipe = build("xl")
    x_T = latents_for(pipe)
    fresh = run(pipe, reference_image=picture, latents=x_T, prompt_2="a blue bird")
    inversion = pipe.invert(picture, "a red fox", T, prompt_2="a blue bird")
    inversion.save(tmp_path / "inversion.safetensors")
    loaded = type(inversion).load(tmp_path / "inversion.safetensors")
    assert torch.equal(run(pipe, inversion=loaded, latents=x_T, prompt_2="a blue bird"), fresh)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    embeds = {name: getattr(inversion, name) for name in names}
    again = pipe.invert(None, None, T, latents=inversion.latents[0], **embeds)
    assert torch.equal(again.latents, inversion.latents)


@pytest.mark.slow
@pytest.mark.parametrize("variant", EACH)
def test_several_references_equal_separate_runs(variant):
    """Two pictures, two prompts, two images each; with ControlNet, a control picture for each reference."""
    pipe = build(variant)
    pictures, prompts, x_T = [noise_picture(7), noise_picture(9)], ["a red fox", "a blue bird"], latents_for(pipe, 4)
    controls = noise_picture(8, 2)
    control = {"image": controls} if variant.endswith("controlnet") else {}
    kwargs = dict(num_images_per_prompt=2, num_inference_steps=5)
    together = run(pipe, prompts, reference_image=pictures, latents=x_T, **control, **kwargs)
    for i in range(2):
        rows = slice(2 * i, 2 * i + 2)
        one = {"image": controls[i : i + 1]} if control else {}
        alone = run(pipe, prompts[i], reference_image=pictures[i], latents=x_T[rows], **one, **kwargs)
        torch.testing.assert_close(together[rows], alone, **CLOSE)
    # One prompt for both references.
    shared = run(pipe, "a red fox", reference_image=pictures, latents=x_T, **control, **kwargs)
    torch.testing.assert_close(shared[:2], together[:2], **CLOSE)


def test_several_references_share_every_text():
    """Of Stable Diffusion XL, which has two encoders and so a second prompt and negative prompt."""
    pipe, pictures, x_T = build("xl"), [noise_picture(7), noise_picture(9)], latents_for(build("xl"), 2)
    given = {"prompt_2": "ink", "negative_prompt": "a house", "negative_prompt_2": "a bird", "num_inference_steps": 2}
    shared = run(pipe, "a red fox", reference_image=pictures, latents=x_T, **given)
    for i in range(2):
        alone = run(pipe, "a red fox", reference_image=pictures[i], latents=x_T[i : i + 1], **given)
        torch.testing.assert_close(shared[i : i + 1], alone, **CLOSE)


# ------------------------------------------------------------------------------------------------- trap 13: ControlNet


@pytest.mark.parametrize("variant", CONTROL)
@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_controlnet_runs_on_generated_rows_only(variant, guidance_scale, picture, monkeypatch):
    pipe = build(variant)
    inversion, rows = pipe.invert(picture, "a blue bird", T), []
    pipe.controlnet.register_forward_pre_hook(lambda module, args, kwargs: rows.append(len(args[0])), with_kwargs=True)
    recorder = Recorder(pipe, monkeypatch)
    run(
        pipe,
        inversion=inversion,
        num_images_per_prompt=3,
        guidance_scale=guidance_scale,
        **control_of(variant),
    )
    branches = 2 if guidance_scale > 1 else 1
    assert rows == [branches * 3] * T
    names = ("down_block_additional_residuals", "mid_block_additional_residual")
    assert recorder.rows() == [branches * (3 + 1)] * T
    for _, _, call in recorder.calls:
        down, middle = (call[name] for name in names)
        for residual in (*down, middle):
            assert residual[: 3 * branches].any() and not residual[3 * branches :].any()


@pytest.mark.slow
@pytest.mark.parametrize("variant", EACH)
def test_one_call_for_both_is_two_calls(variant, picture, monkeypatch):
    pipe, control = build(variant), control_of(variant)
    kwargs = dict(reference_image=picture, latents=latents_for(pipe), num_inference_steps=5, **control)
    together = run(pipe, **kwargs)
    monkeypatch.setattr(alignment, "_joined", lambda call, reference: None)
    torch.testing.assert_close(run(pipe, **kwargs), together, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", CONTROL)
def test_controlnet_at_scale_zero_is_rival_without_it(variant, picture):
    pipe = build(variant)
    plain = build(variant.removesuffix("-controlnet"))
    kwargs = dict(reference_image=picture, latents=latents_for(pipe), task="variation")
    off = run(pipe, controlnet_conditioning_scale=0.0, **control_of(variant), **kwargs)
    torch.testing.assert_close(off, run(plain, **kwargs), **CLOSE)
    assert (run(pipe, **control_of(variant), **kwargs) - off).abs().max() > 0.01


@pytest.mark.parametrize("variant", CONTROL)
def test_one_control_picture_serves_every_reference(variant):
    pipe, pictures = build(variant), [noise_picture(7), noise_picture(9)]
    x_T, control = latents_for(pipe, 2), noise_picture(8, 1)
    kwargs = dict(latents=x_T, num_inference_steps=4, reference_image=pictures)
    one = run(pipe, image=control, **kwargs)
    torch.testing.assert_close(one, run(pipe, image=control.repeat(2, 1, 1, 1), **kwargs), **CLOSE)


def test_several_controlnets(picture):
    components = tiny.with_controlnet(tiny.sd_components())
    second = tiny.controlnet(components["unet"], seed=1)
    pipe = RIVALControlNetPipeline(
        **components | {"controlnet": MultiControlNetModel([components["controlnet"], second])}
    )
    pipe.set_progress_bar_config(disable=True)
    single = build("sd-controlnet")
    kwargs = dict(reference_image=picture, latents=latents_for(pipe), num_inference_steps=4)
    one, other = noise_picture(8, 1), noise_picture(9, 1)
    both = run(pipe, image=[one, other], controlnet_conditioning_scale=[1.0, 0.0], **kwargs)
    torch.testing.assert_close(both, run(single, image=one, **kwargs), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tensor", "array", "pil", "list"])
def test_the_control_picture_sets_the_size_as_in_stock(kind, picture):
    pipe = build("sd-controlnet")
    pil = PIL.Image.new("RGB", (16, 24), "grey")
    control = {
        "tensor": torch.full((1, 3, 24, 16), 0.5),
        "array": np.full((1, 24, 16, 3), 0.5, dtype=np.float32),
        "pil": pil,
        "list": [pil],
    }[kind]
    kwargs = dict(image=control, num_inference_steps=2, output_type="pt", guidance_scale=5.0)
    assert pipe("a fox", reference_image=picture, **kwargs).images.shape[-2:] == (24, 16)
    neutral = pipe("a fox", reference_image=picture, init="noise", generator=generator(), **NEUTRAL, **kwargs).images
    stock = hub.stock_class(pipe).__call__
    assert torch.equal(neutral, stock(pipe, "a fox", generator=generator(), **kwargs).images)


# ------------------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize(
    ("variant", "task", "explicit"),
    [
        ("sd", None, dict(guidance_scale=5, t_early=600, t_inject=1000, reference_prompt="a red fox")),
        pytest.param(
            "sd", "text2image", dict(guidance_scale=7, t_early=600, t_inject=960, reference_prompt=""), marks=SLOW
        ),
        pytest.param(
            "sd", "dreambooth", dict(guidance_scale=7, t_early=600, t_inject=1000, reference_prompt=""), marks=SLOW
        ),
        ("sd", "editing", dict(guidance_scale=7, t_early=600, t_inject=900, reference_prompt="", init="inverted")),
        pytest.param(
            "xl", None, dict(guidance_scale=5, t_early=600, t_inject=1000, reference_prompt="a red fox"), marks=SLOW
        ),
        pytest.param(
            "sd-controlnet", None, dict(guidance_scale=7, t_early=400, t_inject=1000, reference_prompt=""), marks=SLOW
        ),
        ("xl-controlnet", None, dict(guidance_scale=7, t_early=400, t_inject=1000, reference_prompt="")),
        pytest.param(
            "sd-controlnet",
            "text2image",
            dict(guidance_scale=7, t_early=600, t_inject=960, reference_prompt=""),
            marks=SLOW,
        ),
    ],
)
def test_presets(variant, task, explicit, picture):
    pipe = build(variant)
    kwargs = dict(
        reference_image=picture,
        num_inference_steps=20,
        output_type="latent",
        generator=generator(),
        **control_of(variant),
    )
    by_name = pipe("a red fox", task=task, **kwargs).images
    other = dict(t_align=600, init="shuffle") | explicit
    kwargs["generator"] = generator()
    # Another task's defaults must not show through.
    assert torch.equal(by_name, pipe("a red fox", task="variation", **kwargs | other).images)


# ------------------------------------------------------------------------------------------------------------- editing


@pytest.mark.slow
@pytest.mark.parametrize("source", ["", "a blue bird"])
def test_editing_agrees_with_the_joint_batch(source, picture):
    """The edit prompt for the image, the null or the source prompt for the reference, from the inverted latent."""
    pipe = build("sd")
    ours = run(
        pipe,
        "a red fox",
        reference_image=picture,
        reference_prompt=source if source else None,
        task="editing",
        guidance_scale=7.0,
        num_inference_steps=20,
    )
    inversion = pipe.invert(picture, source, 20)
    expected = joint_batch(pipe, inversion, "a red fox", inversion.latents[-1], w=7.0, t_inject=900)
    torch.testing.assert_close(ours, expected, **CLOSE)


@pytest.mark.slow
def test_an_edit_to_the_source_prompt_without_guidance_gives_the_picture_back(picture):
    """Same prompt, same latent, no guidance: the image walks back down the chain it came up, up to DDIM's error."""
    pipe = build("sd")
    inversion = pipe.invert(picture, "a red fox", 50)
    back = run(pipe, "a red fox", inversion=inversion, task="editing", guidance_scale=1.0)
    picture_latent, other = inversion.latents[0], run(pipe, "a red fox", inversion=inversion, guidance_scale=1.0)
    assert (back - picture_latent).abs().mean() < 0.5 * (other - picture_latent).abs().mean()


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["sd", *EACH])
def test_stochastic_steps(variant, picture):
    pipe = build(variant)
    if "eta" not in inspect.signature(pipe.__call__).parameters:
        pytest.skip("no eta in the stock class")
    kwargs = dict(reference_image=picture, latents=latents_for(pipe), num_inference_steps=5, **control_of(variant))
    a, b, c = (run(pipe, eta=0.8, generator=generator(seed), **kwargs) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and a.isfinite().all()
    assert not torch.equal(a, run(pipe, **kwargs))


def test_trailing_steps_on_xl(picture):
    pipe = build("xl")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    inversion, x_T = pipe.invert(picture, "", T), latents_for(pipe)
    assert inversion.timesteps[-1] == 999
    assert run(pipe, inversion=inversion, latents=x_T).isfinite().all()


# --------------------------------------------------------------------------------------------- inpainting: kept pixels


def half_mask():
    mask = PIL.Image.new("L", (SIZE, SIZE), 0)
    mask.paste(255, (0, 0, SIZE // 2, SIZE))
    return mask


@pytest.mark.parametrize("return_dict", [True, False])
def test_kept_pixels_are_those_of_the_reference(return_dict):
    pipe = build("sd")
    arrays = [np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for seed in (0, 1)]
    pictures = [PIL.Image.fromarray(array) for array in arrays]
    call = dict(
        prompt="a red fox",
        reference_image=pictures,
        task="inpainting",
        mask_image=half_mask(),
        num_images_per_prompt=2,
        num_inference_steps=4,
        return_dict=return_dict,
    )
    pasted, decoded = (
        np.stack([np.asarray(image) for image in pipe(**call, keep_pixels=keep, generator=generator())[0]])
        for keep in (True, False)
    )
    repainted, kept = pasted[:, :, : SIZE // 2], pasted[:, :, SIZE // 2 :]
    originals = np.stack([arrays[0], arrays[0], arrays[1], arrays[1]])
    np.testing.assert_array_equal(kept, originals[:, :, SIZE // 2 :])
    np.testing.assert_array_equal(repainted, decoded[:, :, : SIZE // 2])
    assert (decoded[:, :, SIZE // 2 :] != kept).any()


@pytest.mark.parametrize("variant", EACH)
def test_inpainting_on_every_class_keeps_the_latents(variant, picture):
    pipe = build(variant)
    inversion = pipe.invert(picture, num_inference_steps=4)
    result = run(
        pipe,
        inversion=inversion,
        task="inpainting",
        mask_image=half_mask(),
        generator=generator(),
        **control_of(variant),
    )
    middle = result.shape[-1] // 2
    assert torch.equal(result[..., middle:], inversion.latents[0][..., middle:])
    assert not torch.equal(result[..., :middle], inversion.latents[0][..., :middle])
