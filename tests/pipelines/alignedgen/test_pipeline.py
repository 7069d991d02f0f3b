# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`AlignedGenPipeline` against the slow loop, and its ways of running against each other, in float32."""

import functools
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import FluxControlNetModel, FluxControlNetPipeline, FluxImg2ImgPipeline, FluxPipeline

from alignext import AlignedGenPipeline, AlignedGenPipelineOutput, StyleReference, aligned_attention
from tests.fake_hub import fake_hub
from tests.pipelines import tiny
from tests.pipelines.alignedgen import slow


STEPS, HEIGHT, WIDTH, H, W = 5, 16, 24, 4, 6
PROMPTS = ["a fox", "a dog", "two cats"]
CLOSE = {"rtol": 0, "atol": 1e-5}
LOOP = {"rtol": 0, "atol": 2e-5}  # five steps against an own loop


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pipe():
    pipe = AlignedGenPipeline(**tiny.flux_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(prompt=PROMPTS, **kwargs):
    return {
        "prompt": prompt,
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": STEPS,
        "max_sequence_length": 16,
        "output_type": "latent",
        "generator": seeded(),
    } | kwargs


def draw(pipe, *args, **kwargs):
    return pipe(**call(*args, **kwargs)).images


def stock(pipe, *args, **kwargs):
    return FluxPipeline.__call__(pipe, **call(*args, **kwargs)).images


def picture(h=20, w=40):
    return torch.rand(3, h, w, generator=seeded(5))


def conditions(rows, seed=1, text=5):
    generator = seeded(seed)
    return {
        "prompt_embeds": torch.randn(rows, text, tiny.TEXT_DIM, generator=generator),
        "pooled_prompt_embeds": torch.randn(rows, tiny.TEXT_DIM, generator=generator),
    }


def as_slow(given, text=5):
    ids = torch.tensor([[0, i, j] for i in range(H) for j in range(W)], dtype=torch.float32)
    return {
        "text": given["prompt_embeds"],
        "pooled": given["pooled_prompt_embeds"],
        "img_ids": ids,
        "txt_ids": torch.zeros(text, 3),
    }


def latents(rows=3, seed=2):
    return torch.randn(rows, H * W, 16, generator=seeded(seed))


def negatives(rows):
    return {f"negative_{name}": x for name, x in conditions(rows, seed=7).items()}


# ------------------------------------------------------------------------------------------------------ the whole loop

LAYERS = {"single": {2, 3, 4}, "double": {0, 1}, "all": {0, 1, 2, 3, 4}, (1, 4): {1, 2, 3}}


def twice(sigma):
    return 2 * sigma


LOOPS = [
    {},
    {"share_blocks": "all", "style_lambda": 1.3},
    {"share_blocks": "double", "shift": "height"},
    {"share_blocks": (1, 4), "adain": False},
    {"shift": "none", "isolate_anchor": False},
    {"share_end": 0.5},
    {"share_start": 0.4, "share_end": 0.8, "style_lambda": 0.7},
    {"lambda_schedule": "sigma_squared"},
    {"lambda_schedule": twice, "isolate_anchor": False, "anchor_index": 2},
]


def levers_of(given, layers="single"):
    """The slow loop's levers at each step, for arguments of ours."""
    shift = {"width": (0, 0, W), "height": (0, H, 0), "none": (0, 0, 0)}[given.get("shift", "width")]
    schedule = given.get("lambda_schedule", lambda sigma: given.get("style_lambda", 1.1))
    schedule = (lambda sigma: sigma**2) if schedule == "sigma_squared" else schedule
    start, end = given.get("share_start", 0), given.get("share_end", 1)

    def levers(i, sigma):
        active = start * STEPS <= i < end * STEPS
        return slow.Levers(
            LAYERS[given.get("share_blocks", "single")] if active else set(),
            style_lambda=schedule(sigma),
            adain=given.get("adain", True),
            shift=shift,
            isolate=given.get("isolate_anchor", True),
            anchor=given.get("anchor_index", 0),
        )

    return levers


@pytest.mark.parametrize(
    "levers", LOOPS, ids=lambda levers: " ".join(f"{k}={getattr(v, '__name__', v)}" for k, v in levers.items())
)
@pytest.mark.parametrize("size", [None, 1])
def test_loop_is_the_slow_loop(pipe, levers, size):
    seen, texts = [], conditions(3)
    images = draw(
        pipe,
        None,
        latents=latents(),
        target_batch_size=size,
        callback_on_step_end=lambda owner, i, t, tensors: seen.append(tensors["latents"]) or tensors,
        **texts,
        **levers,
    )
    expected = slow.loop(pipe.transformer, levers_of(levers), latents(), as_slow(texts), STEPS)
    for ours, theirs in zip([latents(), *seen], expected, strict=True):
        torch.testing.assert_close(ours, theirs, **LOOP)
    assert torch.equal(images, seen[-1])


@pytest.mark.parametrize("size", [None, 2])
def test_loop_under_true_cfg_is_the_slow_loop(pipe, size):
    texts, others = conditions(3), negatives(3)
    images = draw(pipe, None, latents=latents(), true_cfg_scale=2.5, target_batch_size=size, **texts, **others)
    plain = {name.removeprefix("negative_"): x for name, x in others.items()}
    expected = slow.loop(
        pipe.transformer, levers_of({}), latents(), as_slow(texts), STEPS, negative=as_slow(plain), true_cfg=2.5
    )
    torch.testing.assert_close(images, expected[-1], **LOOP)


@pytest.mark.parametrize("explicit", [True, False])
def test_external_reference_is_the_slow_loop_with_its_row_overwritten(pipe, explicit):
    x0, texts = latents(1, seed=3), conditions(4)
    noise = torch.randn(1, H * W, 16, generator=seeded(42))
    first = {name: x[:1] for name, x in texts.items()}
    style = StyleReference(**first, grid=(H, W), x0=x0, noise=noise if explicit else None)
    others = {name: x[1:] for name, x in texts.items()}
    images = draw(pipe, None, latents=latents(), style_reference=style, **others)
    expected = slow.loop(
        pipe.transformer,
        levers_of({}),
        torch.cat([x0, latents()]),
        as_slow(texts),
        STEPS,
        overwrite=lambda i, sigma: sigma * noise + (1 - sigma) * x0,
    )
    torch.testing.assert_close(images, expected[-1][1:], **LOOP)


# ---------------------------------------------------------------------------------------------------- stock and anchor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("anchor", [0, 1])
def test_anchor_is_the_stock_image_bit_for_bit(pipe, dtype, anchor):
    pipe.to(dtype)
    aligned, plain = draw(pipe, anchor_index=anchor), stock(pipe)
    assert torch.equal(aligned[anchor], plain[anchor])
    assert (aligned - plain).float().abs().amax((1, 2))[[i for i in range(3) if i != anchor]].min() > 1e-2


def test_anchor_of_several_images_per_prompt_is_the_flat_index(pipe):
    aligned, plain = (f(pipe, PROMPTS[:2], num_images_per_prompt=2) for f in (draw, stock))
    assert torch.equal(aligned[0], plain[0])
    assert (aligned - plain)[1:].abs().amax((1, 2)).min() > 1e-2


@pytest.mark.parametrize("off", [{"share_end": 0.0}, {"share_start": 1.0}, {"share_start": 0.9}], ids=str)
def test_off_is_stock(pipe, off):
    """The last one has no step in its window: 4 / 5 is below 0.9."""
    assert torch.equal(draw(pipe, **off), stock(pipe))


def test_off_lets_one_image_pass_and_ignores_the_style(pipe):
    for given in ({}, {"style_image": picture()}):
        assert torch.equal(draw(pipe, "a fox", share_end=0.0, **given), stock(pipe, "a fox"))


@pytest.mark.parametrize("without", [[], ["vae"]])
def test_one_image_is_the_stock_call(pipe, without):
    if without:
        pipe.register_modules(vae=None)
    for prompt in ("a fox", ["a fox"]):
        assert torch.equal(draw(pipe, prompt), stock(pipe, prompt))
    embeds = {"prompt": None, **conditions(1)}
    assert torch.equal(draw(pipe, **embeds), stock(pipe, **embeds))
    recorded = pipe(**call("a fox", record_style=True))
    assert torch.equal(recorded.images, stock(pipe, "a fox"))
    assert (recorded.style_reference.scaling is None) == bool(without)


def test_style_is_encoded_with_the_scale_of_the_call(pipe, monkeypatch):
    seen, encode = [], pipe.encode_prompt

    @functools.wraps(encode)
    def spy(*args, **kwargs):
        seen.append(kwargs.get("lora_scale"))
        return encode(*args, **kwargs)

    monkeypatch.setattr(pipe, "encode_prompt", spy)
    draw(pipe, style_image=picture(), joint_attention_kwargs={"scale": 0.5})
    assert seen == [0.5, 0.5]


def test_shared_noise_is_the_anchors(pipe):
    assert pipe._noise_row is None
    aligned = draw(pipe, ["a fox"] * 3, shared_noise=True, share_end=0.0)
    torch.testing.assert_close(aligned, aligned[:1].expand_as(aligned), **CLOSE)
    assert torch.equal(aligned[0], stock(pipe, ["a fox"] * 3)[0])
    given = draw(pipe, ["a fox"] * 3, latents=latents(), shared_noise=True, share_end=0.0, anchor_index=1)
    torch.testing.assert_close(given, stock(pipe, ["a fox"] * 3, latents=latents())[1:2].expand_as(given), **CLOSE)
    with pytest.raises(RuntimeError):
        draw(pipe, shared_noise=True, callback_on_step_end=lambda *args: (_ for _ in ()).throw(RuntimeError()))
    assert pipe._noise_row is None and "_noise_row" not in vars(pipe)
    assert torch.equal(stock(pipe), stock(AlignedGenPipeline(**pipe.components)))


# -------------------------------------------------------------------------------------------------- routes to the same


@pytest.mark.parametrize("size", [1, 2, 3])
def test_chunks_change_nothing(pipe, size):
    torch.testing.assert_close(draw(pipe, target_batch_size=size), draw(pipe), **LOOP)


@pytest.mark.parametrize("size", [1, 2])
def test_chunks_change_nothing_under_true_cfg(pipe, size):
    given = {"negative_prompt": ["grey", "ugly", "dull"], "true_cfg_scale": 3.0}
    torch.testing.assert_close(draw(pipe, target_batch_size=size, **given), draw(pipe, **given), **LOOP)


@pytest.mark.parametrize("isolate", [True, False])
def test_recorded_anchor_continues_the_series(pipe, isolate, tmp_path):
    together = pipe(**call(record_style=True, isolate_anchor=isolate))
    assert isinstance(together, AlignedGenPipelineOutput)
    style = together.style_reference
    style.save(tmp_path / "style.safetensors")
    style = StyleReference.load(tmp_path / "style.safetensors")
    assert style.trajectory.shape == (STEPS, 1, H * W, 16) and style.grid == (H, W)
    assert torch.equal(style.sigmas, pipe.scheduler.sigmas[:STEPS])
    noise = pipe.prepare_latents(3, 4, HEIGHT, WIDTH, torch.float32, "cpu", seeded())[0]
    for size in (None, 1):
        later = draw(
            pipe,
            PROMPTS[1:],
            latents=noise[1:],
            style_reference=style,
            isolate_anchor=isolate,
            target_batch_size=size,
        )
        torch.testing.assert_close(later, together.images[1:], **LOOP)
    alone = draw(pipe, PROMPTS[2], latents=noise[2:], style_reference=style, isolate_anchor=isolate)
    torch.testing.assert_close(alone, together.images[2:], **LOOP)


def test_recorded_anchor_continues_the_series_under_true_cfg(pipe):
    given = {"true_cfg_scale": 3.0}
    together = pipe(**call(record_style=True, negative_prompt=["grey", "ugly", "dull"], **given))
    style = together.style_reference
    assert style.negative_prompt_embeds is not None
    noise = pipe.prepare_latents(3, 4, HEIGHT, WIDTH, torch.float32, "cpu", seeded())[0]
    given |= {"negative_prompt": ["ugly", "dull"]}
    later = draw(pipe, PROMPTS[1:], latents=noise[1:], style_reference=style, **given)
    torch.testing.assert_close(later, together.images[1:], **LOOP)


def test_one_image_can_be_recorded(pipe):
    """Pick a seed, then extend it."""
    alone = pipe(**call("a fox", record_style=True))
    assert torch.equal(alone.images, stock(pipe, "a fox"))
    later = draw(pipe, PROMPTS[1:], style_reference=alone.style_reference)
    assert (later - stock(pipe, PROMPTS[1:])).abs().amax((1, 2)).min() > 1e-2


def test_recording_changes_no_image_and_returns_what_was_asked(pipe):
    images, style = pipe(**call(record_style=True, return_dict=False))
    assert torch.equal(images, draw(pipe)) and isinstance(style, StyleReference)
    first, second = (pipe(**call(record_style=True)).style_reference for _ in range(2))
    assert torch.equal(first.trajectory, second.trajectory)


def test_blocks_around_a_whole_pipeline(pipe):
    plain = FluxPipeline(**pipe.components)
    plain.set_progress_bar_config(disable=True)
    with aligned_attention(plain.transformer, scheduler=plain.scheduler, record=True) as sharing:
        first = plain(**call()).images
        again = plain(**call()).images  # a second loop in the same block is a new recording
        style = sharing.recorded()
    assert torch.equal(first, draw(pipe)) and torch.equal(again, first)
    expected = pipe(**call(record_style=True)).style_reference
    assert torch.equal(style.trajectory, expected.trajectory) and torch.equal(style.sigmas, expected.sigmas)


# ---------------------------------------------------------------------------------------------------- external picture


def test_style_image_is_what_encode_style_makes(pipe):
    style = pipe.encode_style(picture(), "a boat", height=HEIGHT, width=WIDTH, max_sequence_length=16)
    expected = draw(pipe, style_reference=style)
    out = draw(pipe, style_image=picture(), style_prompt="a boat")
    assert torch.equal(out, expected) and len(out) == len(PROMPTS)
    assert (out - stock(pipe)).abs().amax((1, 2)).min() > 1e-2
    assert (out - draw(pipe, style_image=picture(), style_prompt="x")).abs().max() > 1e-3
    assert len(draw(pipe, "a fox", style_image=picture())) == 1


@pytest.mark.parametrize(
    ("h", "w", "grid"), [(20, 40, (3, 7)), (16, 24, (4, 6)), (300, 300, (5, 5)), (1, 400, (1, 98))]
)
def test_style_image_keeps_its_proportions(pipe, h, w, grid):
    style = pipe.encode_style(picture(h, w), height=HEIGHT, width=WIDTH, max_sequence_length=16)
    assert style.grid == grid and style.x0.shape == (1, grid[0] * grid[1], 16)
    assert style.x0.dtype == torch.float32


def test_style_image_is_the_mode_of_the_vae_scaled_and_packed(pipe):
    style = pipe.encode_style(picture(HEIGHT, WIDTH), height=HEIGHT, width=WIDTH, max_sequence_length=16)
    pixels = (picture(HEIGHT, WIDTH) * 255).round() / 255 * 2 - 1
    with torch.no_grad():
        z = (pipe.vae.encode(pixels[None]).latent_dist.mean - 0.1) * 0.4
    for i, j, c, di, dj in itertools.product(range(H), range(W), range(4), range(2), range(2)):
        packed = style.x0[0, i * W + j, 4 * c + 2 * di + dj]
        torch.testing.assert_close(packed, z[0, c, 2 * i + di, 2 * j + dj])


def test_pictures_of_every_kind(pipe):
    array = (picture(HEIGHT, WIDTH).permute(1, 2, 0) * 255).round().byte().numpy()
    kinds = [PIL.Image.fromarray(array), array, array / np.float32(255), picture(HEIGHT, WIDTH)[None]]
    styles = [pipe.encode_style(x, height=HEIGHT, width=WIDTH, max_sequence_length=16) for x in kinds]
    for style in styles[1:]:
        torch.testing.assert_close(style.x0, styles[0].x0)


def test_order_of_targets_does_not_matter_and_their_generator_is_untouched(pipe):
    given = {"style_image": picture()}
    images = draw(pipe, latents=latents(), **given)
    swapped = draw(pipe, PROMPTS[::-1], latents=latents().flip(0), **given)
    torch.testing.assert_close(swapped.flip(0), images, **CLOSE)
    states = []
    for f in (draw, stock):
        generator = seeded(11)
        torch.manual_seed(1)
        f(pipe, generator=generator, **(given if f is draw else {}))
        states.append((generator.get_state(), torch.get_rng_state()))
    assert all(map(torch.equal, *states))


def test_noise_of_the_reference_is_the_same_at_all_steps(pipe):
    seen = []
    handle = pipe.transformer.x_embedder.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    style = pipe.encode_style(picture(), height=HEIGHT, width=WIDTH, seed=7, max_sequence_length=16)
    draw(pipe, style_reference=style)
    handle.remove()
    noise = torch.randn(style.x0.shape, generator=seeded(7))
    for x, sigma in zip(seen[::2], pipe.scheduler.sigmas, strict=False):
        torch.testing.assert_close(x, sigma * noise + (1 - sigma) * style.x0, rtol=0, atol=1e-6)
    assert len(seen) == 2 * STEPS


def test_any_number_of_steps_and_size_goes_with_a_picture(pipe):
    style = pipe.encode_style(picture(), height=HEIGHT, width=WIDTH, max_sequence_length=16)
    for given in ({"num_inference_steps": 2}, {"height": 24, "width": 16}, {"sigmas": [1.0, 0.3]}):
        assert torch.isfinite(draw(pipe, style_reference=style, **given)).all()


def test_chunks_change_nothing_with_a_picture_under_true_cfg(pipe):
    given = {"style_image": picture(), "negative_prompt": ["grey"] * 3, "true_cfg_scale": 3.0}
    expected = draw(pipe, **given)
    for size in (1, 2):
        torch.testing.assert_close(draw(pipe, target_batch_size=size, **given), expected, **LOOP)


def test_picture_is_run_once_per_step_under_true_cfg(pipe):
    rows = []
    handle = pipe.transformer.x_embedder.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    draw(pipe, style_image=picture(), negative_prompt=["grey"] * 3, true_cfg_scale=3.0)
    handle.remove()
    assert rows == [1, 3, 3] * STEPS


def test_embeddings_stand_in_for_the_text_of_a_style(pipe):
    texts = conditions(1)
    style = pipe.encode_style(picture(), None, height=HEIGHT, width=WIDTH, **texts)
    assert torch.equal(style.prompt_embeds, texts["prompt_embeds"])
    assert torch.equal(style.pooled_prompt_embeds, texts["pooled_prompt_embeds"])


# ---------------------------------------------------------------------------------------------------- style references


def test_style_survives_saving(pipe, tmp_path):
    style = pipe.encode_style(picture(), "a boat", seed=3, height=HEIGHT, width=WIDTH, max_sequence_length=16)
    path = tmp_path / "style.safetensors"
    style.save(path)
    loaded = StyleReference.load(path)
    for name, value in vars(style).items():
        other = getattr(loaded, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    assert torch.equal(draw(pipe, style_reference=loaded), draw(pipe, style_reference=style))
    assert [p.name for p in tmp_path.iterdir()] == ["style.safetensors"]


def test_failed_saving_leaves_the_old_file(pipe, tmp_path, monkeypatch):
    style = pipe.encode_style(picture(), height=HEIGHT, width=WIDTH, max_sequence_length=16)
    path = tmp_path / "style.safetensors"
    style.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        style.save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["style.safetensors"]


PUSH = """
import json, sys, torch
from alignext import StyleReference
style = StyleReference(torch.ones(1, 2, 4), None, (1, 2), x0=torch.arange(6.0).view(1, 2, 3), scaling=(0.1, 0.4))
style.push_to_hub("someone/my-style", token="secret")
style.push_to_hub("someone/my-style", token="secret", filename="other.safetensors", commit_message="Another")
back = StyleReference.from_hub("someone/my-style", filename="other.safetensors")
print(json.dumps([torch.equal(back.x0, style.x0), back.scaling == style.scaling]))
"""


@pytest.mark.slow  # a process of its own; that of `tests/test_hub.py` is among the fast ones
def test_style_is_pushed_and_loaded_back(tmp_path):
    with fake_hub() as hub:
        environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)}
        root = Path(__file__).parents[3]
        answer = subprocess.run(
            [sys.executable, "-c", PUSH], env=environment, cwd=root, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stderr
        assert json.loads(answer.stdout) == [True, True]
        assert {"style_reference.safetensors", "other.safetensors"} <= set(hub.repos["someone/my-style"])
        assert [commit["summary"] for commit in hub.commits] == ["Upload style reference", "Another"]


# ----------------------------------------------------------------------------------------------------- other pipelines


def test_img2img(pipe):
    img2img = FluxImg2ImgPipeline(**pipe.components)
    img2img.set_progress_bar_config(disable=True)

    def run():
        image = picture(HEIGHT, WIDTH)[None].expand(3, -1, -1, -1)
        return img2img(**call(image=image, strength=0.6, num_inference_steps=10)).images

    plain = run()
    with aligned_attention(img2img.transformer, scheduler=img2img.scheduler):
        aligned = run()
    assert torch.equal(aligned[0], plain[0]) and (aligned - plain)[1:].abs().amax((1, 2)).min() > 1e-3
    with aligned_attention(img2img.transformer, scheduler=img2img.scheduler, share_end=0.4):  # it begins there
        assert torch.equal(run(), plain)


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # diffusers' own ControlNet uses it
@pytest.mark.parametrize("size", [None, 1])
def test_controlnet(pipe, size):
    torch.manual_seed(0)
    controlnet = FluxControlNetModel.from_transformer(
        pipe.transformer, num_layers=1, num_single_layers=1, attention_head_dim=12, num_attention_heads=2
    )
    for parameter in controlnet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    controlled = FluxControlNetPipeline(**pipe.components, controlnet=controlnet.eval())
    controlled.set_progress_bar_config(disable=True)

    def run():
        return controlled(**call(control_image=picture(HEIGHT, WIDTH)[None])).images

    plain = run()
    assert (plain - stock(pipe)).abs().max() > 1e-2
    with aligned_attention(pipe.transformer, scheduler=pipe.scheduler, target_batch_size=size):
        aligned = run()
    torch.testing.assert_close(aligned[0], plain[0], **LOOP)
    assert (aligned - plain)[1:].abs().amax((1, 2)).min() > 1e-3


# -------------------------------------------------------------------------------------------------------- saved folder


def test_saved_folder_names_the_stock_class(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "FluxPipeline"
    assert (tmp_path / "pipeline.py").read_text() == "from alignext import AlignedGenPipeline as Pipeline\n"
    card = (tmp_path / "README.md").read_text()
    assert "2509.17088" in card and "alignedgen" in card
