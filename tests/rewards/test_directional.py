# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""DirectionalReward: what it does to the base reward, its fit on a generator, its file; SRPO's relative form."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline

from alignext import mini
from alignext.functional.d2_align import guided_text
from alignext.rewards import CLIPReward, DirectionalReward, RelativeReward, brightness

from ..pipelines import tiny


TEXTS = ["a red fox, flat style", "a rocket, ink style", "a red fox, flat style"]
IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
B = 0.3 * F.normalize(torch.randn(96, generator=torch.Generator().manual_seed(1)), dim=0)


@pytest.fixture(scope="module")
def clip() -> CLIPReward:
    return CLIPReward(mini.path("clip"))


def test_without_a_direction_it_is_the_base_reward_bit_for_bit(clip):
    assert torch.equal(DirectionalReward(clip)(IMAGES, TEXTS), clip(IMAGES, TEXTS))


def test_the_value_is_the_printed_formula(clip):
    found = DirectionalReward(clip, 1.5, B)(IMAGES, TEXTS)
    led = guided_text(clip.encode_text(TEXTS), B, 1.5)
    torch.testing.assert_close(found, (clip.encode_image(IMAGES) * led).sum(-1))
    assert (led.norm(dim=-1) > 1.01).all()  # not normalised again
    torch.testing.assert_close(DirectionalReward(clip, 0.7, torch.zeros(96))(IMAGES, TEXTS), clip(IMAGES, TEXTS))


def test_only_the_pictures_get_a_gradient(clip):
    reward, images = DirectionalReward(clip, direction=B.clone().requires_grad_()), IMAGES.clone().requires_grad_()
    assert reward.differentiable
    reward(images, TEXTS).sum().backward()
    assert images.grad.abs().sum() > 0
    assert reward.direction.grad is None and not reward.direction.requires_grad
    assert all(p.grad is None for p in clip.model.parameters())


def test_a_permuted_batch_has_the_permuted_rewards(clip):
    reward, order = DirectionalReward(clip, direction=B), [2, 0, 1]
    expected = reward(IMAGES, TEXTS)[order]
    torch.testing.assert_close(reward(IMAGES[order], [TEXTS[i] for i in order]), expected)


def test_a_video_counts_as_the_mean_of_its_frames(clip):
    reward = DirectionalReward(clip, direction=B)
    video = IMAGES[None].expand(1, 3, 3, 64, 64)
    torch.testing.assert_close(reward(video, TEXTS[:1]), reward(IMAGES, TEXTS[:1] * 3).mean()[None])


def test_a_long_prompt_is_cut_with_a_warning(clip, monkeypatch):
    from alignext.rewards import dual_encoder

    said: list[str] = []
    monkeypatch.setattr(dual_encoder, "warn_once", lambda logger, text: said.append(text))
    DirectionalReward(clip, direction=B)(IMAGES, TEXTS)
    assert not said
    DirectionalReward(clip, direction=B)(IMAGES, ["a red fox " * 20] * 3)
    assert len(said) == 1 and "reads 24 tokens" in said[0]


def test_what_does_not_fit_is_refused(clip, tmp_path):
    with pytest.raises(ValueError, match=r"of shape \(96,\), the width of CLIPReward, received \(8,\)"):
        DirectionalReward(clip, direction=torch.zeros(8))
    with pytest.raises(ValueError, match="received function without `encode_image`"):
        DirectionalReward(brightness)
    reward = DirectionalReward(clip)
    with pytest.raises(ValueError, match="two different prompts or more, received"):
        reward.fit(None, ["a fox", "a fox"], images=IMAGES[:2])
    with pytest.raises(ValueError, match="`images` must be one per prompt, received 3 for 2 prompts"):
        reward.fit(None, ["a fox", "a dog"], images=IMAGES)
    with pytest.raises(ValueError, match="received None for both"):
        reward.fit(None, ["a fox", "a dog"])
    with pytest.raises(ValueError, match="no `direction` to save yet"):
        reward.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_fit_leaves_the_generator_alone_and_keeps_the_margin(clip):
    pipe = StableDiffusionPipeline(**tiny.sd_components())
    before = {name: p.clone() for name, p in pipe.unet.named_parameters()}
    state, training = torch.random.get_rng_state(), pipe.unet.training
    scheduler, reward = pipe.scheduler, DirectionalReward(clip)
    prompts = ["a red fox, flat style", "a rocket, ink style", "a bee, noto style", "a bus, blob style"]
    call = {"num_inference_steps": 2, "height": 32, "width": 32}
    found = reward.fit(pipe, prompts, 30, keep_margin=None, image_batch_size=3, **call)
    assert torch.equal(found.direction, reward.direction) and 0 < reward.direction.norm() <= 0.3 + 1e-6
    assert found.reward > found.plain_reward
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in pipe.unet.named_parameters())
    assert all(p.grad is None for p in clip.model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state) and pipe.scheduler is scheduler
    assert pipe.unet.training == training
    again = DirectionalReward(clip).fit(pipe, prompts, 30, keep_margin=None, image_batch_size=2, **call)
    torch.testing.assert_close(again.direction, found.direction, atol=1e-4, rtol=0)  # not of the batches drawn


def test_embedded_drawings_show_the_trap_and_the_bound(clip):
    """On a real dual encoder: without bounds the margin between prompts is lost, with them it stays."""
    rows = [row for row in mini.pictures() if row.style != "fx"][:60]
    pixels = [torch.frombuffer(bytearray(row.image.tobytes()), dtype=torch.uint8).view(64, 64, 3) for row in rows]
    images = torch.stack(pixels).permute(0, 3, 1, 2) / 255
    prompts = [row.caption for row in rows]
    free = DirectionalReward(clip).fit(None, prompts, 150, None, keep_margin=None, learning_rate=1e-2, images=images)
    held = DirectionalReward(clip).fit(None, prompts, 100, images=images)
    assert free.margin < 0.5 * free.plain_margin and free.reward > held.reward > held.plain_reward
    assert held.margin >= 0.8 * held.plain_margin


def test_file_folder_and_hub(clip, tmp_path, monkeypatch):
    reward = DirectionalReward(clip, 1.25, B)
    reward.save_pretrained(tmp_path / "new" / "folder")
    same = DirectionalReward.from_pretrained(tmp_path / "new" / "folder", clip)
    assert same.guidance_scale == 1.25 and torch.equal(same.direction, reward.direction)
    assert torch.equal(same(IMAGES, TEXTS), reward(IMAGES, TEXTS))
    with pytest.raises(ValueError, match="fitted to a CLIPReward whose model is not on the Hub"):
        DirectionalReward.from_pretrained(tmp_path / "new" / "folder")
    with pytest.raises(FileNotFoundError, match=r"has no directional_reward.safetensors"):
        DirectionalReward.from_pretrained(tmp_path, clip)
    other = CLIPReward(mini.path("clip"))
    other.model.visual_projection = torch.nn.Linear(128, 8)
    other.model.text_projection = torch.nn.Linear(64, 8)
    with pytest.raises(ValueError, match="pass that one"):
        DirectionalReward.from_pretrained(tmp_path / "new" / "folder", other)
    # A model of the Hub is named, and found again by its name.
    monkeypatch.setattr(clip.model, "name_or_path", "someone/some-clip")
    reward.save_pretrained(tmp_path / "named")
    monkeypatch.setattr("alignext.rewards.clip.CLIPReward", lambda name: {"someone/some-clip": clip}[name])
    assert DirectionalReward.from_pretrained(tmp_path / "named").base_reward is clip
    card = str(reward._card("someone/direction", reward._file_name))
    assert 'DirectionalReward.from_hub("someone/direction")' in card and "2512.24146" in card


def test_relative_reward_prefers_the_wanted_word(clip):
    reward = RelativeReward(clip, "a red", "a blue", 0.25)
    images = IMAGES.clone().requires_grad_()
    found = reward(images, ["fox"] * 3)
    image, words = clip.encode_image(IMAGES), clip.encode_text(["a red fox", "a blue fox"])
    torch.testing.assert_close(found, image @ (1.25 * words[0] - words[1]))
    found.sum().backward()
    assert images.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="`strength` must be 0 or more, received -1"):
        RelativeReward(clip, "a", "b", -1)
