# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
# More than 300 lines: hooks of one Trainer; objectives, reference and figures have files of their own.
"""`MAHDPOTrainer`: TRL's DPO trainer with one output head per objective."""

from functools import cached_property, partial
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import DataCollator
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import DPOTrainer
from trl.trainer.utils import get_config_model_id

from alignext.functional.mah_dpo import multi_objective_loss, pair_losses
from alignext.methods import method
from alignext.training import door
from alignext.training.cards import mend_card, result_name
from alignext.training.logs import get_logger
from alignext.training.metrics import FreshEvaluations, Sums, has_loss
from alignext.training.runs import check_run

from . import objectives, reference
from .config import MAHDPOConfig
from .metrics import loss_of_all, sums_and_counts
from .objectives import ObjectiveCollator
from .sampling import ObjectiveSampler


logger = get_logger(__name__)

_NOT_FOR_THE_MODEL = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps", "objective_ids"}


class MAHDPOTrainer(FreshEvaluations, DPOTrainer):
    """
    Trainer for Multi-Action-Head DPO (MAH-DPO): one language model for several objectives, with one output head per
    objective on a shared backbone. A pair trains the head of its objective only, and the backbone. It
    takes all that [`~trl.DPOTrainer`] takes: datasets, adapters, precomputed reference log-probabilities.

    Example:

    ```python
    >>> from alignext import MAHDPOTrainer

    >>> trainer = MAHDPOTrainer(model="Qwen/Qwen2.5-0.5B-Instruct", train_dataset=dataset)
    >>> trainer.train()
    >>> trainer.model.generate(**inputs, objective_weights={"honest": 0.7, "helpful": 0.3})
    ```

    Args:
        model (`str` or `os.PathLike` or `PreTrainedModel` or `PeftModel`):
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
        model = door.model_or_path(model)
        args = door.settings(args, MAHDPOConfig, f"{door.model_name(model)}-MAH-DPO")
        self._column = args.objective_column
        train_dataset = objectives.joined(train_dataset, self._column)
        if train_dataset is not None:
            objectives.check_columns(train_dataset, self._column, "train_dataset")
        saved = objectives.saved_heads(model, args)
        if is_deepspeed_zero3_enabled():  # it gathers what the called module holds, and heads are only read
            raise NotImplementedError("Objective heads are not gathered under ZeRO-3. Use FSDP2, or ZeRO-2.")
        self.objectives = objectives.find_objectives(saved, train_dataset, args)
        for name, dataset in door.named(None, eval_dataset):
            objectives.checked(dataset, name, self.objectives, self._column)
        self.objective_loss_weights = objectives.loss_weights(args.objective_loss_weights, self.objectives)
        load = reference.loader(args, self.objectives, fresh=saved is None)
        init_kwargs = args.model_init_kwargs
        if isinstance(model, str):
            loaders = reference.Loaders(load, partial(reference.reference_loader, args, load))
            args.model_init_kwargs = {**(init_kwargs or {}), "architecture": loaders}
        else:
            reference.check_model(model)
            if ref_model is None and reference.needs_own_reference(model, args, peft_config):
                as_policy = {"dtype": model.dtype, "attn_implementation": model.config._attn_implementation}
                ref_model = load(get_config_model_id(model.config), **as_policy)
        if peft_config is not None:
            peft_config = reference.with_heads(peft_config)
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
        self.args.model_init_kwargs = init_kwargs
        check_run(args, self.model)
        self.sums = Sums(self.accelerator)
        self._collate_objectives()
        for said in objectives.warnings(self.args, self.objectives, self.train_dataset, self.model):
            logger.warning(*said)

    # Data

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        names, column, name = self.objectives, self._column, door.argument(dataset_name)
        dataset = objectives.checked(dataset, name, names, column)
        texts = ("prompt", "chosen", "rejected")
        dataset = door.checked_stream(dataset, name, (*texts, column), texts)

        def number(row: dict[str, Any]) -> dict[str, int]:
            return {"objective_id": objectives.objective_id(row[column], names, column, dataset_name)}

        dataset = dataset.map(number)
        rows = len(dataset) if isinstance(dataset, Dataset) else 0
        # datasets hashes `args` to name what it keeps, and with what loads the heads half of all modules: for seconds.
        args = door.with_args(args, model_init_kwargs=None)
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        door.tell_dropped(rows, dataset, name, args.max_length)
        dataset = door.with_lengths(dataset, args, ("prompt_ids", "chosen_ids", "rejected_ids"))
        if dataset_name == "train" and isinstance(dataset, Dataset) and args.objective_sampling != "natural":
            objectives.check_present(dataset, names)
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        fresh = self._signature_columns is None
        super()._set_signature_columns_if_needed()
        if fresh:
            self._signature_columns += ["objective_id", self.args.length_column_name]

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

    @cached_property
    def _routes_reference(self) -> bool:
        """Whether a pair's reference is the head of its objective rather than the base head."""
        unwrapped = self.accelerator.unwrap_model
        return reference.routes_reference(self.args, unwrapped(self.model), unwrapped(self.ref_model or self.model))

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
        """Add to the sums, overall and by objective, that the next log shows the means of."""
        table = sums_and_counts(inputs["completion_mask"], outputs, ids, values)
        for name, (value, count) in table.items():
            for k, objective in enumerate(self.objectives):
                self.sums.add(mode, f"{objective}/{name}", value, count * (ids == k))
            if name == "loss":  # see `loss_of_all`
                count = self.objective_loss_weights.to(value)[ids]
                value = count * value
            self.sums.add(mode, name, value, count)
        if self.aux_loss_enabled:
            self.sums.add(mode, "aux_loss", outputs.aux_loss)
        seen = inputs["attention_mask"].sum() / self._tp_size
        self.sums.count("num_tokens", seen if mode == "train" else 0.0)

    def log(self, logs, start_time=None):
        if has_loss(logs):
            mode = "train" if self.model.training else "eval"
            means = self.sums.means(mode)
            loss = loss_of_all(means, self.objectives, self.objective_loss_weights, self.args.objective_reduction)
            loss += self.router_aux_loss_coef * means.get("aux_loss", 0.0)
            if mode == "eval" and means:  # the mean of batches would depend on how rows meet in them
                logs[min((name for name in logs if name.endswith("_loss")), key=len)] = loss
            self._metrics[mode].update({name: [mean] for name, mean in means.items()})
        super().log(logs, start_time)

    # Saving

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        folder = output_dir or self.args.output_dir
        if self.args.should_save and is_peft_model(self.model):
            # An adapter has no config of its own; this one tells which objectives its heads are for.
            self.model.get_base_model().config.save_pretrained(folder)
        if self.args.should_save:
            mend_card(folder, result_name(self.args))

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        model_name = model_name or result_name(self.args).split("/")[-1]
        super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            # TRL's loads the base class, which leaves out the heads.
            name = result_name(self.args, model_name)
            mend_card(self.args.output_dir, name, objectives.card(name, self.objectives))
