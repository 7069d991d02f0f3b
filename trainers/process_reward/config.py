# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The settings of `ProcessRewardTrainer`."""

from dataclasses import dataclass, field

from trl import RewardConfig

from alignext.checks import check_kinds


@dataclass
class ProcessRewardConfig(RewardConfig):
    r"""
    Configuration class for the [`ProcessRewardTrainer`].

    It has all fields of [`~trl.RewardConfig`]; `center_rewards_coefficient`, which is about pairs, is an error.
    `model_init_kwargs` go to [`~transformers.AutoModelForTokenClassification`], and a solution longer than
    `max_length` is cut behind the last step that fits rather than left out.

    Args:
        loss_type (`str`, *optional*, defaults to `"bce"`):
            `"bce"`: labels are probabilities of success, in [0, 1]. `"mse"`: labels are values of any size, such as
            those of `hindsight_targets`.
        step_separator (`str`, *optional*, defaults to a line break):
            Put after every step; the label of the step stands at its last token.
        learning_rate (`float`, *optional*, defaults to `1e-5`):
            Initial learning rate of the paper's classifiers, instead of `1e-4` as for pairs.
    """

    loss_type: str = field(
        default="bce",
        metadata={
            "help": "`bce`: labels are probabilities of success. `mse`: labels are values of any size.",
            "choices": ["bce", "mse"],
        },
    )
    step_separator: str = field(
        default="\n", metadata={"help": "Put after every step; the label of the step stands at its last token."}
    )
    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})

    def __post_init__(self):
        check_kinds(self)
        super().__post_init__()
        if self.loss_type not in ("bce", "mse"):
            raise ValueError(f"`loss_type` is {self.loss_type!r}. Choose 'bce' or 'mse'.")
        if not self.step_separator:
            raise ValueError("`step_separator` is empty, but labels need a token to stand at. Use a line break.")
        if self.center_rewards_coefficient is not None:
            raise ValueError("`center_rewards_coefficient` is about pairs of texts. Leave it out.")
