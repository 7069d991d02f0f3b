# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The arguments of a stock pipeline call, row by row of its batch."""

import copy
import functools
import inspect
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def number_of_prompts(call: dict[str, Any]) -> int:
    """
    P, from `prompt`, or from the rows of `prompt_embeds` without one.

    Raises:
        ValueError: If the call has neither.
    """
    prompt = call.get("prompt")
    if isinstance(prompt, str):
        return 1
    if isinstance(prompt, (list, tuple)):
        return len(prompt)
    if isinstance(call.get("prompt_embeds"), (torch.Tensor, list, tuple)):
        return len(call["prompt_embeds"])
    raise ValueError(f"`prompt` must be a string or a list, or `prompt_embeds` be given, received {prompt!r}.")


def number_of_outputs(call: dict[str, Any]) -> int:
    """How many images or videos the stock call makes: for each prompt as many as its own argument says."""
    return number_of_prompts(call) * (call.get("num_images_per_prompt") or call.get("num_videos_per_prompt") or 1)


def take(call: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """
    The call for the prompts `rows` (with repeats), one output each. Texts and tensors with a row per prompt are
    indexed; single texts are repeated; everything else stays.

    Pipelines have a count argument of their own, but some ignore it, and some do not repeat given embeddings.
    """
    P, taken = number_of_prompts(call), dict(call)
    for name, value in call.items():
        if "prompt" in name and name != "system_prompt" and isinstance(value, str):  # that one is a single text
            taken[name] = [value] * len(rows)
        elif "prompt" in name and isinstance(value, (list, tuple)) and len(value) == P:
            taken[name] = [value[row] for row in rows]
        elif ("embeds" in name or "mask" in name) and isinstance(value, torch.Tensor):
            taken[name] = value[torch.tensor(rows, device=value.device)] if len(value) == P else value
    for name in ("num_images_per_prompt", "num_videos_per_prompt"):
        if name in taken:
            taken[name] = 1
    return taken


def quiet_copy(pipe: Any) -> Any:
    """A copy of a pipeline that shares its models and shows no bar."""
    twin = copy.copy(pipe)
    twin._progress_bar_config = {**getattr(pipe, "_progress_bar_config", {}), "disable": True}
    return twin


@contextmanager
def starting_from(pipe: Any, latents: torch.Tensor) -> Generator[None]:
    """
    Within it, the pipeline's loop starts from `latents` in the layout in which it steps on them. A stock call takes
    `latents=` in its own layout, which is another one in FLUX.2.

    Args:
        pipe (`DiffusionPipeline`): With `prepare_latents`, as diffusers' pipelines have it. Its call is made without
            `latents`.
        latents (`torch.Tensor`): Unit noise, or clean latents for a schedule without steps.
    """
    prepare = pipe.prepare_latents
    signature = inspect.signature(prepare)

    def prepared(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        # What is drawn is thrown away: it takes nothing from the call's own generator.
        own = {"latents": None, "generator": torch.Generator().manual_seed(0)}
        bound.arguments.update({name: value for name, value in own.items() if name in signature.parameters})
        result = prepare(*bound.args, **bound.kwargs)
        drawn = result[0] if isinstance(result, tuple) else result
        given = (latents * getattr(pipe.scheduler, "init_noise_sigma", 1.0)).to(drawn.device)
        return (given, *result[1:]) if isinstance(result, tuple) else given

    pipe.prepare_latents = prepared
    try:
        yield
    finally:
        del pipe.prepare_latents


@contextmanager
def watching_start(pipe: Any) -> Generator[list[torch.Tensor]]:
    """Within it, the latents that the pipeline's loop starts from are put into the list that this gives."""
    prepare, seen = pipe.prepare_latents, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = prepare(*args, **kwargs)
        seen[:] = [result[0] if isinstance(result, tuple) else result]
        return result

    pipe.prepare_latents = watched
    try:
        yield seen
    finally:
        del pipe.prepare_latents


@contextmanager
def watching_steps(scheduler: Any) -> Generator[list[torch.Tensor]]:
    """Within it, the latents that the scheduler's last step gave are in the list that this gives."""
    own, step, seen = vars(scheduler), scheduler.step, []
    previous = own.get("step")

    @functools.wraps(step)  # pipelines look at its arguments
    def watched(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        seen[:] = [result[0]]
        return result

    scheduler.step = watched
    try:
        yield seen
    finally:
        if own.get("step") is watched:  # another wrapper may have gone in between
            if previous is None:
                del scheduler.step
            else:
                scheduler.step = previous


def loop_latents(output: torch.Tensor, steps: list[torch.Tensor], call: dict[str, Any]) -> torch.Tensor:
    """
    The latents that a stock call ended with, in the layout in which its loop steps on them. With
    `output_type="latent"` most calls return just these; FLUX.2 klein's unpacks and scales them.

    Args:
        output (`torch.Tensor`): What the call returned with `output_type="latent"`.
        steps (`list[torch.Tensor]`): From [`watching_steps`]. Loops over frames have other rows there: theirs does not
            count.
        call (`dict`): All arguments of the call. A callback may have changed what the last step gave.
    """
    if not steps or len(steps[0]) != len(output):
        return output
    same = steps[0].shape == output.shape
    return output if same and (call.get("callback_on_step_end") or torch.equal(steps[0], output)) else steps[0]
