# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""A search in the place of a pipeline's scheduler, for one call."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from alignext.search.scheduler import SearchScheduler


@contextmanager
def attached(pipe: Any, scheduler: SearchScheduler) -> Generator[None]:
    """The search in the place of the pipeline's scheduler, and one progress bar in the place of the stock one."""
    original = pipe.scheduler
    settings = vars(pipe).get("_progress_bar_config")
    bar = tqdm(**{"desc": "search", **(settings or {})})

    def advance(scheduler: SearchScheduler) -> None:
        bar.total = len(scheduler.plan)
        best = "" if scheduler.rewards is None else f"{scheduler.rewards[:, 0].mean().item():.4g}"
        bar.set_postfix(nfe=scheduler.nfe, best=best, refresh=False)
        bar.update()

    scheduler.on_step = advance
    try:
        pipe._progress_bar_config = {**(settings or {}), "disable": True}
        pipe.scheduler = scheduler
        yield
    finally:
        # Assigning it also puts the pipeline's config back, or `save_pretrained` would name the search.
        pipe.scheduler = original
        del pipe._progress_bar_config
        if settings is not None:
            pipe._progress_bar_config = settings
        bar.close()
