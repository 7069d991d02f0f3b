# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The page of the demo: the sections of each method, one after the other, and what they took."""

import signal
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from multiprocessing import active_children, get_context
from pathlib import Path

from alignext import __version__
from alignext.demos.gallery import Section, write_gallery


def write_page(out: Path, names: Sequence[str], *, seed: int, steps: int | None, processes: int = 1) -> None:
    """
    Run demos and write the gallery, which has what was done when one of them fails or is interrupted.

    Args:
        out (`Path`): A folder of ours.
        names (`Sequence[str]`): The demos, in order.
        seed (`int`): Of everything random.
        steps (`int`, *optional*): Denoising or training steps; as each method has it by default.
        processes (`int`, *optional*, defaults to 1): How many of them run at once, each in a process of its own.
    """
    start = time.perf_counter()
    found: dict[str, list[Section]] = {}
    headings = {name: f"--- {name} ({number} of {len(names)})" for number, name in enumerate(names, start=1)}
    try:
        if processes == 1:
            for name, heading in headings.items():
                found[name] = _shown(heading, name, seed, steps)
        else:
            for name, sections in _at_once(headings, seed, steps, processes):
                found[name] = sections
    finally:
        if found:
            page = write_gallery(
                out,
                [section for name in names for section in found.get(name, [])],
                title="alignext: alignment methods on the embedded models",
                intro="Made offline on small models that come with the package. They show what a method does, not how "
                "good its pictures are on a large model. A picture opens in its own size when clicked.\n\n"
                f"alignext {__version__}, torch {version('torch')}, diffusers {version('diffusers')}, transformers "
                f"{version('transformers')}, TRL {version('trl')}; seed {seed}.",
            )
            seconds = time.perf_counter() - start
            print(f"{len(found)} of {len(names)} done in {seconds:.0f} s. Open {page.resolve()}")


def _at_once(
    headings: dict[str, str], seed: int, steps: int | None, processes: int
) -> Iterator[tuple[str, list[Section]]]:
    """Names and sections as they are done. Each process prints its own lines, so that those of two may be mixed."""
    # An interruption is for the parent alone, which ends what still runs: nobody waits for a training then.
    ignored = (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=signal.signal, initargs=ignored)
    try:
        made = {pool.submit(_shown, heading, name, seed, steps): name for name, heading in headings.items()}
        for each in as_completed(made):
            yield made[each], each.result()
    except BaseException:
        for child in active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _shown(heading: str, name: str, seed: int, steps: int | None) -> list[Section]:
    """The sections of a method, the last of which says how to make them again and what that took."""
    print(heading, flush=True)
    with _calm():
        begun = time.process_time()
        *others, last = import_module(f"alignext.demos.{name.replace('-', '_')}").demo(seed=seed, steps=steps)
        took = f"took {time.process_time() - begun:.0f} CPU seconds"
    command = f"alignext demo {name} --seed {seed}{f' --steps {steps}' if steps else ''} --out alignext-{name}"
    print(f"{name} {took}", flush=True)
    return [*others, replace(last, commands=[*last.commands, f"{command}  # {took}"])]


@contextmanager
def _calm() -> Generator[None]:
    """One thread, and no notes of the libraries on what is over at once or to be renamed one day.

    The embedded models are too small to be shared out: on a busy machine threads spend their time on waiting.
    """
    import torch
    from datasets.utils import logging as datasets
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    threads = torch.get_num_threads()
    libraries = (datasets, diffusers, transformers)
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    verbosity = [library.get_verbosity() for library in libraries]
    torch.set_num_threads(1)
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        torch.set_num_threads(threads)
        for library, level in zip(libraries, verbosity, strict=True):
            library.set_verbosity(level)
        for library in shown:
            library.enable_progress_bar()
