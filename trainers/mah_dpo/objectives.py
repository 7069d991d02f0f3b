# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The objectives of a model: their names, the data of each, their weights, and the number of each row's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, DatasetDict, IterableDataset, concatenate_datasets
from transformers import AutoConfig, DataCollator

from alignext.training import door
from alignext.training.cells import distinct

from .config import MAHDPOConfig


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


def check_columns(dataset: Any, column: str, name: str) -> list[str]:
    """Name what is wrong with a dataset before anything is computed."""
    pair = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
    found = door.check_dataset(
        dataset,
        name,
        columns=[("chosen", "rejected", column)],
        example=pair | {column: "truthful"},
        texts=("prompt", "chosen", "rejected"),
    )
    if {"image", "images"} & set(found):
        raise ValueError(
            f"`{name}` must be without pictures, which models with objective heads do not see, received {found}. Use "
            "`DPOTrainer`."
        )
    return found


def checked(dataset: Any, name: str, objectives: Sequence[str], column: str) -> Any:
    """The dataset, its columns checked. That of one objective may be named for it instead of having a column."""
    of_one = name.removeprefix("eval_dataset['").removesuffix("']")
    if of_one in objectives and isinstance(dataset, Dataset):
        dataset = with_objective(dataset, of_one, column)
    check_columns(dataset, column, name)
    return dataset


def joined(datasets: Any, column: str) -> Any:
    """One dataset of those of the objectives; anything but a dictionary is returned as it is."""
    if not isinstance(datasets, dict):
        return datasets
    if isinstance(datasets, DatasetDict):  # its splits would become objectives
        splits = ", ".join(map(repr, datasets))
        raise ValueError(
            f"`train_dataset` must be one dataset or a plain dictionary, received a DatasetDict of {splits}. Choose a "
            "split, as in `dataset['train']`; if its splits are the objectives, pass `dict(dataset)`."
        )
    if not datasets:
        raise ValueError("`train_dataset` must have a dataset for each objective, received an empty dictionary.")
    streams = [name for name, dataset in datasets.items() if not isinstance(dataset, Dataset)]
    if streams:
        raise ValueError(
            f"`train_dataset` has a stream of {', '.join(map(repr, streams))}, whose rows cannot be counted. Give "
            f"a `Dataset` for each objective, or one stream with a column {column!r}."
        )
    return concatenate_datasets([with_objective(dataset, name, column) for name, dataset in datasets.items()])


def with_objective(dataset: Dataset, name: str, column: str) -> Dataset:
    """The dataset of one objective, the column added where it has none."""
    return dataset if column in dataset.column_names else dataset.add_column(column, [name] * len(dataset))


def saved_heads(model: Any, args: MAHDPOConfig) -> dict[str, Any] | None:
    """The settings of the heads that a model or checkpoint has already."""
    if isinstance(model, str):
        revision = (args.model_init_kwargs or {}).get("revision") or "main"
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=args.trust_remote_code)
    else:
        config = model.config
    return getattr(config, "objective_heads", None)


def find_objectives(saved: dict[str, Any] | None, dataset: Any, args: MAHDPOConfig) -> list[str]:
    """The names in the order of the heads: the model's, the config's, or those in the data."""
    if saved is not None:
        if args.objectives is not None and args.objectives != saved["objectives"]:
            raise ValueError(f"`objectives` is {args.objectives}, but the model's heads are {saved['objectives']}.")
        return list(saved["objectives"])
    if args.objectives is not None:
        return list(args.objectives)
    if dataset is None:
        raise ValueError("`train_dataset` is required.")
    if not isinstance(dataset, Dataset):
        raise ValueError("`objectives` is needed: those of a stream cannot be looked up beforehand.")
    found = distinct(dataset, args.objective_column)
    if all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in found):
        return [str(k) for k in range(max(found) + 1)]
    if not all(isinstance(value, str) for value in found):
        raise ValueError(
            f"`{args.objective_column}` must be the name of an objective in each row, or its number from 0 on, "
            f"received {found[:8]}."
        )
    return sorted(found)


def loss_weights(given: Mapping[str, float] | Sequence[float] | str | None, names: list[str]) -> torch.Tensor:
    """`a_k`, shape `(H,)`."""
    if isinstance(given, str):
        raise ValueError(f"`objective_loss_weights` must be a number for each of {names}, received {given!r}.")
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


def objective_id(value: Any, names: list[str], column: str, dataset_name: str) -> int:
    """The number of the head; `value` is its name or number."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
        return value
    if value not in names:
        raise ValueError(
            f"An `{column}` of the {dataset_name} data is {value!r}, expected one of {names}, or a number below "
            f"{len(names)}."
        )
    return names.index(value)


def check_present(dataset: Dataset, names: list[str]) -> None:
    """Taking turns needs rows of each objective."""
    present = set(dataset.unique("objective_id"))
    absent = [name for k, name in enumerate(names) if k not in present]
    if absent:
        raise ValueError(
            f"The objectives {absent} have no pairs to train on (those whose prompt alone fills `max_length` "
            "do not count). Leave them out, or set `objective_sampling='natural'`."
        )


def warnings(
    args: MAHDPOConfig, objectives: Sequence[str], dataset: Dataset | IterableDataset, model: torch.nn.Module
) -> Iterator[tuple[Any, ...]]:
    """A warning each, as `logger.warning` takes it, of what balances or trains the objectives poorly."""
    size, count = args.per_device_train_batch_size, len(objectives)
    if args.objective_sampling != "natural" and size % count:
        yield ("%d rows a batch are no multiple of %d objectives: batches are balanced to one row.", size, count)
    if isinstance(dataset, IterableDataset):
        yield ("A stream comes as it is: objectives are not balanced.",)
    else:
        ids = torch.tensor(dataset["objective_id"])
        sizes = torch.bincount(ids, minlength=count).tolist()
        if max(sizes) > 10 * min(sizes):
            yield ("The objectives %s have %s pairs, very different numbers.", objectives, sizes)
    dtypes = {weight.dtype for name, weight in model.named_parameters() if "objective_heads" in name}
    if dtypes & {torch.bfloat16, torch.float16}:
        yield ("The objective heads are trained in half precision, where small updates are lost.",)


def card(name: str, objectives: Sequence[str]) -> str:
    """The lines of a model card that load the model: TRL's load the base class, which leaves out the heads."""
    return _CARD.format(name=name, weights={objective: round(1 / len(objectives), 2) for objective in objectives})
