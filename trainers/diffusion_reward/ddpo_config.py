# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The settings of `DDPOTrainer`."""

from dataclasses import dataclass, field
from typing import Any, Self

from .config import RewardConfig


@dataclass
class DDPOConfig(RewardConfig):
    r"""
    Configuration class for the [`DDPOTrainer`].

    All fields of [`~alignext.trainers.diffusion_reward.config.RewardConfig`] hold here, too.

    Args:
        learning_rate (`float`, *optional*, defaults to `3e-4`):
            For a LoRA.
        num_images_per_prompt (`int`, *optional*, defaults to `4`):
            Samples of each prompt, whose rewards are compared with each other.
        eta (`float`, *optional*, defaults to `1.0`):
            Noise of the steps of models of diffusion, which are drawn as DDIM draws with this; 1 is DDPM's.
        noise_level (`float`, *optional*, defaults to `0.7`):
            Noise of the steps of flows, `a` of Flow-GRPO.
        num_iterations (`int`, *optional*, defaults to `1`):
            Updates on the same samples. With 1 the gradient is that of REINFORCE; with more, PPO's clip holds.
        num_train_steps (`int`, *optional*):
            Steps of each trajectory that an update is trained on, spread evenly from a random one; all if not given.
        clip_range (`float`, *optional*, defaults to `1e-4`):
            PPO's, of the ratio of two means over dimensions.
        advantage_clip (`float`, *optional*, defaults to `5.0`):
            Largest advantage.
        min_group_std (`float`, *optional*, defaults to `1e-4`):
            Prompts whose rewards differ less are left out of an update.
        kl_coef (`float`, *optional*, defaults to `0.0`):
            Weight of the exact KL divergence of each step from that of the base model, in the loss.
        kl_in_reward (`bool`, *optional*, defaults to `False`):
            Take it off the reward instead, its sum over the steps of a trajectory.
        kl_normalise (`str`, *optional*, defaults to `"none"`):
            With `kl_in_reward`: `"none"` takes `kl_coef` times the divergence off the reward; `"per_prompt"` takes
            `kl_coef` times the divergence against those of the same prompt off the advantage, as Carve3D does. That
            only prefers the samples that drifted less, and cannot hold the model.
    """

    learning_rate: float = field(default=3e-4, metadata={"help": "The initial learning rate; 3e-4 suits a LoRA."})
    num_images_per_prompt: int = field(default=4, metadata={"help": "Samples of each prompt, which are compared."})
    eta: float = field(default=1.0, metadata={"help": "Noise of the steps of models of diffusion, as DDIM's."})
    noise_level: float = field(default=0.7, metadata={"help": "Noise of the steps of flows, as of Flow-GRPO."})
    num_iterations: int = field(default=1, metadata={"help": "Updates on the same samples."})
    num_train_steps: int | None = field(
        default=None, metadata={"help": "Steps of each trajectory that an update is trained on; all if not given."}
    )
    clip_range: float = field(default=1e-4, metadata={"help": "Clip of the ratio, as in PPO."})
    advantage_clip: float = field(default=5.0, metadata={"help": "Largest advantage."})
    min_group_std: float = field(
        default=1e-4, metadata={"help": "Prompts whose rewards differ less are left out of an update."}
    )
    kl_coef: float = field(default=0.0, metadata={"help": "Weight of the divergence from the base model."})
    kl_in_reward: bool = field(default=False, metadata={"help": "Take the divergence off the reward, not the loss."})
    kl_normalise: str = field(
        default="none",
        metadata={"help": "How a divergence in the reward counts.", "choices": ["none", "per_prompt"]},
    )

    @classmethod
    def carve3d(cls, **settings: Any) -> Self:
        """
        The settings of Carve3D (arXiv 2312.13980): one update on all samples, a divergence in the reward, 25 samples
        of a prompt, 100 steps. Its update takes 768 samples of 30 prompts: `per_device_train_batch_size` x
        `gradient_accumulation_steps` x processes is a number of prompts.

        Args:
            **settings: Fields that differ, and `output_dir`.
        """
        theirs: dict[str, Any] = {
            "num_images_per_prompt": 25, "num_inference_steps": 100, "guidance_scale": 5.0, "eta": 1.0,
            "num_iterations": 1, "kl_coef": 0.2, "kl_in_reward": True, "kl_normalise": "per_prompt",
            "learning_rate": 3e-4, "weight_decay": 1e-4, "max_grad_norm": 1.0, "max_steps": -1, "num_train_epochs": 55,
        }  # fmt: skip
        return cls(**theirs | settings)

    def __post_init__(self):
        super().__post_init__()
        if self.num_images_per_prompt < 2:
            raise ValueError(
                "`num_images_per_prompt` must be at least 2, received "
                f"{self.num_images_per_prompt}: rewards are compared with those of the same prompt."
            )
        for name in ("num_iterations", "num_train_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, received {value}.")
        for name in ("clip_range", "advantage_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, received {getattr(self, name)}.")
        if self.min_group_std < 0:
            raise ValueError(f"`min_group_std` must be 0 or more, received {self.min_group_std}.")
        if self.kl_normalise not in ("none", "per_prompt"):
            raise ValueError(f"`kl_normalise` must be 'none' or 'per_prompt', received {self.kl_normalise!r}.")
        if self.kl_normalise == "per_prompt" and not self.kl_in_reward:
            raise ValueError("`kl_normalise='per_prompt'` is about a divergence in the reward. Set `kl_in_reward`.")
