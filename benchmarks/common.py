# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What all benchmarks share: what they ran on, runs by turns, intervals, results as JSON with Markdown beside it."""

import argparse
import gc
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback


ROOT = Path(__file__).parents[1]
# Measured figures stand in version control: a run to try something goes elsewhere.
ELSEWHERE = os.environ.get("BENCHMARK_RESULTS")
RESULTS = Path(ELSEWHERE) if ELSEWHERE else Path(__file__).parent / "results"
ASSETS = RESULTS if ELSEWHERE else ROOT / "docs" / "assets"
T = TypeVar("T")


def parser(text: str | None) -> argparse.ArgumentParser:
    """Shows the script's own text as it is written. Everything runs on one thread of a CPU, unless on a GPU."""
    torch.set_num_threads(1)
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def example(name: str) -> ModuleType:
    """The script of that name in `examples/`: its data and what it measures."""
    sys.path.insert(0, str(ROOT / "examples"))
    return import_module(name)


def about(device: str, *libraries: str, **more: Any) -> dict[str, Any]:
    """What stands in every result: date, machine and the versions of torch, of these libraries, and ours."""
    names = {"cpu": f"{platform.machine()} CPU, 1 thread", "meta": "counted without computing"}
    return {
        "date": date.today().isoformat(),
        "device": names[device] if device in names else torch.cuda.get_device_name(device),
        **more,
        **{name: metadata.version(name) for name in ("torch", *libraries, "alignext")},
    }


# Time and memory


def now(device: str) -> float:
    """Of a GPU the clock, its work done; of a CPU the seconds of this process: other processes do not count."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def clock_of(device: str) -> str:
    return "processor time of one thread" if device == "cpu" else "wall time"


def seconds(run: Callable[[], object], device: str) -> float:
    gc.collect()
    start = now(device)
    run()
    return now(device) - start


def by_turns(contenders: dict[str, Callable[[], T]], rounds: int, warm_up: int = 0) -> dict[str, list[T]]:
    """
    What each contender returns, round after round, so that what changes on the machine meets all of them. The rounds
    of the warm-up are run and forgotten.
    """
    found: dict[str, list[T]] = {name: [] for name in contenders}
    for turn in range(warm_up + rounds):
        for name, run in contenders.items():
            value = run()
            if turn >= warm_up:
                found[name].append(value)
                print(f"{name}: {value}", flush=True)
    return found


def timed(contenders: dict[str, Callable[[], object]], rounds: int, device: str, warm_up: int = 0) -> dict[str, list]:
    """Seconds of each contender in each round."""
    return by_turns({name: partial(seconds, run, device) for name, run in contenders.items()}, rounds, warm_up)


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """To the base within each round."""
    return [value / other for value, other in zip(values, base, strict=True)]


def compared(values: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Median, and median and range of the ratios to the base."""
    found = ratios(values, base)
    spread = f"{min(found):.2f} to {max(found):.2f}"
    return {"median": round(median(values), 4), "ratio": round(median(found), 3), "range": spread}


def in_own_process(script: str, *args: object, **environment: str) -> Any:
    """What the script prints last, as JSON: peak memory is that of a process."""
    command = [sys.executable, script, *map(str, args)]
    answer = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if answer.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{answer.stderr}")
    return json.loads(answer.stdout.splitlines()[-1])


class StepTimes(TrainerCallback):
    """Seconds of each optimizer step of a trainer."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: list[float] = []

    def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        self.start = now(self.device)

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        self.seconds.append(now(self.device) - self.start)


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made and still alive, and their largest sum. Not what kernels use."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {
            StorageWeakRef(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)
        }
        out = func(*args, **kwargs or {})
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and (key := StorageWeakRef(x.untyped_storage())) not in given:
                self.alive[key] = x.untyped_storage().nbytes()
        self.alive = {key: size for key, size in self.alive.items() if not key.expired()}
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


# Results


def interval(values: Any, over: int = 1, draws: int = 10_000) -> tuple[float, float, float]:
    """Mean and 95 % interval of a bootstrap over the first axes, each drawn anew on its own; others are averaged."""
    values, generator = np.asarray(values, dtype=float), np.random.default_rng(0)
    values = values.mean(tuple(range(over, values.ndim)))
    picks = []
    for axis, n in enumerate(values.shape):
        drawn = generator.integers(0, n, (draws, n))
        picks.append(drawn.reshape(draws, *(n if axis == other else 1 for other in range(over))))
    means = values[tuple(picks)].reshape(draws, -1).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return values.mean().item(), low.item(), high.item()


def shown(found: tuple[float, float, float], digits: str = ".2f") -> str:
    mean, low, high = (format(value, digits) for value in found)
    return f"{mean} ({low} to {high})"


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Markdown."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def table_of(rows: Sequence[dict[str, Any]], *hidden: str) -> str:
    """Markdown of rows that have the same keys; lists and what is hidden stay in the JSON."""
    keys = [key for key, value in rows[0].items() if key not in hidden and not isinstance(value, list)]
    return table(keys, ([row[key] for key in keys] for row in rows))


def write(name: str, title: str, about: dict[str, Any], document: dict[str, Any], text: str) -> None:
    """`results/<name>.json`, and `.md` with the text below its title and what it was run on."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = json.dumps(about | document, indent=1)
    lines = re.sub(r"\[\n[^\[\]{}]*\n *\]", lambda found: re.sub(r"\n *", " ", found[0]), lines)  # numbers in a row
    (RESULTS / f"{name}.json").write_text(lines + "\n")
    made = ", ".join(f"{key} {value}" for key, value in about.items())
    text = f"# {title}\n\n{text.strip()}\n\nMade with {made}.\n"
    (RESULTS / f"{name}.md").write_text(text)
    print(text)
