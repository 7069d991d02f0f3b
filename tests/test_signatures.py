# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Arguments that are misspelt, and signatures that are put together."""

import inspect
from dataclasses import dataclass

import pytest

from alignext.signatures import check_names, show_stock_arguments, takes_levers


@dataclass(frozen=True)
class Levers:
    """
    Args:
        t_align (`float`, *optional*, defaults to 600):
            Where.

    Raises:
        `ValueError`: Never.
    """

    t_align: float = 600


class Stock:
    def __call__(self, prompt, num_inference_steps=50, **kwargs):
        return prompt, num_inference_steps, kwargs


class Mixin:
    def __call__(self, *args, task=None, **kwargs):
        """
        The call.

        Args:
            **kwargs: The rest.
            task (`str`): What.
        """
        return super().__call__(*args, **kwargs)


class Ours(Mixin, Stock):
    pass


show_stock_arguments(Ours, Mixin, Levers)


@pytest.mark.parametrize(
    ("misspelt", "right"),
    [
        ("t_allign", "t_align"),
        ("tasks", "task"),
        ("num_inference_step", "num_inference_steps"),
        ("steps", "num_inference_steps"),
    ],
)
def test_misspelt_argument_is_named_with_the_right_one(misspelt, right):
    with pytest.raises(TypeError, match=rf"`Ours.__call__` has no argument `{misspelt}`\. Use `{right}`\."):
        Ours()("a fox", **{misspelt: 3})


def test_what_only_the_stock_call_knows_is_left_to_it():
    given = {"callback": print, "callback_steps": 2, "weather": 3}
    assert Ours()("a fox", **given) == ("a fox", 50, given)


def test_fields_of_levers_are_arguments_with_their_documentation():
    shown = inspect.signature(Ours.__call__).parameters
    assert list(shown) == ["self", "prompt", "num_inference_steps", "t_align", "task"]
    assert shown["t_align"].default == 600 and shown["t_align"].kind is inspect.Parameter.KEYWORD_ONLY
    told = "Args:\n    t_align (`float`, *optional*, defaults to 600):\n        Where.\n    task (`str`): What."
    assert inspect.cleandoc(Ours.__call__.__doc__) == f"The call.\n\n{told}"

    @takes_levers(Levers)
    def share(model, **levers):
        """
        Share.

        Args:
            model: What.
            **levers: The rest.
        """
        return levers

    assert list(inspect.signature(share).parameters) == ["model", "t_align"]
    assert "defaults to 600" in share.__doc__ and share(1, t_align=2) == {"t_align": 2}
    with pytest.raises(TypeError, match="`share` has no argument `t_alig`"):
        share(1, t_alig=2)


def test_names_that_contain_the_words_are_listed():
    with pytest.raises(TypeError, match="Use `reference_image` or `mask_image`"):
        check_names(["image"], ["prompt", "reference_image", "mask_image"], "f")
