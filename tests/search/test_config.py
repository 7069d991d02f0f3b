# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Settings are checked at the door."""

import pytest

from alignext.search import SearchConfig


@pytest.mark.parametrize(
    "bad, text",
    [
        ({"num_beams": 0}, "`num_beams` must be an integer of at least 1, received 0"),
        ({"num_candidates": 1.5}, "`num_candidates`"),
        ({"lookahead_steps": True}, "`lookahead_steps`"),
        ({"score_every": 0}, "`score_every`"),
        ({"model_batch_size": 0}, "`model_batch_size`"),
        ({"max_children_per_beam": 0}, "`max_children_per_beam`"),
        ({"strategy": "dfs"}, "`strategy` must be one of beam, greedy"),
        ({"noise": "pink"}, "`noise` must be one of ddpm"),
        ({"smc_potential": "sum"}, "`smc_potential`"),
        ({"search_range": (0.5, 0.5)}, "`search_range`"),
        ({"search_range": (1.0, 0.0)}, "`search_range`"),
        ({"search_range": 0.5}, r"`search_range` must be \(lo, hi\) .* received 0.5"),
        ({"eta": "high"}, "`eta` must be a number, received 'high'"),
        ({"smc_lambda": None}, "`smc_lambda` must be a number, received None"),
        ({"eta": 1.1}, r"`eta` must be in \[0, 1\]"),
        ({"eta": 0.0}, "all candidates of a beam would be equal"),
        ({"eta": 0.0, "num_candidates": 1, "strategy": "smc"}, "would be equal"),
        ({"smc_lambda": -1.0}, "`smc_lambda`"),
        ({"smc_lambda": float("nan")}, "`smc_lambda`"),
        ({"smc_threshold": 2.0}, "`smc_threshold`"),
    ],
)
def test_bad_settings_are_named(bad, text):
    with pytest.raises(ValueError, match=text):
        SearchConfig(**bad)


def test_budget():
    assert SearchConfig().budget == 8
    config = SearchConfig.from_budget(16, lookahead_steps=2)
    assert (config.num_beams, config.num_candidates, config.lookahead_steps) == (8, 2, 2)
    assert SearchConfig.from_budget(1).budget == 1
    with pytest.raises(ValueError, match="1 or an even number, received 7"):
        SearchConfig.from_budget(7)


@pytest.mark.parametrize(
    "strategy, shape",
    [("beam", (4, 2)), ("local", (4, 2)), ("greedy", (1, 8)), ("smc", (8, 1)), ("best_of_n", (8, 1))],
)
def test_strategies_lay_out_their_slots(strategy, shape):
    assert SearchConfig(strategy=strategy).shape == shape
