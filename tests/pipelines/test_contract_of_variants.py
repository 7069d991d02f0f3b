# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The clauses of `test_contract.py` that other base models of a method could break, over the rows of `variants.py`."""

import pytest
import torch

from .contract import check_lora, run
from .test_contract import (  # noqa: F401  the clauses, and the fixtures that they take
    pipe,
    skip_where_exempt,
    test_active_setting_does_something,
    test_adds_to_the_stock_class_and_takes_nothing_away,
    test_callback_is_called_at_every_step_and_reads_every_tensor,
    test_compiled_pipeline_gives_the_same_result,
    test_components_are_untouched_after_a_call,
    test_components_are_untouched_after_a_failing_callback,
    test_components_are_untouched_after_an_exception,
    test_has_an_example_and_names_its_paper,
    test_hooks_of_the_user_stay_and_fire,
    test_offloaded_pipeline_gives_the_same_result,
    test_progress_bars_can_be_silenced,
    test_runs_in_inference_mode,
    test_same_seed_same_images_and_another_seed_others,
    test_saved_pipeline_gives_the_same_result_loaded_each_way,
    test_signature_begins_with_the_stock_arguments,
)
from .variants import VARIANTS


pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("row", VARIANTS, ids=[row.name for row in VARIANTS], scope="module"),
    # Configurations of some stock classes are read the old way inside diffusers, and one pipeline is old itself.
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def test_neutral_setting_is_the_stock_result_bit_for_bit(row, pipe):  # noqa: F811
    stock = run(row.build(ours=False), row, "stock")
    assert torch.equal(run(pipe, row, "neutral"), stock)


def test_lora_is_used(row, pipe, tmp_path):  # noqa: F811
    check_lora(pipe, lambda: run(pipe, row, "active"), row.denoiser, tmp_path)
