# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The settings of `MAHDPOTrainer`."""

from dataclasses import dataclass, field

from trl import DPOConfig

from alignext.checks import check_kinds
from alignext.functional.mah_dpo import LOSS_TYPES


_CHOICES = {
    "head_type": ("full", "low_rank"),
    "objective_reduction": ("objective_mean", "example_mean"),
    "objective_sampling": ("balanced", "oversample", "natural"),
    "reference_heads": ("auto", "base", "objective"),
}


@dataclass
class MAHDPOConfig(DPOConfig):
    r"""
    Configuration class for the [`MAHDPOTrainer`].

    It has all fields of [`~trl.DPOConfig`]; `use_weighting`, `ld_alpha`, `sync_ref_model` and divergences other than
    the reverse KL are errors. The inherited default of `beta` is `0.1`.

    Args:
        objectives (`list[str]`, *optional*):
            Names of the objectives, in the order of the heads. Those of the model if it has heads, otherwise the
            sorted names in the training data.
        objective_column (`str`, *optional*, defaults to `"objective"`):
            The column that names the objective of a pair, or gives its number.
        head_type (`str`, *optional*, defaults to `"full"`):
            `"full"`: a matrix per objective (the paper). `"low_rank"`: a product of rank `head_rank` per objective,
            added to the base head.
        head_rank (`int`, *optional*, defaults to `64`):
            Rank of the latter.
        head_alpha (`float`, *optional*):
            The product is scaled by `head_alpha / head_rank`. The rank if not given.
        head_init_std (`float`, *optional*, defaults to `0.0`):
            Noise on new full heads. Without, the loss starts at log 2 and any mixture is the base model; the authors
            use `1e-3`.
        head_init_seed (`int`, *optional*, defaults to `42`):
            Head `k` is drawn with this seed plus `100 k`.
        head_dtype (`str`, *optional*, defaults to `"float32"`):
            The heads' dtype. In bfloat16, updates of a small learning rate are lost.
        objective_loss_weights (`dict[str, float]` or `list[float]`, *optional*):
            Weight `a_k` of the loss of each objective, 1 if not given.
        objective_reduction (`str`, *optional*, defaults to `"objective_mean"`):
            `"objective_mean"`: the mean of the objectives' means (the authors). `"example_mean"`: the mean of all
            pairs, as DPO.
        objective_sampling (`str`, *optional*, defaults to `"balanced"`):
            `"balanced"`: an epoch has as many pairs of each objective as the smallest one has, drawn afresh, in turn.
            `"oversample"`: as the largest one has, smaller ones repeated. `"natural"`: the order of
            `train_sampling_strategy`.
        reference_heads (`str`, *optional*, defaults to `"auto"`):
            `"base"`: the reference has one head, the base model's. `"objective"`: it has the heads that training
            starts from. `"auto"`: the first for new heads, the second for a model that already has trained ones.
        loss_type (`list[str]`, *optional*, defaults to `["sigmoid"]`):
            Among `"sigmoid"`, `"ipo"`, `"hinge"`, `"robust"` and `"sigmoid_norm"`, as in TRL.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            The share of pairs that may be the wrong way round, for `"sigmoid"` (cDPO; TRL's ignores it there) and
            `"robust"`.
    """

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "objective_loss_weights"]

    objectives: list[str] | None = field(
        default=None, metadata={"help": "Names of the objectives; those of the model, or of the training data."}
    )
    objective_column: str = field(
        default="objective", metadata={"help": "Column that names the objective of a pair, or gives its number."}
    )
    head_type: str = field(
        default="full",
        metadata={
            "help": "`full`: a matrix per objective; `low_rank`: a product of low rank added to the base head.",
            "choices": list(_CHOICES["head_type"]),
        },
    )
    head_rank: int = field(default=64, metadata={"help": "Rank of low-rank heads."})
    head_alpha: float | None = field(
        default=None, metadata={"help": "Low-rank heads are scaled by this over their rank. Unset: the rank."}
    )
    head_init_std: float = field(
        default=0.0, metadata={"help": "Noise on new full heads; the authors use 1e-3, without it they start equal."}
    )
    head_init_seed: int = field(default=42, metadata={"help": "Head k is drawn with this seed plus 100 k."})
    head_dtype: str = field(
        default="float32", metadata={"help": "dtype of the heads. In bfloat16, small updates of them are lost."}
    )
    objective_loss_weights: dict[str, float] | str | list[float] | None = field(
        default=None,
        metadata={"help": 'Weight of the loss of each objective, as JSON: \'{"honest": 2, "helpful": 1}\'.'},
    )
    objective_reduction: str = field(
        default="objective_mean",
        metadata={
            "help": "`objective_mean`: the mean of the objectives' means; `example_mean`: the mean of all pairs.",
            "choices": list(_CHOICES["objective_reduction"]),
        },
    )
    objective_sampling: str = field(
        default="balanced",
        metadata={
            "help": "Pairs per epoch: `balanced`, of each objective as many as the smallest has; `oversample`, as "
            "the largest has; `natural`, all, in the order of train_sampling_strategy.",
            "choices": list(_CHOICES["objective_sampling"]),
        },
    )
    reference_heads: str = field(
        default="auto",
        metadata={
            "help": "`base`: the reference has the base head only; `objective`: it has the heads that training starts "
            "from; `auto`: the latter if they were trained before.",
            "choices": list(_CHOICES["reference_heads"]),
        },
    )

    def __post_init__(self):
        check_kinds(self)
        super().__post_init__()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}. Choose one of {', '.join(choices)}.")
        wrong = [name for name in self.loss_type if name not in LOSS_TYPES]
        if wrong:
            raise ValueError(f"`loss_type` has {wrong}, but only {', '.join(LOSS_TYPES)} are known by row.")
        unsupported = {
            "use_weighting": self.use_weighting,
            "ld_alpha": self.ld_alpha is not None,
            "f_divergence_type": self.f_divergence_type != "reverse_kl",
            "sync_ref_model": self.sync_ref_model,
        }
        for name, used in unsupported.items():
            if used:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}, which is not supported with several objectives."
                )
        if self.head_rank < 1:
            raise ValueError(f"`head_rank` is {self.head_rank}, but it must be at least 1.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"`label_smoothing` is {self.label_smoothing}, but it must be in [0, 0.5).")
        if self.label_smoothing and not {"sigmoid", "robust"} & set(self.loss_type):
            raise ValueError(f"`label_smoothing` is for 'sigmoid' and 'robust', but `loss_type` is {self.loss_type}.")
        if self.objectives is not None and (not self.objectives or len(set(self.objectives)) < len(self.objectives)):
            raise ValueError(f"`objectives` is {self.objectives}: name at least one, each once.")
