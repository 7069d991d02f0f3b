# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The settings of `InversionDPOTrainer` and `SmPOTrainer`."""

from dataclasses import dataclass, field

from alignext.functional.diffusion_preference import TARGETS

from .config import DiffusionDPOConfig


@dataclass
class _InversionConfig(DiffusionDPOConfig):
    """What the two methods that invert pictures have in common."""

    num_inversion_steps: int = field(default=10, metadata={"help": "Steps from a picture to noise."})
    inversion_model: str = field(
        default="policy",
        metadata={"help": "Which model inverts: `ref` or the current `policy`.", "choices": ["ref", "policy"]},
    )
    target: str = field(
        default="recovered",
        metadata={
            "help": "What is regressed to at a point of the inversion: the `reference` model's prediction, the one "
            "that leads back along the `trajectory`, or the noise `recovered` from the point.",
            "choices": list(TARGETS),
        },
    )
    guidance_scale: float = field(
        default=1.0, metadata={"help": "Classifier-free guidance while inverting; 1 is none and half the cost."}
    )
    num_renoise_steps: int = field(
        default=0, metadata={"help": "How often each step of the inversion is evaluated again at the point reached."}
    )
    inversion_eta: float = field(
        default=0.0, metadata={"help": "Noise after each step of the inversion, in units of the DDIM posterior's."}
    )
    num_train_steps_per_pair: int | None = field(
        default=1, metadata={"help": "Points of each inversion that are trained on per update; unset: all of them."}
    )
    precompute_inversion: bool = field(
        default=False, metadata={"help": "Invert all pictures once, before training; needs `inversion_model=ref`."}
    )
    num_cached_points: int = field(
        default=4, metadata={"help": "Points of each inversion that are kept by `precompute_inversion`."}
    )
    inversion_cache: str | None = field(
        default=None, metadata={"help": "Folder of kept inversions; `inversions` in the output folder if not given."}
    )
    init_noise: float | None = field(
        default=None,
        metadata={
            "help": "Random start beside the reference, where `target=reference` has no gradient: deviation of the "
            "second LoRA matrix, or relative to each weight; 1e-3 for that target if not given, else 0."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.init_noise is None:
            self.init_noise = 1e-3 if self.target == "reference" else 0.0
        if self.target not in TARGETS:
            raise ValueError(f"`target` is {self.target!r}. Choose one of {', '.join(TARGETS)}.")
        if self.inversion_model not in ("ref", "policy"):
            raise ValueError(f"`inversion_model` is {self.inversion_model!r}. Choose 'ref' or 'policy'.")
        if self.target != "recovered" and self.inversion_model == "policy":
            raise ValueError(
                f"`target` is {self.target!r}, which is a prediction of the reference, but `inversion_model` is "
                "'policy'. Set `inversion_model='ref'` or `target='recovered'`."
            )
        if self.precompute_inversion and self.inversion_model == "policy":
            raise ValueError(
                "`precompute_inversion` needs inversions that stay the same, and `inversion_model` is 'policy'. "
                "`inversion_model='ref'` would allow it, but trains something else."
            )
        if self.precompute_inversion and self.random_flip:
            raise ValueError(
                "`random_flip` and `precompute_inversion` are both set, but a flipped picture has another inversion."
            )
        if self.precompute_inversion and self.prompt_dropout:
            raise ValueError(
                f"`prompt_dropout` is {self.prompt_dropout}, but an inversion with the prompt is none without it. Set "
                "it to 0 for `precompute_inversion`."
            )
        if self.num_inversion_steps < 1:
            raise ValueError(f"`num_inversion_steps` is {self.num_inversion_steps}, but it must be at least 1.")
        for name in ("num_renoise_steps", "inversion_eta", "init_noise", "guidance_scale"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but it must not be negative.")
        if self.target != "recovered" and (self.num_renoise_steps or self.inversion_eta):
            raise ValueError(
                f"`target={self.target!r}` needs plain steps of the inversion. Set `num_renoise_steps` and "
                "`inversion_eta` to 0."
            )
        most = self.num_cached_points if self.precompute_inversion else self.num_inversion_steps
        if self.num_train_steps_per_pair is not None and not 1 <= self.num_train_steps_per_pair <= most:
            raise ValueError(
                f"`num_train_steps_per_pair` is {self.num_train_steps_per_pair}, but must be between 1 and the {most} "
                f"points that {'are kept' if self.precompute_inversion else 'an inversion has'}."
            )
        if self.precompute_inversion and not 1 <= self.num_cached_points <= self.num_inversion_steps:
            raise ValueError(
                f"`num_cached_points` is {self.num_cached_points}, but must be between 1 and the "
                f"{self.num_inversion_steps} points that an inversion has."
            )


@dataclass
class InversionDPOConfig(_InversionConfig):
    r"""
    Configuration class for the [`InversionDPOTrainer`].

    All fields of [`DiffusionDPOConfig`] hold here, too; `prompt_dropout` defaults to `0.0`.

    Args:
        num_inversion_steps (`int`, *optional*, defaults to `80`):
            Steps from a picture to noise. The cost of an inversion; training costs the same for any number.
        inversion_model (`str`, *optional*, defaults to `"ref"`):
            Which model inverts: the frozen `"ref"`, as published, or the current `"policy"` (InPO).
        target (`str`, *optional*, defaults to `"reference"`):
            What the policy is regressed to at a point `(x_{k-1}, x_k)` of the inversion:

            - `"reference"`: the prediction that the reference made at `x_{k-1}`, as published. **Its gradient is
              zero where the policy is the reference**, see `init_noise`, and it does not say in which direction to
              leave it.
            - `"trajectory"`: the prediction that leads from `x_k` back to `x_{k-1}` exactly, relative to how well
              the reference does that.
            - `"recovered"`: the noise that leads from the picture to `x_k`, relative to the reference. With
              `inversion_model="policy"` this is InPO.
        guidance_scale (`float`, *optional*, defaults to `2.0`):
            Classifier-free guidance of the inversion, and of the policy for `target="reference"`. 1 is none and half
            the cost; distilled denoisers (Flux dev) need 1.
        num_renoise_steps (`int`, *optional*, defaults to `0`):
            How often each step of the inversion is evaluated again at the point reached; `target="recovered"` only.
        inversion_eta (`float`, *optional*, defaults to `0.0`):
            Noise after each step, in units of the DDIM posterior's; the InPO release has 0.1. `target="recovered"`
            only.
        num_train_steps_per_pair (`int`, *optional*, defaults to `1`):
            Points of each inversion that are trained on per update, drawn anew each time, both pictures alike. `None`:
            all of them, as published, a few at a time in memory.
        precompute_inversion (`bool`, *optional*, defaults to `False`):
            Invert all pictures once, before training, and keep `num_cached_points` of each on disk. VAE, text encoders
            and, with `target="reference"`, the reference then leave memory.
        num_cached_points (`int`, *optional*, defaults to `4`):
            Points that are kept, spread over the inversion.
        inversion_cache (`str`, *optional*):
            Their folder; `inversions` in the output folder if not given. A second run finds them there.
        reverse_sign (`bool`, *optional*, defaults to `False`):
            The margin with the opposite sign of the paper's figure, which is what the released code has: winners are
            then pushed off the reference's trajectory.
        init_noise (`float`, *optional*):
            Random start beside the reference, since `target="reference"` has no gradient there: standard deviation of
            the second LoRA matrix, or relative to each weight in full training. `1e-3` for that target if not given,
            else 0.
    """

    prompt_dropout: float = field(
        default=0.0, metadata={"help": "Share of pairs that are trained with the empty prompt."}
    )
    num_inversion_steps: int = field(default=80, metadata={"help": "Steps from a picture to noise."})
    inversion_model: str = field(
        default="ref",
        metadata={"help": "Which model inverts: `ref` or the current `policy`.", "choices": ["ref", "policy"]},
    )
    target: str = field(
        default="reference",
        metadata={
            "help": "What is regressed to at a point of the inversion: the `reference` model's prediction, the one "
            "that leads back along the `trajectory`, or the noise `recovered` from the point.",
            "choices": list(TARGETS),
        },
    )
    guidance_scale: float = field(
        default=2.0, metadata={"help": "Classifier-free guidance while inverting; 1 is none and half the cost."}
    )
    reverse_sign: bool = field(
        default=False, metadata={"help": "The margin of the released code, opposite to the paper's figure."}
    )


@dataclass
class SmPOConfig(_InversionConfig):
    r"""
    Configuration class for the [`SmPOTrainer`].

    All fields of [`DiffusionDPOConfig`] and [`InversionDPOConfig`] but `reverse_sign` hold here, too. Other defaults
    than there have `num_inversion_steps` (`10`), `inversion_model` (`"policy"`), `target` (`"recovered"`),
    `guidance_scale` (`1.0`) and `prompt_dropout` (`0.2`).

    InPO is `num_renoise_steps=0, label_sharpness=None` (and `inversion_eta=0.1` in its release).

    Args:
        num_inversion_steps (`int`, *optional*, defaults to `10`):
            Steps from a picture to noise; the release has 5 for Stable Diffusion 1.5 and 10 for XL.
        num_renoise_steps (`int`, *optional*, defaults to `1`):
            How often each step of the inversion is evaluated again at the point reached.
        label_sharpness (`float`, *optional*, defaults to `10.0`):
            Margins are multiplied by this times `2 p - 1`, where `p` is the probability that the winner is the better
            one, from the scores of the dataset or its column `preference_prob`. `None`: no soft labels, the winner of
            the dataset wins for sure.
        score_min (`float`, *optional*, defaults to `0.11543526500463486`):
            Lowest score; by default that of PickScore (a cosine, without its scale) over Pick-a-Pic v2.
        score_max (`float`, *optional*, defaults to `0.28201571106910706`):
            Highest score.
    """

    num_renoise_steps: int = field(
        default=1, metadata={"help": "How often each step of the inversion is evaluated again at the point reached."}
    )
    label_sharpness: float | None = field(
        default=10.0, metadata={"help": "Factor of soft labels; unset: the winner of the dataset wins for sure."}
    )
    score_min: float = field(default=0.11543526500463486, metadata={"help": "Lowest score of the data."})
    score_max: float = field(default=0.28201571106910706, metadata={"help": "Highest score of the data."})

    def __post_init__(self):
        super().__post_init__()
        if self.label_sharpness is not None and self.label_sharpness <= 0:
            raise ValueError(f"`label_sharpness` is {self.label_sharpness}, but it must be positive; 10 in the paper.")
        if not self.score_min < self.score_max:
            raise ValueError(f"`score_min` is {self.score_min} and `score_max` {self.score_max}: not in this order.")
