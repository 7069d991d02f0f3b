# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`MAHDPOTrainer`: TRL's DPO trainer with one output head per objective."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset, concatenate_datasets
from transformers import AutoConfig, AutoModelForCausalLM, DataCollator
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import DPOTrainer
from trl.trainer.utils import get_config_model_id

from alignext.functional.mah_dpo import multi_objective_loss, pair_losses
from alignext.heads.auto import AutoModelForCausalLMWithObjectiveHeads
from alignext.heads.mixin import ObjectiveHeadsMixin
from alignext.methods import method
from alignext.training.runs import check_run, quick_start

from .config import MAHDPOConfig
from .sampling import ObjectiveSampler


logger = get_logger(__name__)

_NOT_FOR_THE_MODEL = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps", "objective_ids"}
_HEAD_SETTINGS = ("head_type", "head_rank", "head_alpha", "head_init_std", "head_init_seed", "head_dtype")
# The table of sums over pairs, and over the tokens of some completions, that all metrics are made of.
_PAIR_METRICS = (
    "loss rewards/chosen rewards/rejected rewards/accuracies rewards/margins logps/chosen logps/rejected".split()
)
_TOKEN_METRICS = {
    "entropy": "tokens",
    "mean_token_accuracy": "chosen",
    "logits/chosen": "chosen",
    "logits/rejected": "rejected",
}
_TABLE = ("rows", "chosen", "rejected", "tokens", *_PAIR_METRICS, *_TOKEN_METRICS)
_CARD = """
```python
from alignext import AutoModelForCausalLMWithObjectiveHeads
from transformers import AutoTokenizer

model = AutoModelForCausalLMWithObjectiveHeads.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
inputs = tokenizer("Once upon a time", return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=64, objective_weights={weights})
print(tokenizer.decode(ids[0], skip_special_tokens=True))
```

The weights mix one output head per objective; `model.merge_heads(weights)` gives a stock model of one mixture.
"""


@dataclass
class ObjectiveCollator:
    """Puts the objectives of the rows into the batch that another collator makes, for chosen and rejected alike."""

    collator: DataCollator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        ids = torch.tensor([example["objective_id"] for example in examples])
        return {**batch, "objective_ids": ids.repeat(2)}


@dataclass
class _Loaders:
    """Stands where TRL expects the class of a model: the policy is loaded first, then, if at all, the reference."""

    policy: Callable[..., Any]
    reference: Callable[[Any], Callable[..., Any]]
    loaded: Any = None

    def from_pretrained(self, path: str, **kwargs: Any) -> Any:
        if self.loaded is not None:
            return self.reference(self.loaded)(path, **kwargs)
        self.loaded = self.policy(path, **kwargs)
        return self.loaded


class MAHDPOTrainer(DPOTrainer):
    """
    Trainer for Multi-Action-Head DPO (MAH-DPO): one language model for several objectives, with one output head per
    objective on a shared backbone. A pair trains the head of its objective only, and the backbone. What
    [`~trl.DPOTrainer`] takes, this class takes, too: datasets, adapters, precomputed reference log-probabilities.

    Example:

    ```python
    >>> from alignext import MAHDPOTrainer

    >>> trainer = MAHDPOTrainer(model="Qwen/Qwen2.5-0.5B-Instruct", train_dataset=dataset)
    >>> trainer.train()
    >>> trainer.model.generate(**inputs, objective_weights={"honest": 0.7, "helpful": 0.3})
    ```

    Args:
        model (`str` or `PreTrainedModel` or `PeftModel`):
            A name or folder, with or without objective heads, or a model of
            [`AutoModelForCausalLMWithObjectiveHeads`].
        ref_model (`PreTrainedModel`, *optional*):
            The reference. If not given: what the policy starts from, see `reference_heads`.
        args ([`MAHDPOConfig`], *optional*):
            The configuration. If not given: the defaults.
        data_collator (`DataCollator`, *optional*):
            As for [`~trl.DPOTrainer`].
        train_dataset (`Dataset` or `IterableDataset` or `dict[str, Dataset]`):
            Columns `prompt`, `chosen`, `rejected`, text or conversations, and `objective`; or one dataset without the
            latter for each objective.
        eval_dataset (`Dataset` or `IterableDataset` or `dict[str, Dataset]`, *optional*):
            The same. As for [`~trl.DPOTrainer`], a dictionary has one evaluation per entry.
        quantization_config (`BitsAndBytesConfig`, *optional*):
            As for [`~trl.DPOTrainer`].
        peft_config (`PeftConfig`, *optional*):
            Adapter of the backbone; the heads are trained and saved with it.
        **kwargs:
            All other arguments of [`~trl.DPOTrainer`], among them `processing_class`, `callbacks`, `optimizers`.
    """

    loss_is_scaled_for_ga = False
    _tag_names = ["trl", "alignext", "mah-dpo"]
    _name = "MAH-DPO"
    _paper = method("MAH-DPO").paper

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: MAHDPOConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *more: Any,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            defaults: dict[str, Any] = {"output_dir": f"{name.split('/')[-1]}-MAH-DPO"}
            args = MAHDPOConfig(**defaults)
        if not isinstance(args, MAHDPOConfig):
            raise ValueError(f"`args` is a {type(args).__name__}. Pass a `MAHDPOConfig`.")
        check_run(args)
        if isinstance(train_dataset, dict):
            train_dataset = self._joined(train_dataset, args.objective_column)
        self._column = args.objective_column
        saved = _saved_heads(model, args)
        if (saved["head_type"] if saved else args.head_type) == "low_rank" and is_deepspeed_zero3_enabled():
            raise NotImplementedError("Low-rank heads are not gathered under ZeRO-3. Use full ones, or ZeRO-2.")
        self.objectives = self._find_objectives(saved, train_dataset, args)
        self.objective_loss_weights = self._loss_weights(args.objective_loss_weights)
        settings: dict[str, Any] = {"objectives": self.objectives, "is_trainable": True}
        if saved is None:  # a checkpoint with heads keeps them as they are
            settings |= {name: getattr(args, name) for name in _HEAD_SETTINGS}
        load = partial(AutoModelForCausalLMWithObjectiveHeads.from_pretrained, **settings)
        init_kwargs = args.model_init_kwargs
        if isinstance(model, str):
            loaders = _Loaders(load, partial(self._reference_loader, args, load))
            args.model_init_kwargs = {**(init_kwargs or {}), "architecture": loaders}
        else:
            self._check_model(model)
            if ref_model is None and self._needs_own_reference(model, args, peft_config):
                as_policy = {"dtype": model.dtype, "attn_implementation": model.config._attn_implementation}
                ref_model = load(get_config_model_id(model.config), **as_policy)
        if peft_config is not None:
            peft_config = copy.deepcopy(peft_config)
            if not hasattr(peft_config, "modules_to_save"):
                raise ValueError(
                    f"`peft_config` is a {type(peft_config).__name__}, which cannot train the heads beside it."
                )
            peft_config.modules_to_save = [*(peft_config.modules_to_save or []), "objective_heads"]
        self._tables: dict[str, torch.Tensor] = {}  # sums since the last log, see `_note`
        try:
            super().__init__(
                model,
                ref_model,
                args,
                data_collator,
                train_dataset,
                eval_dataset,
                *more,
                peft_config=peft_config,
                **kwargs,
            )
        finally:
            args.model_init_kwargs = init_kwargs
        check_run(args, self.model)
        self._collate_objectives()
        self._warn()

    # Objectives

    @staticmethod
    def _joined(datasets: dict[str, Dataset], column: str) -> Dataset:
        """One dataset of those of the objectives."""
        if not datasets:
            raise ValueError("`train_dataset` is an empty dictionary. Give a dataset for each objective.")
        streams = [name for name, dataset in datasets.items() if not isinstance(dataset, Dataset)]
        if streams:
            raise ValueError(
                f"`train_dataset` has a stream of {', '.join(map(repr, streams))}, whose rows cannot be counted. Give "
                f"a `Dataset` for each objective, or one stream with a column {column!r}."
            )
        named = [
            dataset if column in dataset.column_names else dataset.add_column(column, [name] * len(dataset))
            for name, dataset in datasets.items()
        ]
        return concatenate_datasets(named)

    @staticmethod
    def _find_objectives(saved: dict[str, Any] | None, dataset: Any, args: MAHDPOConfig) -> list[str]:
        """The names in the order of the heads: the model's, the config's, or those in the data."""
        if saved is not None:
            if args.objectives is not None and args.objectives != saved["objectives"]:
                raise ValueError(
                    f"`objectives` is {args.objectives}, but the model's heads are {saved['objectives']}."
                )
            return list(saved["objectives"])
        if args.objectives is not None:
            return list(args.objectives)
        if dataset is None:
            raise ValueError("`train_dataset` is required.")
        if not isinstance(dataset, Dataset):
            raise ValueError("`objectives` is needed: those of a stream cannot be looked up beforehand.")
        _check_columns(dataset, args.objective_column)
        found = set(dataset.unique(args.objective_column))
        if None in found:
            raise ValueError(f"Some `{args.objective_column}` are null, but every pair needs an objective.")
        if all(isinstance(value, int) for value in found):
            return [str(k) for k in range(max(found) + 1)]
        return sorted(found)

    def _loss_weights(self, given: Mapping[str, float] | Sequence[float] | str | None) -> torch.Tensor:
        """`a_k`, shape `(H,)`."""
        names = self.objectives
        if isinstance(given, str):
            raise ValueError(f"`objective_loss_weights` is {given!r}. Give one number for each of {names}.")
        if isinstance(given, Mapping):
            unknown = [name for name in given if name not in names]
            if unknown:
                raise ValueError(f"`objective_loss_weights` names {unknown}, but the objectives are {names}.")
            given = [given.get(name, 1.0) for name in names]
        weights = torch.ones(len(names)) if given is None else torch.as_tensor(given, dtype=torch.float32)
        if weights.shape != (len(names),) or not weights.isfinite().all() or (weights < 0).any() or not weights.any():
            raise ValueError(
                f"`objective_loss_weights` are {weights.tolist()}. Give one for each of {names}, finite, not negative "
                "and not all 0."
            )
        return weights

    def _check_model(self, model: Any) -> None:
        inner = model.get_base_model() if is_peft_model(model) else model
        if not isinstance(inner, ObjectiveHeadsMixin):
            raise ValueError(
                f"`model` is a {type(inner).__name__} without objective heads. Pass its name or folder, or load it "
                "with `AutoModelForCausalLMWithObjectiveHeads.from_pretrained`."
            )
        if not any(weight.requires_grad for weight in inner.objective_heads.parameters()):
            raise ValueError(
                "The objective heads of `model` are frozen. Make the adapter with "
                "`modules_to_save=['objective_heads']`, or load it with `is_trainable=True`."
            )

    def _warn(self) -> None:
        size, count = self.args.per_device_train_batch_size, len(self.objectives)
        if self.args.objective_sampling != "natural" and size % count:
            logger.warning(
                "%d rows a batch are no multiple of %d objectives: batches are balanced to one row.", size, count
            )
        if isinstance(self.train_dataset, IterableDataset):
            logger.warning("A stream comes as it is: objectives are not balanced.")
        else:
            ids = torch.tensor(self.train_dataset["objective_id"])
            sizes = torch.bincount(ids, minlength=count).tolist()
            if max(sizes) > 10 * min(sizes):
                logger.warning("The objectives %s have %s pairs, very different numbers.", self.objectives, sizes)
        dtypes = {weight.dtype for name, weight in self.model.named_parameters() if "objective_heads" in name}
        if dtypes & {torch.bfloat16, torch.float16}:
            logger.warning("The objective heads are trained in half precision, where small updates are lost.")

    # Data

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        names, column = self.objectives, self._column
        if dataset_name in names and isinstance(dataset, Dataset) and column not in dataset.column_names:
            dataset = dataset.add_column(column, [dataset_name] * len(dataset))  # an evaluation per objective
        _check_columns(dataset, column)

        def number(row: dict[str, Any]) -> dict[str, int]:
            return {"objective_id": _objective_id(row[column], names, column, dataset_name)}

        dataset = dataset.map(number)
        # datasets hashes `args` to name what it keeps, and with what loads the heads half of all modules: for seconds.
        loading, args.model_init_kwargs = args.model_init_kwargs, None
        try:
            dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        finally:
            args.model_init_kwargs = loading
        if dataset_name == "train" and isinstance(dataset, Dataset) and args.objective_sampling != "natural":
            present = set(dataset.unique("objective_id"))
            absent = [name for k, name in enumerate(names) if k not in present]
            if absent:
                raise ValueError(
                    f"The objectives {absent} have no pairs to train on (those whose prompt alone fills `max_length` "
                    "do not count). Leave them out, or set `objective_sampling='natural'`."
                )
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        fresh = self._signature_columns is None
        super()._set_signature_columns_if_needed()
        if fresh:
            self._signature_columns += ["objective_id"]

    def _collate_objectives(self) -> None:
        if not isinstance(self.data_collator, ObjectiveCollator):
            self.data_collator = ObjectiveCollator(self.data_collator)

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        sampling = self.args.objective_sampling
        if len(self.objectives) == 1 or sampling == "natural" or not isinstance(dataset, Dataset):
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return ObjectiveSampler(
            dataset["objective_id"], len(self.objectives), oversample=sampling == "oversample", seed=seed
        )

    # Reference

    @staticmethod
    def _reference_loader(args: MAHDPOConfig, load: Callable[..., Any], policy: Any) -> Callable[..., Any]:
        if args.reference_heads == "base" or (args.reference_heads == "auto" and policy.fresh_heads):
            return AutoModelForCausalLM.from_pretrained
        return load

    @staticmethod
    def _needs_own_reference(model: Any, args: MAHDPOConfig, peft_config: Any) -> bool:
        """Whether the reference has heads that TRL would not load."""
        if is_peft_model(model) or peft_config is not None or (args.precompute_ref_log_probs and not args.fsdp):
            return False
        return args.reference_heads == "objective" or (args.reference_heads == "auto" and not model.fresh_heads)

    @cached_property
    def _routes_reference(self) -> bool:
        """Whether a pair's reference is the head of its objective rather than the base head."""
        if self.args.reference_heads != "auto":
            return self.args.reference_heads == "objective"
        if is_peft_model(self.model) and "ref" in self.model.peft_config:
            return True  # TRL's copy of the adapter that training starts from, heads included
        model = self.accelerator.unwrap_model(self.ref_model or self.model)
        model = model.get_base_model() if is_peft_model(model) else model
        return isinstance(model, ObjectiveHeadsMixin) and not model.fresh_heads

    def _precompute_ref_logps(self, dataset, name, batch_size):
        self._collate_objectives()  # the constructor is not through yet
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def compute_ref_log_probs(self, model, inputs):
        """The log-probabilities of chosen and rejected completions under the reference, each of shape `(B,)`."""
        if not self._routes_reference:
            return super().compute_ref_log_probs(model, {k: v for k, v in inputs.items() if k != "objective_ids"})

        def routed(*, fused_lm_head: bool, **kwargs: Any) -> Any:
            return model(**kwargs)  # with labels and objectives, ours is fused by itself

        return super().compute_ref_log_probs(routed, inputs)

    # Loss

    def _compute_loss(self, model, inputs, return_outputs):
        mode = "train" if self.model.training else "eval"
        mask = inputs["completion_mask"]
        model_inputs = {k: v for k, v in inputs.items() if k not in _NOT_FOR_THE_MODEL} | {"use_cache": False}
        if self.aux_loss_enabled:
            model_inputs["output_router_logits"] = True
        labels = inputs["input_ids"].masked_fill(mask == 0, -100)
        outputs = model(**model_inputs, labels=labels, objective_ids=inputs["objective_ids"])
        for name in ("log_probs", "entropy", "mean_logits", "is_top1"):
            # The virtual tokens of prompt-learning adapters stand in front.
            outputs[name] = outputs[name][:, -(mask.size(1) - 1) :]
        chosen, rejected = outputs.log_probs.sum(1).chunk(2)
        if self.precompute_ref_logps:
            ref_chosen, ref_rejected = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            ref_chosen, ref_rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)

        ids, lengths = inputs["objective_ids"].chunk(2)[0], mask.sum(1).chunk(2)
        losses = chosen.new_zeros(())
        for loss_type, weight in zip(self.loss_types, self.loss_weights, strict=True):
            losses = losses + weight * pair_losses(
                chosen,
                rejected,
                ref_chosen,
                ref_rejected,
                beta=self.beta,
                label_smoothing=self.label_smoothing,
                loss_type=loss_type,
                chosen_lengths=lengths[0],
                rejected_lengths=lengths[1],
            )
        world = self.accelerator.num_processes
        counts = torch.bincount(ids, minlength=len(self.objectives))
        loss = multi_objective_loss(
            losses,
            ids,
            self.objective_loss_weights.to(losses),
            reduction=self.args.objective_reduction,
            counts=self.accelerator.reduce(counts, "sum") if world > 1 else counts,
            world_size=world,
        )
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
            aux_loss = self.accelerator.reduce(outputs.aux_loss.detach(), "mean")
            self._metrics[mode]["aux_loss"].append(aux_loss.item())
        values = {
            "loss": losses,
            "rewards/chosen": self.beta * (chosen - ref_chosen),
            "rewards/rejected": self.beta * (rejected - ref_rejected),
            "logps/chosen": chosen,
            "logps/rejected": rejected,
        }
        self._note(mode, inputs, outputs, ids, {name: value.detach() for name, value in values.items()})
        if return_outputs:  # for `compute_metrics`; there are no logits in training
            with torch.no_grad():
                outputs = model(**model_inputs, objective_ids=inputs["objective_ids"])
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _note(self, mode: str, inputs: dict, outputs: Any, ids: torch.Tensor, values: dict[str, torch.Tensor]) -> None:
        """Add to the metrics, overall and by objective, with one reduction over all processes for all of them."""
        chosen, rejected = values["rewards/chosen"], values["rewards/rejected"]
        values |= {"rewards/accuracies": (chosen > rejected).float(), "rewards/margins": chosen - rejected}
        values |= {"entropy": outputs.entropy, "mean_token_accuracy": outputs.is_top1.chunk(2)[0].float()}
        values |= dict(zip(("logits/chosen", "logits/rejected"), outputs.mean_logits.chunk(2), strict=True))
        mask = inputs["completion_mask"][:, 1:].bool()
        masks = dict(zip(("chosen", "rejected"), mask.chunk(2), strict=True)) | {"tokens": mask}

        table = []
        for k in range(len(self.objectives)):
            own = ids == k
            of = {name: m & own.repeat(len(m) // len(own))[:, None] for name, m in masks.items()}
            sums = {"rows": own.sum()} | {name: m.sum() for name, m in of.items()}
            sums |= {name: values[name].where(own, 0.0).sum() for name in _PAIR_METRICS}
            sums |= {name: values[name][of[count]].sum() for name, count in _TOKEN_METRICS.items()}
            table.append(torch.stack([sums[name].float() for name in _TABLE]))
        seen = inputs["attention_mask"].sum().float()
        flat = self.accelerator.reduce(torch.cat([*table, seen[None]]), "sum").cpu()
        by_objective = flat[:-1].view(len(table), -1)
        self._tables[mode] = self._tables.get(mode, 0.0) + by_objective.double()
        for name, value in _means(by_objective.sum(0)).items():
            if name != "loss":  # the trainer logs it
                self._metrics[mode][name].append(value)
        if mode == "train":
            self._total_train_tokens += int(flat[-1]) // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    def log(self, logs, start_time=None):
        mode = "train" if self.model.training else "eval"
        table = self._tables.pop(mode, None)
        if table is not None:
            for objective, sums in zip(self.objectives, table, strict=True):
                if sums[0]:  # an objective without rows has no mean
                    of_objective = {f"{objective}/{name}": [value] for name, value in _means(sums).items()}
                    self._metrics[mode].update(of_objective)
        super().log(logs, start_time)

    # Saving

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save and is_peft_model(self.model):
            # An adapter has no config of its own; this one tells which objectives its heads are for.
            self.model.get_base_model().config.save_pretrained(output_dir or self.args.output_dir)

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            # TRL's loads the base class, which leaves out the heads.
            name = self.hub_model_id or model_name or self.args.output_dir
            weights = {objective: round(1 / len(self.objectives), 2) for objective in self.objectives}
            quick_start(self.args.output_dir, _CARD.format(name=name, weights=weights))


def _saved_heads(model: Any, args: MAHDPOConfig) -> dict[str, Any] | None:
    """The settings of the heads that a model or checkpoint has already."""
    if isinstance(model, str):
        revision = (args.model_init_kwargs or {}).get("revision") or "main"
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=args.trust_remote_code)
    else:
        config = model.config
    return getattr(config, "objective_heads", None)


def _check_columns(dataset: Dataset | IterableDataset, column: str) -> list[str]:
    """Name what is wrong with a dataset before anything is computed."""
    columns = list(next(iter(dataset), {}))
    if {"image", "images"} & set(columns):
        raise ValueError("The dataset has pictures, which models with objective heads do not see. Use `DPOTrainer`.")
    if not {"chosen", "rejected", column} <= set(columns):
        raise ValueError(
            f"The dataset does not have the right columns: found {columns}, expected 'prompt', 'chosen', 'rejected', "
            f"{column!r} (example row: {{'prompt': 'The sky is', 'chosen': ' blue.', 'rejected': ' green.', "
            f"{column!r}: 'truthful'}})."
        )
    return columns


def _objective_id(value: Any, names: list[str], column: str, dataset_name: str) -> int:
    """The number of the head; `value` is its name or number."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
        return value
    if value not in names:
        raise ValueError(
            f"An `{column}` of the {dataset_name} data is {value!r}, expected one of {names}, or a number below "
            f"{len(names)}."
        )
    return names.index(value)


def _means(sums: torch.Tensor) -> dict[str, float]:
    """The metrics of one row of the table of sums."""
    of = dict(zip(_TABLE, sums, strict=True))
    means = {name: of[name] / of["rows"] for name in _PAIR_METRICS} | {
        name: of[name] / of[count].clamp(min=1) for name, count in _TOKEN_METRICS.items()
    }
    return {name: value.item() for name, value in means.items()}
