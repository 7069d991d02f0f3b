# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The dual encoder knows which caption belongs to a drawing that it never saw."""

import logging

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, CLIPModel, CLIPProcessor

from alignext.mini import path, pictures
from alignext.mini.recipe import render
from alignext.mini.recipe.dual_encoder import unseen_by_clip
from alignext.mini.recipe.scores import tensor
from alignext.rewards import CLIPReward


CONCEPTS = [render.word(name) for name in sorted(render.TRAINED)]


@pytest.fixture(scope="module")
def clip():
    return CLIPReward(path("clip"))


def test_loads_as_the_stock_class_in_float32_without_a_word(caplog):
    with caplog.at_level(logging.WARNING):
        model = CLIPModel.from_pretrained(path("clip"))
    assert not caplog.records
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_processor_of_its_folder_prepares_pictures_as_the_reward_does(clip):
    processor = AutoProcessor.from_pretrained(path("clip"))
    assert isinstance(processor, CLIPProcessor)
    chosen = pictures("unseen_drawing")[:3]
    inputs = processor(text=[p.caption for p in chosen], images=[p.image for p in chosen], padding=True,
                       return_tensors="pt")  # fmt: skip
    with torch.no_grad():
        out = clip.model(**inputs)
        images, texts = (
            clip.encode_image(tensor([p.image for p in chosen])),
            clip.encode_text([p.caption for p in chosen]),
        )
    torch.testing.assert_close(out.image_embeds, images, atol=1e-4, rtol=0)
    torch.testing.assert_close(out.text_embeds, texts, atol=1e-5, rtol=0)


def test_words_of_the_captions_are_single_tokens(clip):
    ids = clip.tokenizer("a red fox, flat style").input_ids
    assert clip.tokenizer.convert_ids_to_tokens(ids[1:-1]) == [
        f"{w}</w>" for w in ("a", "red", "fox", ",", "flat", "style")
    ]


@torch.no_grad()
def test_finds_the_captions_of_drawings_it_never_saw(clip):
    """Chance is 1 in 750 for a caption and 1 in 150 for a concept."""
    chosen = pictures("unseen_drawing")
    assert {(p.concept, p.style) for p in chosen} <= {(render.word(name), style) for name, style in unseen_by_clip()}
    captions = [render.caption(concept, style) for concept in CONCEPTS for style in render.STYLES]
    found = clip.encode_image(tensor([p.image for p in chosen]))
    best = (found @ clip.encode_text(captions).T).topk(5).indices
    right = [p.caption in np.array(captions)[row] for p, row in zip(chosen, best, strict=True)]
    assert sum(right) / len(right) > 0.25
    for split, least in (("unseen_drawing", 0.1), ("unseen_style", 0.25)):
        chosen = pictures(split)
        found = clip.encode_image(tensor([p.image for p in chosen]))
        named = (found @ clip.encode_text([render.caption(c) for c in CONCEPTS]).T).argmax(1)
        right = [CONCEPTS[i] == p.concept for p, i in zip(chosen, named.tolist(), strict=True)]
        assert sum(right) / len(right) > least, split


def test_a_true_caption_scores_higher_than_that_of_another_drawing_and_its_gradient_reaches_the_picture(clip):
    chosen = pictures("unseen_drawing")
    captions = [p.caption for p in chosen]
    x = tensor([p.image for p in chosen]).requires_grad_()
    true, false = clip(x, captions), clip(x, captions[1:] + captions[:1])
    assert (true > false).float().mean() > 0.75
    true.sum().backward()
    assert x.grad.abs().sum() > 0
