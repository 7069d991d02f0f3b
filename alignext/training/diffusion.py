# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`DiffusionTrainer`: a `Trainer` of the denoiser of a diffusion pipeline. It knows nothing of preferences."""

import copy
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from transformers.utils import logging
from trl.trainer.utils import disable_dropout_in_model

from alignext.diffusion.conditions import Conditions
from alignext.diffusion.denoiser import DenoiserModule, adapter_off, denoiser_name, get_denoiser
from alignext.diffusion.draws import Draws
from alignext.diffusion.levels import Schedules, prediction_type, training_levels
from alignext.diffusion.prompts import text_encoders
from alignext.diffusion.recording import check_call_arguments, stock_class
from alignext.diffusion.sizes import Size, default_side, draws_videos, size_of_latents
from alignext.functional.inversion import Levels
from alignext.functional.predictions import Denoiser
from alignext.training.diffusion_arguments import DiffusionTrainingArguments
from alignext.training.diffusion_files import DiffusionFiles
from alignext.training.door import RawEvaluations, refuse_unused, settings
from alignext.training.ema import RunningMean
from alignext.training.lora import ADAPTER, add_lora, jitter
from alignext.training.lora_files import check_format
from alignext.training.metrics import FreshEvaluations, Sums
from alignext.training.runs import check_run
from alignext.training.sharding import shard
from alignext.training.undoing import undone


logger = logging.get_logger(__name__)


class DiffusionTrainer(FreshEvaluations, RawEvaluations, DiffusionFiles):
    """
    Trains the denoiser of a diffusion pipeline, whole or by a LoRA, beside a frozen reference. Saves what diffusers
    loads: `pytorch_lora_weights.safetensors`, or a `unet` or `transformer` folder. A subclass defines `compute_loss`
    and brings a collator; which columns there are, and whether there are pictures at all, is its own affair. A
    constructor that raises leaves the pipeline as it was.

    Class attributes: `_config`, the class of the settings; `_module`, that of what `Trainer` gets; `_needs_reference`,
    whether full training keeps a frozen copy; `_same_calls`, whether the denoiser is called equally often for all
    rows, as FSDP needs it; `_name`, `_tag_names` and `_paper`, as of TRL's trainers.

    Args:
        model (`str` or `DiffusionPipeline`): A pipeline, or where to load one from.
        args ([`DiffusionTrainingArguments`], *optional*): The settings; their defaults if not given.
        ref_model (`DiffusionPipeline` or `torch.nn.Module`, *optional*): The reference in place of the initial policy.
        peft_config (`LoraConfig`, *optional*): Train this adapter only.
        init_noise (`float`, *optional*, defaults to 0.0): See [`jitter`]; not where there is a `ref_model`.
        **kwargs: All other arguments of [`~transformers.Trainer`], but `compute_metrics` and `compute_loss_func`.
    """

    loss_is_scaled_for_ga = False
    _config: Any = DiffusionTrainingArguments
    _module: type[DenoiserModule] = DenoiserModule
    _needs_reference = True
    _same_calls = False
    _tag_names: list[str]
    _name: str
    _paper: dict[str, str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):  # which may fail after this class's own has changed the pipeline
            cls.__init__ = undone(cls.__init__)  # ty: ignore[invalid-assignment]

    @undone
    def __init__(
        self,
        model: str | os.PathLike | DiffusionPipeline,
        args: Any = None,
        *,
        ref_model: Any = None,
        peft_config: LoraConfig | None = None,
        init_noise: float = 0.0,
        **kwargs: Any,
    ) -> None:
        refuse_unused(kwargs, type(self).__name__)
        self.pipe, args = self._door(model, args)
        self.prediction_type = prediction_type(self.pipe.scheduler)
        if ref_model is not None and peft_config is not None:
            raise ValueError(
                "`ref_model` and `peft_config` are both given. With an adapter, the reference is the model without it."
            )
        if args.save_full_pipeline and peft_config is not None:
            raise ValueError("`save_full_pipeline` saves a fully trained pipeline, and `peft_config` trains a LoRA.")
        self.denoiser_name = args.denoiser or denoiser_name(self.pipe)
        denoiser = getattr(self.pipe, self.denoiser_name, None)
        if denoiser is None:
            raise ValueError(f"`denoiser` must be one that the pipeline has, received {args.denoiser!r}.")
        check_format(args.save_format, self.denoiser_name, peft_config)
        if peft_config is None and getattr(denoiser, "is_quantized", False):
            raise ValueError("The denoiser is quantized, and its weights cannot be trained. Pass a `peft_config`.")
        for part in self.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False)
                part.eval()
        self.conditions = Conditions(
            self.pipe,
            self._size(self.pipe, args),
            embedded_guidance=args.embedded_guidance,
            steps=self._grids(args) if self.prediction_type == "flow_prediction" else (),
            **{"max_sequence_length": args.max_sequence_length} | dict(args.call_arguments or {}),
        )
        module = self._module(denoiser, self.conditions)
        torch.manual_seed(args.seed)
        self.is_lora = peft_config is not None
        if peft_config is not None:
            add_lora(denoiser, peft_config)
        else:
            if getattr(denoiser, "peft_config", None):
                raise ValueError(
                    f"`model` has the adapters {list(denoiser.peft_config)}, and full training would train into them. "
                    "Fuse or unload them, or pass a `peft_config`, beside which they stay as they are."
                )
            denoiser.requires_grad_(True)
            module.dtype = torch.float32
        self.conditions.dtype = module.dtype
        cast_training_params(denoiser, torch.float32)  # the optimizer's updates would vanish in half precision
        # Random masks would make the policy differ from the reference before anything is learnt.
        disable_dropout_in_model(denoiser)

        self.ref_denoiser: DenoiserModule | None = None
        if not self.is_lora and (self._needs_reference or ref_model is not None):
            self.ref_denoiser = self._frozen(ref_model, module, args)
        if init_noise and ref_model is None:
            jitter(denoiser, init_noise, args.seed)
        super().__init__(model=module, args=args, processing_class=None, **kwargs)
        check_run(args, self.model)
        if self.ref_denoiser is not None:
            self.ref_denoiser.to(self.accelerator.device)
        shard(self)
        self.sums = Sums(self.accelerator)
        self._levels: dict[Size, Levels] = {}
        self.ema = None if args.ema_decay is None else RunningMean(denoiser, args.ema_decay)
        if self.ema is not None:
            self.add_callback(self.ema)

    @classmethod
    def _door(cls, model: str | os.PathLike | DiffusionPipeline, args: Any) -> tuple[DiffusionPipeline, Any]:
        """The pipeline and a copy of the settings, which are checked before anything is loaded."""
        source = model if isinstance(model, str | os.PathLike) else getattr(model, "name_or_path", None)
        name = Path(str(source or type(model).__name__)).name
        args = settings(args, cls._config, f"{name}-{cls._name.replace(' ', '-')}")
        pipe = DiffusionPipeline.from_pretrained(model) if isinstance(model, str | os.PathLike) else model
        check_call_arguments(args.call_arguments or {}, stock_class(pipe), "`call_arguments`")
        return pipe, args

    @staticmethod
    def _frozen(ref_model: Any, module: DenoiserModule, args: Any) -> DenoiserModule:
        if ref_model is None:
            reference = copy.deepcopy(module)
        else:
            reference = copy.copy(module)  # its settings, around another network
            reference._modules = dict(module._modules)
            is_pipe = isinstance(ref_model, DiffusionPipeline)
            reference.denoiser = (
                getattr(ref_model, args.denoiser or denoiser_name(ref_model)) if is_pipe else ref_model
            )
            if reference.denoiser is module.denoiser:
                raise ValueError("`ref_model` is the model that is trained. Leave it out, or load a second one.")
            reference.dtype = reference.denoiser.dtype
            disable_dropout_in_model(reference)
        return reference.eval().requires_grad_(False)

    def without_grad(self, model: torch.nn.Module) -> Denoiser:
        """The policy as a function that leaves no graph, not through DDP: it would wait for a backward pass."""
        module = self.accelerator.unwrap_model(model)

        def predict(*args: torch.Tensor, **conditioning: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), self.accelerator.autocast():
                return module(*args, **conditioning)

        return predict

    def reference(self, model: torch.nn.Module) -> Denoiser:
        """The reference as a function, in the mixed precision of the policy: Trainer's own is in its forward alone."""
        if not self.is_lora:
            if self.ref_denoiser is None:
                raise ValueError("There is no reference: it was let go, or this trainer keeps none.")
            # Without dropout the mode changes memory layouts only, but with them the rounding of sums.
            self.ref_denoiser.train(self.model.training)
            return self.without_grad(self.ref_denoiser)
        policy = self.without_grad(model)

        def predict(*args: torch.Tensor, **conditioning: torch.Tensor) -> torch.Tensor:
            with adapter_off(self.denoiser, ADAPTER):
                return policy(*args, **conditioning)

        return predict

    # Data and evaluation

    @staticmethod
    def _size(pipe: DiffusionPipeline, args: Any) -> Size:
        """Of samples that come without one."""
        side = args.resolution or default_side(pipe, get_denoiser(pipe))
        if side is None:
            raise ValueError(
                f"`resolution` must be given: a {type(pipe).__name__} does not say in which size it draws."
            )
        return Size(side, side, (args.num_frames or 1) if draws_videos(pipe) else None)

    def _ready(self, dataset: Any, name: str) -> Any:
        return dataset

    def _grids(self, args: Any) -> tuple[int, ...]:
        """Numbers of steps of the schedules that training needs."""
        return (self.pipe.scheduler.config.num_train_timesteps,)

    def levels(self, x0: torch.Tensor) -> Levels:
        """The noise levels that samples are trained at; flow schedules may depend on the size of the latents."""
        size = size_of_latents(self.pipe, x0.shape[1:])
        if size not in self._levels:
            flow = self.prediction_type == "flow_prediction"
            levels = self._make_levels(self.conditions.template(size).schedules if flow else None)
            single = (v.float() if v.is_floating_point() else v for v in (levels.timesteps, levels.a, levels.s))
            self._levels[size] = Levels(*single).to(x0.device)
        return self._levels[size]

    def drawn_steps(self, draws: Draws, levels: Levels, count: int = 1) -> torch.Tensor:
        """Steps `(count, B)` of the levels, 1 to their number; where the pipeline has two denoisers, those of the one
        in training."""
        steps, expert = torch.arange(1, levels.num_steps + 1), self._expert_range()
        if expert is not None:
            timesteps = levels.timesteps.cpu()
            steps = steps[(timesteps >= expert[0]) & (timesteps < expert[1])]
        return steps[draws.points("time", count, len(steps))]

    def _expert_range(self) -> tuple[float, float] | None:
        """Timesteps of the denoiser in training, of pipelines with one for high noise and one for low (Wan 2.2)."""
        ratio = self.pipe.config.get("boundary_ratio")
        if ratio is None or getattr(self.pipe, "transformer_2", None) is None:
            return None
        boundary = ratio * self.pipe.scheduler.config.num_train_timesteps
        return (boundary, math.inf) if self.denoiser_name == "transformer" else (0.0, boundary)

    def _make_levels(self, schedules: Schedules | None) -> Levels:
        return training_levels(self.pipe, schedules=schedules)

    def _text_encoders(self) -> list[torch.nn.Module]:
        return text_encoders(self.pipe)

    def _map_datasets(self, change: Callable[[Any], Any]) -> None:
        """Replace every dataset by what `change` makes of it."""
        if self.train_dataset is not None:
            self.train_dataset = change(self.train_dataset)
        if isinstance(self.eval_dataset, Mapping):
            self.eval_dataset = {name: change(dataset) for name, dataset in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            self.eval_dataset = change(self.eval_dataset)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = []  # the collator reads the columns; none is the denoiser's

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    # Metrics

    def note(self, metrics: dict[str, torch.Tensor]) -> None:
        """Add rows (B,) of each metric to what the next log shows the mean of."""
        mode = "train" if self.model.training else "eval"
        for name, rows in metrics.items():
            self.sums.add(mode, name, rows.detach())

    def means(self, mode: str) -> dict[str, float]:
        """The metrics that the next log shows."""
        return self.sums.means(mode)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        # The summary at the end has a `train_loss`, an evaluation one of its own prefix.
        losses = [key for key in logs if (key == "loss" if mode == "train" else key.endswith("_loss"))]
        if losses:
            prefix = losses[0].removesuffix("loss")
            # In place: `evaluate` hands in what it returns, and what the best model is picked by.
            logs.update({f"{prefix}{name}": mean for name, mean in self.means(mode).items()})
        super().log(logs, start_time)
