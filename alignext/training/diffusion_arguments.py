# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What every trainer of a diffusion pipeline is told, and what of `TrainingArguments` it cannot follow."""

import json
from dataclasses import dataclass, field

from transformers import TrainingArguments

from alignext.checks import check_kinds


# Inherited arguments that would do nothing, or harm, and the values that are taken.
_NOT_FOR_PICTURES = {
    "train_sampling_strategy": (("random", "sequential"), "sorts texts by their length, and pictures have none"),
    "group_by_length": ((False,), "sorts texts by their length, and pictures have none"),
    "label_smoothing_factor": ((0, 0.0), "smooths the labels of classes, and there are none"),
    "neftune_noise_alpha": ((None,), "adds noise to the embeddings of a language model"),
    "use_liger_kernel": ((False,), "replaces layers of language models"),
    "include_num_input_tokens_seen": (("no", False), "counts tokens, and there are none"),
    "fp16_full_eval": ((False,), "would leave the weights in training in half precision; `fp16` evaluates in it, too"),
    "bf16_full_eval": ((False,), "would leave the weights in training in half precision; `bf16` evaluates in it, too"),
}


@dataclass
class DiffusionTrainingArguments(TrainingArguments):
    r"""
    Base of the configuration of every [`~alignext.training.diffusion.DiffusionTrainer`].

    Fields of [`~transformers.TrainingArguments`] are taken as well, but those that are about texts or classes. Other
    defaults than there have `learning_rate`, `lr_scheduler_type` (`"constant_with_warmup"`),
    `activation_checkpointing` (on), `remove_unused_columns` (off), `label_names` (none) and
    `ddp_find_unused_parameters` (off).

    Args:
        learning_rate (`float`, *optional*, defaults to `1e-5`):
            For a LoRA. It scales with the number of samples of an update.
        resolution (`int`, *optional*):
            Side of the pictures in pixels; if not given, that of the pipeline.
        num_frames (`int`, *optional*):
            Frames of a video that are trained on, from its start; all of them if not given.
        max_sequence_length (`int`, *optional*):
            Tokens for the T5 encoder of SD3 and Flux; if not given, the pipeline's.
        denoiser (`str`, *optional*):
            Which network of the pipeline is trained, where it has several: `"transformer"` or `"transformer_2"` of
            Wan 2.2, each at its own noise levels. If not given, the first.
        call_arguments (`dict` or `str`, *optional*):
            Further arguments of the pipeline's call, or JSON of them, such as `{"clean_caption": false}`.
        embedded_guidance (`float`, *optional*):
            The guidance that a distilled denoiser (Flux dev, FLUX.2 dev) is told; if not given, the pipeline's.
        ema_decay (`float`, *optional*):
            Keep a running mean of the trained weights with this factor of the past (diffusers' `EMAModel`), and save
            it in the place of the last weights. Checkpoints hold both. Evaluation sees the last weights.
        save_format (`str`, *optional*, defaults to `"diffusers"`):
            `"kohya"` writes the LoRA of a UNet a second time, with the keys of kohya's scripts.
        save_full_pipeline (`bool`, *optional*, defaults to `False`):
            After full training, save the whole pipeline and not the denoiser alone; checkpoints stay small.

    Raises:
        ValueError: For an inherited argument that no trainer of pictures follows.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate; 1e-5 suits a LoRA."})
    lr_scheduler_type: str = field(
        default="constant_with_warmup", metadata={"help": "The learning rate scheduler type to use."}
    )
    activation_checkpointing: bool = field(
        default=True, metadata={"help": "Recompute activations in the backward pass: a third slower, far less memory."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: the collator reads the columns."})
    label_names: list[str] | None = field(default_factory=list, metadata={"help": "Kept empty: there are no labels."})
    resolution: int | None = field(
        default=None, metadata={"help": "Side of the pictures in pixels; that of the pipeline if not given."}
    )
    num_frames: int | None = field(
        default=None, metadata={"help": "Frames of a video that are trained on; all of them if not given."}
    )
    max_sequence_length: int | None = field(
        default=None, metadata={"help": "Tokens for the T5 encoder of SD3 and Flux; the pipeline's if not given."}
    )
    denoiser: str | None = field(
        default=None, metadata={"help": "Which network is trained, such as `transformer_2` of Wan 2.2."}
    )
    call_arguments: str | None = field(  # or a dictionary, which the parser of commands does not know
        default=None, metadata={"help": "Further arguments of the pipeline's call, as JSON."}
    )
    embedded_guidance: float | None = field(
        default=None,
        metadata={"help": "The guidance that a distilled denoiser (Flux dev) is told; the pipeline's if not given."},
    )
    ema_decay: float | None = field(
        default=None, metadata={"help": "Save a running mean of the weights with this factor of the past."}
    )
    save_format: str = field(
        default="diffusers",
        metadata={
            "help": "Also write the LoRA of a UNet with the keys of `kohya`.",
            "choices": ["diffusers", "kohya"],
        },
    )
    save_full_pipeline: bool = field(
        default=False, metadata={"help": "After full training, save the whole pipeline and not the denoiser alone."}
    )

    def __post_init__(self):
        check_kinds(self)
        super().__post_init__()
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be in [0, 1), received {self.ema_decay}; 0.999 is usual.")
        if isinstance(self.call_arguments, str):
            try:
                self.call_arguments = json.loads(self.call_arguments)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"`call_arguments` must be JSON, such as '{{\"clean_caption\": false}}', received "
                    f"{self.call_arguments!r}: {error}."
                ) from error
        if not isinstance(self.call_arguments, dict | None):
            raise ValueError(f"`call_arguments` must be a dictionary, received {self.call_arguments!r}.")
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # Trainer would look for them at every step
        for name, (taken, reason) in _NOT_FOR_PICTURES.items():
            value = getattr(self, name, taken[0])
            if value not in taken:
                raise ValueError(
                    f"`{name}` must be {' or '.join(map(repr, taken[:2]))}, received {value!r}: it {reason}."
                )
