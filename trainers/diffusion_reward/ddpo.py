# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`DDPOTrainer`: sampling as a policy, and any reward of what it draws."""

from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from diffusers import DiffusionPipeline
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from alignext.diffusion.levels import prediction_type
from alignext.functional.ddpo import gaussian_kl, gaussian_log_prob, normalised, policy_loss
from alignext.methods import method

from .batch import RewardBatch
from .core import RewardTrainer
from .data import RepeatedChunks
from .ddpo_config import DDPOConfig
from .steps import PolicyScheduler
from .trajectories import Kept, Trajectory


class DDPOTrainer(RewardTrainer):
    """
    Trainer for DDPO and Flow-GRPO: draws several pictures of each prompt with noise in every step, and makes the steps
    more likely whose pictures were rewarded more than the others of their prompt. Rewards need no gradient.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from peft import LoraConfig
    >>> from alignext import DDPOTrainer
    >>> from alignext.rewards import compressibility

    >>> trainer = DDPOTrainer(
    ...     "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ...     reward_funcs=compressibility,
    ...     train_dataset=Dataset.from_dict({"prompt": ["a red fox", "a rocket"]}),
    ...     peft_config=LoraConfig(r=4, lora_alpha=4),
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or `DiffusionPipeline`):
            Any pipeline of diffusers whose call takes `callback_on_step_end`, or where to load one from. Models of
            diffusion are drawn by DDIM in training, flows by the SDE on their own schedule; evaluation and
            [`sample`] draw with the pipeline's scheduler.
        reward_funcs (`Callable` or `list[Callable]`):
            Rewards `f(images, prompts, **columns) -> [n]`; larger is better. Pictures are `(n, 3, H, W)`, videos
            `(n, F, 3, H, W)`, in [0, 1].
        args ([`DDPOConfig`], *optional*):
            The configuration. If not given: the defaults.
        **kwargs:
            All other arguments of [`AlignPropTrainer`].
    """

    _config = DDPOConfig
    _tag_names = ["trl", "alignext", "ddpo"]
    _name = "DDPO"
    _paper = method("DDPO").paper

    def _check(self, pipe: DiffusionPipeline, args: Any) -> None:
        self._needs_reference, self.kept = args.kl_coef > 0, Kept()
        flow = prediction_type(pipe.scheduler) == "flow_prediction"
        name, value = ("noise_level", args.noise_level) if flow else ("eta", args.eta)
        if not value > 0:
            raise ValueError(
                f"`{name}` must be positive, received {value}: without noise there is no policy to train."
            )
        T = self._steps(pipe, args)
        if args.num_train_steps is not None and args.num_train_steps > T:
            raise ValueError(
                f"`num_train_steps` must be at most the {T} steps there are, received {args.num_train_steps}."
            )

    # Which rows an update is for

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.num_iterations == 1:
            return super()._get_train_sampler(train_dataset)
        data, args = self.train_dataset if train_dataset is None else train_dataset, self.args
        chunk = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return RepeatedChunks(len(data), chunk, args.num_iterations, args.seed)

    def get_train_dataloader(self) -> Any:
        if self.args.num_iterations > 1 and isinstance(self.train_dataset, IterableDataset):
            raise ValueError(
                "`num_iterations` goes over rows several times, and `train_dataset` is a stream. Set it to 1."
            )
        return super().get_train_dataloader()

    def _update(self) -> int:
        return self.state.global_step // self.args.num_iterations

    # Sampling

    def _policy(self, generators: list[torch.Generator] | None = None) -> PolicyScheduler:
        args = self.args
        return PolicyScheduler(self.pipe.scheduler, eta=args.eta, noise_level=args.noise_level, generators=generators)

    def _sampled(self, batch: RewardBatch) -> Trajectory:
        """Draw the samples of a batch, reward them, and compare them."""
        args, policy = self.args, self._policy(batch.generators("steps"))
        with self._as_trained(), self._around():
            rolled = self.rollout(batch.prompts, batch.generators("start"), scheduler=policy)
            images = self.decode(rolled.latents, batch.prompts[0])
        rewards, _ = self.rewarded(images, batch)
        steps = self._random_steps(policy)
        states = torch.stack(policy.states)
        log_probs = torch.zeros(len(states) - 1, len(rewards), device=states.device)
        for i in steps:
            log_probs[i] = gaussian_log_prob(states[i + 1], policy.means[i], policy.deviation(i))
        trajectory = Trajectory(batch.prompts, states, log_probs, rewards, policy.schedule, rolled.start.dtype)
        if args.kl_coef and args.kl_in_reward:
            divergence = self._divergence(trajectory, policy, steps, policy.means).sum(0)
            self.note({"kl": divergence})
        else:
            divergence = torch.zeros_like(rewards)
        if args.kl_normalise == "none":
            rewards = rewards - args.kl_coef * args.kl_in_reward * divergence
        advantages, taken = normalised(rewards, batch.group, min_std=args.min_group_std)
        if args.kl_normalise == "per_prompt":
            advantages = advantages - args.kl_coef * normalised(divergence, batch.group, min_std=0.0)[0]
        self.note({"skipped": 1 - taken.float()})
        trajectory.advantages = advantages.clamp(-args.advantage_clip, args.advantage_clip)
        return trajectory

    @staticmethod
    def _random_steps(policy: PolicyScheduler) -> list[int]:
        """Those with noise: the last one of DDIM may have none."""
        return [i for i in range(len(policy.timesteps)) if policy.deviation(i) > 0]

    def _replayed(self, trajectory: Trajectory, policy: PolicyScheduler, steps: list[int]) -> torch.Tensor:
        """Means `(k, n, ...)` of these steps' distributions, by the loop as it is now."""
        states = [trajectory.states[i].to(trajectory.dtype) for i in steps]
        predictions = self.rollout.replay(trajectory.prompts, policy.timesteps[steps], states)
        return torch.stack(
            [policy.mean(i, trajectory.states[i], said) for i, said in zip(steps, predictions, strict=True)]
        )

    def _divergence(
        self, trajectory: Trajectory, policy: PolicyScheduler, steps: list[int], means: Any
    ) -> torch.Tensor:
        """Exact KL `(k, n)` of these steps from the base model's; `means` has those of the policy."""
        with self._as_trained(), self._around(base=self._base, as_base=True):
            base = self._replayed(trajectory, policy, steps)
        means = [means[i] for i in steps] if isinstance(means, list) else means
        found = zip(steps, means, base, strict=True)
        return torch.stack([gaussian_kl(mean, stock, policy.deviation(i)) for i, mean, stock in found])

    # The loss

    def training_loss(self, model: torch.nn.Module, batch: RewardBatch) -> torch.Tensor:
        args, held = self.args, self.kept.at(self._update())
        if batch.rows not in held:
            held[batch.rows] = self._sampled(batch)
        trajectory = held[batch.rows]
        if args.num_iterations == 1:
            held.clear()
        policy = self._policy()
        policy.set_timesteps(**trajectory.schedule, device=trajectory.states.device)
        steps = self._drawn_steps(self._random_steps(policy))
        with self._around(checkpointing=args.step_checkpointing):
            means = model(lambda: self._replayed(trajectory, policy, steps))
        found = zip(steps, means, strict=True)
        log_probs = torch.stack(
            [gaussian_log_prob(trajectory.states[i + 1], mean, policy.deviation(i)) for i, mean in found]
        )
        losses, ratio = policy_loss(log_probs, trajectory.log_probs[steps], trajectory.advantages, args.clip_range)
        with torch.no_grad():
            off = (ratio - 1).abs()
            self.note(
                {"ratio": ratio.mean(0), "ratio_off": off.mean(0), "clipped": (off > args.clip_range).float().mean(0)}
            )
        loss = losses.mean()
        if args.kl_coef and not args.kl_in_reward:
            divergence = self._divergence(trajectory, policy, steps, means).mean(0)
            self.note({"kl": divergence})
            loss = loss + args.kl_coef * divergence.mean()
        return loss

    def _drawn_steps(self, steps: list[int]) -> list[int]:
        """Those that this update is trained on: the same for all micro-batches and processes."""
        count = self.args.num_train_steps
        if count is None or count >= len(steps):
            return steps
        return sorted(steps[i] for i in self._shared_draws().points("steps", count, len(steps))[:, 0].tolist())

    # Files

    def _kept_file(self, folder: str | Path) -> Path:
        return Path(folder) / f"trajectories-{self.args.process_index}.pt"

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.state.global_step % self.args.num_iterations:  # in the middle of the updates on these samples
            folder = Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            self.kept.save(self._kept_file(folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.kept.load(self._kept_file(resume_from_checkpoint), self.accelerator.device)
