# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The stock call of a pipeline as a rollout: from noise to clean latents, with gradients where they are wanted.

A stock `__call__` is decorated with `torch.no_grad`. The function under the decorator is the same loop, and a callback
after each step decides from where on it keeps its graph. No loop of a family is written down here.
"""

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from alignext.diffusion.calls import loop_latents, quiet_copy, starting_from, watching_start, watching_steps
from alignext.diffusion.decoders import decoder
from alignext.diffusion.recorded_call import first_of, in_dtype
from alignext.diffusion.recording import denoisers, stock_class
from alignext.diffusion.schedulers import rebuild_scheduler
from alignext.wrapping import wrapped

from .steps import ForcedScheduler


@dataclass
class Rolled:
    """
    What a rollout came to.

    Attributes:
        latents (`torch.Tensor`): Clean, as the loop holds them.
        start (`torch.Tensor`): What the loop started from.
        scheduler (`SchedulerMixin`): That of the loop, its timesteps set.
    """

    latents: torch.Tensor
    start: Any
    scheduler: Any


class Rollout:
    """
    Calls a pipeline's own loop without its `torch.no_grad`, on a copy that shares its models.

    Args:
        pipe (`DiffusionPipeline`): It stays as it is.
        **call: Arguments of every call, beside prompts and generators.

    Raises:
        ValueError: The call of this class is not decorated, or takes no callback.
    """

    def __init__(self, pipe: Any, **call: Any) -> None:
        decorated = stock_class(pipe).__call__
        stock = getattr(decorated, "__wrapped__", None)
        if stock is None or "callback_on_step_end" not in inspect.signature(decorated).parameters:
            raise ValueError(
                f"`model` must be a pipeline whose call takes `callback_on_step_end`, as most of diffusers' do; "
                f"that of {type(pipe).__name__} does not, or hides its loop."
            )
        self.pipe, self.stock = pipe, stock
        self.call = {"output_type": "latent", "return_dict": False} | call
        self._decode: Callable[[torch.Tensor], torch.Tensor] | None = None

    def _arguments(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Of the call, without defaults. A negative prompt is that of every prompt."""
        negative = self.call.get("negative_prompt")
        texts = {} if negative is None else {"negative_prompt": [negative] * len(prompts)}
        return self.call | {"prompt": list(prompts)} | texts

    def __call__(
        self,
        prompts: Sequence[str],
        generators: list[torch.Generator],
        *,
        backprop_steps: int = 0,
        scheduler: Any = None,
        latents: torch.Tensor | None = None,
        **changes: Any,
    ) -> Rolled:
        """
        From noise to clean latents.

        Args:
            prompts (`Sequence[str]`): A text for each sample.
            generators (`list[torch.Generator]`): One for each sample.
            backprop_steps (`int`, *optional*, defaults to 0): So many of the last steps keep their graph.
            scheduler (*optional*): In the place of the pipeline's; one with its values by default.
            latents (`torch.Tensor`, *optional*): Unit noise to start from, in the loop's layout.
            **changes: Other values of arguments of the call.
        """
        twin = quiet_copy(self.pipe)
        twin.scheduler = scheduler = rebuild_scheduler(self.pipe.scheduler) if scheduler is None else scheduler
        call = self._arguments(prompts) | {"generator": generators} | changes
        steps = call.get("num_inference_steps")
        all_steps = bool(backprop_steps) and isinstance(steps, int) and backprop_steps >= steps
        if backprop_steps and not all_steps:
            call["callback_on_step_end"] = _keeping_the_last(backprop_steps)
        begin = watching_start(twin) if latents is None else starting_from(twin, latents)
        with torch.set_grad_enabled(all_steps), begin as start, watching_steps(scheduler) as seen:
            output = self.stock(twin, **call)[0]
        return Rolled(loop_latents(output, seen, call), start[0] if start else latents, scheduler)

    def replay(
        self, prompts: Sequence[str], timesteps: torch.Tensor, states: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """
        What the loop would hand to `scheduler.step` at given states, guidance included. With gradients where they are
        on: each prediction has a graph of its own, since no state depends on one.

        Args:
            prompts (`Sequence[str]`): A text for each sample.
            timesteps (`torch.Tensor` of shape `(k,)`): In the scheduler's units.
            states (`Sequence[torch.Tensor]`): k times the latents of all samples, in the loop's layout, scaled as
                `a x0 + s n` with `a^2 + s^2 = 1` or `a + s = 1`.

        Returns:
            `list[torch.Tensor]`: k predictions.
        """
        forced = ForcedScheduler(self.pipe.scheduler, timesteps, states)
        generators = [torch.Generator().manual_seed(0) for _ in prompts]
        steps = len(forced.states)
        backprop = steps if torch.is_grad_enabled() else 0
        self(
            prompts,
            generators,
            backprop_steps=backprop,
            scheduler=forced,
            latents=states[0],
            num_inference_steps=steps,
        )
        return forced.predictions

    def decode(self, latents: torch.Tensor, prompt: str, batch_size: int, *, recompute: bool = True) -> torch.Tensor:
        """
        Pictures `(n, 3, H, W)` or videos `(n, F, 3, H, W)` in [0, 1]. Gradients pass; no safety checker, no watermark.

        Args:
            latents (`torch.Tensor`): Clean, as the loop holds them.
            prompt (`str`): Any: some calls decode only with one.
            batch_size (`int`): So many samples at once.
            recompute (`bool`, *optional*, defaults to `True`): Keep no activations of the VAE.
        """
        if self._decode is None:
            bound = inspect.signature(self.stock).bind(self.pipe, **self._arguments([prompt]))
            bound.apply_defaults()
            call = dict(bound.arguments)
            call.pop("self")
            self._decode = decoder(self.pipe, self.stock, call | call.pop("kwargs", {}))
        pictures = []
        with torch.autocast(latents.device.type, enabled=False):
            for rows in latents.split(batch_size):
                kept = not (recompute and torch.is_grad_enabled() and rows.requires_grad)
                pictures.append(self._decode(rows) if kept else checkpoint(self._decode, rows, use_reentrant=False))
        return torch.cat(pictures).float()


def _keeping_the_last(count: int) -> Callable[..., dict[str, torch.Tensor]]:
    """A callback that lets the last `count` steps keep their graph, and cuts off what is before."""

    def after_step(pipe: Any, i: int, t: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if i + 1 != max(1, len(pipe.scheduler.timesteps) - count):  # some schedulers take more than they are told
            return {}
        torch.set_grad_enabled(True)
        return {"latents": given["latents"].detach()}

    return after_step


@contextmanager
def around_denoisers(
    pipe: Any,
    trained: str,
    *,
    checkpointing: bool = False,
    dtype: torch.dtype | None = None,
    base: Callable[..., Any] | None = None,
    as_base: bool = False,
) -> Generator[list[torch.Tensor]]:
    """
    Within it, calls of a pipeline's denoisers that keep a graph are told apart from the others.

    Args:
        pipe (`DiffusionPipeline`): Whose denoisers these are.
        trained (`str`): Name of the one in training, which alone the last three arguments are about.
        checkpointing (`bool`, *optional*, defaults to `False`): Keep the input of a call and nothing else: it is made
            again in the backward pass.
        dtype (`torch.dtype`, *optional*): What it is in, where that is not what the loop hands it.
        base (`Callable`, *optional*): Makes of its forward that of the base model.
        as_base (`bool`, *optional*, defaults to `False`): Call the base model in its place.

    Returns:
        `list[torch.Tensor]`: With a base, for each call with a graph the mean squared distance of the two outputs;
        filled as they are made.
    """
    distances: list[torch.Tensor] = []

    def wrap(name: str) -> Callable[..., Any]:
        def around(forward: Callable[..., Any]) -> Callable[..., Any]:
            ours = name == trained

            def cast(function: Callable[..., Any]) -> Callable[..., Any]:
                return in_dtype(function, dtype) if ours and dtype is not None else function

            def called(*args: Any, **kwargs: Any) -> Any:
                if ours and as_base and base is not None:
                    return cast(base(forward))(*args, **kwargs)
                if not torch.is_grad_enabled():
                    return cast(forward)(*args, **kwargs)
                if checkpointing:
                    output = checkpoint(cast(forward), *args, use_reentrant=False, **kwargs)
                else:
                    output = cast(forward)(*args, **kwargs)
                if ours and base is not None:
                    with torch.no_grad():
                        stock = cast(base(forward))(*args, **kwargs)
                    distances.append(_distance(first_of(output), first_of(stock)))
                return output

            return called

        return around

    with ExitStack() as stack:
        for name, module in denoisers(pipe).items():
            stack.enter_context(wrapped(module, wrap(name)))
        yield distances


def _distance(output: Any, base: Any) -> torch.Tensor:
    if isinstance(output, list | tuple):  # a tensor for each sample
        return torch.stack([_distance(a, b) for a, b in zip(output, base, strict=True)]).mean()
    return (output.float() - base.float()).square().mean()
