# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Trains a process reward model in one forward pass per solution."""

from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from transformers import AutoModelForTokenClassification, AutoTokenizer, set_seed
from trl import RewardTrainer
from trl.data_utils import get_dataset_column_names
from trl.trainer.utils import create_model_from_path, global_then_local_main_first

from alignext.functional.process_reward import IGNORED, process_reward_loss
from alignext.methods import method
from alignext.rewards.process import ProcessReward
from alignext.training import door
from alignext.training.cards import mend_card, result_name
from alignext.training.metrics import FreshEvaluations, Sums, has_loss
from alignext.training.runs import check_run

from .config import ProcessRewardConfig
from .data import TOKENIZED, SolutionCollator, cut_if_long, tokenize


_COLUMNS: dict[str, Any] = {
    "columns": [("prompt", "steps", "labels"), ("input_ids", "labels")],
    "example": {"prompt": "What is 2 + 3 * 4?", "steps": ["3 * 4 = 12.", "2 + 12 = 15."], "labels": [1.0, 0.0]},
    "texts": ("prompt", "steps"),
    "hint": "The prompt may be a list of messages, a label without meaning null.",
}
_CARD = """
```python
from alignext.rewards.process import ProcessReward

reward = ProcessReward.from_pretrained("{name}")
print(reward.scores(["What is 2 + 3 * 4?"], [["3 * 4 = 12.", "2 + 12 = 15."]]))  # one score after every step
```

`alignext.guided_generate(model, tokenizer, prompts, reward)` decodes with it.
"""


class ProcessRewardTrainer(FreshEvaluations, RewardTrainer):
    """
    Trainer for process reward models: a token classifier learns from labels of single steps, rather than a sequence
    classifier from pairs of texts. A separator is put after every step and carries its label, so that one forward pass
    covers all prefixes of a solution; causality makes each score that of the prefix alone. All else is
    [`~trl.RewardTrainer`]'s.

    Example:

    ```python
    >>> from alignext import ProcessRewardTrainer

    >>> trainer = ProcessRewardTrainer(model="Qwen/Qwen2.5-0.5B-Instruct", train_dataset=dataset)
    >>> trainer.train()
    >>> reward = trainer.reward()  # for `guided_generate`
    ```

    What it saves opens with stock [`~transformers.AutoModelForTokenClassification`], and with
    [`ProcessReward`][alignext.rewards.process.ProcessReward] as a function that scores texts.

    Args:
        model (`str` or `os.PathLike` or `PreTrainedModel` or `PeftModel`):
            A name or folder, of a causal language model for example, or a token classifier with `num_labels=1`.
        args ([`ProcessRewardConfig`], *optional*):
            The configuration. If not given: the defaults.
        data_collator (`DataCollator`, *optional*):
            Pads `input_ids` and `labels` if not given.
        train_dataset (`Dataset` or `IterableDataset`):
            Columns `prompt` (text or conversation), `steps` (a list of texts), `labels` (as many numbers, or null for
            a step without label).
        eval_dataset (`Dataset` or `IterableDataset` or `dict`, *optional*):
            The same, held out by prompt rather than by row.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer. If not given: the model's own.
        **kwargs:
            All other arguments of [`~trl.RewardTrainer`], among them `quantization_config` and `peft_config` (with
            `task_type="TOKEN_CLS"`, so that the head is trained and saved).
    """

    loss_is_scaled_for_ga = False
    _tag_names = ["trl", "alignext", "process-reward"]
    _name = "Process Reward"
    _paper = method("Process rewards").paper

    def __init__(
        self,
        model: Any,
        args: ProcessRewardConfig | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *more: Any,
        quantization_config: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        model = door.model_or_path(model)
        args = door.settings(args, ProcessRewardConfig, f"{door.model_name(model)}-Process-Reward")
        door.check_datasets(train_dataset, eval_dataset, **_COLUMNS)
        if peft_config is not None and getattr(peft_config, "task_type", None) != "TOKEN_CLS":
            raise ValueError(
                f"`peft_config.task_type` is {peft_config.task_type!r}, which leaves the head untrained and unsaved. "
                "Use 'TOKEN_CLS'."
            )
        model_init_kwargs, args.model_init_kwargs = args.model_init_kwargs, None
        if isinstance(model, str):
            model, processing_class = _load(model, args, model_init_kwargs, quantization_config, processing_class)
            quantization_config = None
        model.config.process_reward = {"step_separator": args.step_separator, "loss_type": args.loss_type}
        super().__init__(
            model,
            args,
            data_collator or SolutionCollator(0, args.pad_to_multiple_of),
            train_dataset,
            eval_dataset,
            processing_class,
            *more,
            quantization_config=quantization_config,
            peft_config=peft_config,
            **kwargs,
        )
        self.args.model_init_kwargs = model_init_kwargs
        check_run(args, self.model)
        self.sums = Sums(self.accelerator)
        if isinstance(self.data_collator, SolutionCollator):
            self.data_collator.pad_token_id = self.processing_class.pad_token_id
        self.label_names = ["labels"]  # for `compute_metrics`

    def reward(self, batch_size: int | None = None) -> ProcessReward:
        """
        The model, as it is now, as a function that scores texts step by step.

        Args:
            batch_size (`int`, *optional*): Solutions per forward pass; as in evaluation if not given.
        """
        model = self.accelerator.unwrap_model(self.model)
        batch_size = batch_size or self.args.per_device_eval_batch_size
        return ProcessReward(model, self.processing_class, batch_size=batch_size)

    # Data

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        name = door.argument(dataset_name)
        columns = door.check_dataset(dataset, name, **_COLUMNS)
        if "input_ids" not in columns:
            for column in ("tools", "chat_template_kwargs"):
                if column in columns:
                    raise ValueError(
                        f"`{name}` has a column {column!r}, which a process reward model does not read when it "
                        "scores. Write what it says into the prompts, or remove the column."
                    )
            dataset = door.checked_stream(dataset, name, ("prompt", "steps", "labels"), _COLUMNS["texts"])
        settings: dict[str, Any] = {"remove_columns": get_dataset_column_names(dataset)}
        if isinstance(dataset, Dataset):
            settings |= {
                "num_proc": args.dataset_num_proc,
                "desc": f"Tokenizing {dataset_name} dataset",
                # or a label would keep the type of its column, in which what has none is true
                "features": TOKENIZED,
            }
        fn_kwargs = {"tokenizer": processing_class, "args": args}
        with global_then_local_main_first():
            make = cut_if_long if "input_ids" in columns else tokenize
            tokenized = dataset.map(make, fn_kwargs=fn_kwargs, **settings)
            # Solutions that hold no label within `max_length` are empty here.
            kept = tokenized.filter(lambda row: len(row["input_ids"]) > 0)
        if isinstance(kept, Dataset) and len(kept) == 0:
            raise ValueError(
                f"No solution of the {dataset_name} data has a label within `max_length`={args.max_length} tokens. "
                "Raise it, or shorten the prompts."
            )
        if isinstance(tokenized, Dataset):
            door.tell_dropped(len(tokenized), kept, name, args.max_length)
        return kept

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = ["input_ids", "labels"]

    # Loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False)
        logits = outputs.logits[..., 0]
        loss = process_reward_loss(logits, labels, loss_type=self.args.loss_type).mean()
        self._note(mode, logits.detach().float(), labels, inputs["attention_mask"])
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _note(self, mode: str, logits: torch.Tensor, labels: torch.Tensor, attention_mask: torch.Tensor) -> None:
        """Add to the sums that the next log shows the means of."""
        labelled = labels != IGNORED
        scores = logits.sigmoid() if self.args.loss_type == "bce" else logits
        metrics = {"mean_score": scores, "mean_label": labels}
        if self.args.loss_type == "bce":
            metrics["accuracy"] = ((scores > 0.5) == (labels > 0.5)).float()
        for name, values in metrics.items():
            self.sums.add(mode, name, values.where(labelled, 0.0).sum(1), labelled.sum(1))
        self.sums.count("num_tokens", attention_mask.sum() / self._tp_size if mode == "train" else 0.0)

    def log(self, logs, start_time=None):
        if has_loss(logs):
            mode = "train" if self.model.training else "eval"
            means = self.sums.means(mode)
            self._metrics[mode].update({name: [mean] for name, mean in means.items()})
        super().log(logs, start_time)

    # Saving

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if is_peft_model(self.accelerator.unwrap_model(self.model)):
            # An adapter has no config of its own, and what a separator is would be lost.
            self.model.config.save_pretrained(output_dir or self.args.output_dir)
        if self.args.should_save:
            mend_card(output_dir or self.args.output_dir, result_name(self.args))

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        model_name = model_name or result_name(self.args).split("/")[-1]
        super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            # TRL's is for models that give a text one score.
            name = result_name(self.args, model_name)
            mend_card(self.args.output_dir, name, _CARD.format(name=name))


def _load(
    name: str, args: ProcessRewardConfig, init: Any, quantization_config: Any, tokenizer: Any
) -> tuple[Any, Any]:
    """The token classifier and tokenizer of a name, the new head drawn from the seed."""
    init = dict(init or {})
    if quantization_config is not None:
        init["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        init["device_map"] = None
    init.setdefault("trust_remote_code", args.trust_remote_code)
    set_seed(args.seed)
    model = create_model_from_path(name, AutoModelForTokenClassification, num_labels=1, **init)
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=init.get("revision"), trust_remote_code=args.trust_remote_code
        )
    return model, tokenizer
