# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Running a denoiser in chunks: which arguments have a row per sample, and what comes back."""

import pytest
import torch

from alignext.pipelines.latent_search.hooks import in_chunks, take_rows


class Denoiser(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, hidden_states, timestep=None, img_ids=None, encoder_hidden_states=None, added=None, scale=1.0):
        self.seen.append(len(hidden_states))
        assert img_ids is None or len(img_ids) == 4
        out = hidden_states * scale + added["embeds"]
        if encoder_hidden_states is not None:
            out = out + encoder_hidden_states.unflatten(0, (len(hidden_states), -1)).sum(1)
        return out, {"timestep": timestep}


def arguments(batch):
    return {
        "timestep": torch.arange(batch),
        "img_ids": torch.zeros(4, 3),  # its length is a multiple of the batch by chance, or is it
        "encoder_hidden_states": torch.randn(3 * batch, 2),  # a row per frame
        "added": {"embeds": torch.randn(batch, 2)},
    }


@pytest.mark.parametrize("size", [1, 2, 3])
def test_chunks_give_what_one_call_gives(size):
    model, x, more = Denoiser(), torch.randn(4, 2), arguments(4)
    whole, rest = model(x, **more)
    with in_chunks([model], size):
        parts, others = model(x, **more)
    torch.testing.assert_close(parts, whole)
    assert torch.equal(others["timestep"], rest["timestep"])
    assert max(model.seen[1:]) == size and sum(model.seen[1:]) == 4


def test_equal_rows_are_computed_once():
    model, x = Denoiser(), torch.randn(6, 2)
    same = torch.tensor([0, 0, 0, 3, 3, 3])
    with in_chunks([model], None, lambda batch: same if batch == 6 else None):
        out, _ = model(x, added={"embeds": torch.zeros(6, 2)})
        assert model.seen == [2]
        model(x[:2], added={"embeds": torch.zeros(2, 2)})
    assert torch.equal(out, x[same]) and model.seen == [2, 2]


def test_position_tables_and_scalars_are_never_cut():
    rows = torch.tensor([1])
    table = torch.arange(4)
    for name in ("img_ids", "txt_ids", "image_rotary_emb"):
        assert take_rows(table, rows, 4, name) is table
    assert take_rows({"x": table}, rows, 4)["x"].tolist() == [1]
    assert take_rows(torch.arange(8), rows, 4, "timestep").tolist() == list(range(8))
    assert take_rows(torch.arange(8), rows, 4, "encoder_hidden_states").tolist() == [2, 3]
    assert take_rows(torch.tensor(5), rows, 1).item() == 5


class Listed(torch.nn.Module):
    """Takes and gives its batch as lists, as Z-Image's transformer, with residuals for two layers."""

    def forward(self, x, t, prompts, controlnet_block_samples=()):
        assert len(x) == len(t) == len(prompts) and all(len(more) == len(x) for more in controlnet_block_samples)
        more = sum(controlnet_block_samples) if controlnet_block_samples else [0] * len(x)
        return ([a * b + p.sum() + c for a, b, p, c in zip(x, t, prompts, more, strict=True)],)


@pytest.mark.parametrize("size", [None, 1, 3])
def test_a_batch_may_be_a_list(size):
    x, t = [torch.randn(2, 3) for _ in range(4)], torch.randn(4)
    same = torch.tensor([0, 0, 2, 2])
    x[1], x[3], t = x[0], x[2], t[same]
    prompts = [torch.randn(length) for length in (2, 3)]
    prompts = [prompts[i // 2] for i in range(4)]
    layers = tuple(torch.randn(4, 1, 1)[same] for _ in range(2))
    model = Listed()
    (whole,) = model(x, t, prompts, controlnet_block_samples=layers)
    with in_chunks([model], size, lambda batch: same):
        (parts,) = model(x, t, prompts, controlnet_block_samples=layers)
    assert isinstance(parts, list) and all(map(torch.equal, parts, whole))


def test_numbers_as_many_as_rows_are_not_cut():
    model = Denoiser()
    x = torch.randn(4, 2)
    assert take_rows([7, 8, 9, 10], torch.tensor([1]), 4, "skip_layers") == [7, 8, 9, 10]
    pair = (torch.randn(4, 3), torch.randn(4, 3))  # cosines and sines of positions
    assert take_rows(pair, torch.tensor([1]), 4, "image_rotary_emb") is pair
    with in_chunks([model], 2):
        model(x, added={"embeds": torch.zeros(4, 2)})
    assert model.seen == [2, 2]


def test_the_module_is_as_before_also_after_an_exception():
    plain, wrapped = Denoiser(), Denoiser()
    own = wrapped.forward
    wrapped.forward = lambda *args, **kwargs: own(*args, **kwargs)  # as hooks of other libraries do
    other = wrapped.forward
    with pytest.raises(ZeroDivisionError), in_chunks([plain, wrapped], 1):
        raise ZeroDivisionError
    assert "forward" not in vars(plain) and vars(wrapped)["forward"] is other
