# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What all scores share: rows in, batches of like length, columns out; no row is lost, and a run can go on later."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from tqdm.auto import tqdm

from alignext.checks import check_counts


class NoScore(Exception):
    """A row that cannot be scored; its text is the reason."""


Values = dict[str, list[float]]
BLOCK = 512  # rows that are sorted by length together, and kept together


def add_columns(
    dataset: Any,
    names: Sequence[str],
    encode: Callable[[Mapping[str, Any]], Any],
    score: Callable[[list[Any]], Values],
    *,
    length: Callable[[Any], int],
    batch_size: int,
    note: str,
    cache: str | Path | None = None,
    key: str = "",
    progress: bool = True,
    description: str = "Scoring",
) -> Any:
    """
    Score every row of a dataset, and write the scores into columns of it.

    Args:
        dataset (`Dataset` or `IterableDataset`): A stream is scored while it is read.
        names (`Sequence[str]`): The columns.
        encode (`Callable`): Makes of a row what is scored, or raises [`NoScore`].
        score (`Callable`): Gives the columns' values for a list of these.
        length (`Callable`): Their length, by which batches are made.
        batch_size (`int`): Rows at once.
        note (`str`): The column with the reason of each NaN, empty elsewhere.
        cache (`str` or `Path`, *optional*): A folder that keeps what is done, block after block.
        key (`str`, *optional*): What the scores depend on besides what `encode` makes of the rows.
        progress (`bool`, *optional*, defaults to `True`): Show a bar.
        description (`str`, *optional*): Of the bar.

    Raises:
        ValueError: If the dataset has one of the columns, `batch_size` is not positive, or several processes were
            started that do not know of each other.
    """
    check_counts(batch_size=batch_size)
    there = [name for name in (*names, note) if name in (dataset.column_names or ())]
    if there:
        raise ValueError(
            f"`dataset` has a column {there[0]!r} already. Take it off: `dataset.remove_columns({there!r})`."
        )

    def of(rows: Sequence[Mapping[str, Any]], kept: _Kept) -> dict[str, Any]:
        items, notes = _encoded(rows, encode)
        return kept.block((items, notes), lambda: _score_block(items, notes, names, score, length, batch_size))

    if isinstance(dataset, IterableDataset):

        def scored(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
            count = len(next(iter(columns.values())))
            rows = [{name: column[i] for name, column in columns.items()} for i in range(count)]
            block = of(rows, _Kept(None, key, 0))
            return columns | block["values"] | {note: block["notes"]}

        return dataset.map(scored, batched=True, batch_size=BLOCK)
    state = processes()
    starts = range(0, len(dataset), BLOCK)
    kept = _Kept(cache, key, state.process_index)
    quiet = not (progress and state.is_main_process)
    blocks: dict[int, dict[str, Any]] = {}
    with tqdm(total=len(dataset), desc=description, disable=quiet, unit="row") as bar:
        for start in starts[state.process_index :: state.num_processes]:
            rows = [dataset[i] for i in range(start, min(start + BLOCK, len(dataset)))]
            blocks[start] = of(rows, kept)
            bar.update(min(len(rows) * state.num_processes, bar.total - bar.n))
    if state.num_processes > 1:
        blocks = {start: block for part in gather_object([blocks]) for start, block in part.items()}
    for name in names:
        dataset = dataset.add_column(name, [x for start in starts for x in blocks[start]["values"][name]])
    return dataset.add_column(note, [text for start in starts for text in blocks[start]["notes"]])


def check_kind(dataset: Any, name: str = "dataset") -> None:
    """
    Raises:
        ValueError: It is a dictionary of datasets, a list, a name, or anything else that has no columns.
    """
    if isinstance(dataset, Dataset | IterableDataset):
        return
    from alignext.training.door import check_dataset_kind  # it imports TRL's trainers, for seconds

    check_dataset_kind(dataset, name)
    raise ValueError(f"`{name}` must be a `Dataset` or an `IterableDataset`, received a {type(dataset).__name__}.")


def processes(device: str | None = None) -> PartialState:
    """
    The processes that `accelerate launch` or `torchrun` started; on a CPU they know of each other only if told to.

    Args:
        device (`str`, *optional*): Where the model is; a GPU where there is one if not given.

    Raises:
        ValueError: They do not know of each other: each would score all rows, and write them.
    """
    cpu = not torch.accelerator.is_available() if device is None else device.startswith("cpu")
    state, started = PartialState(cpu=cpu), int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and state.num_processes == 1:
        raise ValueError(
            f"{started} processes were started, but they do not know of each other: accelerate was set up for one. "
            "Make its `PartialState(cpu=True)` before anything else on a CPU."
        )
    return state


def _encoded(
    rows: Sequence[Mapping[str, Any]], encode: Callable[[Mapping[str, Any]], Any]
) -> tuple[dict[int, Any], list[str]]:
    """What is scored, by row, and the notes of all rows."""
    notes, items = [""] * len(rows), {}
    for i, row in enumerate(rows):
        try:
            items[i] = encode(row)
        except NoScore as reason:
            notes[i] = str(reason)
    return items, notes


def _score_block(
    items: Mapping[int, Any],
    notes: Sequence[str],
    names: Sequence[str],
    score: Callable[[list[Any]], Values],
    length: Callable[[Any], int],
    batch_size: int,
) -> tuple[Values, list[str]]:
    values: Values = {name: [math.nan] * len(notes) for name in names}
    notes = list(notes)
    order = sorted(items, key=lambda i: length(items[i]), reverse=True)  # the largest batch first: no late surprise
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        found = score([items[i] for i in batch])
        for place, i in enumerate(batch):
            for name in names:
                values[name][i] = float(found[name][place])
            if not all(math.isfinite(values[name][i]) for name in names):
                notes[i] = "the score is not finite"
                for name in names:
                    values[name][i] = math.nan
    return values, notes


class _Kept:
    """
    Finished blocks as lines of JSON, known by what was scored: tokens, so that a tokenizer, its chat template and the
    columns that were read need no key. One file per process, all of which are read. A line that was cut short is
    passed over.
    """

    def __init__(self, folder: str | Path | None, key: str, process: int) -> None:
        self.key, self.file = key, None if folder is None else Path(folder, f"{process}.jsonl")
        self.known: dict[str, dict[str, Any]] = {}
        if folder is None:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        for file in sorted(Path(folder).glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    block = json.loads(line)
                except ValueError:
                    continue
                self.known[block.pop("rows")] = block

    def block(self, encoded: Any, score: Callable[[], tuple[Values, list[str]]]) -> dict[str, Any]:
        """The scores of a block: those that were kept, or new ones, which are kept."""
        digest = hashlib.sha256(f"{self.key} {encoded!r}".encode()).hexdigest()
        if digest not in self.known:
            values, notes = score()
            self.known[digest] = {"values": values, "notes": notes}
            if self.file is not None:
                with self.file.open("a", encoding="utf-8") as file:
                    # Behind a line that was cut short, a new one has to begin.
                    file.write("\n" + json.dumps({"rows": digest, **self.known[digest]}))
        return self.known[digest]


def weights_key(model: torch.nn.Module) -> str:
    """A digest of a model's weights and adapters: scores of another model are not taken for its own."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # a second, which no other part of this module needs
    from peft.utils.other import AuxiliaryTrainingWrapper

    # The weights are the same where adapters are off, or others are on.
    adapters = [
        (name, module.active_adapters, module.disable_adapters, getattr(module, "scaling", None))
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]
    return tensors_key(model.named_parameters()) + hashlib.sha256(repr(adapters).encode()).hexdigest()


def tensors_key(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """A digest of tensors and their names, by a few numbers of each."""
    digest = hashlib.sha256()
    for name, tensor in named:
        tensor = tensor.detach()
        part, total = tensor.flatten()[:64].double().cpu(), float(tensor.float().sum())
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}{part.tolist()}{total}".encode())
    return digest.hexdigest()


def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Rows `(B, T)`, filled up on the right."""
    length = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])


def numbers(dataset: Any, column: str) -> list[float]:
    """
    A column of scores.

    Raises:
        ValueError: If the dataset has none, or is a stream: to sort, all scores have to be there.
    """
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            "`dataset` must be a `Dataset`, received a stream: all scores have to be there to choose among them. "
            "Write it to a file and load that."
        )
    if column not in dataset.column_names:
        raise ValueError(f"`dataset` has no column {column!r}, only {dataset.column_names}. Score it first.")
    return [math.nan if value is None else float(value) for value in dataset[column]]


def groups_of(dataset: Any, by: str | None) -> list[Any] | None:
    """
    The cells of the column that parts the rows into groups; None without one.

    Raises:
        ValueError: If the dataset has no such column.
    """
    if by is None:
        return None
    if by not in dataset.column_names:
        raise ValueError(f"`by` must be a column of the dataset, received {by!r}; it has {dataset.column_names}.")
    return list(dataset[by])


def share_of(keep: float, name: str) -> float:
    """
    Raises:
        ValueError: If it is no share.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"`{name}` must be in (0, 1], received {keep}.")
    return keep


def chosen_rows(
    scores: Sequence[float], groups: Sequence[Any] | None, count: Callable[[int], int], *, largest: bool
) -> list[int]:
    """
    The best rows of each group, best first; of equal ones those that come first. NaN is never among them.

    Args:
        scores (`Sequence[float]`): Of all rows.
        groups (`Sequence`, *optional*): Of all rows; one group if not given.
        count (`Callable`): How many of a group's `n` scored rows.
        largest (`bool`): Whether large scores are good.
    """
    of_group: dict[Any, list[int]] = {}
    for i, value in enumerate(scores):
        if math.isfinite(value):
            of_group.setdefault(None if groups is None else str(groups[i]), []).append(i)
    best = []
    for rows in of_group.values():
        rows.sort(key=lambda i: -scores[i] if largest else scores[i])
        best += rows[: count(len(rows))]
    best.sort(key=lambda i: (-scores[i] if largest else scores[i], i))
    return best
