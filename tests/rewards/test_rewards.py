# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The rewards that come with the package, and their combination."""

import itertools
import math
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

from alignext import rewards
from alignext.rewards import (
    AestheticReward,
    CLIPReward,
    CompressibilityReward,
    DirectionalReward,
    HPSReward,
    JudgeReward,
    PaletteReward,
    PickScoreReward,
    RelativeReward,
    TemporalConsistency,
    WeightedReward,
    brightness,
    calibrate_weights,
    compressibility,
    dynamics,
    incompressibility,
)

from ..pipelines import tiny


IMAGES = torch.rand(3, 3, 20, 28, generator=torch.Generator().manual_seed(0))
VIDEOS = torch.rand(2, 4, 3, 20, 28, generator=torch.Generator().manual_seed(1))
TEXTS = ["a fox", "a dog", "a fox"]


@pytest.fixture(scope="module")
def clip():
    words, width = tiny.tokenizer(), {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = CLIPConfig(
        text_config=width | {
            "vocab_size": len(words), "num_attention_heads": 2, "max_position_embeddings": 16,
            "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id,
        },
        vision_config=width | {"num_attention_heads": 2, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIPReward(CLIPModel(config), words)


def all_of(clip):
    return {
        "brightness": brightness,
        "compressibility": compressibility,
        "incompressibility": incompressibility,
        "palette": PaletteReward([(1, 0, 0), (0.2, 0.3, 0.9)]),
        "dynamics": dynamics,
        "clip": clip,
        "pickscore": PickScoreReward(clip.model, clip.tokenizer),
        "aesthetic": AestheticReward(torch.nn.Linear(8, 1), clip),
        "directional": DirectionalReward(clip, direction=torch.ones(8) / 10),
        "relative": RelativeReward(clip, "a", "the"),
        "style probability": JudgeReward("style", "flat", probability=True),
        "consistency": TemporalConsistency(clip.encode_image),
        "weighted": WeightedReward({"a": brightness, "b": clip}),
    }


NAMES = (
    "brightness", "compressibility", "incompressibility", "palette", "dynamics", "clip", "pickscore", "aesthetic",
    "directional", "relative", "style probability", "consistency", "weighted",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_has_the_form_of_a_reward(clip, name):
    reward = all_of(clip)[name]
    for images in (IMAGES, VIDEOS):
        texts = TEXTS[: len(images)]
        if name in ("dynamics", "consistency") and images.ndim == 4:
            with pytest.raises(ValueError, match="videos"):
                reward(images, texts)
            continue
        images = images.clone().requires_grad_()
        values = reward(images, texts)
        assert values.shape == (len(images),) and values.isfinite().all()
        assert values.requires_grad == reward.differentiable
        if reward.differentiable:
            values.sum().backward()
            assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["brightness", "compressibility", "clip", "pickscore", "aesthetic"])
def test_a_video_counts_as_the_mean_of_its_frames(clip, name):
    reward = all_of(clip)[name]
    expected = [reward(video, [text] * len(video)).mean() for video, text in zip(VIDEOS, TEXTS[:2], strict=True)]
    torch.testing.assert_close(reward(VIDEOS, TEXTS[:2]), torch.stack(expected))


def test_toys_by_hand():
    white, noise = torch.ones(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    assert brightness(torch.cat([white, white * 0.25])).tolist() == [1, 0.25]
    assert compressibility(white) > compressibility(noise) and compressibility(white) < 0
    assert dynamics(white.expand(1, 5, 3, 16, 16)).item() == 0
    blinking = torch.stack([white[0], 0 * white[0]] * 2)[None]
    assert dynamics(blinking).item() == 1


def test_compression_by_hand():
    noise = torch.rand(2, 3, 16, 16)
    assert torch.equal(incompressibility(noise), -compressibility(noise))
    assert (CompressibilityReward(quality=10)(noise) > compressibility(noise)).all()
    with pytest.raises(ValueError, match=r"`quality` must be in 1..100, received 0"):
        CompressibilityReward(quality=0)


def test_palette_by_hand():
    """On ink alone: a red drawing on white is near red, at the distance of the two colours from blue."""
    drawing = torch.ones(1, 3, 16, 16)
    drawing[:, 1:, 4:12, 4:12] = 0
    reds, blues = PaletteReward([(1, 0, 0)]), PaletteReward([(0, 0, 1)])
    assert reds(drawing).item() == pytest.approx(-0.01 / 0.26, abs=1e-3)
    assert blues(drawing).item() == pytest.approx(-(0.25 * 2**0.5 + 0.01) / 0.26, abs=1e-3)
    both = PaletteReward([(0, 0, 1), (1, 0, 0)])
    torch.testing.assert_close(both(drawing), reds(drawing))
    assert reds(torch.ones(1, 3, 16, 16)).item() == pytest.approx(-1)  # an empty sheet is not the best picture
    x = torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(both, x)
    with pytest.raises(ValueError, match=r"`colors` must be RGB in \[0, 1\]"):
        PaletteReward([(255, 0, 0)])


def test_a_judge_may_want_one_thing_whatever_the_prompt():
    plain, fixed = JudgeReward("style"), JudgeReward("style", "flat", probability=True)
    torch.testing.assert_close(fixed(IMAGES), plain(IMAGES, "a fox, flat style").exp())
    torch.testing.assert_close(fixed(IMAGES, TEXTS), fixed(IMAGES))
    with pytest.raises(ValueError, match=r"`wanted` must be one of the style judge's labels, .*received 'baroque'"):
        JudgeReward("style", "baroque")


def test_hps_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match="pip install open_clip_torch"):
        HPSReward(tmp_path / "HPS_v2.1_compressed.pt")


def test_consistency_by_hand():
    """Features e1, e1, e2, -e1: with the one before 1, 0, 0; with the first 1, 0, 0 (-1 counts as 0)."""
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1], [-1, 0]])
    reward = TemporalConsistency(lambda frames: features)
    assert reward(VIDEOS[:1]).item() == pytest.approx(1 / 3)


def test_clip_is_the_models_own_similarity(clip):
    images = torch.rand(2, 3, 16, 16)
    tokens = clip.tokenizer(["a fox", "a dog"], padding=True, return_tensors="pt")
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    logits = clip.model(pixel_values=pixels, **tokens).logits_per_image.diag()
    torch.testing.assert_close(PickScoreReward(clip.model, clip.tokenizer)(images, ["a fox", "a dog"]), logits)
    torch.testing.assert_close(clip(images, ["a fox", "a dog"]), logits / clip.model.logit_scale.exp())
    with pytest.raises(ValueError, match="compares with the prompts"):
        clip(images, None)


def test_clip_loads_by_name(clip, tmp_path):
    clip.model.save_pretrained(tmp_path)
    clip.tokenizer.save_pretrained(tmp_path)
    torch.testing.assert_close(CLIPReward(str(tmp_path))(IMAGES, TEXTS), clip(IMAGES, TEXTS))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_aesthetic_head_loads_from_a_file(clip, tmp_path, suffix):
    head, path = torch.nn.Linear(8, 1), tmp_path / f"head.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(head.state_dict(), path)
    expected = head(clip.encode_image(IMAGES))[:, 0] / 10
    torch.testing.assert_close(AestheticReward(path, clip)(IMAGES), expected)
    # The head of several layers, with dropout between them that has no weights.
    layers = torch.nn.Sequential(
        torch.nn.Linear(8, 6), torch.nn.Dropout(0.2), torch.nn.Linear(6, 4), torch.nn.Linear(4, 1)
    )
    layers.eval()
    torch.save({f"layers.{name}": value for name, value in layers.state_dict().items()}, tmp_path / "deep.pth")
    found = AestheticReward(tmp_path / "deep.pth", clip)
    assert not found.head.training and len(found.head) == 3
    torch.testing.assert_close(found(IMAGES), layers(clip.encode_image(IMAGES))[:, 0] / 10)
    torch.save({"layers.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"found \['layers.0.weight'\]"):
        AestheticReward(tmp_path / "other.pth", clip)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"received \(3, 20, 28\)"):
        brightness(IMAGES[0])
    assert set(rewards.__all__) <= set(vars(rewards))


# ------------------------------------------------------------------------------------------------------ WeightedReward


def test_weights_and_what_they_leave_out():
    def never(images, prompts):
        raise AssertionError

    def poison(images, prompts):
        return torch.full((len(images),), math.nan)

    plain = WeightedReward({"a": brightness, "b": compressibility}, {"a": 2.0, "b": 0.5})
    torch.testing.assert_close(plain(IMAGES), 2 * brightness(IMAGES) + 0.5 * compressibility(IMAGES))
    spared = WeightedReward({"a": brightness, "never": never, "poison": poison}, {"a": 2.0, "never": 0.0})
    torch.testing.assert_close(spared(IMAGES), 2 * brightness(IMAGES))
    assert spared.scores(IMAGES).keys() == {"a"}
    assert WeightedReward({"poison": poison}, {"poison": 1.0})(IMAGES).isneginf().all()


def test_weights_by_class_of_prompt():
    called = []

    def counted(images, prompts, is_final=None):
        called.append((prompts, is_final))
        return torch.ones(len(images))

    reward = WeightedReward(
        {"a": brightness, "b": counted}, {"a": 1.0}, {"dog": {"b": 3.0}}, prompt_class=lambda text: text.split()[-1]
    )
    expected = brightness(IMAGES)
    expected[1] = 3
    torch.testing.assert_close(reward(IMAGES, TEXTS, is_final=True, latents=IMAGES), expected)
    assert called == [(["a dog"], True)]
    with pytest.raises(ValueError, match="needs the prompts"):
        reward(IMAGES, None)


def test_members_of_latents_are_given_latents():
    def level(latents, prompts):
        return latents.flatten(1).mean(1)

    level.input_type = "latent"
    reward, latents = WeightedReward({"a": brightness, "level": level}), torch.randn(3, 4, 2, 2)
    torch.testing.assert_close(reward(IMAGES, latents=latents), brightness(IMAGES) + latents.mean((1, 2, 3)))
    with pytest.raises(ValueError, match="'level' is a reward of latents: pass `latents`"):
        reward(IMAGES)


def test_wrong_weights_are_named():
    with pytest.raises(ValueError, match="Weights for c, and the members are a, b"):
        WeightedReward({"a": brightness, "b": brightness}, {"c": 1.0})
    with pytest.raises(ValueError, match="belong together"):
        WeightedReward({"a": brightness}, weights_by_class={"dog": {"a": 1.0}})


# --------------------------------------------------------------------------------------------------------- calibration


def data(n=200, k=3):
    generator = torch.Generator().manual_seed(0)
    metrics = torch.randn(n, k, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5])
    return metrics, metrics, generator


def test_calibration_is_brute_force_over_the_grid():
    metrics, _, generator = data()
    target = metrics @ torch.tensor([1.0, 0.2, 0.9], dtype=torch.float64)
    target = target + torch.randn(200, generator=generator, dtype=torch.float64)

    def correlation(w):
        return torch.corrcoef(torch.stack([metrics @ torch.tensor(w, dtype=torch.float64), target]))[0, 1].item()

    best = max((correlation(w), w) for w in itertools.product(range(5), repeat=3) if any(w))
    found = calibrate_weights(metrics, target)
    assert found.correlation == pytest.approx(best[0])
    weights = torch.tensor(best[1], dtype=torch.float64)
    torch.testing.assert_close(found.weights, weights / weights.max())
    assert found.held_out is None


def test_calibration_finds_what_made_the_target():
    metrics, *_ = data()
    found = calibrate_weights(metrics, metrics @ torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64), folds=5)
    assert found.weights.tolist() == [0.5, 0.0, 1.0]
    assert found.correlation == pytest.approx(1) and found.held_out == pytest.approx(1)


def test_ties_take_the_smallest_sum_then_the_first():
    column = torch.randn(50, 1, dtype=torch.float64)
    assert calibrate_weights(column.expand(50, 2), column[:, 0]).weights.tolist() == [0, 1]
    with_constant = torch.cat([column, torch.ones_like(column)], 1)
    assert calibrate_weights(with_constant, column[:, 0]).weights.tolist() == [1, 0]


def test_held_out_shows_what_was_fitted_to_noise():
    metrics, *_ = data(n=20)
    found = calibrate_weights(metrics, torch.randn(20, dtype=torch.float64), folds=4)
    assert found.held_out < found.correlation


@pytest.mark.parametrize(
    "arguments, text",
    [
        ((torch.zeros(5), torch.zeros(5)), "received \\(5,\\)"),
        ((torch.rand(5, 2), torch.rand(4)), "received \\(5, 2\\) and \\(4,\\)"),
        ((torch.rand(5, 2), torch.rand(5), 0.3), "`step` must divide 1, received 0.3"),
        ((torch.rand(5, 2), torch.ones(5)), "do not vary"),
        ((torch.rand(5, 2), torch.rand(5), 0.25, 3), "5 in all, received 3"),
    ],
)
def test_bad_data_is_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        calibrate_weights(*arguments)
