# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Settings of the wrong kind: text where YAML's reader found no number, and counts that are none."""

import dataclasses
import inspect

import numpy as np
import pytest
import yaml
from transformers import AutoTokenizer

import alignext
from alignext import QAlign, SearchConfig, TransferQ, mini
from alignext.checks import check_counts


CONFIGS = [
    getattr(alignext, name)
    for name in sorted(alignext.__all__)
    if name.endswith("Config") and hasattr(getattr(alignext, name), "output_dir")
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_configs_name_the_field_that_is_of_another_kind(config, tmp_path):
    """Every field that a config class of ours declares as a number or a switch, and `beta`."""
    ours = [cls for cls in config.__mro__ if cls.__module__.startswith("alignext.")]
    declared = {name: hint for cls in reversed(ours) for name, hint in inspect.get_annotations(cls).items()}
    fields = {field.name for field in dataclasses.fields(config)}
    checked = 0
    for name, hint in (declared | ({"beta": float} if "beta" in fields else {})).items():
        if name not in fields or hint not in (float, int, bool, float | None, int | None):
            continue
        wrong = yaml.safe_load("1e-3")
        assert wrong == "1e-3"
        with pytest.raises(ValueError, match=rf"`{name}` .*'1e-3'.*1\.0e-3"):
            config(output_dir=str(tmp_path), **{name: wrong})
        checked += 1
    assert checked


def test_integers_of_numpy_are_integers_and_true_is_none():
    check_counts(steps=np.int64(2), beams=1)
    check_counts(0, burn_in=0)
    for value in (0, 2.0, True, "2", None, np.float32(1)):
        with pytest.raises(ValueError, match="`beams` must be an integer of at least 1"):
            check_counts(steps=3, beams=value)
    assert SearchConfig(num_beams=np.int64(2)).num_beams == 2


@pytest.mark.parametrize("method", [QAlign, TransferQ])
def test_decoders_take_no_half_counts(method):
    name = "num_steps" if method is QAlign else "num_rollouts"
    with pytest.raises(ValueError, match=f"`{name}` must be an integer .*2.5"):
        method(
            lambda prompts, completions, **_: [0.0] * len(prompts),
            processing_class=AutoTokenizer.from_pretrained(mini.path("lm")),
            **{name: 2.5},
        )
