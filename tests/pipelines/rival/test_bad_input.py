# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What RIVAL refuses: before the UNet has run once, in a text that names the argument, what came, and what to do."""

import dataclasses
import io
import re
from unittest import TestCase

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler

from alignext import RIVALInversion, RIVALPipeline
from alignext.pipelines.rival import presets
from alignext.pipelines.rival.inputs import binary_mask
from alignext.pipelines.rival.inversion import model_fingerprint
from tests.pipelines import tiny
from tests.pipelines.rival.joint import generator
from tests.pipelines.tiny import SIZE


T = 4


def build(unet=None, **scheduler):
    components = tiny.sd_components()
    if unet is not None:
        components["unet"] = tiny.unet(**unet)
    pipe = RIVALPipeline(**components)
    # Set on the pipeline, since the stock constructor corrects some settings.
    pipe.scheduler = DDIMScheduler.from_config(components["scheduler"].config, **scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe():
    return build()


def picture(seed=7):
    return torch.rand(3, SIZE, SIZE, generator=generator(seed))


def inverted(pipe, **kwargs):
    return pipe.invert(picture(), num_inference_steps=T, **kwargs)


def mask(fill=0, white=None):
    mask = PIL.Image.new("L", (SIZE, SIZE), fill)
    if white:
        mask.paste(255, white)
    return mask


def refuses(pipe, *parts, error=ValueError, **kwargs):
    """The call is refused with a message that has every part in it, and no UNet has run."""
    calls = []
    handle = pipe.unet.register_forward_pre_hook(lambda *args: calls.append(args))
    call = {"prompt": "a red fox", "output_type": "latent"} | kwargs
    if "inversion" not in kwargs:
        call = {"num_inference_steps": T} | call
    with pytest.raises(error) as caught:
        pipe(**call)
    handle.remove()
    message = str(caught.value)
    assert not calls, "refused only after the UNet had run"
    for part in parts:
        assert part in message, message


# Arguments beside a reference picture -> the argument, what came, the cure, as the message has them.
CALLS = {
    "unknown task": (dict(task="collage"), "`task`", "'collage'", "'variation'"),
    "unknown init": (dict(init="zeros"), "`init`", "'zeros'", "'shuffle'"),
    "t_align not finite": (dict(t_align=float("nan")), "`t_align`", "nan", "0..1000"),
    "t_early not finite": (dict(t_early=float("inf")), "`t_early`", "inf", "0..1000"),
    "t_inject not finite": (dict(t_inject=-float("inf")), "`t_inject`", "-inf", "0..1000"),
    "t_align of the wrong kind": (dict(t_align="early"), "`t_align` must be a number", "'early'"),
    "adain_strength of the wrong kind": (dict(adain_strength="full"), "`adain_strength` must be a number", "'full'"),
    "adain_strength": (dict(adain_strength=1.5), "`adain_strength`", "1.5", "[0, 1]"),
    "reference_weight": (dict(reference_weight=-1.0), "`reference_weight`", "-1.0", "not negative"),
    "mask without inpainting": (
        dict(mask_image=mask(255)),
        "`mask_image`",
        "`task='variation'` with a mask",
        "Pass both or neither",
    ),
    "inpainting without mask": (
        dict(task="inpainting"),
        "`mask_image`",
        "`task='inpainting'` without a mask",
        "Pass both or neither",
    ),
    "empty mask": (
        dict(task="inpainting", mask_image=mask()),
        "`mask_image`",
        "0 latent cells",
        "enlarge the white area, or invert the mask",
    ),
    "mask of one cell": (
        dict(task="inpainting", mask_image=mask(white=(0, 0, 2, 2))),
        "`mask_image`",
        "1 latent cells",
        "enlarge the white area",
    ),
    "masks that do not divide": (
        dict(task="inpainting", mask_image=torch.ones(2, 1, SIZE, SIZE), num_images_per_prompt=3),
        "`mask_image`",
        "2 masks for 3 images",
        "one per image",
    ),
    "kept pixels without a mask": (dict(keep_pixels=True), "`keep_pixels=True`", "`mask_image` NoneType", "Pass both"),
    "kept pixels of latents": (
        dict(keep_pixels=True, task="inpainting", mask_image=mask(255)),
        "`keep_pixels=True`",
        "`output_type='latent'`",
        "`output_type='pil'`",
    ),
    "prompts that do not divide": (
        dict(prompt=["a", "b", "c"], reference_image=[picture(1), picture(2)]),
        "3 prompts and 2 reference pictures",
        "Pass one of either",
    ),
    "references that do not divide": (
        dict(prompt=["a", "b"], reference_image=[picture(1), picture(2), picture(3)]),
        "2 prompts and 3 reference pictures",
        "Pass one of either",
    ),
    "different prompts for one reference": (dict(prompt=["a", "b"]), "`reference_prompt`", "Pass `reference_prompt`"),
    "reference prompts of another number": (
        dict(reference_prompt=["a", "b", "c"]),
        "`reference_prompt`",
        "one per picture (1)",
        "a list of 3",
    ),
    "latents of another shape": (
        dict(latents=torch.zeros(1, 4, 4, 4)),
        "`latents`",
        "(1, 4, 4, 4)",
        "must have shape (1, 4, 8, 8)",
    ),
    "latents and init": (dict(latents=torch.zeros(1, 4, 8, 8), init="noise"), "`latents`", "`init='noise'`", "either"),
    "generators": (
        dict(generator=[generator(), generator()]),
        "`generator`",
        "2 entries for 1 images",
        "one per image",
    ),
    "timesteps": (dict(timesteps=[900, 100]), "`timesteps`", "[900, 100]", "Use `num_inference_steps`"),
    "sigmas": (dict(sigmas=[2.0, 1.0]), "`sigmas`", "[2.0, 1.0]", "Use `num_inference_steps`"),
    "odd height": (dict(height=15), "`height`", "(15, 16)", "multiples of 2"),
    "odd width": (dict(width=17), "`width`", "(16, 17)", "multiples of 2"),
    "no steps": (dict(num_inference_steps=0), "`num_inference_steps`", "0", "1..1000"),
    "too many steps": (dict(num_inference_steps=1001), "`num_inference_steps`", "1001", "1..1000"),
    "picture of floats in 0..255": (
        dict(reference_image=picture() * 255),
        "Float pictures",
        "[0, 1]",
        "Divide 0..255 pictures by 255",
    ),
    "no pictures": (dict(reference_image=[]), "`reference_image`", "at least one", "none"),
    "no prompts": (dict(prompt=[]), "`prompt`", "at least one", "none"),
    "no images": (dict(num_images_per_prompt=0), "`num_images_per_prompt`", "1 or more", "0"),
    "no masks": (dict(task="inpainting", mask_image=[]), "`mask_image`", "at least one", "none"),
    "mask of another kind": (dict(task="inpainting", mask_image="hole.png"), "hole.png", "cannot be read"),
    "no picture": (dict(reference_image="fox.png"), "fox.png", "cannot be read"),
    "tensor of a wrong shape": (dict(reference_image=torch.rand(7, 5, 2)), "A picture", "(7, 5, 2)", "(3, H, W)"),
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments(pipe, name):
    kwargs, *parts = CALLS[name]
    refuses(pipe, *parts, **{"reference_image": picture()} | kwargs)


@pytest.mark.parametrize("name", ["ip_adapter_image", "ip_adapter_image_embeds"])
def test_ip_adapter(pipe, name):
    refuses(
        pipe,
        f"`{name}`",
        "received list",
        "Leave it out",
        error=NotImplementedError,
        reference_image=picture(),
        **{name: []},
    )


def test_neither_or_both_of_picture_and_inversion(pipe):
    inversion = inverted(pipe)
    for own in (dict(task="editing"), dict(t_align=300), dict(keep_pixels=True), dict(mask_image=mask(255))):
        (name,) = own
        refuses(pipe, "`reference_image`", "`inversion`", "received neither", "exactly one", f"`{name}`", **own)
    refuses(pipe, "received both", "exactly one", reference_image=picture(), inversion=inversion)
    with pytest.raises(ValueError, match=re.escape("exactly one of `image` and `latents`, received both")):
        pipe.invert(picture(), latents=inversion.latents[0])
    with pytest.raises(ValueError, match=re.escape("exactly one of `image` and `latents`, received neither")):
        pipe.invert()


def test_inversion_of_another_kind(pipe):
    inversion = inverted(pipe)
    refuses(
        pipe, "`num_inference_steps` is 5", "made with 4", "invert again", inversion=inversion, num_inference_steps=5
    )
    refuses(pipe, "`reference_prompt` 'a fox'", "Leave it out", inversion=inversion, reference_prompt="a fox")
    refuses(
        pipe,
        "`keep_pixels=True`",
        "`reference_image` NoneType",
        inversion=inversion,
        task="inpainting",
        mask_image=mask(255),
        keep_pixels=True,
        output_type="pil",
    )
    other_scheduler = build(beta_end=0.02)
    refuses(other_scheduler, "`inversion`", "'beta_end': (0.012, 0.02)", "Invert again", inversion=inversion)
    other_model = build()
    other_model.unet.load_state_dict(tiny.sd_components(seed=1)["unet"].state_dict())
    refuses(other_model, "`inversion`", "another UNet", "Invert again", inversion=inversion)


@pytest.mark.parametrize(
    "kwargs", [dict(init="inverted"), dict(task="editing"), dict(task="inpainting", mask_image=mask(255))]
)
def test_inversion_of_another_size(pipe, kwargs):
    inversion = inverted(pipe, height=24)
    refuses(pipe, "(24, 16)", "(16, 16)", "Leave them out", inversion=inversion, height=16, width=16, **kwargs)


def test_a_file_that_is_no_inversion(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file({"latents": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"`path`.*weights.safetensors.*RIVALInversion.save"):
        RIVALInversion.load(path)


# Models and schedulers: what the components are built with -> parts of the message.
MODELS = {
    "an inpainting UNet": (dict(unet=dict(in_channels=9)), "9 channels", "Load the base text-to-image model"),
    "a distilled UNet": (
        dict(unet=dict(time_cond_proj_dim=8)),
        "`time_cond_proj_dim`",
        "Load the base text-to-image model",
    ),
    "linspace": (dict(timestep_spacing="linspace"), "`timestep_spacing`", "'linspace'", "timestep_spacing='leading'"),
    "clipped samples": (dict(clip_sample=True), "`clip_sample`", "True", "clip_sample=False"),
    "thresholding": (dict(thresholding=True), "`thresholding`", "True", "thresholding=False"),
    "predicted samples": (dict(prediction_type="sample"), "`prediction_type`", "'sample'", "Load a checkpoint"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_and_schedulers(name):
    how, *parts = MODELS[name]
    pipe = build(**how)
    refuses(pipe, *parts, reference_image=picture())
    with pytest.raises(ValueError) as caught:
        pipe.invert(picture())
    assert all(part in str(caught.value) for part in parts)


def test_misspelt_arguments(pipe):
    refuses(pipe, "`t_allign`", "Use `t_align`", error=TypeError, reference_image=picture(), t_allign=3)
    refuses(pipe, "`steps`", "Use `num_inference_steps`", error=TypeError, reference_image=picture(), steps=3)
    refuses(pipe, "`t_allign`", "Use `t_align`", error=TypeError, t_allign=3)
    with pytest.raises(TypeError, match="`invert` has no argument `steps`"):
        pipe.invert(picture(), steps=3)


def test_without_a_vae(pipe):
    inversion = inverted(pipe)
    pipe.register_modules(vae=None)
    refuses(pipe, "no VAE", "`reference_image`", "`inversion`", reference_image=picture())
    refuses(pipe, "no VAE", "`output_type='latent'`", inversion=inversion, output_type="pt")
    with pytest.raises(ValueError, match="no VAE to encode `image`"):
        pipe.invert(picture())


def test_a_vae_or_a_unet_that_overflows(pipe):
    inversion = inverted(pipe)
    pipe.to(torch.float16)
    with torch.no_grad():
        pipe.vae.encoder.conv_in.weight.fill_(6e4)
    pipe.vae.register_to_config(force_upcast=False)
    refuses(pipe, "not finite", "overflows", reference_image=picture())
    with torch.no_grad():
        pipe.unet.conv_in.weight.fill_(6e4)
    with pytest.raises(ValueError, match="the UNet overflows"):
        pipe.invert(latents=inversion.latents[0], num_inference_steps=T)
    broken = dataclasses.replace(build_inversion(pipe, inversion), latents=inversion.latents * float("nan"))
    refuses(pipe, "`inversion` is not finite", inversion=broken)


def build_inversion(pipe, inversion):
    return dataclasses.replace(inversion, fingerprint=model_fingerprint(pipe.unet))


# ------------------------------------------------------------------------------------------------------------- masks


def turned(mask):
    """As a camera writes it: turned, with a note to turn it back."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    mask.transpose(PIL.Image.Transpose.ROTATE_90).save(file, "png", exif=exif)
    return PIL.Image.open(file)


LEFT = np.zeros((16, 16), bool)
LEFT[:, :5] = True
MASKS = {
    "boolean array": LEFT,
    "boolean tensor": torch.from_numpy(LEFT),
    "zeros and ones": LEFT.astype(np.uint8),
    "bytes": LEFT.astype(np.uint8) * 255,
    "dark grey is not marked": np.where(LEFT, 255, 100).astype(np.uint8),
    "floats": LEFT.astype(np.float32),
    "tensor": torch.from_numpy(LEFT.astype(np.float32))[None],
    "one bit": PIL.Image.fromarray(LEFT),
    "sixteen bit": PIL.Image.fromarray(LEFT.astype(np.uint16) * 65535),
    "colours": PIL.Image.fromarray(np.repeat(LEFT[..., None].astype(np.uint8) * 255, 3, axis=2)),
    "white strokes on transparent white": PIL.Image.fromarray(
        np.dstack([np.full((16, 16, 3), 255, np.uint8), LEFT.astype(np.uint8) * 255])
    ),
    "turned": turned(PIL.Image.fromarray(LEFT.astype(np.uint8) * 255)),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_every_kind(kind):
    got = binary_mask(MASKS[kind], (16, 16), 2)
    assert got.shape == (1, 1, 16, 16) and torch.equal(got[0, 0] > 0.5, torch.from_numpy(LEFT))


def test_masks_are_cropped_like_their_pictures():
    wide = np.zeros((16, 32), bool)
    wide[:, 8:13] = True  # the middle square begins at column 8
    for mask in (wide, torch.from_numpy(wide), PIL.Image.fromarray(wide)):
        assert torch.equal(binary_mask(mask, (16, 16), 2)[0, 0] > 0.5, torch.from_numpy(LEFT))
    assert len(binary_mask(np.stack([LEFT, ~LEFT]), (16, 16), 2)) == 2


# ----------------------------------------------------------------------------------------- warned about, or no mistake


def test_no_step_for_the_replace_zone_is_warned_about():
    with TestCase().assertLogs(presets.logger, "WARNING") as said:
        presets.settle("variation", None, 1.0, 1.0, t_align=800, t_inject=700)
    assert "`t_align` 800 is above `t_inject` 700" in said.output[0]


def test_shuffle_takes_another_size_than_the_inversion(pipe):
    images = pipe("a fox", inversion=inverted(pipe), height=24, width=16, output_type="latent").images
    assert images.shape[-2:] == (12, 8) and images.isfinite().all()


def test_noise_that_overflows_half_precision_is_aligned_in_float32(pipe, monkeypatch):
    """float16 squares overflow at 256: the statistics must not."""
    from alignext.functional.rival import adain

    noise = (torch.randn(1, 4, 8, 8, generator=generator()) * 1000).half()
    assert adain(noise, noise * 2).isfinite().all() and not (noise * noise).isfinite().all()


def test_the_safety_checker_sees_generated_images_only(pipe):
    seen = []

    def checker(images, clip_input):
        seen.append(len(images))
        return images, [False] * len(images)

    pipe.run_safety_checker = lambda image, device, dtype: checker(image, None)
    pipe("a fox", reference_image=picture(), num_images_per_prompt=2, num_inference_steps=2)
    assert seen == [2]
