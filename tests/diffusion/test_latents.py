# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Pictures to latents and back: one encode, one decode, one scaling and its inverse."""

import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline

from alignext import mini
from alignext.diffusion.latents import (
    decode_latents,
    encode_images,
    float32_if_forced,
    scale_latents,
    unscale_latents,
)

from ..trainers.diffusion_preference.tiny import PIPELINES, SIZE, sd, sdxl


@pytest.fixture(params=PIPELINES)
def pipe(request: pytest.FixtureRequest) -> DiffusionPipeline:
    return PIPELINES[request.param]()


def pixels(n: int) -> torch.Tensor:
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(7)) * 2 - 1


def test_latents_are_what_the_pipeline_decodes(pipe: DiffusionPipeline):
    vae, images = pipe.vae, pixels(3)
    latents = encode_images(pipe, images, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    posterior = vae.encode(images).latent_dist
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    expected = (posterior.mean + posterior.std * noise - shift) * vae.config.scaling_factor
    assert torch.allclose(latents, expected, atol=1e-6)
    assert latents.dtype == torch.float32 and not latents.requires_grad


def test_of_the_embedded_model_pictures_come_back():
    mini_sd = DiffusionPipeline.from_pretrained(mini.path("sd"))
    drawings = [picture.image for picture in mini.pictures("unseen_concept")[:4]]
    images = mini_sd.image_processor.preprocess(drawings, 64, 64)
    latents = encode_images(mini_sd, images)
    assert latents.shape == (4, 16, 8, 8)
    assert 0.5 < latents.std() < 2
    assert (decode_latents(mini_sd, latents, 3) - images).square().mean() < 0.05


def test_latents_do_not_depend_on_the_size_of_passes(pipe: DiffusionPipeline):
    images = pixels(5)
    whole, one = (encode_images(pipe, images, size, torch.Generator().manual_seed(0)) for size in (5, 1))
    assert torch.allclose(whole, one, atol=1e-5)
    alone = [encode_images(pipe, images[i : i + 1], 1, [torch.Generator().manual_seed(i)]) for i in range(5)]
    listed = encode_images(pipe, images, 2, [torch.Generator().manual_seed(i) for i in range(5)])
    assert torch.allclose(torch.cat(alone), listed, atol=1e-5)


def test_channels_of_a_vae_are_standardised():
    pipe = sdxl()
    plain = encode_images(pipe, pixels(2), generator=torch.Generator().manual_seed(0))
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    pipe.vae.register_to_config(latents_mean=mean, latents_std=std)
    latents = encode_images(pipe, pixels(2), generator=torch.Generator().manual_seed(0))
    scale = pipe.vae.config.scaling_factor
    expected = (plain / scale - torch.tensor(mean)[:, None, None]) * scale / torch.tensor(std)[:, None, None]
    assert torch.allclose(latents, expected, atol=1e-6)


def test_a_vae_that_overflows_in_float16():
    pipe = sdxl()
    # The outputs of the encoder's first layer are beyond float16, those of its last one are not.
    with torch.no_grad():
        pipe.vae.encoder.conv_in.weight.mul_(1e6)
    expected = encode_images(pipe, pixels(2), generator=torch.Generator().manual_seed(0))
    pipe.vae.to(torch.float16)
    before = {name: tensor.clone() for name, tensor in pipe.vae.state_dict().items()}
    with pytest.raises(ValueError, match=r"overflows in torch\.float16"):
        pipe.vae.register_to_config(force_upcast=False)
        encode_images(pipe, pixels(2))
    pipe.vae.register_to_config(force_upcast=True)
    with torch.no_grad():
        pipe.vae.encoder.conv_in.weight.copy_(pipe.vae.encoder.conv_in.weight.clamp(-6e4, 6e4))
    latents = encode_images(pipe, pixels(2), generator=torch.Generator().manual_seed(0))
    assert latents.isfinite().all() and latents.shape == expected.shape
    assert pipe.vae.dtype == torch.float16
    after = pipe.vae.state_dict()
    assert all(torch.equal(before[name].clamp(-6e4, 6e4), after[name].clamp(-6e4, 6e4)) for name in before)


def test_encoding_is_not_autocast():
    pipe, images = sd(), pixels(2)
    expected = encode_images(pipe, images, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encode_images(pipe, images, generator=torch.Generator().manual_seed(0)), expected)


def test_the_mean_takes_no_draw(pipe: DiffusionPipeline):
    images, state = pixels(3), torch.get_rng_state()
    mean = encode_images(pipe, images, 2, sample=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(mean, encode_images(pipe.vae, images, 2, sample=False))
    assert torch.allclose(mean, scale_latents(pipe, pipe.vae.encode(images).latent_dist.mode()), atol=1e-6)


def test_decoding_is_what_the_pipeline_does(pipe: DiffusionPipeline):
    latents = encode_images(pipe, pixels(2), sample=False)
    shown = pipe.image_processor.postprocess(decode_latents(pipe, latents), output_type="pt")
    shift, scale = getattr(pipe.vae.config, "shift_factor", None) or 0.0, pipe.vae.config.scaling_factor
    stock = pipe.vae.decode(latents / scale + shift, return_dict=False)[0]
    assert torch.equal(shown, pipe.image_processor.postprocess(stock, output_type="pt"))
    assert torch.allclose(decode_latents(pipe, latents, 1), stock, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 4, 3, 8, 8)])
@pytest.mark.parametrize("channels", [False, True])
def test_scaling_and_its_inverse(shape: tuple[int, ...], channels: bool):
    vae = PIPELINES["sd3"]().vae
    if channels:
        vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 1.0, 2.0, 3.0])
    z = torch.randn(shape, dtype=torch.float64)
    scaled = scale_latents(vae, z)
    assert torch.allclose(unscale_latents(vae, scaled), z, rtol=1e-12, atol=1e-12)
    if channels:
        assert torch.allclose(scaled[:, 2], (z[:, 2] - 0.3) * 1.5 / 2.0)
    else:
        assert torch.equal(scaled, (z - 0.25) * 1.5)


def test_gradients_pass_the_decoder():
    pipe = sd()
    latents = encode_images(pipe, pixels(1), sample=False).requires_grad_()
    decode_latents(pipe, latents).square().mean().backward()
    assert latents.grad.abs().max() > 0


def test_a_tiny_autoencoder_has_latents_only():
    vae = AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()
    latents = encode_images(vae, pixels(3), 2)
    assert torch.allclose(latents, vae.encode(pixels(3)).latents, atol=1e-6)
    assert decode_latents(vae, latents).shape == (3, 3, SIZE, SIZE)


def test_the_vae_is_put_back_after_an_error():
    vae = sd().vae.to(torch.bfloat16)
    vae.register_to_config(force_upcast=True)
    with pytest.raises(RuntimeError, match="within"), float32_if_forced(vae):
        assert vae.dtype == torch.float32
        raise RuntimeError("within")
    assert vae.dtype == torch.bfloat16
    with float32_if_forced(vae, (torch.float16,)):
        assert vae.dtype == torch.bfloat16


def test_pictures_that_are_not_finite_are_not_blamed_on_float16():
    with pytest.raises(ValueError, match="neither are its weights, or the pictures"):
        encode_images(sd(), torch.full((1, 3, SIZE, SIZE), torch.nan), sample=False)


def test_a_pipeline_without_a_vae():
    pipe = sd()
    pipe.vae = None
    with pytest.raises(ValueError, match="StableDiffusionPipeline has no `vae`"):
        encode_images(pipe, pixels(1))
