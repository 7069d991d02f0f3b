# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Stories of the embedded language model, and short trainings on them."""

from typing import Any

import torch
from transformers import PrinterCallback, Trainer


SPEECH = r'"[^"]*"?'  # what is marked in stories
_HAPPENINGS = ("went to the park.", "found a big box.", "had a red ball.", "saw a little dog.")


def beginnings(*names: str) -> list[str]:
    """Of stories: what happens to each name."""
    return [f"One day, {name} {it}" for name in names for it in _HAPPENINGS]


def settings(folder: str, seed: int, steps: int, **more: Any) -> dict[str, Any]:
    """Arguments of a short training on the CPU: nothing is saved or printed, every step is logged."""
    return {
        "output_dir": folder,
        "seed": seed,
        "max_steps": steps,
        "logging_steps": 1,
        "activation_checkpointing": False,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    } | more


def quieten(trainer: Trainer) -> None:
    """Keep a trainer without progress bar from printing its log."""
    trainer.remove_callback(PrinterCallback)


def curve(trainer: Trainer, name: str) -> list[tuple[float, float]]:
    """What was logged under a name, as points (step, value)."""
    return [(row["step"], row[name]) for row in trainer.state.log_history if name in row]


def tell(model: Any, tokenizer: Any, prompts: list[str], seed: int, **generation: Any) -> list[str]:
    """A story for each beginning, sampled, without what the last sentence lacks."""
    torch.manual_seed(seed)
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    ids = model.generate(**batch, do_sample=True, max_new_tokens=40, top_k=0, **generation)
    stories = tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    ends = [max(story.rfind(mark) for mark in '.!?"') + 1 for story in stories]
    return [" " + " ".join((story[:end] or story).split()) for story, end in zip(stories, ends, strict=True)]


def speaks(story: str) -> bool:
    """Whether somebody speaks in it."""
    return '"' in story
