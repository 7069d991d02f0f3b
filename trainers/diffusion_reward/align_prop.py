# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`AlignPropTrainer`: the gradient of a reward through VAE and sampler."""

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline

from alignext.functional.alignprop import Rule, backprop_steps, parse_backprop_steps, reward_loss
from alignext.functional.direct_align import direct_align
from alignext.functional.predictions import add_noise, clean_and_noise
from alignext.methods import method

from .batch import RewardBatch
from .config import RewardConfig
from .core import RewardTrainer
from .noise_levels import level_at, level_of


@dataclass
class AlignPropConfig(RewardConfig):
    r"""
    Configuration class for the [`AlignPropTrainer`].

    All fields of [`~alignext.trainers.diffusion_reward.config.RewardConfig`] hold here, too.

    Args:
        learning_rate (`float`, *optional*, defaults to `1e-3`):
            For a LoRA of rank 4 of a U-Net; flow transformers take 1e-4.
        backprop_steps (`int`, `str` or `tuple`, *optional*, defaults to `"gaussian"`):
            How many of the last steps carry the gradient: a number (DRaFT-K), `"all"`, `("gaussian", mean, std)` or
            `"gaussian:8:5"`, which is AlignProp's, `("uniform", lowest, highest)` or `"uniform:1:20"`. What is random
            is drawn once for all trajectories of an update.
        eta (`float`, *optional*):
            Of DDIM's noise, for pipelines that take it; none if not given.
        num_last_noises (`int`, *optional*, defaults to `1`):
            With more than 1 and `backprop_steps=1`, the low-variance form of DRaFT: the finished sample is noised to
            the last level so many times, each is denoised with gradient, and their rewards are averaged.
        reward_gradient (`str`, *optional*, defaults to `"last_k"`):
            `"last_k"` goes through the last steps; `"direct_align"` (SRPO) noises the finished sample to a random
            level and goes through one call of the network there, which costs the same however many steps there are.
        direct_align_levels (`list[float]`, *optional*, defaults to `[0.05, 0.95]`):
            Lowest and highest level, as a share of the pipeline's noise schedule.
        direct_align_step (`float`, *optional*, defaults to `0.1`):
            How far down the network steps, as a share of the schedule.
        reward_target (`float`, *optional*):
            Minimise the distance from this reward in place of the reward's negative.
        reward_margin (`float`, *optional*):
            Leave samples alone whose reward is above this.
        kl_coef (`float`, *optional*, defaults to `0.0`):
            Weight of the mean squared distance of the network's output from the base model's, on the steps that carry
            the gradient. It costs a call of the base model for each of them.
    """

    learning_rate: float = field(default=1e-3, metadata={"help": "The initial learning rate; 1e-4 for flows."})
    backprop_steps: str = field(  # or a number, or a tuple, which the parser of commands does not know
        default="gaussian",
        metadata={"help": "Last steps that carry the gradient: a number, all, gaussian:MEAN:STD or uniform:LOW:HIGH."},
    )
    eta: float | None = field(default=None, metadata={"help": "Of DDIM's noise, for pipelines that take it."})
    num_last_noises: int = field(
        default=1, metadata={"help": "With more than 1 and 1 step of gradient, DRaFT's low-variance form."}
    )
    reward_gradient: str = field(
        default="last_k",
        metadata={
            "help": "Through the last steps, or by Direct-Align through one call at a random noise level.",
            "choices": ["last_k", "direct_align"],
        },
    )
    direct_align_levels: list[float] = field(
        default_factory=lambda: [0.05, 0.95], metadata={"help": "Lowest and highest level of Direct-Align, in [0, 1]."}
    )
    direct_align_step: float = field(
        default=0.1, metadata={"help": "How far down Direct-Align steps, as a share of the schedule."}
    )
    reward_target: float | None = field(default=None, metadata={"help": "Minimise the distance from this reward."})
    reward_margin: float | None = field(default=None, metadata={"help": "Leave samples alone above this reward."})
    kl_coef: float = field(
        default=0.0, metadata={"help": "Weight of the squared distance from the base model's predictions."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.rule: Rule = parse_backprop_steps(self.backprop_steps)
        if self.reward_gradient not in ("last_k", "direct_align"):
            raise ValueError(
                f"`reward_gradient` must be 'last_k' or 'direct_align', received {self.reward_gradient!r}."
            )
        if self.num_last_noises < 1:
            raise ValueError(f"`num_last_noises` must be at least 1, received {self.num_last_noises}.")
        if self.num_last_noises > 1 and (self.rule != 1 or self.reward_gradient != "last_k"):
            raise ValueError(
                f"`num_last_noises` is {self.num_last_noises}, which noises the last step again: set `backprop_steps` "
                "to 1 and leave `reward_gradient` at 'last_k'."
            )
        levels = self.direct_align_levels
        if len(levels) != 2 or not 0 < levels[0] <= levels[1] < 1:
            raise ValueError(
                f"`direct_align_levels` must be a lowest and a highest level in (0, 1), received {levels}."
            )
        if not 0 < self.direct_align_step <= 1:
            raise ValueError(f"`direct_align_step` must be in (0, 1], received {self.direct_align_step}.")
        reward_loss(torch.zeros(1), target=self.reward_target, margin=self.reward_margin)


class AlignPropTrainer(RewardTrainer):
    """
    Trainer for AlignProp and DRaFT: draws pictures by the pipeline's own call, and follows the gradient of a
    differentiable reward back through the VAE and the last steps of sampling. Prompts are all the data.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from peft import LoraConfig
    >>> from alignext import AlignPropTrainer
    >>> from alignext.rewards import PickScoreReward

    >>> trainer = AlignPropTrainer(
    ...     "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ...     reward_funcs=PickScoreReward(),
    ...     train_dataset=Dataset.from_dict({"prompt": ["a red fox", "a rocket"]}),
    ...     peft_config=LoraConfig(r=4, lora_alpha=4),
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or `DiffusionPipeline`):
            Any pipeline of diffusers whose call takes `callback_on_step_end`, or where to load one from.
        reward_funcs (`Callable` or `list[Callable]`):
            Rewards `f(images, prompts, **columns) -> [n]` with `differentiable = True`; larger is better. Pictures are
            `(n, 3, H, W)`, videos `(n, F, 3, H, W)`, in [0, 1].
        args ([`AlignPropConfig`], *optional*):
            The configuration. If not given: the defaults.
        train_dataset (`Dataset`, `IterableDataset` or `Callable`):
            With a column `prompt`; other columns reach the rewards by name. Or a function that gives a prompt.
        eval_dataset (`Dataset` or `dict[str, Dataset]`, *optional*):
            The same; evaluation draws one picture of each prompt, always from the same noise.
        peft_config (`LoraConfig`, *optional*):
            Train this adapter only.
        **kwargs:
            All other arguments of [`~alignext.training.diffusion.DiffusionTrainer`].
    """

    _config = AlignPropConfig
    _differentiable = True
    _tag_names = ["trl", "alignext", "alignprop"]
    _name = "AlignProp"
    _paper = method("AlignProp").paper

    def _given(self, args: Any) -> dict[str, Any]:
        return super()._given(args) | {"eta": args.eta}

    def _check(self, pipe: DiffusionPipeline, args: Any) -> None:
        self._needs_reference = args.kl_coef > 0
        backprop_steps(args.rule, self._steps(pipe, args), 0.5)

    def loss_of(self, rewards: torch.Tensor) -> torch.Tensor:
        return reward_loss(rewards, target=self.args.reward_target, margin=self.args.reward_margin)

    def _drawn(self, what: str) -> float:
        """A random number in [0, 1) of this update."""
        return self._shared_draws().uniform(what).item()

    def training_loss(self, model: torch.nn.Module, batch: RewardBatch) -> torch.Tensor:
        args = self.args
        with self._around(
            checkpointing=args.step_checkpointing, base=self._base if args.kl_coef else None
        ) as distances:
            # One forward for DDP, whatever the number of calls in it.
            latents, divergence = model(lambda: (self._latents(batch), sum(distances) / max(1, len(distances))))
        if not latents.requires_grad:
            raise ValueError(
                f"No step that carries the gradient calls `{self.denoiser_name}`: the pipeline takes another network "
                "for the last ones. Raise `backprop_steps`, or train that one with `denoiser`."
            )
        noises = len(latents) // len(batch.prompts)
        if noises > 1:
            batch = RewardBatch(
                batch.prompts * noises, {k: v * noises for k, v in batch.columns.items()}, batch.rows, batch.draws
            )
        images = self.decode(latents, batch.prompts[0])
        rewards, _ = self.rewarded(images, batch)
        loss = self.loss_of(rewards).mean()
        if args.kl_coef:
            self.note({"kl": divergence.expand(len(rewards))})
            loss = loss + args.kl_coef * divergence
        return loss

    def _latents(self, batch: RewardBatch) -> torch.Tensor:
        """Clean latents with a graph, as the loop holds them."""
        generators, rows = batch.generators("start"), torch.ones(len(batch.prompts))
        T = self.rollout.call["num_inference_steps"]
        if self.args.reward_gradient == "direct_align":
            return self._directly_aligned(batch, generators)
        if self.args.num_last_noises > 1:
            return self._noised_again(batch, generators)
        K = backprop_steps(self.args.rule, T, self._drawn("backprop_steps"))
        self.note({"backprop_steps": rows * K})
        return self.rollout(batch.prompts, generators, backprop_steps=K).latents

    def _noised_again(self, batch: RewardBatch, generators: list[torch.Generator]) -> torch.Tensor:
        rolled = self.rollout(batch.prompts, generators)
        t = rolled.scheduler.timesteps[-1]
        level = level_of(rolled.scheduler, t)
        found = []
        for number in range(self.args.num_last_noises):
            noise = batch.normal(f"last noise {number}", rolled.latents)
            x = add_noise(rolled.latents.float(), noise, *level)
            found.append(
                clean_and_noise(self._predicted(batch, t, x, rolled.latents.dtype), x, *level, self.prediction_type)[0]
            )
        return torch.cat(found)

    def _directly_aligned(self, batch: RewardBatch, generators: list[torch.Generator]) -> torch.Tensor:
        args = self.args
        rolled = self.rollout(batch.prompts, generators)
        low, high = args.direct_align_levels
        place = low + (high - low) * self._drawn("level")
        self.note({"level": torch.full((len(batch.prompts),), place)})
        t, level = level_at(rolled.scheduler, place)
        _, below = level_at(rolled.scheduler, place - args.direct_align_step)
        if args.eta:  # what the sampler added is not known any more
            noise = batch.normal("level", rolled.latents)
        else:
            noise = rolled.start.float() / float(getattr(rolled.scheduler, "init_noise_sigma", 1.0))
        x = add_noise(rolled.latents.float(), noise, *level)
        prediction = self._predicted(batch, t, x, rolled.latents.dtype)
        return direct_align(prediction, x, noise, level, below, self.prediction_type)

    def _predicted(self, batch: RewardBatch, t: torch.Tensor, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What the loop would step with at `x`, with a graph."""
        with torch.enable_grad():
            return self.rollout.replay(batch.prompts, t.view(1), [x.to(dtype)])[0].float()
