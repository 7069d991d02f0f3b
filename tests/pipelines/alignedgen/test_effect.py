# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What AlignedGen promises, on the embedded model: one style in a set, and each image keeps its subject."""

import numpy as np
import pytest
import torch

from alignext import AlignedGenPipeline, mini
from alignext.mini.judges import Judge, likeness


pytestmark = pytest.mark.effect

SETS = (
    ("a red fox", "an owl", "a house", "a rocket"),
    ("a bell", "a lemon", "a tiger", "a fire engine"),
    ("a ghost", "a cat", "a red car", "a mushroom"),
    ("a pumpkin", "a crown", "a frog", "a tent"),
    ("a cookie", "a bear", "a train", "a rose"),
    ("a balloon", "a penguin", "a drum", "a castle"),
)


@pytest.fixture(scope="module")
def judges():
    return {name: Judge(name) for name in ("concept", "style")}


@pytest.fixture(scope="module")
def draw():
    pipe = AlignedGenPipeline.from_pretrained(mini.path("flux"))
    pipe.set_progress_bar_config(disable=True)

    def draw(prompts, seed, **levers):
        generators = [torch.Generator().manual_seed(seed + k) for k in range(len(prompts))]
        settings = mini.FLUX_CALL | {"negative_prompt": [""] * len(prompts), "num_inference_steps": 20}
        return pipe(list(prompts), generator=generators, **settings, **levers).images

    return draw


@pytest.fixture(scope="module")
def made(draw):
    """The sets by stock and by us; no prompt names a style, so stock draws any."""
    return {
        name: [draw(prompts, 100 * k, **levers) for k, prompts in enumerate(SETS)]
        for name, levers in {"stock": {"share_end": 0.0}, "aligned": {}}.items()
    }


def mean_likeness(judges, sets):
    rows = [likeness(images, judges["style"]) for images in sets]
    return {metric: np.mean([row[metric] for row in rows]) for metric in rows[0]}


def kept(judges, sets):
    """Share of the targets that are what their prompt names."""
    right = [
        found == prompt.split(" ", 1)[1]
        for prompts, images in zip(SETS, sets, strict=True)
        for prompt, found in zip(prompts[1:], judges["concept"].name(images[1:]), strict=True)
    ]
    return sum(right) / len(right)


def test_a_set_has_one_style(judges, made):
    stock, aligned = (mean_likeness(judges, made[name]) for name in ("stock", "aligned"))
    assert aligned["style"] > stock["style"] + 0.1
    assert aligned["same style"] > stock["same style"] + 0.1


def test_each_image_keeps_its_subject(judges, made):
    assert kept(judges, made["aligned"]) > kept(judges, made["stock"]) - 0.15
    for prompts, images in zip(SETS, made["aligned"], strict=True):
        assert judges["concept"].name(images).count(prompts[0].split(" ", 1)[1]) <= 2


def test_the_anchor_is_the_stock_image(made):
    for ours, stock in zip(made["aligned"], made["stock"], strict=True):
        assert ours[0].tobytes() == stock[0].tobytes()


def test_images_take_the_style_of_a_picture(judges, draw, made):
    """Drawings of concepts the model never saw, in styles that are far from each other."""
    near = {"stock": [], "picture": []}
    for style in ("ink", "glossy", "flat"):
        drawing = next(p for p in mini.pictures("unseen_concept") if p.style == style)
        images = draw(SETS[0], 0, style_image=drawing.image, style_prompt=drawing.caption)
        for name, some in (("stock", made["stock"][0]), ("picture", images)):
            with torch.no_grad():
                features = judges["style"]([drawing.image, *some]).features
            near[name] += (features[1:] @ features[0]).tolist()
    assert np.mean(near["picture"]) > np.mean(near["stock"]) + 0.1
