# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What a trained denoiser is saved as, and how a run goes on from a checkpoint."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy

from alignext import hub
from alignext.files import replacing
from alignext.training.diffusion_card import DiffusionCard
from alignext.training.ema import RunningMean
from alignext.training.lora import ADAPTER
from alignext.training.lora_files import save_kohya
from alignext.training.sharding import in_one_piece, without_prefix


class DiffusionFiles(DiffusionCard, Trainer):
    """Saves and loads what diffusers reads. Mixed into [`~alignext.training.diffusion.DiffusionTrainer`]."""

    ema: RunningMean | None

    @property
    def denoiser(self) -> Any:
        """The network in training, also to be found in the pipeline."""
        return getattr(self.pipe, self.denoiser_name)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if not self.args.should_save:
            return
        checkpoint = folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-")
        with nullcontext() if self.ema is None or checkpoint else self.ema.in_place():
            self._save_weights(folder, self.args.save_full_pipeline and not checkpoint, state_dict)
        if self.ema is not None and checkpoint:
            self.ema.save(folder)
        with replacing(folder / TRAINING_ARGS_NAME) as part:
            torch.save(self.args, part)
        if not checkpoint:
            hub._write(folder / "README.md", self._card(model_name=self._model_name()))

    def _save_weights(self, folder: Path, whole: bool, state: dict[str, torch.Tensor] | None) -> None:
        """`state` are the weights of all processes, where they share them."""
        name = self.denoiser_name
        if self.is_lora:
            given = None if state is None else without_prefix(state)
            layers = get_peft_model_state_dict(self.denoiser, given, adapter_name=ADAPTER)
            metadata = self.denoiser.peft_config[ADAPTER].to_dict()
            # The file of a second transformer is that of a first; it is loaded with `load_into_transformer_2`.
            part = name.removesuffix("_2")
            type(self.pipe).save_lora_weights(
                folder, **{f"{part}_lora_layers": layers, f"{part}_lora_adapter_metadata": metadata}
            )
            if self.args.save_format == "kohya":
                adapted = {n: m for n, m in self.denoiser.named_modules() if ADAPTER in getattr(m, "scaling", ())}
                save_kohya(folder, layers, {name: float(m.scaling[ADAPTER]) for name, m in adapted.items()})
        elif whole:
            self.pipe.save_pretrained(folder)
        else:
            # As a whole: shards of an earlier, larger save would stay beside the new ones.
            denoiser = self.denoiser if state is None else in_one_piece(self.denoiser, state)
            with replacing(folder / name) as part:
                denoiser.save_pretrained(part)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        folder, name = Path(resume_from_checkpoint), self.denoiser_name
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif self.is_lora:
            if not (folder / "pytorch_lora_weights.safetensors").is_file():
                raise ValueError(f"`resume_from_checkpoint` is {folder}, which has no LoRA of this trainer.")
            state = type(self.pipe).lora_state_dict(folder)
            state = state[0] if isinstance(state, tuple) else state
            state = {key.removeprefix(f"{name.removesuffix('_2')}."): value for key, value in state.items()}
            found = set_peft_model_state_dict(self.denoiser, state, adapter_name=ADAPTER)
            wrong = list(found.unexpected_keys) + [key for key in found.missing_keys if f".{ADAPTER}." in key]
            if wrong:
                raise ValueError(f"The LoRA in {folder} is not that of `peft_config`: {wrong[0]} does not fit.")
        else:
            if not (folder / name).is_dir():
                raise ValueError(f"`resume_from_checkpoint` is {folder}, which has no folder {name!r}.")
            saved = type(self.denoiser).from_pretrained(folder / name)
            self.denoiser.load_state_dict(saved.state_dict())
        if self.ema is not None:
            self.ema.load(folder)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint, self.model)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.create_model_card(model_name=self._model_name())
        super()._save_checkpoint(model, trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # The inherited method copies the files of language models only.
        if self.args.hub_strategy != HubStrategy.END:
            self._save(self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)
