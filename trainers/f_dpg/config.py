# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The settings of `FDPGTrainer`."""

import math
from dataclasses import dataclass, field

import torch
from trl import RLOOConfig

from alignext.checks import check_kinds
from alignext.functional.f_divergences import DIVERGENCES, f_prime
from alignext.training.logs import get_logger


logger = get_logger(__name__)

_CHOICES = {
    "divergence": DIVERGENCES,
    "target": ("exponential", "binary", "distributional"),
    "z_estimator": ("running", "group", "fixed"),
    "z_scope": ("prompt", "global"),
    "baseline": ("leave_one_out", "window", "constant", "none"),
    "proposal": ("online", "adaptive"),
    "proposal_update_metric": ("kl", "tv"),
}
# Sampling from the model's own law: what every estimate rests on.
_PURE: dict[str, tuple] = {
    "temperature": (1.0,),
    "top_p": (1.0,),
    "top_k": (0,),
    "min_p": (None, 0.0),
    "repetition_penalty": (1.0,),
    "generation_kwargs": (None, {}),
    "vllm_structured_outputs_regex": (None,),
}


@dataclass
class FDPGConfig(RLOOConfig):
    r"""
    Configuration class for the [`FDPGTrainer`].

    It has the fields of [`~trl.RLOOConfig`], except those that belong to RLOO's loss (`epsilon`, `epsilon_high`:
    unused) or would change the target while training (`sync_ref_model`, `mask_truncated_completions`,
    `normalize_advantages`: refused). `reward_clip_range` clips the weighted sum of the rewards, which `beta` divides.

    Args:
        divergence (`str`, *optional*, defaults to `"js"`):
            How to approach the target: `"forward_kl"`, `"reverse_kl"`, `"js"`, `"tv"`, `"chi2_forward"`,
            `"chi2_reverse"`, `"hellinger"`, `"jeffreys"` or `"alpha"`. All have the same optimum.
        alpha (`float`, *optional*):
            The parameter of `divergence="alpha"`: near 0 forward, near 1 reverse KL.
        target (`str`, *optional*, defaults to `"exponential"`):
            Where to go, with `a` the initial model:

            - `"exponential"`: `a(x) exp(sum_k w_k r_k(x) / beta)`, the optimum of KL-regularised RL.
            - `"binary"`: `a(x) prod_k b_k(x)`, for functions that return 0 or 1, and nothing between or beyond.
            - `"distributional"`: `a(x) exp(sum_k lambda_k phi_k(x))` with the moments `target_moments`.
        beta (`float`, *optional*, defaults to `0.1`):
            Temperature of the exponential target. The other targets do not have one.
        target_moments (`list[float]`, *optional*):
            For `target="distributional"`: the wanted mean of each reward function. `None` (`nan` on the command
            line) makes that function a binary constraint on all samples.
        moment_samples (`int`, *optional*, defaults to `4096`):
            About as many samples of the initial model fit `lambda`, before the first step.
        binary_floor (`float`, *optional*):
            Smallest `b`. Changes the target, but lets divergences that are infinite at 0 be used.
        z_estimator (`str`, *optional*, defaults to `"running"`):
            The partition function of a prompt: `"running"` (all its samples so far, but the one that is scored),
            `"group"` (those of this batch) or `"fixed"` (`z_value`, or a column `log_z` of the dataset).
        z_scope (`str`, *optional*, defaults to `"prompt"`):
            `"prompt"`: one for each prompt with its columns. `"global"`: one for all, only right where it is the same.
        z_value (`float`, *optional*):
            For `z_estimator="fixed"`.
        baseline (`str`, *optional*, defaults to `"leave_one_out"`):
            Subtracted from the pseudo-rewards: the mean of the siblings, of a `"window"` over the last
            `baseline_window` samples, the `"constant"` value at the optimum, or `"none"`.
        baseline_window (`int`, *optional*, defaults to `1024`):
            For `baseline="window"`.
        normalize_generator (`bool`, *optional*, defaults to `False`):
            Shift `f'` so that the pseudo-reward at the optimum is 0. Matters only with `baseline="none"`.
        log_t_clip (`float`, *optional*, defaults to `30.0`):
            `log(pi / p)` is clipped to plus and minus this inside exponentials.
        pseudo_reward_clip (`float`, *optional*):
            Pseudo-rewards are clipped to plus and minus this. Introduces bias.
        importance_ratio_clip (`float`, *optional*):
            Largest ratio of policy and proposal. Introduces bias.
        proposal (`str`, *optional*, defaults to `"online"`):
            Samples come from the policy (`"online"`), or from a frozen copy that follows it whenever it is nearer to
            the target (`"adaptive"`, as in GDC): one more forward pass, and one more adapter or model.
        proposal_update_interval (`int`, *optional*, defaults to `16`):
            Optimizer steps between two checks whether the copy is to follow.
        proposal_update_metric (`str`, *optional*, defaults to `"kl"`):
            Which distance to the target decides: `"kl"`, KL(p, .), or `"tv"`.
        log_diversity (`bool`, *optional*, defaults to `False`):
            Log distinct-1, -2, -3 and self-BLEU-5 of at most 128 completions of each batch.
        allow_biased_sampling (`bool`, *optional*, defaults to `False`):
            Allow `temperature`, `top_p`, `top_k`, `min_p`, `repetition_penalty` and `generation_kwargs` other than
            the model's own law. All estimates are then wrong by an unknown amount. What the generation config of the
            model says is not read in either case.
        num_generations (`int`, *optional*, defaults to `16`):
            Samples of each prompt, instead of 2 as for RLOO. Prompts that fill no batch are repeated.
        per_device_train_batch_size (`int`, *optional*, defaults to `16`):
            Instead of 8, so that it holds the samples of a prompt.
        per_device_eval_batch_size (`int`, *optional*, defaults to `16`):
            Likewise.
        max_completion_length (`int`, *optional*, defaults to `128`):
            Tokens of a completion, instead of 512. The target is over completions up to this length, also cut ones.
        learning_rate (`float`, *optional*, defaults to `1.41e-5`):
            Initial learning rate, as in the reference. For full fine-tuning of models beyond 1B consider `1e-6`.
        lr_scheduler_type (`str`, *optional*, defaults to `"constant_with_warmup"`):
            Learning rate schedule.
        warmup_steps (`float`, *optional*, defaults to `12`):
            Steps of linear warmup.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Cannot be turned off: policy, proposal and initial model must be functions.
    """

    divergence: str = field(
        default="js", metadata={"help": "How to approach the target.", "choices": list(DIVERGENCES)}
    )
    alpha: float | None = field(
        default=None, metadata={"help": "Of `--divergence alpha`: near 0 forward KL, near 1 reverse KL."}
    )
    target: str = field(
        default="exponential",
        metadata={
            "help": "Where to go: `exponential` (initial model times exp(reward / beta)), `binary` (initial model "
            "where the functions return 1) or `distributional` (initial model tilted to `target_moments`).",
            "choices": list(_CHOICES["target"]),
        },
    )
    beta: float = field(default=0.1, metadata={"help": "Temperature of the exponential target."})
    target_moments: list[float] | None = field(
        default=None,
        metadata={"help": "Wanted mean of each reward function for `--target distributional`; `nan`: always 1."},
    )
    moment_samples: int = field(default=4096, metadata={"help": "Samples of the initial model that fit lambda."})
    binary_floor: float | None = field(
        default=None, metadata={"help": "Smallest value of a binary function; changes the target."}
    )
    z_estimator: str = field(
        default="running",
        metadata={
            "help": "Partition function: `running` (all samples so far), `group` (this batch) or `fixed` (`z_value`, "
            "or a dataset column `log_z`).",
            "choices": list(_CHOICES["z_estimator"]),
        },
    )
    z_scope: str = field(
        default="prompt",
        metadata={"help": "One partition function per prompt or for all.", "choices": list(_CHOICES["z_scope"])},
    )
    z_value: float | None = field(default=None, metadata={"help": "Z for `--z_estimator fixed`."})
    baseline: str = field(
        default="leave_one_out",
        metadata={"help": "Subtracted from pseudo-rewards.", "choices": list(_CHOICES["baseline"])},
    )
    baseline_window: int = field(default=1024, metadata={"help": "Samples that `--baseline window` averages."})
    normalize_generator: bool = field(
        default=False, metadata={"help": "Shift f' so that the pseudo-reward at the optimum is 0."}
    )
    log_t_clip: float = field(default=30.0, metadata={"help": "Clip of log(pi / p) inside exponentials."})
    pseudo_reward_clip: float | None = field(default=None, metadata={"help": "Clip of pseudo-rewards (biased)."})
    importance_ratio_clip: float | None = field(default=None, metadata={"help": "Largest ratio pi / q (biased)."})
    proposal: str = field(
        default="online",
        metadata={
            "help": "Who samples: the policy (`online`), or a copy that follows when the policy is nearer to the "
            "target (`adaptive`).",
            "choices": list(_CHOICES["proposal"]),
        },
    )
    proposal_update_interval: int = field(default=16, metadata={"help": "Steps between checks of the proposal."})
    proposal_update_metric: str = field(
        default="kl",
        metadata={
            "help": "Distance to the target that decides on the proposal.",
            "choices": list(_CHOICES["proposal_update_metric"]),
        },
    )
    log_diversity: bool = field(default=False, metadata={"help": "Log distinct-n and self-BLEU of completions."})
    allow_biased_sampling: bool = field(
        default=False, metadata={"help": "Allow top_p and the like, which make all estimates wrong."}
    )
    num_generations: int | None = field(
        default=16, metadata={"help": "Samples of each prompt; prompts that fill no batch are repeated."}
    )
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Batch size per device for training."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Batch size per device for evaluation."})
    max_completion_length: int | None = field(default=128, metadata={"help": "Tokens of a completion."})
    learning_rate: float = field(default=1.41e-5, metadata={"help": "The initial learning rate for AdamW."})
    lr_scheduler_type: str = field(default="constant_with_warmup", metadata={"help": "The learning rate schedule."})
    warmup_steps: float = field(default=12, metadata={"help": "Steps of linear warmup."})
    disable_dropout: bool = field(
        default=True, metadata={"help": "Must stay on: log-probabilities have to be those of a function."}
    )

    def __post_init__(self):
        check_kinds(self)
        super().__post_init__()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}. Choose one of {', '.join(choices)}.")
        # With the limits of a divergence at hand, this also checks `alpha`.
        infinite = bool(f_prime(self.divergence, torch.tensor(math.inf), self.alpha) == math.inf)
        if self.divergence != "alpha" and self.alpha is not None:
            raise ValueError(f"`alpha` is {self.alpha}, but `divergence` is {self.divergence!r}. Set 'alpha' there.")
        if not self.beta > 0:
            raise ValueError(f"`beta` is {self.beta}, but it must be positive: it divides the rewards.")
        if self.target_moments is not None:
            moments: list = [None if value is None or math.isnan(value) else value for value in self.target_moments]
            self.target_moments = moments
        if (self.target == "distributional") != (self.target_moments is not None):
            raise ValueError(
                f"`target` is {self.target!r} and `target_moments` {self.target_moments}: give moments with "
                "'distributional', and only there."
            )
        if self.target_moments is not None and all(value is None for value in self.target_moments):
            raise ValueError("All `target_moments` are None: that is `target='binary'`.")
        excludes = self.target == "binary" or (self.target_moments is not None and None in self.target_moments)
        if self.binary_floor is not None and not (excludes and 0 < self.binary_floor < 1):
            raise ValueError(
                f"`binary_floor` is {self.binary_floor}, but it must be in (0, 1), and go with a binary constraint."
            )
        if excludes and infinite and self.binary_floor is None:
            raise ValueError(
                f"`divergence={self.divergence!r}` is infinite as soon as the policy writes what a binary constraint "
                "forbids. Use 'js', 'tv' or 'forward_kl', or set `binary_floor`, which changes the target."
            )
        if self.reward_weights is not None and self.target != "exponential":
            raise ValueError(f"`reward_weights` are given, but `target={self.target!r}` has none.")
        self._check_numbers()
        self._check_inherited()

    def _check_numbers(self) -> None:
        for name in ("moment_samples", "baseline_window", "proposal_update_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but it must be at least 1.")
        for name in ("log_t_clip", "pseudo_reward_clip", "importance_ratio_clip", "z_value"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` is {value}, but it must be positive.")
        if self.z_value is not None and self.z_estimator != "fixed":
            raise ValueError(f"`z_value` is {self.z_value}, but `z_estimator` is {self.z_estimator!r}: set 'fixed'.")
        if (self.num_generations or 0) < 8:
            logger.warning(
                "`num_generations` is %d: estimates of the partition function from so few samples are poor. Take 16 "
                "or more.",
                self.num_generations,
            )

    def _check_inherited(self) -> None:
        for name, why in (
            ("normalize_advantages", "their scale carries the gradient"),
            ("mask_truncated_completions", "cut completions belong to the target as all others"),
            ("sync_ref_model", "it moves the target"),
        ):
            if getattr(self, name):
                raise ValueError(f"`{name}=True` does not go with f-DPG: {why}. Leave it off.")
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"`train_sampling_strategy` must be 'random', received {self.train_sampling_strategy!r}. Prompts come "
                "as RLOO draws them, without completions to sort by. For their own order set `shuffle_dataset=False`."
            )
        if not self.disable_dropout:
            raise ValueError("`disable_dropout=False` makes log-probabilities random. Leave it on.")
        biased = [f"{name}={getattr(self, name)}" for name, pure in _PURE.items() if getattr(self, name) not in pure]
        if biased and not self.allow_biased_sampling:
            raise ValueError(
                f"{', '.join(biased)} does not sample from the model's own law, which every estimate rests on. Leave "
                "it, or set `allow_biased_sampling=True`."
            )
        if biased:
            logger.warning("%s: the estimates of f-DPG are biased by an unknown amount.", ", ".join(biased))
        if self.proposal == "adaptive" and self.use_vllm:
            raise ValueError("`proposal='adaptive'` does not go with `use_vllm=True`, which samples from the policy.")
        if self.proposal == "adaptive" and (self.deepspeed_plugin is not None or self.fsdp):
            raise ValueError("`proposal='adaptive'` needs a model in one piece: no FSDP, no DeepSpeed.")
