# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`BCOTrainer`: TRL's KTO trainer with the loss of Binary Classifier Optimization."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from transformers import DataCollator
from trl import KTOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from alignext.functional.bco import bco_loss
from alignext.methods import method
from alignext.training import door
from alignext.training.cards import mend_card, result_name
from alignext.training.cells import distinct
from alignext.training.logs import get_logger
from alignext.training.metrics import FreshEvaluations, Sums, has_loss
from alignext.training.reward_shift import RewardShift
from alignext.training.runs import check_run

from .config import FORMER_NAMES, BCOConfig
from .matching import PromptWeights, embed_with_policy, prompt_text
from .rows import COLUMNS, WeightedCollator, check_labels


logger = get_logger(__name__)

_NOT_FOR_THE_MODEL = {"completion_mask", "label", "ref_logps", "udm_weight"}


@door.former_names(FORMER_NAMES, "docs/bco.md, Moving from `trl.experimental.bco`")
class BCOTrainer(FreshEvaluations, KTOTrainer):
    """
    Trainer for Binary Classifier Optimization (BCO): aligns a language model from single completions with a thumbs-up
    or thumbs-down. It takes all that [`~trl.KTOTrainer`] takes: datasets (unpaired, or paired and then unpaired),
    vision-language models, adapters, precomputed reference log-probabilities, streaming.

    Example:

    ```python
    >>> from alignext import BCOTrainer

    >>> trainer = BCOTrainer(model="Qwen/Qwen2.5-0.5B-Instruct", train_dataset=dataset)
    >>> trainer.train()
    ```

    Args:
        model (`str` or `os.PathLike` or `PreTrainedModel` or `PeftModel`):
            The policy, as for [`~trl.KTOTrainer`].
        ref_model (`PreTrainedModel`, *optional*):
            The reference. If not given: the initial policy.
        args ([`BCOConfig`], *optional*):
            The configuration. If not given: the defaults.
        data_collator (`DataCollator`, *optional*):
            As for [`~trl.KTOTrainer`].
        train_dataset (`Dataset` or `IterableDataset`):
            Columns `prompt`, `completion`, `label`, or `prompt`, `chosen`, `rejected`; text or conversations.
        prompt_embedder (`Callable[[list[str]], torch.Tensor | numpy.ndarray]`, *optional*):
            Turns `n` prompts into embeddings of shape `(n, d)`, for example `SentenceTransformer(...).encode`. Turns
            underlying distribution matching on: undesirable rows are weighted to the prompts of desirable ones, once,
            before training. A `udm_weight` column in the dataset takes its place.
        **kwargs:
            All other arguments of [`~trl.KTOTrainer`], among them `eval_dataset`, `processing_class`, `peft_config`.
    """

    loss_is_scaled_for_ga = False
    _tag_names = ["trl", "alignext", "bco"]
    _name = "BCO"
    _paper = method("BCO").paper

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: Any = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        *more: Any,
        prompt_embedder: Callable[[list[str]], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        model = door.model_or_path(model)
        args = door.settings(args, BCOConfig, f"{door.model_name(model)}-BCO")
        if prompt_embedder is not None and args.udm_embedding is not None:
            raise ValueError("`prompt_embedder` and `udm_embedding` are both given. Pass one of them.")
        self._prompt_weights: PromptWeights | None = None
        for name, dataset in door.named(train_dataset, more[0] if more else kwargs.get("eval_dataset")):
            self._check_dataset(dataset, name)
        # KTO's constructor leaves out all that has to do with its KL term under this name of a loss only.
        args.loss_type = "apo_zero_unpaired"
        super().__init__(model, ref_model, args, data_collator, train_dataset, *more, **kwargs)
        self.args.loss_type = self.loss_type = "bco"
        check_run(args, self.model)
        self.sums = Sums(self.accelerator)
        self.data_collator = WeightedCollator(self.data_collator)
        self.add_callback(RewardShift())
        if prompt_embedder is not None or args.udm_embedding is not None:
            self._match_prompts(prompt_embedder)

    # Data

    @staticmethod
    def _check_dataset(dataset: Any, name: str) -> list[str]:
        """Name what is wrong with a dataset before anything is computed; a stream shows its first row only."""
        columns = door.check_dataset(dataset, name, **COLUMNS)
        if {"chosen", "rejected"} <= set(columns):
            extra = [column for column in ("label", "completion") if column in columns]
            if extra:  # unpairing would keep the pairs' own
                raise ValueError(
                    f"`{name}` must hold pairs or single completions, received 'chosen' and 'rejected' beside "
                    f"{extra}. For pairs: `dataset.remove_columns({extra})`; for single completions remove the others."
                )
        elif isinstance(dataset, Dataset):
            check_labels(distinct(dataset, "label"))
        return columns

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        name = door.argument(dataset_name)
        columns = self._check_dataset(dataset, name)
        dataset = door.checked_stream(dataset, name, (*COLUMNS["texts"], "label"), COLUMNS["texts"])
        rows = len(dataset) * (2 if "chosen" in columns else 1) if isinstance(dataset, Dataset) else 0
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        door.tell_dropped(rows, dataset, name, args.max_length)
        dataset = door.with_lengths(dataset, args, ("prompt_ids", "completion_ids"))
        if dataset_name == "train" and isinstance(dataset, Dataset):
            labels = distinct(dataset, "label")
            if len(set(map(bool, labels))) == 1:
                logger.warning("All labels of the training data are %s: there is nothing to separate.", labels[0])
        return self._with_weights(dataset)

    def _match_prompts(self, prompt_embedder: Callable[[list[str]], Any] | None) -> None:
        """Fit the density ratio to the training prompts and write the weights into the datasets."""
        if "udm_weight" in next(iter(self.train_dataset)):
            return
        if isinstance(self.train_dataset, IterableDataset):
            raise ValueError(
                "Distribution matching needs the whole dataset, which a stream is not. Give the weights as a column "
                "`udm_weight` instead."
            )
        if prompt_embedder is not None:

            def key(row: dict) -> Any:
                return prompt_text(row["prompt"])

            embed = prompt_embedder
        else:
            if self.is_fsdp_enabled or getattr(self.args.deepspeed_plugin, "zero_stage", 0) == 3:
                raise ValueError("`udm_embedding='policy'` needs a policy in one piece. Pass a `prompt_embedder`.")
            if self._is_vision_dataset:
                raise ValueError("`udm_embedding='policy'` reads text only. Pass a `prompt_embedder` for pictures.")

            def key(row: dict) -> Any:
                return tuple(row["prompt_ids"])

            def embed(prompts: list) -> torch.Tensor:
                # The reference stays what the policy is now: prompts seen after training are embedded alike.
                model = self.accelerator.unwrap_model(self.ref_model or self.model)
                return embed_with_policy(model, prompts, self.args.per_device_eval_batch_size)

        self._prompt_weights = PromptWeights(embed, key, (self.args.min_density_ratio, self.args.max_density_ratio))
        ratio = self._prompt_weights.fit(
            self.train_dataset, self.args.prompt_sample_size, self.args.udm_regularization, self.args.seed
        )
        logger.info("Density ratio: held-out AUC %.3f, C = %g.", ratio.auc, ratio.regularization)
        if ratio.auc < 0.55:
            logger.warning(
                "The prompts of desirable and undesirable completions look alike (held-out AUC %.3f): distribution "
                "matching has nothing to correct, and the weights are about 1.",
                ratio.auc,
            )
        self.train_dataset = self._with_weights(self.train_dataset)
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: self._with_weights(dataset) for name, dataset in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            self.eval_dataset = self._with_weights(self.eval_dataset)

    def _with_weights(self, dataset: Any) -> Any:
        if self._prompt_weights is None or "udm_weight" in next(iter(dataset)) or isinstance(dataset, IterableDataset):
            return dataset
        return dataset.add_column("udm_weight", self._prompt_weights.of(dataset))

    def _set_signature_columns_if_needed(self) -> None:
        fresh = self._signature_columns is None
        super()._set_signature_columns_if_needed()
        if fresh:
            self._signature_columns += ["udm_weight", self.args.length_column_name]

    # Loss

    @property
    def reward_shift(self) -> RewardShift:
        """The state of the shift. Looked up, since resuming may replace the callback by a restored one."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, RewardShift))

    def losses(
        self, rewards: torch.Tensor, labels: torch.Tensor, shift: float, density_ratio: torch.Tensor | None
    ) -> torch.Tensor:
        """The loss of each row, see [`bco_loss`][alignext.functional.bco.bco_loss]; their mean is minimised."""
        return bco_loss(
            rewards,
            labels,
            shift,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
            density_ratio=density_ratio,
        )

    def _compute_loss(self, model, inputs, return_outputs):
        training = self.model.training
        batch = self._prepare_inputs(inputs)
        labels, density_ratio = batch["label"], batch.get("udm_weight")
        if density_ratio is None and self._prompt_weights is not None:
            raise ValueError(
                "The batch has no `udm_weight`, though distribution matching is on. Add such a column to the dataset."
            )
        outputs, logps = self._logps(model, batch, **({"output_router_logits": True} if self.aux_loss_enabled else {}))
        ref_logps = batch["ref_logps"] if self.precompute_ref_logps else self._reference_logps(batch)
        rewards = self.beta * (logps - ref_logps)
        if training:
            shift = self.reward_shift.step(rewards, labels, self.args, self.accelerator)
        else:
            shift = self.reward_shift.value(self.args)
        loss = self.losses(rewards, labels, shift, density_ratio).mean()
        aux_loss = outputs.aux_loss if self.aux_loss_enabled else None
        if aux_loss is not None:
            loss = loss + self.router_aux_loss_coef * aux_loss
        self._note("train" if training else "eval", batch, outputs, logps.detach(), rewards.detach(), shift, aux_loss)
        if return_outputs:  # for `compute_metrics`; the fused head gives no logits
            with torch.no_grad():
                outputs = model(**{k: v for k, v in batch.items() if k not in _NOT_FOR_THE_MODEL}, use_cache=False)
        return (loss, outputs) if return_outputs else loss

    def _logps(self, model: torch.nn.Module, batch: dict[str, Any], **kwargs: Any) -> tuple[Any, torch.Tensor]:
        """The outputs and the log-probability of each completion, shape `(B,)`."""
        kwargs |= {k: v for k, v in batch.items() if k not in _NOT_FOR_THE_MODEL}
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        outputs = model(**kwargs, use_cache=False, labels=labels, fused_lm_head=True)
        # The virtual tokens of prompt-learning adapters stand in front.
        return outputs, outputs.log_probs[:, -(labels.size(1) - 1) :].sum(-1)

    def _reference_logps(self, batch: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            if self.ref_model is not None or not is_peft_model(self.model):
                return self._logps(self.ref_model, batch)[1]
            unwrapped = self.accelerator.unwrap_model(self.model)
            with use_adapter(unwrapped, adapter_name="ref" if "ref" in unwrapped.peft_config else None):
                return self._logps(self.model, batch)[1]

    @torch.no_grad()
    def _note(self, mode, batch, outputs, logps, rewards, shift, aux_loss) -> None:
        """Add to the sums that the next log shows the means of."""
        labels, mask = batch["label"], batch["completion_mask"][:, 1:]
        tokens, add = mask.sum(1), partial(self.sums.add, mode)
        mean_logits, entropy = (
            (value[:, -mask.size(1) :] * mask).sum(1) for value in (outputs.mean_logits, outputs.entropy)
        )
        add("delta", shift)
        add("entropy", entropy, tokens)
        add("rewards/accuracies", torch.where(labels, rewards > shift, rewards < shift))
        for name, of_class in (("chosen", labels), ("rejected", ~labels)):
            add(f"rewards/{name}", rewards, of_class)
            add(f"logps/{name}", logps, of_class)
            add(f"logits/{name}", mean_logits, tokens * of_class)
        if "udm_weight" in batch:
            add("udm_weight", batch["udm_weight"], ~labels)
        if aux_loss is not None:
            add("aux_loss", aux_loss)
        seen = batch["attention_mask"].sum() / self._tp_size
        self.sums.count("num_tokens", seen if mode == "train" else 0.0)

    def log(self, logs, start_time=None):
        if has_loss(logs):
            mode = "train" if self.model.training else "eval"
            means = self.sums.means(mode)
            if {"rewards/chosen", "rewards/rejected"} <= means.keys():
                means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
            self._metrics[mode].update({name: [mean] for name, mean in means.items()})
        super().log(logs, start_time)

    # Saving

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            mend_card(output_dir or self.args.output_dir, result_name(self.args))

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        model_name = model_name or result_name(self.args).split("/")[-1]
        super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            mend_card(self.args.output_dir, result_name(self.args, model_name))
