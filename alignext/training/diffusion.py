# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`DiffusionTrainer`: a `Trainer` of the denoiser of a diffusion pipeline. It knows nothing of preferences."""

import copy
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import logging
from trl.trainer.utils import disable_dropout_in_model

from alignext import hub
from alignext.diffusion.denoiser import DenoiserForward, DenoiserModule, adapter_off, denoiser_name, get_denoiser
from alignext.files import replacing
from alignext.functional.diffusion_preference import Denoiser
from alignext.training.runs import check_run


logger = logging.get_logger(__name__)

ADAPTER = "default"
_LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
_JOINT_LORA_TARGETS = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


class DiffusionTrainer(Trainer):
    """
    Trains the denoiser of a diffusion pipeline, whole or by a LoRA, beside a frozen reference. Saves what diffusers
    loads: `pytorch_lora_weights.safetensors`, or a `unet` or `transformer` folder. A subclass defines `compute_loss`.

    Args:
        model (`str` or `DiffusionPipeline`): As of the subclasses.
        ref_model (`DiffusionPipeline` or `torch.nn.Module`, *optional*): The reference in place of the initial policy.
        peft_config (`LoraConfig`, *optional*): Train this adapter only.
        denoiser_forward (`Callable`, *optional*): How to call an architecture that is not known here.
        init_noise (`float`, *optional*, defaults to 0.0): See [`jitter`]; not where there is a `ref_model`.
        **kwargs: All other arguments of [`~transformers.Trainer`].
    """

    loss_is_scaled_for_ga = False
    _tag_names: list[str]
    _name: str
    _paper: dict[str, str]

    def __init__(
        self,
        model: str | os.PathLike | DiffusionPipeline,
        args: Any,
        *,
        ref_model: Any = None,
        peft_config: LoraConfig | None = None,
        denoiser_forward: DenoiserForward | None = None,
        init_noise: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if ref_model is not None and peft_config is not None:
            raise ValueError(
                "`ref_model` and `peft_config` are both given. With an adapter, the reference is the model without it."
            )
        if args.save_full_pipeline and peft_config is not None:
            raise ValueError("`save_full_pipeline` saves a fully trained pipeline, and `peft_config` trains a LoRA.")
        self.pipe = DiffusionPipeline.from_pretrained(model) if isinstance(model, str | os.PathLike) else model
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
        if not self.is_lora:
            self.ref_denoiser = self._frozen(ref_model, module)
        if init_noise and ref_model is None:
            jitter(denoiser, init_noise, args.seed)
        super().__init__(model=module, args=args, processing_class=None, **kwargs)
        if self.is_fsdp_enabled or getattr(args.deepspeed_plugin, "zero_stage", 0) == 3:
            raise NotImplementedError(f"{type(self).__name__} does not shard parameters (FSDP, ZeRO-3) yet. Use DDP.")
        check_run(args, self.model)
        if self.ref_denoiser is not None:
            self.ref_denoiser.to(self.accelerator.device)
        self._sums: dict[str, torch.Tensor] = {}

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
                raise ValueError("The reference has been let go, as its inversions were computed beforehand.")
            # Without dropout the mode changes memory layouts only, but with them the rounding of sums.
            self.ref_denoiser.train(self.model.training)
            return self.without_grad(self.ref_denoiser)
        policy = self.without_grad(model)

        def predict(*args: torch.Tensor, **conditioning: torch.Tensor) -> torch.Tensor:
            with adapter_off(self.denoiser, ADAPTER):
                return policy(*args, **conditioning)

        return predict

    # Data and evaluation

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
        rows = torch.stack([value.detach().float() for value in metrics.values()], dim=1)
        rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
        if mode == "eval":  # rows that fill up the last batch of several processes are left out
            sums = self.accelerator.gather_for_metrics(rows).sum(0)
        else:
            sums = self.accelerator.reduce(rows.sum(0), "sum")
        self._metric_names = [*metrics]
        self._sums[mode] = self._sums.get(mode, 0) + sums

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        # The summary at the end has a `train_loss`, an evaluation one of its own prefix.
        losses = [key for key in logs if (key == "loss" if mode == "train" else key.endswith("_loss"))]
        sums = self._sums.pop(mode, None) if losses else None
        if sums is not None:
            prefix = losses[0].removesuffix("loss")
            means = (sums[:-1] / sums[-1]).tolist()
            # In place: `evaluate` hands in what it returns, and what the best model is picked by.
            logs.update({f"{prefix}{name}": mean for name, mean in zip(self._metric_names, means, strict=True)})
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
        if self.args.push_to_hub:
            self.create_model_card(model_name=self._model_name())
        super()._save_checkpoint(model, trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # The inherited method copies the files of language models only.
        if self.args.hub_strategy != HubStrategy.END:
            self._save(self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def _model_name(self) -> str:
        return (self.args.hub_model_id or os.path.abspath(self.args.output_dir)).rstrip("/").split("/")[-1]

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write `README.md`: how diffusers loads the result, what it was trained from and how. `tasks`, `dataset_args`
        and `dataset` are not on this card; `dataset_tags` are Hub ids."""
        if not self.is_world_process_zero():
            return
        base = hub._base_metadata(getattr(self.pipe, "name_or_path", None))
        base = base if finetuned_from is None else {"base_model": finetuned_from}
        metadata = {"language": language, "license": license, "datasets": dataset_tags, **base}
        tags = [tags] if isinstance(tags, str) else list(tags or [])
        kind = ["lora"] if self.is_lora else []
        card = hub.model_card(
            f"{model_name or self._model_name()}: {self._name}",
            self._card_text(str(base.get("base_model", "the model it was trained from"))),
            tags=[*self._tag_names, *kind, *(tag for tag in tags if tag not in self._tag_names)],
            paper=self._paper,
            library_name="diffusers",
            pipeline_tag="text-to-image",
            **{key: value for key, value in metadata.items() if value is not None},
        )
        hub._write(Path(self.args.output_dir, "README.md"), str(card))

    def _card_text(self, base: str) -> str:
        repo, name = self.hub_model_id or self.args.output_dir, denoiser_name(self.pipe)
        what = f"A LoRA for {base}" if self.is_lora else f"The {name} of {base}"
        return f"{what}, trained with {self._name} by alignext.\n\n```python\n{self.usage(repo, base)}\n```"

    def usage(self, result: str | None = None, base: str | None = None) -> str:
        """The lines of Python that load what was trained: from the folder or Hub id `result`, on top of `base`."""
        result, cls, name = result or self.args.output_dir, type(self.pipe).__name__, denoiser_name(self.pipe)
        base = base or getattr(self.pipe, "name_or_path", None) or "the base model"
        if self.is_lora:
            return (
                f"from diffusers import {cls}\n\n"
                f'pipe = {cls}.from_pretrained("{base}")\npipe.load_lora_weights("{result}")'
            )
        if self.args.save_full_pipeline:
            return f'from diffusers import {cls}\n\npipe = {cls}.from_pretrained("{result}")'
        network = type(self.denoiser).__name__
        return (
            f"from diffusers import {network}, {cls}\n\n"
            f'{name} = {network}.from_pretrained("{result}", subfolder="{name}")\n'
            f'pipe = {cls}.from_pretrained("{base}", {name}={name})'
        )


def add_lora(denoiser: Any, config: LoraConfig) -> None:
    """
    Put a LoRA into a denoiser and make it the only thing that is trained. Adapters that are active already stay so,
    and stay frozen.

    Raises:
        ValueError: if the config is not one diffusers can save as a LoRA file, or the name is taken.
    """
    if not isinstance(config, LoraConfig):
        raise ValueError(f"`peft_config` is a {type(config).__name__}, but diffusers saves and loads LoRA only.")
    if config.modules_to_save:
        raise ValueError(f"`modules_to_save` is {config.modules_to_save}, which a LoRA file of diffusers cannot hold.")
    if ADAPTER in getattr(denoiser, "peft_config", {}):
        raise ValueError(
            f"`model` has an adapter named {ADAPTER!r} already. Fuse or unload it, or load it under another name."
        )
    config = copy.deepcopy(config)
    if config.target_modules is None:
        joint = any(name.endswith("add_q_proj") for name, _ in denoiser.named_modules())
        config.target_modules = _LORA_TARGETS + (_JOINT_LORA_TARGETS if joint else [])
    if config.lora_dropout:
        logger.warning(
            f"`lora_dropout` is {config.lora_dropout}; 0 is used, or the policy would not start at the reference."
        )
        config.lora_dropout = 0.0
    config.task_type = None  # that of a language model would ask for its methods
    active = {m: m.active_adapters for m in denoiser.modules() if isinstance(m, BaseTunerLayer)}
    with warnings.catch_warnings():  # that there is another adapter is known
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
        denoiser.add_adapter(config, adapter_name=ADAPTER)
    for name, parameter in denoiser.named_parameters():
        parameter.requires_grad_(f".{ADAPTER}." in name)
    for module in denoiser.modules():
        if isinstance(module, BaseTunerLayer):
            module._active_adapter = [*active.get(module, []), ADAPTER]


@torch.no_grad()
def jitter(denoiser: torch.nn.Module, std: float, seed: int) -> None:
    """
    Move what is trained off its starting point: normal noise of `std` in the second matrix of a LoRA, which is zero at
    first, or noise relative to each weight. The same for the same seed on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in denoiser.named_parameters():
        if not parameter.requires_grad or (".lora_" in name and ".lora_B." not in name):
            continue
        noise = torch.randn(parameter.shape, generator=generator).to(parameter) * std
        parameter.add_(noise if ".lora_B." in name else noise * parameter)
