# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Phrases weighed anew in every step of a stock call."""

from typing import Any

import pytest
import torch

from alignext import balanced_phrases
from alignext.diffusion.denoiser import get_denoiser
from tests.pipelines.latent_search import tiny_models


PROMPT, PHRASES = "fox, owl", ["fox", "owl"]


def made(pipe: Any, name: str, **call: Any) -> torch.Tensor:
    settings = tiny_models.BUILDERS[name][1] | {"num_inference_steps": 2, "output_type": "pt"}
    return pipe(PROMPT, generator=torch.Generator().manual_seed(0), **settings | call).images


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_no_strength_is_the_stock_call_and_another_is_not(name: str):
    pipe = tiny_models.build(name)[0]
    pipe.set_progress_bar_config(disable=True)
    settings = tiny_models.BUILDERS[name][1]
    stock = made(pipe, name)
    with balanced_phrases(pipe, PROMPT, PHRASES, 1.0, **settings):
        assert torch.equal(made(pipe, name), stock)
    with balanced_phrases(pipe, PROMPT, PHRASES, 1.5, **settings) as weights:
        assert not torch.equal(made(pipe, name), stock)
    assert len(weights) == 2 and all(sorted(w.tolist()) == [1.0, 1.5] for w in weights)
    assert torch.equal(made(pipe, name), stock) and "forward" not in vars(get_denoiser(pipe))


def test_guided_rows_without_the_prompt_stay(monkeypatch):
    pipe = tiny_models.build("sd")[0]
    pipe.set_progress_bar_config(disable=True)
    texts, original = [], type(pipe.unet).forward

    def seeing(self, sample, timestep, encoder_hidden_states, *args, **kwargs):
        texts.append(encoder_hidden_states)
        return original(self, sample, timestep, encoder_hidden_states, *args, **kwargs)

    monkeypatch.setattr(type(pipe.unet), "forward", seeing)
    made(pipe, "sd", num_inference_steps=1)
    (stock,) = texts
    texts.clear()
    with balanced_phrases(pipe, PROMPT, PHRASES, 1.5) as weights:
        made(pipe, "sd", num_inference_steps=1)
    *_, phrases, prompt, weighed = texts  # the first ones record the calls
    assert len(phrases) == 2 and len(prompt) == 1 and torch.equal(prompt[0], stock[1])
    assert torch.equal(weighed[0], stock[0])  # without the prompt
    changed = (weighed[1] != stock[1]).any(-1).nonzero()[:, 0].tolist()
    # BOS, f, o, x, the comma, o, w, l: the phrase of weight 1 keeps its tokens
    assert changed == ([1, 2, 3] if weights[0][0] == 1.5 else [5, 6, 7])


def test_bad_input_and_errors_leave_nothing(monkeypatch):
    pipe = tiny_models.build("sd")[0]
    for phrases, message in ((["fox"], "at least two phrases"), (["fox", "cat"], "does not stand in the prompt")):
        with pytest.raises(ValueError, match=message), balanced_phrases(pipe, PROMPT, phrases):
            pass
    with pytest.raises(ValueError, match="`strength` must be in"), balanced_phrases(pipe, PROMPT, PHRASES, 0.0):
        pass
    with pytest.raises(ZeroDivisionError), balanced_phrases(pipe, PROMPT, PHRASES):
        raise ZeroDivisionError
    assert "forward" not in vars(pipe.unet)
    with pytest.raises(NotImplementedError, match="attention is understood"):
        with balanced_phrases(tiny_models.build("wan-2.1")[0], PROMPT, PHRASES):
            pass
