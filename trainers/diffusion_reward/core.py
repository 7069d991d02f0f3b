# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The core of `AlignPropTrainer` and `DDPOTrainer`: prompts in, pictures drawn, rewards, and their log."""

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig

from alignext.diffusion.denoiser import DenoiserModule, adapter_off, adapter_scaled, denoiser_name
from alignext.diffusion.draws import Draws
from alignext.diffusion.levels import prediction_type
from alignext.diffusion.recording import call_parameters
from alignext.diffusion.sizes import Size, size_arguments
from alignext.logs import warn_once
from alignext.training.diffusion import DiffusionTrainer
from alignext.training.logs import get_logger
from alignext.training.lora import ADAPTER
from alignext.wrapping import evaluating

from .batch import RewardBatch, diversity
from .config import RewardConfig
from .data import collate, prepare_prompts
from .rewards import Rewards
from .rollout import Rollout, around_denoisers


logger = get_logger(__name__)


class RolloutModule(DenoiserModule):
    """Hands what runs the denoiser to `DistributedDataParallel` and mixed precision as one forward."""

    def forward(self, run: Callable[[], Any]) -> Any:  # ty: ignore[incompatible-method-override]
        return run()


class RewardTrainer(DiffusionTrainer):
    """
    Draws pictures of prompts and has them rewarded. A subclass defines [`training_loss`].

    Class attributes: `_differentiable`, whether rewards need a gradient.
    """

    _config: Any = RewardConfig
    _module = RolloutModule
    _differentiable = False

    def __init__(
        self,
        model: str | os.PathLike | DiffusionPipeline,
        reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]],
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        peft_config: LoraConfig | None = None,
        **kwargs: Any,
    ) -> None:
        pipe, args = self._door(model, args)
        self.rewards = Rewards(reward_funcs, args.reward_weights, differentiable=self._differentiable)
        self.rollout = Rollout(pipe, **self._call(pipe, args))
        self._check(pipe, args)
        if train_dataset is not None:
            train_dataset = prepare_prompts(train_dataset, "train_dataset")
        if isinstance(eval_dataset, dict):
            eval_dataset = {n: prepare_prompts(data, f"eval_dataset[{n!r}]") for n, data in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = prepare_prompts(eval_dataset, "eval_dataset")
        kwargs = {"data_collator": collate} | kwargs
        super().__init__(
            pipe, args, peft_config=peft_config, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs
        )
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module) and name != self.denoiser_name:
                part.to(self.accelerator.device)
        vae = getattr(pipe, "vae", None)
        if vae is not None and vae.dtype != torch.float32 and getattr(vae.config, "force_upcast", False):
            vae.to(torch.float32)  # and stays so: what its backward pass needs must not be cast back after a call

    def _ready(self, dataset: Any, name: str) -> Any:
        return prepare_prompts(dataset, name)

    @property
    def pipeline(self) -> DiffusionPipeline:
        """The pipeline, with the denoiser in training."""
        return self.pipe

    # Before anything is loaded

    @staticmethod
    def _steps(pipe: DiffusionPipeline, args: Any) -> int:
        return args.num_inference_steps or (28 if prediction_type(pipe.scheduler) == "flow_prediction" else 50)

    def _given(self, args: Any) -> dict[str, Any]:
        """Arguments of the call that not every pipeline takes."""
        guidance = args.embedded_guidance if args.guidance_scale is None else args.guidance_scale
        return {"guidance_scale": guidance, "negative_prompt": args.negative_prompt}

    def _call(self, pipe: DiffusionPipeline, args: Any) -> dict[str, Any]:
        """
        Arguments of every call.

        Raises:
            ValueError: The pipeline does not take one that was given.
        """
        known, name = call_parameters(pipe), type(pipe).__name__
        given = self._given(args)
        guidance = given["guidance_scale"]
        for argument, value in given.items():
            if value is not None and argument not in known:
                raise ValueError(f"`{argument}` is {value!r}, and the call of {name} takes none. Leave it out.")
        config = getattr(pipe, args.denoiser or denoiser_name(pipe)).config
        distilled = pipe.config.get("is_distilled") or (
            config.get("guidance_embeds") is False and {"true_cfg_scale", "guidance_scale"} <= set(known)
        )
        if distilled and guidance is not None and guidance > 1:
            raise ValueError(
                f"`guidance_scale` is {guidance}, and this {name} is distilled to do without: it would have no "
                "effect. Leave it out."
            )
        size = self._size(pipe, args)
        size = Size(size.height, size.width, args.num_frames)
        more = {"max_sequence_length": args.max_sequence_length} | dict(args.call_arguments or {})
        more = {k: v for k, v in more.items() if k in known}
        call = given | more | {"num_inference_steps": self._steps(pipe, args)} | size_arguments(pipe, size)
        return {k: v for k, v in call.items() if v is not None}

    def _check(self, pipe: DiffusionPipeline, args: Any) -> None:
        """Raise `ValueError` where settings and pipeline do not go together."""

    # Drawing

    def _around(self, **kwargs: Any) -> Any:
        """Our code around the denoisers, see [`around_denoisers`]."""
        dtype = self.accelerator.unwrap_model(self.model).dtype
        cast = dtype if not self.is_lora and dtype != self.pipe.dtype else None
        return around_denoisers(self.pipe, self.denoiser_name, dtype=cast, **kwargs)

    def _base(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The base model's forward, of the forward of the denoiser."""
        if not self.is_lora:
            assert self.ref_denoiser is not None
            self.ref_denoiser.train(self.model.training)
            return self.ref_denoiser.denoiser.forward

        def without(*args: Any, **kwargs: Any) -> Any:
            with adapter_off(self.denoiser, ADAPTER):
                return forward(*args, **kwargs)

        return without

    @contextmanager
    def _as_trained(self) -> Generator[None]:
        """Without gradients, in the mixed precision of training."""
        with torch.no_grad(), self.accelerator.autocast():
            yield

    def decode(self, latents: torch.Tensor, prompt: str) -> torch.Tensor:
        """Pictures `(n, 3, H, W)` or videos `(n, F, 3, H, W)` in [0, 1], of the loop's latents. Gradients pass."""
        size = self.args.vae_decode_batch_size
        return self.rollout.decode(latents, prompt, size, recompute=self.args.step_checkpointing)

    def _draw(self, prompts: list[str], generators: list[torch.Generator]) -> torch.Tensor:
        with evaluating(self.denoiser), self._as_trained(), self._around():
            return self.decode(self.rollout(prompts, generators).latents, prompts[0])

    def sample(self, prompts: Sequence[str], seeds: Sequence[int], scale: float | None = None) -> torch.Tensor:
        """
        Draw pictures with the model as it is, by the pipeline's own scheduler. Takes nothing from the global random
        numbers, and leaves the mode of the model as it was.

        Args:
            prompts (`Sequence[str]`): A text for each picture.
            seeds (`Sequence[int]`): The seed of each.
            scale (`float`, *optional*): Weight of the LoRA: 1 as it was trained, 0 for the base model.

        Returns:
            `torch.Tensor`: `(n, 3, H, W)`, or videos `(n, F, 3, H, W)`, in [0, 1].

        Raises:
            ValueError: There are not as many seeds as prompts, or a scale without a LoRA.
        """
        prompts, seeds = list(prompts), list(seeds)
        if not prompts or len(prompts) != len(seeds):
            raise ValueError(f"`seeds` must have one for each of {len(prompts)} prompts, received {len(seeds)}.")
        if scale is not None and scale != 1 and not self.is_lora:
            raise ValueError(f"`scale` is the weight of a LoRA, and there is none: received {scale}. Leave it out.")
        scaled = nullcontext() if scale is None else adapter_scaled(self.denoiser, ADAPTER, scale)
        at_once, drawn = self.args.per_device_eval_batch_size, []
        with scaled:
            for first in range(0, len(prompts), at_once):
                rows = slice(first, first + at_once)
                generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds[rows]]
                drawn.append(self._draw(prompts[rows], generators))
        return torch.cat(drawn)

    # Training and evaluation

    def _update(self) -> int:
        """What the random numbers of samples in training depend on."""
        return self.state.global_step

    def _shared_draws(self) -> Draws:
        """Random numbers of this update, the same for all micro-batches and processes."""
        return Draws(self.args.seed, self.state.global_step, torch.tensor([-1]))

    def batch(self, inputs: dict[str, Any]) -> RewardBatch:
        """The samples of what the collator made: in training several of each prompt, in evaluation one."""
        training, index = self.model.training, inputs["index"].cpu()
        n = self.args.num_images_per_prompt if training else 1
        step = self._update() if training else "eval"
        draws = [Draws(self.args.seed, step, index) for _ in range(n)]
        columns = {name: [v for v in values for _ in range(n)] for name, values in inputs["columns"].items()}
        prompts = [prompt for prompt in inputs["prompts"] for _ in range(n)]
        return RewardBatch(prompts, columns, tuple(index.tolist()), draws)

    def loss_of(self, rewards: torch.Tensor) -> torch.Tensor:
        """What evaluation counts as the loss of each sample."""
        return -rewards

    def training_loss(self, model: torch.nn.Module, batch: RewardBatch) -> torch.Tensor:
        """The loss of a batch."""
        raise NotImplementedError

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        batch = self.batch(inputs)
        if self.model.training:
            loss = self.training_loss(model, batch)
        else:
            images = self._draw(batch.prompts, batch.generators("start"))
            rewards, _ = self.rewarded(images, batch)
            losses = self.loss_of(rewards)
            # Trainer's own is wrong where the last batch of several processes is filled up.
            self.note({"loss": losses})
            loss = losses.mean()
        return (loss, {}) if return_outputs else loss

    def rewarded(self, images: torch.Tensor, batch: RewardBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Rewards of pictures `(n, 3, H, W)`, summed and by name, all `(n,)`; they are logged as well."""
        total, found = self.rewards(images, batch.prompts, batch.columns)
        with torch.no_grad():
            clamped = ((images <= 0) | (images >= 1)).flatten(1).float().mean(1)
            rows = {"reward": total, **{f"rewards/{name}": values for name, values in found.items()}}
            # In float64, which not every device has: of large rewards the squares differ in their last digits only.
            rows |= {f"{name}_square": values.cpu().double() ** 2 for name, values in rows.items()}
            metrics = rows | {"clamped": clamped}
            if batch.group > 1 and self.model.training:
                metrics["diversity"] = diversity(images, batch.group)
            self.note(metrics)
            if self._differentiable and clamped.mean() > 0.5:
                warn_once(
                    logger,
                    f"{clamped.mean():.0%} of the pixels are black or white in a channel, where no gradient passes. "
                    "Look at the pictures; a lower `learning_rate` or `guidance_scale`, or a `kl_coef`, may help.",
                )
        return total, found

    def means(self, mode: str) -> dict[str, float]:
        means = super().means(mode)
        for name in [name for name in means if name.endswith("_square")]:
            value, of = means.pop(name), name.removesuffix("_square")
            means[f"{of}_std"] = max(0.0, value - means[of] ** 2) ** 0.5
        return means
