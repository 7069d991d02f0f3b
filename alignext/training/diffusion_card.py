# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The model card of a trained denoiser, and the lines that load it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch

import alignext
from alignext import hub
from alignext.diffusion.sizes import draws_videos


class DiffusionCard:
    """Gives a trainer with `pipe`, `args` and `is_lora` its card. Mixed into
    [`~alignext.training.diffusion.DiffusionTrainer`]."""

    pipe: Any
    args: Any
    is_lora: bool
    denoiser_name: str
    hub_model_id: str | None
    _edits = False  # whether pictures go in
    is_world_process_zero: Callable[[], bool]
    _tag_names: list[str]
    _name: str
    _paper: dict[str, str]

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
        if self.is_world_process_zero():
            hub._write(
                Path(self.args.output_dir, "README.md"),
                self._card(language, license, tags, model_name, finetuned_from, dataset_tags),
            )

    def _card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        dataset_tags: str | list[str] | None = None,
    ) -> str:
        base = hub._base_metadata(getattr(self.pipe, "name_or_path", None))
        if finetuned_from is not None and hub._is_repo_id(finetuned_from) and not Path(finetuned_from).exists():
            base = {"base_model": finetuned_from}  # not a folder, which nobody else has
        metadata = {"language": language, "license": license, "datasets": dataset_tags, **base}
        tags = [tags] if isinstance(tags, str) else list(tags or [])
        kind = ["lora"] if self.is_lora else []
        card = hub.model_card(
            f"{model_name or self._model_name()}: {self._name}",
            self._card_text(str(base.get("base_model", "the model it was trained from"))),
            tags=[*self._tag_names, *kind, *(tag for tag in tags if tag not in self._tag_names)],
            paper=self._paper,
            library_name="diffusers",
            pipeline_tag=f"{'image' if self._edits else 'text'}-to-{'video' if draws_videos(self.pipe) else 'image'}",
            **{key: value for key, value in metadata.items() if value is not None},
        )
        return str(card)

    def _card_text(self, base: str) -> str:
        repo = self.hub_model_id or self._model_name()  # no folder of this machine
        what = f"A LoRA for {base}" if self.is_lora else f"The {self.denoiser_name} of {base}"
        versions = f"alignext {alignext.__version__}, diffusers {diffusers.__version__}, PyTorch {torch.__version__}"
        return (
            f"{what}, trained with {self._name} by alignext.\n\n```python\n{self.usage(repo, base)}\n```\n\n"
            f"## Versions\n\n{versions}"
        )

    def usage(self, result: str | None = None, base: str | None = None) -> str:
        """The lines of Python that load what was trained: from the folder or Hub id `result`, on top of `base`."""
        result, cls, name = result or self.args.output_dir, type(self.pipe).__name__, self.denoiser_name
        base = base or getattr(self.pipe, "name_or_path", None) or "the base model"
        if self.is_lora:
            into = ", load_into_transformer_2=True" if name == "transformer_2" else ""
            return (
                f"from diffusers import {cls}\n\n"
                f'pipe = {cls}.from_pretrained("{base}")\npipe.load_lora_weights("{result}"{into})'
            )
        if self.args.save_full_pipeline:
            return f'from diffusers import {cls}\n\npipe = {cls}.from_pretrained("{result}")'
        network = type(getattr(self.pipe, name)).__name__
        return (
            f"from diffusers import {network}, {cls}\n\n"
            f'{name} = {network}.from_pretrained("{result}", subfolder="{name}")\n'
            f'pipe = {cls}.from_pretrained("{base}", {name}={name})'
        )
