# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The judges on pictures they never saw."""

import pytest
import torch

from alignext.mini import pictures
from alignext.mini.judges import Judge
from alignext.mini.recipe import render


@pytest.fixture(scope="module")
def concept():
    return Judge("concept")


@pytest.fixture(scope="module")
def style():
    return Judge("style")


def test_labels_are_the_words_of_the_captions(concept, style):
    assert set(concept.labels) == {render.word(name) for name in [*render.TRAINED, *render.UNSEEN]}
    assert set(style.labels) == set(render.STYLES)


@torch.no_grad()
def test_concepts_of_unseen_drawings_and_of_an_unseen_style(concept):
    for split, top1, top5 in (("unseen_drawing", 0.5, 0.7), ("unseen_style", 0.5, 0.7)):
        chosen = pictures(split)
        logits = concept([p.image for p in chosen]).logits
        answers = torch.tensor([concept.labels.index(p.concept) for p in chosen])
        hits = logits.topk(5).indices == answers[:, None]
        assert hits[:, 0].float().mean() > top1, split
        assert hits.any(1).float().mean() > top5, split


@torch.no_grad()
@pytest.mark.parametrize("split", ["unseen_drawing", "unseen_concept"])
def test_styles_of_unseen_pictures(style, split):
    chosen = pictures(split)
    right = [name == p.style for name, p in zip(style.name([p.image for p in chosen]), chosen, strict=True)]
    assert sum(right) / len(right) > 0.6


@torch.no_grad()
def test_features_tell_concepts_apart(concept):
    """A drawing of an unseen style is nearer to trained drawings of its own concept than to those of others."""
    known = pictures("train")
    chosen = [p for p in pictures("unseen_style") if p.concept in {k.concept for k in known}]
    near = concept([p.image for p in chosen]).features @ concept([k.image for k in known]).features.T
    same = torch.tensor([[p.concept == k.concept for k in known] for p in chosen])
    assert near[same].mean() > near[~same].mean() + 0.1


def test_pictures_and_tensors_are_judged_alike_and_tensors_pass_gradients(concept):
    image = pictures("unseen_concept")[0].image
    x = torch.tensor(list(image.tobytes()), dtype=torch.float32).view(1, 64, 64, 3).permute(0, 3, 1, 2) / 255
    x.requires_grad_()
    logits, features = concept(x)
    torch.testing.assert_close(logits, concept([image]).logits)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(1))
    logits.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_other_sizes_are_resized_and_other_shapes_refused(concept):
    assert concept(torch.rand(2, 3, 96, 80)).logits.shape == (2, len(concept.labels))
    with pytest.raises(ValueError, match=r"shape \(3, 64, 64\), expected \(n, 3, h, w\)"):
        concept(torch.rand(3, 64, 64))
