# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The settings of objective heads: one form in every checkpoint."""

import pytest

from alignext.heads.auto import AutoModelForCausalLMWithObjectiveHeads as AutoHeads
from alignext.heads.settings import HeadSettings


# As the first versions wrote it.
SAVED = {
    "objectives": ["honest", "short"],
    "head_type": "low_rank",
    "rank": 4,
    "alpha": 8,
    "dtype": "float32",
    "default_weights": [0.25, 0.75],
}


def test_saved_settings_are_read_and_written_as_they_were() -> None:
    assert HeadSettings(**SAVED).to_dict() == SAVED
    assert HeadSettings.of(SAVED, {"objectives": ("honest", "short"), "head_rank": 4}).to_dict() == SAVED
    assert list(HeadSettings(**SAVED).to_dict()) == list(SAVED)


def test_weights_replace_those_that_were_saved() -> None:
    found = HeadSettings.of(SAVED, {"default_weights": {"short": 2.0}})
    assert found.default_weights == [0.0, 2.0] and found.rank == 4


def test_defaults() -> None:
    assert HeadSettings.of(None, {"objectives": ["a"]}).to_dict() == {
        "objectives": ["a"],
        "head_type": "full",
        "rank": 64,
        "alpha": 64,
        "dtype": "float32",
        "default_weights": None,
    }
    assert HeadSettings.of(None, {"objectives": ["a"], "head_rank": 2, "head_dtype": "torch.bfloat16"}).alpha == 2


def test_arguments_are_named_as_a_caller_knows_them() -> None:
    with pytest.raises(ValueError, match="`head_rank` is 8, but the checkpoint was saved with 4"):
        HeadSettings.of(SAVED, {"head_rank": 8})
    with pytest.raises(TypeError, match="rank"):
        AutoHeads.from_config(None, ["a"], rank=2)
