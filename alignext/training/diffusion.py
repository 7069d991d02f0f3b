# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`DiffusionTrainer`: a `Trainer` of the denoiser of a diffusion pipeline. It knows nothing of preferences."""

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import logging
from trl.trainer.utils import disable_dropout_in_model

from alignext import hub
from alignext.diffusion.denoiser import DenoiserForward, DenoiserModule, adapter_off, denoiser_name, get_denoiser
from alignext.diffusion.levels import prediction_type, training_levels
from alignext.diffusion.prompts import TEXT_ENCODERS, PromptCache
from alignext.files import replacing
from alignext.functional.inversion import Levels
from alignext.functional.predictions import Denoiser
from alignext.training.diffusion_arguments import DiffusionTrainingArguments
from alignext.training.diffusion_card import DiffusionCard
from alignext.training.door import settings
from alignext.training.lora import ADAPTER, add_lora, jitter
from alignext.training.metrics import Sums
from alignext.training.runs import check_run


logger = logging.get_logger(__name__)


class DiffusionTrainer(DiffusionCard, Trainer):
    """
    Trains the denoiser of a diffusion pipeline, whole or by a LoRA, beside a frozen reference. Saves what diffusers
    loads: `pytorch_lora_weights.safetensors`, or a `unet` or `transformer` folder. A subclass defines `compute_loss`
    and brings a collator; which columns there are, and whether there are pictures at all, is its own affair.

    Class attributes: `_config`, the class of the settings; `_needs_reference`, whether full training keeps a frozen
    copy; `_name`, `_tag_names` and `_paper`, as of TRL's trainers.

    Args:
        model (`str` or `DiffusionPipeline`): A pipeline, or where to load one from.
        args ([`DiffusionTrainingArguments`], *optional*): The settings; their defaults if not given.
        ref_model (`DiffusionPipeline` or `torch.nn.Module`, *optional*): The reference in place of the initial policy.
        peft_config (`LoraConfig`, *optional*): Train this adapter only.
        denoiser_forward (`Callable`, *optional*): How to call an architecture that is not known here.
        init_noise (`float`, *optional*, defaults to 0.0): See [`jitter`]; not where there is a `ref_model`.
        **kwargs: All other arguments of [`~transformers.Trainer`].
    """

    loss_is_scaled_for_ga = False
    _config: Any = DiffusionTrainingArguments
    _needs_reference = True
    _tag_names: list[str]
    _name: str
    _paper: dict[str, str]

    def __init__(
        self,
        model: str | os.PathLike | DiffusionPipeline,
        args: Any = None,
        *,
        ref_model: Any = None,
        peft_config: LoraConfig | None = None,
        denoiser_forward: DenoiserForward | None = None,
        init_noise: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.pipe, args = self._door(model, args)
        self.prediction_type = prediction_type(self.pipe.scheduler)
        if ref_model is not None and peft_config is not None:
            raise ValueError(
                "`ref_model` and `peft_config` are both given. With an adapter, the reference is the model without it."
            )
        if args.save_full_pipeline and peft_config is not None:
            raise ValueError("`save_full_pipeline` saves a fully trained pipeline, and `peft_config` trains a LoRA.")
        denoiser = get_denoiser(self.pipe)
        for part in self.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False)
                part.eval()
        module = DenoiserModule(self.pipe, denoiser_forward, args.embedded_guidance)
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
        cast_training_params(denoiser, torch.float32)  # the optimizer's updates would vanish in half precision
        # Random masks would make the policy differ from the reference before anything is learnt.
        disable_dropout_in_model(denoiser)

        self.ref_denoiser: DenoiserModule | None = None
        if not self.is_lora and (self._needs_reference or ref_model is not None):
            self.ref_denoiser = self._frozen(ref_model, module)
        if init_noise and ref_model is None:
            jitter(denoiser, init_noise, args.seed)
        super().__init__(model=module, args=args, processing_class=None, **kwargs)
        if self.is_fsdp_enabled or getattr(args.deepspeed_plugin, "zero_stage", 0) == 3:
            raise NotImplementedError(f"{type(self).__name__} does not shard parameters (FSDP, ZeRO-3) yet. Use DDP.")
        check_run(args, self.model)
        if self.ref_denoiser is not None:
            self.ref_denoiser.to(self.accelerator.device)
        self.sums = Sums(self.accelerator)
        self.prompts = PromptCache(self.pipe, args.max_sequence_length)
        self._levels: dict[tuple[int, int], Levels] = {}

    @classmethod
    def _door(cls, model: str | os.PathLike | DiffusionPipeline, args: Any) -> tuple[DiffusionPipeline, Any]:
        """The pipeline and a copy of the settings, which are checked before anything is loaded."""
        source = model if isinstance(model, str | os.PathLike) else getattr(model, "name_or_path", None)
        name = Path(str(source or type(model).__name__)).name
        args = settings(args, cls._config, f"{name}-{cls._name.replace(' ', '-')}")
        return DiffusionPipeline.from_pretrained(model) if isinstance(model, str | os.PathLike) else model, args

    @staticmethod
    def _frozen(ref_model: Any, module: DenoiserModule) -> DenoiserModule:
        if ref_model is None:
            reference = copy.deepcopy(module)
        else:
            reference = copy.copy(module)  # its settings, around another network
            reference._modules = dict(module._modules)
            is_pipe = isinstance(ref_model, DiffusionPipeline)
            reference.denoiser = get_denoiser(ref_model) if is_pipe else ref_model
            if reference.denoiser is module.denoiser:
                raise ValueError("`ref_model` is the model that is trained. Leave it out, or load a second one.")
            reference.dtype = reference.denoiser.dtype
            disable_dropout_in_model(reference)
        return reference.eval().requires_grad_(False)

    @property
    def denoiser(self) -> Any:
        """The network in training, also to be found in the pipeline."""
        return get_denoiser(self.pipe)

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

    def levels(self, x0: torch.Tensor) -> Levels:
        """The noise levels that samples are trained at; flow schedules may depend on the size of the latents."""
        size = (x0.shape[-2], x0.shape[-1])
        if size not in self._levels:
            levels = self._make_levels(size)
            single = (v.float() if v.is_floating_point() else v for v in (levels.timesteps, levels.a, levels.s))
            self._levels[size] = Levels(*single).to(x0.device)
        return self._levels[size]

    def _make_levels(self, size: tuple[int, int]) -> Levels:
        return training_levels(self.pipe, size)

    def _text_encoders(self) -> list[torch.nn.Module]:
        return [e for name in TEXT_ENCODERS if (e := getattr(self.pipe, name, None)) is not None]

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
            self.sums.add(mode, name, rows.detach().float())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        # The summary at the end has a `train_loss`, an evaluation one of its own prefix.
        losses = [key for key in logs if (key == "loss" if mode == "train" else key.endswith("_loss"))]
        if losses:
            prefix = losses[0].removesuffix("loss")
            # In place: `evaluate` hands in what it returns, and what the best model is picked by.
            logs.update({f"{prefix}{name}": mean for name, mean in self.sums.means(mode).items()})
        super().log(logs, start_time)

    # Saving and loading

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if not self.args.should_save:
            return
        name = denoiser_name(self.pipe)
        if self.is_lora:
            layers = get_peft_model_state_dict(self.denoiser, adapter_name=ADAPTER)
            metadata = self.denoiser.peft_config[ADAPTER].to_dict()
            type(self.pipe).save_lora_weights(
                folder, **{f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": metadata}
            )
        elif self.args.save_full_pipeline and not folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
            self.pipe.save_pretrained(folder)
        else:
            # As a whole: shards of an earlier, larger save would stay beside the new ones.
            with replacing(folder / name) as part:
                self.denoiser.save_pretrained(part)
        with replacing(folder / TRAINING_ARGS_NAME) as part:
            torch.save(self.args, part)
        if not folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
            hub._write(folder / "README.md", self._card(model_name=self._model_name()))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        folder, name = Path(resume_from_checkpoint), denoiser_name(self.pipe)
        if self.is_lora:
            if not (folder / "pytorch_lora_weights.safetensors").is_file():
                raise ValueError(f"`resume_from_checkpoint` is {folder}, which has no LoRA of this trainer.")
            state = type(self.pipe).lora_state_dict(folder)
            state = state[0] if isinstance(state, tuple) else state
            state = {key.removeprefix(f"{name}."): value for key, value in state.items()}
            found = set_peft_model_state_dict(self.denoiser, state, adapter_name=ADAPTER)
            wrong = list(found.unexpected_keys) + [key for key in found.missing_keys if f".{ADAPTER}." in key]
            if wrong:
                raise ValueError(f"The LoRA in {folder} is not that of `peft_config`: {wrong[0]} does not fit.")
        else:
            if not (folder / name).is_dir():
                raise ValueError(f"`resume_from_checkpoint` is {folder}, which has no folder {name!r}.")
            saved = type(self.denoiser).from_pretrained(folder / name)
            self.denoiser.load_state_dict(saved.state_dict())

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.create_model_card(model_name=self._model_name())
        super()._save_checkpoint(model, trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # The inherited method copies the files of language models only.
        if self.args.hub_strategy != HubStrategy.END:
            self._save(self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)
