# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What a denoiser is told beside latents and noise level, captured once for each prompt, picture and size.

A stock call is run up to its first evaluation for every sample alone, so that what is captured does not depend on what
the sample is in a batch with. Rows are put together where their parts have one shape, and go through the denoiser one
group after another where they have not.
"""

import functools
import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from alignext.diffusion.calls import take
from alignext.diffusion.digests import digest
from alignext.diffusion.layouts import read_layout
from alignext.diffusion.prompts import text_encoders
from alignext.diffusion.recorded_call import RecordedCall, mapped
from alignext.diffusion.recording import Capture, call_parameters, capture_call, record_call
from alignext.diffusion.rows import ONE_AT_A_TIME, join, key, nesting, row_pattern
from alignext.diffusion.sizes import Size, size_arguments
from alignext.diffusion.templates import Condition, Template


class Conditions:
    """
    What the denoiser of a pipeline is told of each sample, by number. A call of it gives the numbers of samples, which
    are captured if they are not known yet; [`groups`] gives the denoiser's call for such numbers.

    Args:
        pipe (`DiffusionPipeline`): Any that [`~alignext.diffusion.recording.record_call`] takes.
        size ([`Size`]): Of samples that come without one.
        dtype (`torch.dtype`, *optional*): What the denoiser computes in, where that is not what the pipeline is in.
        embedded_guidance (`float`, *optional*): What a guidance-distilled denoiser is told; the pipeline's default.
        steps (`Sequence[int]`, *optional*): Numbers of steps whose schedules are noted for each size.
        max_kept (`int`, *optional*, defaults to 4096): Those used last stay when there are more. A prompt takes 0.2 MB
            in float16 for Stable Diffusion 1, 0.3 MB for XL and 4 MB for Flux.
        **call: Arguments of every stock call, such as `max_sequence_length`. Those that a pipeline does not know are
            left out.
    """

    def __init__(
        self,
        pipe: Any,
        size: Size,
        *,
        dtype: torch.dtype | None = None,
        embedded_guidance: float | None = None,
        steps: Sequence[int] = (),
        max_kept: int = 4096,
        **call: Any,
    ) -> None:
        self.pipe, self.size, self.dtype, self.embedded_guidance = pipe, size, dtype, embedded_guidance
        self.steps, self.max_kept = tuple(steps), max_kept
        known = call_parameters(pipe)
        self.call = {name: value for name, value in call.items() if name in known and value is not None}
        self.templates: dict[Size, Template] = {}
        self.sealed = False  # whether another size can still be recorded, which takes the denoiser in one piece
        self._numbers: dict[Hashable, int] = {}
        self._kept: dict[int, Condition] = {}
        self._joined: dict[Hashable, list[tuple[list[int], RecordedCall, Template]]] = {}
        self._next = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Conditions":
        return self  # a copied denoiser is told the same

    def __call__(self, samples: Sequence[str | Mapping[str, Any]], size: Size | None = None) -> torch.Tensor:
        """
        Numbers of samples, of shape `(n,)`.

        Args:
            samples (`Sequence[str]` or `Sequence[Mapping]`): Prompts, or arguments of the stock call of one sample
                each: `prompt`, or `prompt_embeds` with all that belongs to them (tensors without a batch dimension),
                and `image` where the pipeline takes one.
            size ([`Size`], *optional*): In which they are drawn.
        """
        size = size or self.size
        rows = [{"prompt": sample} if isinstance(sample, str) else dict(sample) for sample in samples]
        numbers = [self._number(row, size) for row in rows]
        if len(self._kept) > self.max_kept:
            for number in numbers:  # last used, last to go
                self._kept[number] = self._kept.pop(number)
            for number in list(self._kept)[: max(0, len(self._kept) - max(self.max_kept, len(set(numbers))))]:
                del self._kept[number]
            self._numbers = {name: number for name, number in self._numbers.items() if number in self._kept}
        return torch.tensor(numbers)

    def _number(self, sample: dict[str, Any], size: Size) -> int:
        name = (size, *(_name(value) for item in sorted(sample.items()) for value in item))
        if name not in self._numbers:
            self._kept[self._next] = self._captured(sample, size)
            self._numbers[name], self._next = self._next, self._next + 1
        return self._numbers[name]

    def empty(self, sample: str | Mapping[str, Any]) -> dict[str, Any]:
        """The sample with no prompt, for training without one."""
        kept = {} if isinstance(sample, str) else {k: v for k, v in sample.items() if not _is_text(k)}
        return kept | {"prompt": ""}

    def unconditional(self, sample: str | Mapping[str, Any]) -> dict[str, Any]:
        """
        The sample as the pipeline takes it for no prompt in classifier-free guidance: with zeros in the place of
        embeddings for most XL checkpoints (`force_zeros_for_empty_prompt`), else with the prompt `""`.

        Raises:
            ValueError: If there are no text encoders to encode `""`.
        """
        sample: dict[str, Any] = {"prompt": sample} if isinstance(sample, str) else dict(sample)
        if self.pipe.config.get("force_zeros_for_empty_prompt", False):
            if "prompt" in sample:
                sample |= self._no_text
            return {k: torch.zeros_like(v) if _is_text(k) else v for k, v in sample.items() if k != "prompt"}
        if not text_encoders(self.pipe):
            raise ValueError(
                "`guidance_scale` needs text encoders for the empty prompt, and there are none. Set it to 1."
            )
        return self.empty(sample)

    @functools.cached_property
    def _no_text(self) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            device = text_encoders(self.pipe)[0].device
            found = self.pipe.encode_prompt(prompt="", device=device, do_classifier_free_guidance=False)
        return {"prompt_embeds": found[0][0].cpu(), "pooled_prompt_embeds": found[2][0].cpu()}

    def fill(self, samples: Iterable[Mapping[str, Any]], size: Size | None = None) -> None:
        """Capture what is not kept yet, and keep all. The encoders may go afterwards."""
        for sample in samples:
            self.max_kept = max(self.max_kept, len(self._kept) + 1)
            self([sample], size)

    # Captures

    def _arguments(self, sample: Mapping[str, Any], size: Size) -> dict[str, Any]:
        batched = {k: v[None].to(self._given(v)) if isinstance(v, torch.Tensor) else v for k, v in sample.items()}
        generator = torch.Generator().manual_seed(0)  # nothing is drawn from the global one
        return {**size_arguments(self.pipe, size), **self.call, **batched, "generator": generator}

    def _given(self, value: torch.Tensor) -> torch.dtype:
        return self._dtype if value.is_floating_point() else value.dtype

    @property
    def _dtype(self) -> torch.dtype:
        return self.dtype or self.pipe.dtype

    def template(self, size: Size, sample: Mapping[str, Any] | None = None) -> Template:
        """What samples of a size have in common. The first time it needs one of them."""
        if size not in self.templates:
            if sample is None:
                raise ValueError(f"Nothing of size {tuple(size)} was captured yet.")
            if self.sealed:
                raise ValueError(
                    f"A sample is of size {tuple(size)}, and weights are sharded: samples must have the size that the "
                    f"first row has, {', '.join(str(tuple(known)) for known in self.templates)}."
                )
            self.templates[size] = self._recorded(sample, size)
        return self.templates[size]

    def _recorded(self, sample: Mapping[str, Any], size: Size) -> Template:
        pipe, guidance = self.pipe, self.embedded_guidance
        recorded = record_call(pipe, embedded_guidance=guidance, dtype=self.dtype, **self._arguments(sample, size))
        layout = None
        if getattr(pipe, "vae", None) is not None:
            given = self._arguments(sample, size)
            layout = read_layout(pipe, torch.Size(recorded.shape[1:]), frames=size.frames, **given)
        template = Template(recorded, layout)
        for steps in (None, *self.steps) if self.steps else ():
            given: dict[str, Any] = {**self._arguments(sample, size), "num_inference_steps": steps}
            if steps is None:
                default = call_parameters(pipe).get("num_inference_steps")
                given["num_inference_steps"] = default.default if default is not None else 50
            template.schedules[steps] = capture_call(pipe, embedded_guidance=guidance, **given).schedule
        return template

    def _pattern(self, sample: Mapping[str, Any], size: Size, parts: Any, template: Template) -> Any:
        kind = nesting(parts)
        if kind not in template.patterns:
            try:
                twice = self._parts(self._capture(sample, size, 2), template)
            except (ValueError, RuntimeError, IndexError):  # the pipeline takes one sample at a time
                template.patterns[kind] = ONE_AT_A_TIME
            else:
                template.patterns[kind] = row_pattern(parts, twice)
        return template.patterns[kind]

    def _capture(self, sample: Mapping[str, Any], size: Size, rows: int) -> Capture:
        call = self._arguments(sample, size)
        call = call if rows == 1 else take(call, [0] * rows)
        return capture_call(self.pipe, embedded_guidance=self.embedded_guidance, **call)

    def _parts(self, capture: Capture, template: Template) -> tuple[Any, Any, Any]:
        """Arguments without latents and timestep, and the latents that follow the sample's own."""
        latents, timestep = template.call.latents, template.call.timestep
        places = {**dict(enumerate(capture.args)), **capture.kwargs}
        rest = None
        if latents.dim is not None:
            length, whole = template.call.shape[latents.dim], places[latents.place]
            rest = whole.narrow(latents.dim, length, whole.shape[latents.dim] - length)
        places |= {latents.place: None, timestep.place: None}
        args = tuple(places[i] for i in range(len(capture.args)))
        return args, {name: places[name] for name in capture.kwargs}, rest

    def _captured(self, sample: dict[str, Any], size: Size) -> Condition:
        template = self.template(size, sample)
        parts = self._parts(self._capture(sample, size, 1), template)
        pattern = self._pattern(sample, size, parts, template)
        parts = mapped(parts, self._stored)
        return Condition(size, parts, pattern, (size, nesting(parts), key(pattern, parts)))

    def _stored(self, value: torch.Tensor) -> torch.Tensor:
        return value.detach().to("cpu").clone()

    # Calls

    def groups(
        self, numbers: torch.Tensor, device: torch.device, dtype: torch.dtype
    ) -> list[tuple[list[int], RecordedCall, Template]]:
        """
        Rows of a batch that go through the denoiser together, and the call for them.

        Args:
            numbers (`torch.Tensor` of shape `(R,)`): From a call of this object.
            device (`torch.device`): Where the denoiser is.
            dtype (`torch.dtype`): What it computes in.
        """
        name = (*numbers.tolist(), str(device), str(dtype))
        if name not in self._joined:
            groups: dict[Hashable, list[int]] = {}
            for row, number in enumerate(numbers.tolist()):
                condition = self._kept[number]
                alone = condition.pattern == ONE_AT_A_TIME
                groups.setdefault((condition.key, row) if alone else condition.key, []).append(row)
            made = [
                (rows, *self._join([self._kept[int(numbers[row])] for row in rows], device, dtype))
                for rows in groups.values()
            ]
            while len(self._joined) > 3:  # policy and reference ask for the same
                del self._joined[next(iter(self._joined))]
            self._joined[name] = made
        return self._joined[name]

    def _join(
        self, conditions: list[Condition], device: torch.device, dtype: torch.dtype
    ) -> tuple[RecordedCall, Template]:
        template = self.templates[conditions[0].size]
        call, n = template.call, len(conditions)

        def moved(value: torch.Tensor) -> torch.Tensor:
            # Embeddings, and whatever the pipeline has in half precision; positions and guidance stay as they are.
            told = value.is_floating_point() and (value.element_size() < 4 or value.ndim > 2)
            return value.to(device, dtype if told else None)

        parts = join(conditions[0].pattern, [condition.parts for condition in conditions])
        args, kwargs, rest = mapped(parts, moved)
        shape = call.timestep.shape
        shape = torch.Size((shape[0] * n, *shape[1:])) if shape else shape
        joined = replace(
            call,
            args=args,
            kwargs=kwargs,
            latents=replace(call.latents, rest=None if rest is None else rest.to(dtype), dtype=dtype),
            timestep=replace(call.timestep, shape=shape),
            prediction=replace(
                call.prediction, dtype=torch.float32, shape=torch.Size((n, *call.prediction.shape[1:]))
            ),
            shape=torch.Size((n, *call.shape[1:])),
        )
        return joined, template


def _is_text(name: str) -> bool:
    return "prompt" in name or "embeds" in name


def _name(value: Any) -> Hashable:
    """A stand-in for an argument by which it is found again."""
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, torch.Tensor):
        return digest(value)
    if isinstance(value, list | tuple):
        return tuple(_name(item) for item in value)
    if hasattr(value, "tobytes"):  # a picture
        return str(value.size), hashlib.sha256(value.tobytes()).hexdigest()
    return repr(value)
