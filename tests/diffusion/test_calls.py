# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The arguments of a stock call: how many prompts and outputs it has."""

import pytest
import torch

from alignext.diffusion.calls import number_of_outputs, number_of_prompts, take


@pytest.mark.parametrize(
    ("call", "prompts"),
    [
        ({"prompt": "a fox"}, 1),
        ({"prompt": ["a fox", "an owl"]}, 2),
        ({"prompt": ("a fox", "an owl", "a bear")}, 3),
        ({"prompt": None, "prompt_embeds": torch.zeros(4, 5, 6)}, 4),
        ({"prompt_embeds": [torch.zeros(5, 6)] * 2}, 2),
    ],
)
def test_prompts_and_outputs_of_a_call(call: dict, prompts: int) -> None:
    assert number_of_prompts(call) == number_of_outputs(call) == prompts
    assert number_of_outputs(call | {"num_images_per_prompt": 3}) == 3 * prompts
    assert number_of_outputs(call | {"num_videos_per_prompt": 2}) == 2 * prompts


def test_texts_are_taken_by_prompt_but_one_for_the_whole_call() -> None:
    call = {"prompt": ["a fox", "an owl"], "negative_prompt": "grey", "system_prompt": "Be good.", "num_steps": 3}
    wanted = {"prompt": ["an owl"] * 2, "negative_prompt": ["grey"] * 2, "system_prompt": "Be good.", "num_steps": 3}
    assert take(call, [1, 1]) == wanted


def test_a_call_without_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="`prompt_embeds` be given, received None"):
        number_of_prompts({"prompt": None})
