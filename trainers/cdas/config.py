# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The settings of `CDASTrainer`."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from alignext.checks import check_kinds
from alignext.functional.cdas import OBJECTIVES


_DIRECTIONS = ("both", "add", "remove")


@dataclass
class CDASConfig(TrainingArguments):
    r"""
    Configuration class for the [`CDASTrainer`].

    It has all fields of [`~transformers.TrainingArguments`]; activations cannot be checkpointed. Other defaults than
    there have `learning_rate`, `num_train_epochs`, `remove_unused_columns` (off) and `label_names` (none).

    Args:
        layer (`str`, *optional*, defaults to `"50%"`):
            The decoder layer whose output is steered: an index from 0, or a depth.
        objective (`str`, *optional*, defaults to `"jsd"`):
            What is compared with the source's distribution, see
            [`token_losses`][alignext.functional.cdas.token_losses]; the paper's is `"jsd"`.
        directions (`str`, *optional*, defaults to `"both"`):
            `"add"` learns from neutral prompts that are given the concept, `"remove"` from the reverse.
        exclude_first (`int`, *optional*, defaults to 1):
            Positions at the start of each prompt that are never intervened on. 0 for models that do not tell their
            layers positions, such as Bloom and Mamba.
        max_completion_length (`int`, *optional*, defaults to 128):
            Tokens of an answer that are compared; the rest is cut.
        learning_rate (`float`, *optional*, defaults to 0.04):
            Of the unit vector; the paper has 0.04 to 0.08.
        num_train_epochs (`float`, *optional*, defaults to 20):
            The paper has 18 to 50.
        model_init_kwargs (`dict`, *optional*):
            For `AutoModelForCausalLM.from_pretrained`, where the model is given by its name.

    Raises:
        ValueError: For an unknown objective or direction, negative `exclude_first`, or activation checkpointing.
    """

    layer: str = field(
        default="50%", metadata={"help": "Decoder layer that is steered: an index from 0, or a depth such as 50%%."}
    )
    objective: str = field(
        default="jsd",
        metadata={"help": "What is compared with the source's distribution.", "choices": list(OBJECTIVES)},
    )
    directions: str = field(
        default="both",
        metadata={
            "help": "`add`: learn from neutral prompts that are given the concept; `remove`: the reverse.",
            "choices": list(_DIRECTIONS),
        },
    )
    exclude_first: int = field(
        default=1, metadata={"help": "Positions at the start of each prompt that are never intervened on."}
    )
    max_completion_length: int | None = field(
        default=128, metadata={"help": "Tokens of an answer that are compared; the rest is cut."}
    )
    learning_rate: float = field(default=0.04, metadata={"help": "The initial learning rate of the unit vector."})
    num_train_epochs: float = field(default=20.0, metadata={"help": "Number of passes over the data."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: the collator reads the columns."})
    label_names: list[str] | None = field(default_factory=list, metadata={"help": "Kept empty: there are no labels."})
    model_init_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "For `from_pretrained`, where the model is given by its name."}
    )

    def __post_init__(self):
        check_kinds(self)
        super().__post_init__()
        self.layer = str(self.layer)
        if self.objective not in OBJECTIVES:
            raise ValueError(f"`objective` must be one of {', '.join(OBJECTIVES)}, received {self.objective!r}.")
        if self.directions not in _DIRECTIONS:
            raise ValueError(f"`directions` must be one of {', '.join(_DIRECTIONS)}, received {self.directions!r}.")
        if self.exclude_first < 0:
            raise ValueError(f"`exclude_first` must be 0 or more, received {self.exclude_first}.")
        if self.max_completion_length is not None and self.max_completion_length < 1:
            raise ValueError(f"`max_completion_length` must be 1 or more, received {self.max_completion_length}.")
        if self.activation_checkpointing:
            raise ValueError(
                "`activation_checkpointing` must be off: the layers below the vector keep no activations, and hooks "
                "do not run twice."
            )
