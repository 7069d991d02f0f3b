# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The settings of `BCOTrainer`."""

from dataclasses import dataclass, field

from trl import KTOConfig

from alignext.checks import check_kinds
from alignext.training.door import former_names


# Arguments of the trainer and the config that TRL had until 1.13, and what stands in their place.
FORMER_NAMES = {
    "embedding_func": "the trainer's `prompt_embedder`",
    "embedding_tokenizer": "the trainer's `prompt_embedder`, which is given texts",
    "generate_during_eval": "a callback that generates",
    "model_init": "`model`",
    "preprocess_logits_for_metrics": "`compute_metrics`",
    "model_adapter_name": "the adapter that is active, which is trained",
    "ref_adapter_name": "the adapter that is loaded, a copy of which is the reference",
    "max_prompt_length": "`max_length`",
    "max_completion_length": "`max_length`",
    "truncation_mode": "`max_length`, which keeps the start",
    "ref_model_init_kwargs": "the trainer's `ref_model`",
    "is_encoder_decoder": "a causal language model",
    "padding_value": "the tokenizer's padding token",
    "label_pad_token_id": "nothing: labels are masked",
}


@former_names(FORMER_NAMES, "docs/bco.md, Moving from `trl.experimental.bco`")
@dataclass
class BCOConfig(KTOConfig):
    r"""
    Configuration class for the [`BCOTrainer`].

    It has all fields of [`~trl.KTOConfig`], and a loss type of its own. Inherited defaults: `beta` is `0.1`,
    `desirable_weight` and `undesirable_weight` are `1.0`.

    Args:
        loss_type (`str`, *optional*, defaults to `"bco"`):
            The only choice.
        learning_rate (`float`, *optional*, defaults to `5e-7`):
            Initial learning rate, instead of `1e-6` as for KTO.
        train_sampling_strategy (`str`, *optional*, defaults to `"random"`):
            `"random"`, `"sequential"` or `"group_by_length"`. KTO's default is `"sequential"`, with which data that
            was unpaired in blocks shows one class for many steps.
        reward_shift (`str`, *optional*, defaults to `"ema"`):
            How the reward shift `delta` is made:

            - `"ema"`: the average of the two class means, each an exponential moving average (the paper). It
              stands still within an optimizer step, so that accumulation and the number of processes do not
              matter.
            - `"running_mean"`: the mean of all rewards so far, the current micro-batch included, as the BCO
              trainer that TRL had until 1.13.
            - `"none"`: 0, the paper's binary cross-entropy ablation.
        reward_shift_decay (`float`, *optional*, defaults to `0.99`):
            Factor of the past per optimizer step, for `reward_shift="ema"`.
        udm_embedding (`str`, *optional*):
            `"policy"` turns underlying distribution matching on, with prompts embedded by the initial policy (the
            reference model, where one is given). So do the trainer's `prompt_embedder` and a `udm_weight` column.
        prompt_sample_size (`int`, *optional*, defaults to `1024`):
            At most as many prompts of each class are drawn to fit the density ratio.
        min_density_ratio (`float`, *optional*, defaults to `0.5`):
            Density ratios are clipped from below.
        max_density_ratio (`float`, *optional*, defaults to `10.0`):
            Density ratios are clipped from above.
        udm_regularization (`float`, *optional*):
            Inverse strength `C` of the penalty of the classifier, on raw embeddings. Cross-validated on scaled ones
            if not given.
    """

    loss_type: str = field(default="bco", metadata={"help": "The only choice is `bco`.", "choices": ["bco"]})
    learning_rate: float = field(default=5e-7, metadata={"help": "The initial learning rate for AdamW."})
    train_sampling_strategy: str = field(
        default="random",
        metadata={
            "help": "Order of the training data. Unpaired pairs come in blocks of one class, hence the default.",
            "choices": ["random", "sequential", "group_by_length"],
        },
    )
    reward_shift: str = field(
        default="ema",
        metadata={
            "help": "Reward shift: `ema` (moving average of the two class means, the paper), `running_mean` (mean of "
            "all rewards so far, TRL until 1.13) or `none`.",
            "choices": ["ema", "running_mean", "none"],
        },
    )
    reward_shift_decay: float = field(
        default=0.99, metadata={"help": "Factor of the past per optimizer step in the moving average of the shift."}
    )
    udm_embedding: str | None = field(
        default=None,
        metadata={
            "help": "`policy` turns underlying distribution matching on, with the initial policy embedding prompts.",
            "choices": ["policy"],
        },
    )
    prompt_sample_size: int = field(
        default=1024, metadata={"help": "At most as many prompts of each class fit the density ratio."}
    )
    min_density_ratio: float = field(default=0.5, metadata={"help": "Density ratios are clipped from below."})
    max_density_ratio: float = field(default=10.0, metadata={"help": "Density ratios are clipped from above."})
    udm_regularization: float | None = field(
        default=None,
        metadata={"help": "Inverse strength of the classifier's penalty on raw embeddings; unset: cross-validated."},
    )

    def __post_init__(self):
        check_kinds(self)
        super().__post_init__()
        if self.loss_type != "bco":
            raise ValueError(f"`loss_type` is {self.loss_type!r}, but BCO has only 'bco'. For others use KTOTrainer.")
        if self.reward_shift not in ("ema", "running_mean", "none"):
            raise ValueError(
                f"`reward_shift` is {self.reward_shift!r}. Choose 'ema' (the paper), 'running_mean' or 'none'."
            )
        if self.udm_embedding not in (None, "policy"):
            raise ValueError(
                f"`udm_embedding` is {self.udm_embedding!r}. Choose 'policy', or pass a function as the trainer's "
                "`prompt_embedder`."
            )
        if self.udm_embedding == "policy" and self.sync_ref_model:
            raise ValueError(
                "`udm_embedding='policy'` needs a reference that stays, and `sync_ref_model=True` moves it. "
                "Use a `prompt_embedder`."
            )
        if self.beta <= 0:
            raise ValueError(f"`beta` is {self.beta}, but it must be positive; the paper uses 0.1.")
        if not 0 < self.reward_shift_decay <= 1:
            raise ValueError(f"`reward_shift_decay` is {self.reward_shift_decay}, but it must be in (0, 1].")
        if not 0 < self.min_density_ratio <= self.max_density_ratio:
            raise ValueError(
                f"`min_density_ratio` is {self.min_density_ratio} and `max_density_ratio` {self.max_density_ratio}, "
                "but they must be positive and in this order."
            )
        if self.prompt_sample_size < 2:
            raise ValueError(f"`prompt_sample_size` is {self.prompt_sample_size}, but it must be at least 2.")
        if self.udm_regularization is not None and self.udm_regularization <= 0:
            raise ValueError(f"`udm_regularization` is {self.udm_regularization}, but it must be positive.")
        if self.sync_ref_model and self.reward_shift == "running_mean":
            raise ValueError(
                "`sync_ref_model=True` moves all rewards towards 0, which `reward_shift='running_mean'` would never "
                "follow. Use `reward_shift='ema'`."
            )
