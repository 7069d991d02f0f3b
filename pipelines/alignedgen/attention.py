# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Sharing the anchor's tokens with the other images of a batch, in the layers of any transformer."""

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from alignext.pipelines.alignedgen.clock import StepClock
from alignext.pipelines.alignedgen.layers import SharedLayers
from alignext.pipelines.alignedgen.levers import Levers
from alignext.pipelines.alignedgen.recorder import Recorder
from alignext.pipelines.alignedgen.style import StyleReference
from alignext.wrapping import wrapped


class AlignedAttention(StepClock, SharedLayers):
    """
    The sharing of one `with aligned_attention(...)` block, which makes it.

    Args:
        transformer (`ModelMixin`): The model of the block.
        levers (`Levers`): What is shared, where and how strongly.
        scheduler (`SchedulerMixin`, *optional*): Tells step, number of steps and noise level.
        reference ([`StyleReference`], *optional*): Takes the anchor's place.
        record (`bool`): Whether the anchor is kept.

    Attributes:
        step (`int`, *optional*): Index of the current step, if it is not to be found out; may be set at any time.
        num_inference_steps (`int`, *optional*): Number of steps, likewise.
        sigma (`float`, *optional*): Noise level of the current step, likewise.
    """

    # The model in question, by subclasses: our processor for each stock one, what its forward returns, which of its
    # arguments hold the texts of a style, and which hold one value for the whole batch.
    processor_classes: dict[type, type]
    output_class: type = Transformer2DModelOutput
    texts: dict[str, str]
    common = ("img_ids", "txt_ids")

    def __init__(self, transformer, levers: Levers, scheduler, reference: StyleReference | None, record: bool):
        StepClock.__init__(self, scheduler)
        SharedLayers.__init__(self, levers)
        self.transformer, self.reference, self.record = transformer, reference, record
        if not levers.off:
            self._check_transformer()
        if reference is not None:
            reference.check_model(transformer)
            if record:
                raise ValueError(
                    "`record=True` keeps the anchor, but with `style_reference` there is none. Leave it out."
                )
        self.recorder = Recorder()
        self.processors: list[Any] = []  # ours, those of the chosen layers
        self.grid = (0, 0)
        blocks = [*transformer.transformer_blocks, *getattr(transformer, "single_transformer_blocks", ())]
        self.layers = [blocks[i].attn for i in levers.layers(transformer)]
        self._signature = inspect.signature(type(transformer).forward)
        self._inner: Callable = transformer.forward
        self._open = False
        self._layout: Any = None  # positions of the last call
        self._captured_for: tuple[bool, list[torch.Tensor]] | None = None

    def _check_transformer(self) -> None:
        """Refuse a model in a state that sharing cannot be put on."""
        installed = self.transformer.attn_processors.values()
        foreign = sorted({type(p).__name__ for p in installed if type(p) not in self.processor_classes})
        if any("IPAdapter" in name for name in foreign):
            raise NotImplementedError(
                f"The transformer has an IP-Adapter (`{foreign[0]}`), which sharing does not go with. Call "
                "`unload_ip_adapter()`; `style_image` takes its place."
            )
        if foreign:
            stock = sorted(p.__name__ for p in self.processor_classes)
            raise ValueError(
                f"The transformer has processors {foreign}, which sharing would replace. Use it with the stock "
                f"{stock}, and one `aligned_attention` block at a time."
            )
        if any(p._parallel_config is not None for p in installed):
            raise ValueError(
                "The transformer is split over devices by context parallelism (`_parallel_config` is set), but "
                "sharing needs all tokens of a layer. Switch it off."
            )
        if self.transformer.is_cache_enabled and (
            self.levers.target_batch_size is not None or self.reference is not None
        ):
            given = "`style_reference`" if self.reference is not None else "`target_batch_size`"
            cache = type(self.transformer._cache_config).__name__
            raise ValueError(
                f"{given} calls the transformer several times per step, which its cache ({cache}) does not allow. "
                "Call `transformer.disable_cache()`."
            )

    # -------------------------------------------------------------------------------------------------- on and off

    @contextmanager
    def installed(self, called: torch.nn.Module) -> Generator[None]:
        """
        Put processors on the chosen layers and a wrapper around what the loop calls (the transformer, or what
        `torch.compile` made of it), and take them off again.
        """
        kept = [attn.processor for attn in self.layers]
        self.processors = [self.processor_classes[type(processor)](self, processor) for processor in kept]
        self._open = True
        try:
            for attn, processor in zip(self.layers, self.processors, strict=True):
                attn.set_processor(processor)
            with wrapped(called, self._around):
                yield
        finally:
            self._open = False
            for attn, processor in zip(self.layers, kept, strict=True):
                attn.set_processor(processor)
            self.shifted = self._layout = None
            self._forget_anchor()

    # -------------------------------------------------------------------------------------------- around the model

    def _around(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        self._inner = inner
        return lambda *args, **kwargs: self._forward(*args, **kwargs)

    def _forward(self, *args, **kwargs):
        if not self._open:  # something kept the wrapper beyond the block
            return self._inner(*args, **kwargs)
        bound = self._signature.bind(self.transformer, *args, **kwargs).arguments
        call: dict[str, Any] = {name: value for name, value in bound.items() if name != "self"}
        step, steps, sigma = self.tell(call["timestep"])
        if self.loop_begins:
            self._check_loop(step)
        rows = list(range(len(call["hidden_states"])))
        anchor, reference = self.levers.anchor_index, self.reference
        if reference is None and anchor >= len(rows):
            raise ValueError(f"`anchor_index` must be below the number of images, {len(rows)}, received {anchor}.")
        try:
            active = self.levers.active(step, steps)
            if active or self.record:
                self._measure(call)
            if self.record:
                row = slice(anchor, anchor + 1)
                texts = {name: self._text(call, argument, row) for name, argument in self.texts.items()}
                latents = call["hidden_states"][row, : self.image_length]
                self.recorder.keep(latents, texts, sigma, first=self.calls_in_step == 1)
            if not active:
                return self._in_chunks(call, rows, "stock")
            self.style_lambda = self.levers.lambda_at(sigma, call["hidden_states"])
            if reference is not None:
                self._capture_reference(call, reference, step, sigma)
                return self._in_chunks(call, rows, "inject")
            if self.levers.target_batch_size is None:
                self.mode = "joint"
                return self._inner(**call)
            alone = self._run(self._rows(call, [anchor]), "capture")
            if len(rows) == 1:
                return self._output(call, alone)
            others = self._in_chunks(call, rows[:anchor] + rows[anchor + 1 :], "inject")[0]
            return self._output(call, torch.cat([others[:anchor], alone, others[anchor:]]))
        finally:
            self.mode = "stock"
            if reference is None:
                self._forget_anchor()

    def _check_loop(self, step: int) -> None:
        """Before the first step of a loop: forget the last recording, refuse styles and schedules that do not fit."""
        self.recorder.restart()
        if self.scheduler is None:
            return
        sigmas = self.scheduler.sigmas[: len(self.scheduler.timesteps)]
        if self.reference is not None:
            self.reference.check_schedule(sigmas)
        for i, sigma in enumerate(sigmas[step:], start=step):
            if callable(self.levers.lambda_schedule) and self.levers.active(i, len(sigmas)):
                self.levers.lambda_at(sigma, sigmas)

    def _run(self, call: dict, mode: str) -> torch.Tensor:
        self.mode = mode
        return self._inner(**call | {"return_dict": False})[0]

    def _in_chunks(self, call: dict, rows: list[int], mode: str):
        """The transformer's output for these rows, `target_batch_size` at a time."""
        size = self.levers.target_batch_size or len(rows)
        if size >= len(rows) == len(call["hidden_states"]):
            self.mode = mode
            return self._inner(**call)
        chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
        return self._output(call, torch.cat([self._run(self._rows(call, chunk), mode) for chunk in chunks]))

    def _rows(self, call: dict, rows: list[int]) -> dict:
        """The same call for some of its images: whatever has one entry per image is cut, positions are shared."""
        total = len(call["hidden_states"])

        def cut(value):
            if isinstance(value, (list, tuple)):
                return type(value)(cut(x) for x in value)
            per_image = isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == total
            return value[rows] if per_image else value

        return {name: x if name in self.common else cut(x) for name, x in call.items()}

    def _output(self, call: dict, sample: torch.Tensor):
        return self.output_class(sample=sample) if call.get("return_dict", True) else (sample,)

    # --------------------------------------------------------------------------------------------------- positions

    def _measure(self, call: dict) -> None:
        """Lengths of text and image, and the rotary table at the shifted positions."""
        self.text_length = call["encoder_hidden_states"].shape[1]
        layout = self._positions(call)
        same = layout is self._layout or (self._layout is not None and self._same(layout, self._layout))
        if not same:
            self._layout, self._captured_for = layout, None
            self._place(layout, call["hidden_states"].device)

    # Where the tokens of the images are, which subclasses know.

    @staticmethod
    def _positions(call: dict) -> Any:
        """The positions of the images' tokens, as the call has them."""
        raise NotImplementedError

    @staticmethod
    def _same(a: Any, b: Any) -> bool:
        """True if two results of `_positions` are equal."""
        raise NotImplementedError

    def _place(self, layout: Any, device: torch.device) -> None:
        """Set what depends on these positions: `image_length`, `grid` and `shifted`."""
        raise NotImplementedError

    def _reference_positions(self, call: dict, reference: StyleReference) -> dict[str, Any]:
        """The arguments that place the reference and its text when it is run alone."""
        raise NotImplementedError

    def _text(self, call: dict, argument: str, row: slice) -> torch.Tensor | None:
        """The text of an image, as an argument of the call has it."""
        text = call.get(argument)
        return None if text is None else text[row]

    # ------------------------------------------------------------------------------------------ external reference

    def _capture_reference(self, call: dict, reference: StyleReference, step: int, sigma) -> None:
        """Run the reference alone, unless this step's second call can read what the first one kept."""
        hidden = call["hidden_states"]
        if reference.prompt_embeds.device != hidden.device or (reference.x0 is not None and reference.noise is None):
            self.reference = reference = reference.to(hidden.device)
        single = {name: call[name][:1] for name in ("timestep", "guidance") if call.get(name) is not None}
        negative = self.calls_in_step > 1 and reference.negative_prompt_embeds is not None
        if self._captured_for is not None and self.calls_in_step > 1:
            was_negative, conditions = self._captured_for
            if was_negative == negative and all(map(torch.equal, conditions, single.values())):
                return
        prefix = "negative_" if negative else ""
        texts = {argument: getattr(reference, prefix + name) for name, argument in self.texts.items()}
        own = {name: call[name] for name in ("joint_attention_kwargs", "attention_kwargs") if name in call}
        own |= {argument: text.to(call[argument]) for argument, text in texts.items() if text is not None}
        own |= single | {"hidden_states": reference.latents(sigma, step).to(hidden)}
        own |= self._reference_positions(call, reference)
        lengths = self.text_length, self.image_length
        self.text_length, self.image_length = own["encoder_hidden_states"].shape[1], own["hidden_states"].shape[1]
        self._forget_anchor()
        self._run(own, "capture")
        self.text_length, self.image_length = lengths
        self._captured_for = negative, [x.clone() for x in single.values()]

    def _forget_anchor(self) -> None:
        self._captured_for = None
        for processor in self.processors:
            processor.anchor = None

    # ------------------------------------------------------------------------------------------------- recording

    def recorded(self, scaling: tuple[float, float] | None = None) -> StyleReference:
        """
        The anchor of the last loop, with which later calls continue the series; needs `record=True`.

        Args:
            scaling (`tuple[float, float]`, *optional*): Shift and scaling factor of the VAE, to be checked later.

        Returns:
            [`StyleReference`]: With a trajectory.

        Raises:
            `ValueError`: If nothing was recorded.
        """
        return self.recorder.style(self.grid, scaling)
