# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
# More than 300 lines: what goes in, the loss, the vector and its files are steps of one Trainer, each a hook of it.
"""Trains one direction at one layer of a frozen language model, by exchanging its coordinate between prompts."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from alignext import hub
from alignext.files import replacing
from alignext.methods import method
from alignext.steering import SteeringVector
from alignext.steering.layers import decoder_layers, parse_layers
from alignext.training import door
from alignext.training.logs import get_logger
from alignext.training.runs import check_run
from alignext.wrapping import evaluating

from .card import CDASCard
from .config import CDASConfig
from .module import InterchangeModel, KeepLength
from .quads import CHECKS, QuadCollator, check_rows, padded, tokenize


logger = get_logger(__name__)

_PARAMETER = "parameter.safetensors"  # of checkpoints: what the optimizer has moved, its sign as it is
_LOOKED_AT = 32  # rows


class CDASTrainer(CDASCard, door.RawEvaluations, Trainer):
    """
    Trainer for Concept DAS: learns a direction in a frozen language model along which prompts with a concept and
    prompts without it differ. All states of a base prompt are given the coordinate of a source prompt, and the
    distributions of the answer's tokens are pulled towards those that the source prompt has. No parameter of the
    language model is trained. All else is [`~transformers.Trainer`]'s.

    Example:

    ```python
    >>> from alignext import CDASTrainer

    >>> trainer = CDASTrainer(model="Qwen/Qwen2.5-0.5B-Instruct", train_dataset=quads)
    >>> trainer.train()
    >>> with trainer.steering_vector.apply(model):  # alpha=-1 suppresses the concept
    ...     model.generate(...)
    ```

    It saves `steering.safetensors`, which [`SteeringVector.load`][alignext.steering.SteeringVector] opens.

    Args:
        model (`str` or `os.PathLike` or `PreTrainedModel` or `PeftModel`):
            A causal language model. It stays as it is, but for its parameters being frozen.
        args ([`CDASConfig`], *optional*):
            The configuration. If not given: the defaults.
        train_dataset (`Dataset`):
            Columns `neutral_prompt`, `neutral_completion`, `concept_prompt`, `concept_completion`: texts or
            conversations. [`make_quads`] makes them.
        eval_dataset (`Dataset` or `dict`, *optional*):
            The same, held out.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer. If not given: the model's own.
        quantization_config (*optional*):
            For a model that is given by its name.
        **kwargs:
            All other arguments of [`~transformers.Trainer`], but `compute_metrics` and `compute_loss_func`.

    Raises:
        ValueError: If the data has other columns, an empty completion or the same prompt twice in a row, or the layer
            is out of range.
        NotImplementedError: For streams, and for parameters in shards.
    """

    loss_is_scaled_for_ga = False
    _tag_names = ["trl", "alignext", "steering", "cdas"]
    _name = "Concept DAS"
    _paper = method("Concept DAS").paper

    def __init__(
        self,
        model: Any,
        args: CDASConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        quantization_config: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        model = door.model_or_path(model)
        args = door.settings(args, CDASConfig, f"{door.model_name(model)}-CDAS")
        if peft_config is not None:
            raise ValueError(
                "`peft_config` must be None: a vector is trained. A model with an adapter is taken as it is."
            )
        door.refuse_unused(kwargs, "CDASTrainer")
        if train_dataset is None:
            raise ValueError("`train_dataset` must be a dataset: the strengths of the vector are read from it.")
        door.check_datasets(train_dataset, eval_dataset, **CHECKS)
        for name, dataset in door.named(train_dataset, eval_dataset):
            self._check_rows(dataset, name)
        if isinstance(model, str):
            init = dict(args.model_init_kwargs or {})
            if quantization_config is not None:
                init["quantization_config"] = quantization_config
            if processing_class is None:
                processing_class = AutoTokenizer.from_pretrained(model, revision=init.get("revision"))
            model = AutoModelForCausalLM.from_pretrained(model, **init)
        elif processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(door.get_config_model_id(model.config))
        layers = decoder_layers(model)
        depth = int(args.layer) if args.layer.lstrip("-").isdigit() else args.layer
        (layer, *_) = parse_layers(depth, len(layers))
        self.tokenizer = processing_class
        collator = QuadCollator(processing_class.pad_token_id or 0, args.directions)  # padding is masked
        with args.main_process_first(desc="tokenizing"):
            tokenized = {
                name: tokenize(dataset, processing_class, name, args.max_completion_length)
                for name, dataset in door.named(train_dataset, eval_dataset)
            }
        if isinstance(eval_dataset, Mapping):
            eval_dataset = {name: tokenized[door.argument(name)] for name in eval_dataset}
        elif eval_dataset is not None:
            eval_dataset = tokenized["eval_dataset"]
        super().__init__(
            model=InterchangeModel(model, layer, args.exclude_first, args.objective, args.seed),
            args=args,
            data_collator=collator,
            train_dataset=tokenized["train_dataset"],
            eval_dataset=eval_dataset,
            **kwargs,
        )
        if self.is_fsdp_enabled or getattr(args.deepspeed_plugin, "zero_stage", 0) == 3:
            raise NotImplementedError("CDASTrainer does not shard parameters (FSDP, ZeRO-3). Use DDP.")
        check_run(args, self.model)
        self.add_callback(KeepLength(self.interchange.vector))
        self.plain_loss: float | None = None
        self._sources: tuple[torch.Tensor, torch.Tensor] | None = None

    @staticmethod
    def _check_rows(dataset: Any, name: str) -> None:
        if not isinstance(dataset, Dataset):
            raise NotImplementedError(f"`{name}` is a stream, which is not supported: a vector needs few rows.")
        check_rows(dataset, name)

    def _ready(self, dataset: Any, name: str) -> Any:
        if "neutral_prompt_ids" in (getattr(dataset, "column_names", None) or ()):
            return dataset
        door.check_dataset(dataset, name, **CHECKS)
        self._check_rows(dataset, name)
        return tokenize(dataset, self.tokenizer, name, self.args.max_completion_length)

    @property
    def interchange(self) -> InterchangeModel:
        """The language model with the vector."""
        return self.accelerator.unwrap_model(self.model)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the inherited method. The loss without intervention is logged beside the loss, as `plain_loss`."""
        rows = self.train_dataset.select(range(min(_LOOKED_AT, len(self.train_dataset))))
        self.plain_loss = self._mean_loss(rows, intervene=False)
        if self.args.objective != "ce" and self.plain_loss < 1e-6:
            raise ValueError(
                "Neutral and concept prompts give the same distributions: the loss without intervention is 0, and "
                "there is nothing to learn. Ask for the concept more clearly."
            )
        if not self.args.disable_tqdm:
            changes = ", ".join(f"{text!r} {change:+.3f}" for text, change in self.first_tokens(rows))
            self.accelerator.print(
                f"Loss without intervention: {self.plain_loss:.4f}. What the concept prompts change in the first "
                f"token's probability, which is what will be learnt: {changes}."
            )
        return super().train(*args, **kwargs)

    def first_tokens(self, rows: Dataset, count: int = 5) -> list[tuple[str, float]]:
        """The tokens whose probability at the start of an answer the concept prompts change most, and how much."""
        neutral, concept = (
            torch.cat([logits.softmax(-1) for _, logits in self._at_prompt_ends(rows[f"{side}_prompt_ids"])]).mean(0)
            for side in ("neutral", "concept")
        )
        change = concept - neutral
        found = change.abs().topk(min(count, len(change))).indices.tolist()
        return [(self.tokenizer.decode([i]), float(change[i])) for i in found]

    @torch.no_grad()
    def _mean_loss(self, rows: Dataset, *, intervene: bool) -> float:
        size = self.args.per_device_eval_batch_size
        module, losses = self.interchange, []
        with evaluating(module):
            for start in range(0, len(rows), size):
                batch = self.data_collator([rows[i] for i in range(start, min(start + size, len(rows)))])
                with self.accelerator.autocast():
                    losses.append(module(**self._prepare_inputs(batch), intervene=intervene))
        return float(torch.cat(losses).mean())

    # Loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = model(**inputs).mean()
        return (loss, {}) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def log(self, logs, start_time=None):
        if "loss" in logs and self.plain_loss is not None:
            logs["plain_loss"] = self.plain_loss
        super().log(logs, start_time)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = []

    # The result

    @property
    def steering_vector(self) -> SteeringVector:
        """
        The vector as it is now. It points from the neutral prompts of the training data to those with the concept;
        `mu_positive` and `mu_negative` are the mean coordinates of their last tokens.
        """
        v = self.interchange.vector.v.detach().double().cpu()
        v = v / v.norm()
        neutral, concept = (states.double() @ v for states in self._source_states())
        if concept.mean() < neutral.mean():  # the sign of what was learnt is arbitrary
            v, neutral, concept = -v, -neutral, -concept
        name = getattr(self.interchange.lm.config, "_name_or_path", "") or None
        return SteeringVector(
            v,
            self.interchange.layer,
            boundary=float(concept.mean() + neutral.mean()) / 2,
            mu_positive=float(concept.mean()),
            mu_negative=float(neutral.mean()),
            sigma_positive=float(concept.std(correction=0)),
            model=name,
            method="clamp",
            exclude_first=self.args.exclude_first,
        )

    def separation(self) -> float:
        """
        How far apart the coordinates of prompts with and without the concept are, in standard deviations. Below 1, the
        layer does not tell the prompts apart along the vector, and clamping to their means changes little.
        """
        v = self.interchange.vector().detach().double().cpu()
        neutral, concept = (states.double() @ v for states in self._source_states())
        pooled = ((neutral.var(correction=0) + concept.var(correction=0)) / 2).sqrt()
        return float((concept.mean() - neutral.mean()).abs() / pooled.clamp(min=1e-12))

    def _source_states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """States of the last tokens of all neutral and concept prompts; no vector changes them."""
        if self._sources is None:
            neutral, concept = (
                torch.cat([states for states, _ in self._at_prompt_ends(self.train_dataset[f"{side}_prompt_ids"])])
                for side in ("neutral", "concept")
            )
            self._sources = (neutral, concept)
        return self._sources

    def _at_prompt_ends(self, prompts: Sequence[list[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of states and logits at the last token of each prompt."""
        size, device = self.args.per_device_eval_batch_size, self.accelerator.device
        for start in range(0, len(prompts), size):
            ids, mask = padded(list(prompts[start : start + size]), self.data_collator.pad_token_id)
            states, logits = self.interchange.at_prompt_ends(ids.to(device), mask.to(device))
            yield states.cpu(), logits.cpu()

    # Saving

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.steering_vector.save(folder / SteeringVector._file_name)
        with replacing(folder / TRAINING_ARGS_NAME) as part:
            torch.save(self.args, part)
        if folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
            with replacing(folder / _PARAMETER) as part:
                save_file({"v": self.interchange.vector.v.detach().cpu()}, part)
            return
        if (apart := self.separation()) < 1:
            logger.warning(
                "Along the vector, prompts with and without the concept are %.2f standard deviations apart: layer %d "
                "does not hold the concept there. Try another layer.",
                apart,
                self.interchange.layer,
            )
        hub._write(folder / "README.md", self._card())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        path = Path(resume_from_checkpoint, _PARAMETER)
        if not path.is_file():
            raise ValueError(f"`resume_from_checkpoint` is {resume_from_checkpoint}, which has no {_PARAMETER}.")
        v, found = self.interchange.vector.v, load_file(path)["v"]
        if found.shape != v.shape:
            raise ValueError(f"The vector in {resume_from_checkpoint} has size {len(found)}, the model {len(v)}.")
        with torch.no_grad():
            v.copy_(found)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))
