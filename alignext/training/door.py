# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The door of all trainers: which settings and data come in, checked before a model is loaded."""

import copy
import functools
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from datasets import Dataset, IterableDataset
from trl.trainer.utils import get_config_model_id

from alignext.training.cells import check_texts, null_error, null_in, rows_with_nulls
from alignext.training.logs import get_logger
from alignext.training.runs import check_run


logger = get_logger(__name__)

Config = TypeVar("Config")


def settings(args: Config | None, config: type[Config], name: str) -> Config:
    """
    The settings of a trainer, which is free to write into them: a copy, so that what the user holds stays as it is.

    Args:
        args (`TrainingArguments`, *optional*): What the user gave.
        config (`type`): The trainer's config class; its defaults hold where nothing is given.
        name (`str`): Output folder of the defaults, such as `"Qwen2.5-0.5B-BCO"`.

    Raises:
        ValueError: `args` is of another class, or the run cannot begin, see [`~alignext.training.runs.check_run`].
        OSError: The output folder cannot be written to.
    """
    if args is None:
        args = config(output_dir=name)  # ty: ignore[unknown-argument]
    if not isinstance(args, config):
        raise ValueError(f"`args` must be a `{config.__name__}`, received a {type(args).__name__}.")
    check_run(args)
    return with_args(args)


def with_args(args: Config, **changes: Any) -> Config:
    """
    A copy of `args` with other values, which no check of the config class sees. Lists and dictionaries are copied as
    well, since the trainers of TRL write into them.

    Args:
        args (`TrainingArguments`): They stay as they are.
        **changes: Fields and their values.
    """
    unknown = [name for name in changes if not hasattr(args, name)]
    if unknown:
        raise ValueError(f"`changes` must be fields of {type(args).__name__}, received {unknown}.")
    copied = copy.copy(args)
    held = {name: copy.copy(value) for name, value in vars(args).items() if type(value) in (dict, list)}
    for name, value in (held | changes).items():
        setattr(copied, name, value)
    return copied


def model_or_path(model: Any) -> Any:
    """A folder as the `str` that the parents take: like `from_pretrained`, our trainers take a `pathlib.Path`."""
    return os.fspath(model) if isinstance(model, os.PathLike) else model


def model_name(model: Any) -> str:
    """The last part of the name of a language model, or of the path it was loaded from; `"model"` without one."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    return name.rstrip("/").split("/")[-1] or "model"


def named(train_dataset: Any, eval_dataset: Any) -> list[tuple[str, Any]]:
    """The datasets that a trainer was given, each with its argument. Evaluation data may be a dictionary."""
    found = [] if train_dataset is None else [("train_dataset", train_dataset)]
    if isinstance(eval_dataset, dict):  # those of datasets are
        return found + [(argument(name), dataset) for name, dataset in eval_dataset.items()]
    return found if eval_dataset is None else [*found, ("eval_dataset", eval_dataset)]


def argument(dataset_name: str) -> str:
    """The argument behind what TRL calls a dataset: `"train"`, `"eval"`, or a key of the evaluation data."""
    return {"train": "train_dataset", "eval": "eval_dataset"}.get(dataset_name, f"eval_dataset[{dataset_name!r}]")


def check_datasets(train_dataset: Any, eval_dataset: Any = None, **columns: Any) -> None:
    """Check all that a trainer was given, see [`check_dataset`] for `columns`; without training data, its parent
    speaks."""
    for name, dataset in named(train_dataset, eval_dataset):
        check_dataset(dataset, name, **columns)


def check_dataset_kind(dataset: Any, name: str = "train_dataset") -> None:
    """
    Name what is no dataset, and what is an empty one.

    Raises:
        ValueError: It is a dictionary, a list, a name, or has no rows, as far as that is known without reading it.
    """
    if isinstance(dataset, Mapping):
        several = type(dataset).__name__
        raise ValueError(
            f"`{name}` must be one dataset, received a {several} of {', '.join(map(repr, dataset)) or 'nothing'}. "
            "Choose a split, as in `dataset['train']`."
        )
    if dataset is None or isinstance(dataset, str | list | tuple):
        raise ValueError(
            f"`{name}` must be a `Dataset` or an `IterableDataset`, received a {type(dataset).__name__}. "
            "`Dataset.from_list` makes one of a list of dictionaries, `load_dataset(...)['train']` reads one."
        )
    if isinstance(dataset, Dataset) and not len(dataset):
        raise ValueError(f"`{name}` must have rows, received an empty dataset. Look at how it was filtered or read.")


def check_dataset(
    dataset: Any,
    name: str = "train_dataset",
    *,
    columns: Sequence[Sequence[str]],
    example: Mapping[str, Any],
    texts: Sequence[str] = (),
    hint: str = "",
) -> list[str]:
    """
    Name what is wrong with a dataset before anything is computed. The rows of a stream are not looked at, but for the
    first one; [`checked_stream`] does that when they come.

    Args:
        dataset (`Dataset` or `IterableDataset`): The data of training or of one evaluation.
        name (`str`, *optional*, defaults to `"train_dataset"`): The argument, for the message.
        columns (`Sequence[Sequence[str]]`): Sets of columns, of which one must be there, without null cells.
        example (`Mapping[str, Any]`): A row as the first set has it.
        texts (`Sequence[str]`, *optional*): Columns that hold texts, lists of texts or conversations where they exist.
        hint (`str`, *optional*): What else the message about wrong columns should say.

    Returns:
        `list[str]`: The columns.

    Raises:
        ValueError: It is no dataset, is empty, has other columns, a null cell, or numbers for texts.
    """
    check_dataset_kind(dataset, name)
    rows = iter(dataset)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"`{name}` must have rows, received an empty dataset. Look at how it was filtered or read.")
    found = list(first)
    present = next((of for of in columns if set(of) <= set(found)), None)
    if present is None:
        wanted = ", or ".join(", ".join(map(repr, of)) for of in columns)
        raise ValueError(
            f"`{name}` does not have the right columns: found {found}, expected {wanted} (example row: "
            f"{dict(example)}).{' ' + hint if hint else ''}"
        )
    of_text = [column for column in texts if column in found]
    if isinstance(dataset, Dataset):
        for column in of_text:
            check_texts(dataset, column, name)
        for column in dict.fromkeys((*present, *of_text)):
            for number, value in rows_with_nulls(dataset, column):
                if (where := null_in(value, deep=column in of_text)) is not None:
                    raise null_error(name, number, column + where)
    return found


def checked_stream(dataset: Any, name: str, columns: Sequence[str], texts: Sequence[str] = ()) -> Any:
    """A stream that raises at its first row with a null cell in one of the columns; any other dataset as it is."""
    if not isinstance(dataset, IterableDataset):
        return dataset

    def check(row: dict[str, Any], number: int) -> dict[str, Any]:
        for column in columns:
            if column in row and (where := null_in(row[column], deep=column in texts)) is not None:
                raise null_error(name, number, column + where)
        return row

    return dataset.map(check, with_indices=True, features=dataset.features)


class RawEvaluations:
    """A `Trainer` whose `evaluate` and `predict` take datasets as its constructor does. Mixed in before the parent."""

    def _ready(self, dataset: Any, name: str) -> Any:
        """The dataset `name`, prepared if it is not yet."""
        raise NotImplementedError

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._ready(eval_dataset, "eval_dataset")
        return super().get_eval_dataloader(eval_dataset)  # ty: ignore[missing-attribute]

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        return super().get_test_dataloader(self._ready(test_dataset, "test_dataset"))  # ty: ignore[missing-attribute]


def refuse_unused(arguments: Mapping[str, Any], trainer: str) -> None:
    """
    Name arguments of `Trainer` that a trainer with a loss of its own, and without predictions to gather, never calls.

    Args:
        arguments (`Mapping[str, Any]`): What goes on to `Trainer`.
        trainer (`str`): The class, for the message.

    Raises:
        ValueError: One of them is given.
    """
    for name in ("compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func"):
        if arguments.get(name) is not None:
            raise ValueError(
                f"`{name}` must be None, received {arguments[name]!r}: {trainer} has its own loss and gathers no "
                "predictions, so that it would never be called. Measure in `on_evaluate` of a callback instead."
            )


def tell_dropped(rows: int, dataset: Any, name: str, max_length: int | None) -> None:
    """
    Say how much of a dataset `max_length` has left out, if that is more than one row of a hundred.

    Args:
        rows (`int`): Rows that there were.
        dataset (`Dataset` or `IterableDataset`): Those that are left; of a stream nothing is known.
        name (`str`): The argument.
        max_length (`int`, *optional*): The limit, in tokens.

    Raises:
        ValueError: No row is left.
    """
    if not isinstance(dataset, Dataset):
        return
    if len(dataset) == 0:
        raise ValueError(
            f"Every row of `{name}` has a prompt of `max_length`={max_length} tokens or more, so that nothing is left "
            "to learn from. Raise `max_length`, or shorten the prompts."
        )
    if rows - len(dataset) > rows / 100:
        logger.warning(
            "%d of %d rows of `%s` are left out: with their prompts alone, `max_length`=%s is reached.",
            rows - len(dataset),
            rows,
            name,
            max_length,
        )


def with_lengths(dataset: Any, args: Any, columns: Sequence[str]) -> Any:
    """The dataset with a column of lengths, where rows are to be grouped by them and it has none."""
    name = args.length_column_name
    grouped = args.train_sampling_strategy in ("group_by_length", "batch_rebalance")
    if not grouped or not isinstance(dataset, Dataset) or name in dataset.column_names:
        return dataset
    return dataset.add_column(name, [sum(map(len, row)) for row in zip(*(dataset[c] for c in columns), strict=True)])


def former_names(names: Mapping[str, str], page: str) -> Callable[[type[Config]], type[Config]]:
    """
    A decorator of a class whose constructor once took other arguments: each is refused with what stands in its place.

    Args:
        names (`Mapping[str, str]`): The former arguments, and what to use now.
        page (`str`): The page that tells more.
    """

    def decorate(cls: type) -> type:
        init = cls.__init__

        @functools.wraps(init)
        def refusing(self: Any, *args: Any, **kwargs: Any) -> None:
            for name in kwargs.keys() & names.keys():
                raise TypeError(f"{cls.__name__} has no `{name}`. Use {names[name]}; see {page}.")
            init(self, *args, **kwargs)

        cls.__init__ = refusing  # ty: ignore[invalid-assignment]
        return cls

    return decorate


@contextmanager
def users_function(what: str) -> Generator[None]:
    """
    Name a function of the user's that raises, so that its fault is not taken for ours.

    Args:
        what (`str`): The function and what it was given, as the subject of a sentence.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} raised {type(error).__name__}: {error}") from error
