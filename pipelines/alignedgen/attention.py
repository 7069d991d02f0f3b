# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What `aligned_attention` puts on a stock FLUX.1 transformer: processors, and a wrapper of its forward."""

import functools
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, _get_qkv_projections

from alignext.functional.alignedgen import adain, grid_size, shared_attention, shifted_ids, token_statistics
from alignext.pipelines.alignedgen.checks import (
    Settings,
    check_reference,
    check_schedule,
    check_transformer,
    layer_range,
)
from alignext.pipelines.alignedgen.style import StyleReference
from alignext.wrapping import wrapped


class AlignedFluxAttnProcessor(FluxAttnProcessor):
    """[`FluxAttnProcessor`] that shares the anchor's image tokens while its [`AlignedAttention`] says so."""

    def __init__(self, sharing: "AlignedAttention", stock: FluxAttnProcessor):
        super().__init__()
        self.sharing, self.stock = sharing, stock
        self.anchor: Anchor | None = None  # between "capture" and "inject"
        self._attention_backend, self._parallel_config = stock._attention_backend, stock._parallel_config

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if self.sharing.mode == "stock":
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        if attention_mask is not None:
            raise NotImplementedError("Shared attention does not support an `attention_mask`. Leave it out.")

        # The stock processor in parts, since statistics are taken between its norm and its rotation.
        query, key, value, *text = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in (query, key, value))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if attn.added_kv_proj_dim is not None:
            text_query, text_key, text_value = (x.unflatten(-1, (-1, attn.head_dim)) for x in text)
            query = torch.cat([attn.norm_added_q(text_query), query], dim=1)
            key = torch.cat([attn.norm_added_k(text_key), key], dim=1)
            value = torch.cat([text_value, value], dim=1)

        rotate = functools.partial(apply_rotary_emb, sequence_dim=1)
        out = self.sharing.attention(self, query, key, value, rotate=rotate, rotary=image_rotary_emb)
        out = out.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return out
        length = encoder_hidden_states.shape[1]
        image = attn.to_out[1](attn.to_out[0](out[:, length:].contiguous()))
        return image, attn.to_add_out(out[:, :length].contiguous())


@dataclass(frozen=True)
class Anchor:
    """What the targets read of the anchor in one layer."""

    query_statistics: tuple[torch.Tensor, torch.Tensor]
    key_statistics: tuple[torch.Tensor, torch.Tensor]
    key: torch.Tensor  # (1, N, n, d), rotated to the shifted positions
    value: torch.Tensor  # (1, N, n, d)


class AlignedAttention:
    """
    The sharing of one `with aligned_attention(...)` block, which makes it.

    Args:
        transformer (`ModelMixin`): The model of the block.
        settings (`Settings`): Its levers.
        scheduler (`SchedulerMixin`, *optional*): Tells step, number of steps and noise level.
        reference ([`StyleReference`], *optional*): Takes the anchor's place.
        record (`bool`): Whether the anchor is kept.

    Attributes:
        step (`int`, *optional*): Index of the current step, if it is not to be found out; may be set at any time.
        num_inference_steps (`int`, *optional*): Number of steps, likewise.
        sigma (`float`, *optional*): Noise level of the current step, likewise.
    """

    # The model in question: our processor for each stock one, what its forward returns, which of its arguments hold
    # the texts of a style, and which hold one value for the whole batch.
    processor_classes: dict[type, type] = {FluxAttnProcessor: AlignedFluxAttnProcessor}
    output_class: type = Transformer2DModelOutput
    texts = {"prompt_embeds": "encoder_hidden_states", "pooled_prompt_embeds": "pooled_projections"}
    common = ("img_ids", "txt_ids")

    def __init__(self, transformer, settings: Settings, scheduler, reference: StyleReference | None, record: bool):
        check_transformer(transformer, self.processor_classes, settings, reference)
        if reference is not None:
            check_reference(transformer, reference)
            if record:
                raise ValueError(
                    "`record=True` keeps the anchor, but with `style_reference` there is none. Leave it out."
                )
        self.transformer, self.settings, self.scheduler = transformer, settings, scheduler
        self.reference, self.record = reference, record
        self.step: int | None = None
        self.num_inference_steps: int | None = None
        self.sigma: float | torch.Tensor | None = None
        self.mode = "stock"  # or "joint": anchor and targets in one call; "capture": anchor alone; "inject": targets
        self.processors: list[Any] = []  # ours, those of the chosen layers
        self.style_lambda: torch.Tensor | float = settings.style_lambda
        self.text_length = 0
        self.image_length = 0  # tokens of the image to be generated, which come right behind the text
        self.grid = (0, 0)
        self.shifted: Any = None  # rotary table of the anchor's shifted positions
        blocks = [*transformer.transformer_blocks, *getattr(transformer, "single_transformer_blocks", ())]
        self.layers = [blocks[i].attn for i in layer_range(transformer, settings.share_blocks)]
        self._signature = inspect.signature(type(transformer).forward)
        self._inner: Callable = transformer.forward
        self._open = False
        self._layout: Any = None  # positions of the last call
        self._moment: tuple[int, Any] = (-1, None)  # step of the last call, and which loop it belongs to
        self._calls_in_step = 0
        self._captured_for: tuple[bool, list[torch.Tensor]] | None = None
        self._recording: dict[str, list[torch.Tensor]] = {}

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
        step, steps, sigma = self._enter(call)
        rows = list(range(len(call["hidden_states"])))
        anchor, reference = self.settings.anchor_index, self.reference
        if reference is None and anchor >= len(rows):
            raise ValueError(f"`anchor_index` must be below the number of images, {len(rows)}, received {anchor}.")
        try:
            active = self.settings.active(step, steps)
            if active or self.record:
                self._measure(call)
            if self.record:
                self._keep(call, sigma)
            if not active:
                return self._in_chunks(call, rows, "stock")
            self.style_lambda = self.settings.lambda_at(sigma, call["hidden_states"])
            if reference is not None:
                self._capture_reference(call, reference, step, sigma)
                return self._in_chunks(call, rows, "inject")
            if self.settings.target_batch_size is None:
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

    def _enter(self, call: dict) -> tuple[int, int | None, Any]:
        """Step, number of steps and noise level of this call."""
        scheduler, steps, sigma = self.scheduler, self.num_inference_steps, self.sigma
        # Pipelines set new timesteps at each call, a loop without scheduler a new timestep at each step.
        run: Any = self.step
        if scheduler is not None:
            run = scheduler.timesteps
        elif run is None:
            run = float(call["timestep"].flatten()[0])
        before, ran = self._moment
        same_run = run is ran or (scheduler is None and run == ran)
        if self.step is not None:
            step = self.step
        elif scheduler is not None:
            step = scheduler.step_index  # None before the first step
            step = (scheduler.begin_index or 0) if step is None else step
        elif ran is not None and run > ran:
            step = 0  # noise only falls within a loop
        else:
            step = before + (not same_run)
        if step < before or (scheduler is not None and not same_run):  # another loop begins
            self._recording = {}
            if self.reference is not None and scheduler is not None:
                check_schedule(self.reference, scheduler.sigmas[: len(scheduler.timesteps)])
        if not (same_run and step == before):
            self._moment, self._calls_in_step = (step, run), 0
        self._calls_in_step += 1
        if steps is None and scheduler is not None:
            steps = len(scheduler.timesteps)
        if sigma is None:
            sigma = call["timestep"].flatten()[0] if scheduler is None else scheduler.sigmas[step]
        return step, steps, sigma

    def _run(self, call: dict, mode: str) -> torch.Tensor:
        self.mode = mode
        return self._inner(**call | {"return_dict": False})[0]

    def _in_chunks(self, call: dict, rows: list[int], mode: str):
        """The transformer's output for these rows, so many at a time as wanted."""
        size = self.settings.target_batch_size or len(rows)
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

    @staticmethod
    def _same(a: Any, b: Any) -> bool:
        return torch.equal(a, b)

    @staticmethod
    def _positions(call: dict) -> Any:
        """What tells where the tokens of the images of a call are."""
        ids = call["img_ids"]
        return ids[0] if ids.ndim == 3 else ids

    def _place(self, ids: Any, device: torch.device) -> None:
        """Set what depends on these positions."""
        # Pictures to be edited follow the image to be generated, at other places on the first axis.
        generated = ids[:, 0] == ids[0, 0]
        self.image_length = int(generated.sum())
        ids = ids[: self.image_length]
        self.grid = grid_size(ids)
        own = ids if self.reference is None else self._grid_ids(self.reference.grid, ids)
        self.shifted = self.transformer.pos_embed(shifted_ids(own, self.settings.offset(self.grid, ids.shape[1])))

    @staticmethod
    def _grid_ids(grid: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
        h, w = grid
        ids = torch.zeros(h, w, like.shape[1])
        ids[..., 1] = torch.arange(h)[:, None]
        ids[..., 2] = torch.arange(w)
        return ids.flatten(0, 1).to(like)

    def _reference_positions(self, call: dict, reference: StyleReference) -> dict[str, Any]:
        """The arguments that place the reference and its text when it is run alone."""
        like, length = self._positions(call), reference.prompt_embeds.shape[1]
        text = torch.zeros(length, like.shape[1])
        return {"img_ids": self._grid_ids(reference.grid, like), "txt_ids": text.to(like)}

    # ------------------------------------------------------------------------------------------ external reference

    def _capture_reference(self, call: dict, reference: StyleReference, step: int, sigma) -> None:
        """Run the reference alone, unless this step's second call can read what the first one kept."""
        hidden = call["hidden_states"]
        if reference.prompt_embeds.device != hidden.device or (reference.x0 is not None and reference.noise is None):
            self.reference = reference = reference.to(hidden.device)
        single = {name: call[name][:1] for name in ("timestep", "guidance") if call.get(name) is not None}
        negative = self._calls_in_step > 1 and reference.negative_prompt_embeds is not None
        if self._captured_for is not None and self._calls_in_step > 1:
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

    def _keep(self, call: dict, sigma) -> None:
        """Record the anchor as it enters this call."""
        anchor = slice(self.settings.anchor_index, self.settings.anchor_index + 1)
        recording = self._recording
        prefix = "" if self._calls_in_step == 1 else "negative_"
        if f"{prefix}prompt_embeds" not in recording:
            texts = {prefix + name: self._text(call, argument, anchor) for name, argument in self.texts.items()}
            recording |= {name: [text] for name, text in texts.items() if text is not None}
        if self._calls_in_step == 1:
            recording.setdefault("trajectory", []).append(call["hidden_states"][anchor, : self.image_length].clone())
            recording.setdefault("sigmas", []).append(torch.as_tensor(sigma, dtype=torch.float32).cpu())

    def _text(self, call: dict, argument: str, row: slice) -> torch.Tensor | None:
        text = call.get(argument)
        return None if text is None else text[row].clone()

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
        if not self._recording:
            raise ValueError("Nothing was recorded. Pass `record=True`, and call the transformer inside the block.")
        found: dict[str, Any] = {"pooled_prompt_embeds": None, "grid": self.grid, "scaling": scaling}
        for name, kept in self._recording.items():
            found[name] = torch.stack(kept) if name in ("trajectory", "sigmas") else kept[0]
        return StyleReference(**found)

    # -------------------------------------------------------------------------------------------- inside one layer

    def attention(
        self,
        processor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        rotate: Callable[[torch.Tensor, Any], torch.Tensor],
        rotary,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Attention of one layer, from queries and keys that are normed and not yet rotated.

        Args:
            processor: The layer's processor, which has its attention backend and keeps the anchor between two calls.
            query, key, value (`torch.Tensor` of shape `(B, S, n, d)`): Text tokens first, then the image's.
            rotate (`Callable`): Rotates a tensor by a table.
            rotary: The call's own table.
            mask (`torch.Tensor` of shape `(B, S)`, bool, *optional*): False where a key is padding.

        Returns:
            `torch.Tensor` of shape `(B, S, n, d)`.
        """
        backend = processor._attention_backend

        def attend(q, k, v, mask):
            if mask is not None:  # the anchor's keys, appended, are no padding
                mask = torch.nn.functional.pad(mask, (0, k.shape[1] - mask.shape[1]), value=True)[:, None, None]
            return dispatch_attention_fn(q, k, v, attn_mask=mask, backend=backend)

        def attend_shared(q, k, v, mask, anchor, style_lambda):
            attend_rows = functools.partial(attend, mask=mask)
            return shared_attention(q, k, v, anchor.key, anchor.value, style_lambda=style_lambda, attend=attend_rows)

        def attend_targets(q, k, v, mask, anchor):
            if self.settings.adain:
                q, k = self._restyled(q, anchor.query_statistics), self._restyled(k, anchor.key_statistics)
            return attend_shared(rotate(q, rotary), rotate(k, rotary), v, mask, anchor, self.style_lambda)

        if self.mode == "inject":
            return attend_targets(query, key, value, mask, processor.anchor)
        a = 0 if self.mode == "capture" else self.settings.anchor_index
        q, k, v = (x[a : a + 1] for x in (query, key, value))
        m = None if mask is None else mask[a : a + 1]
        anchor = self._anchor(q, k, v, rotate)
        q, k = rotate(q, rotary), rotate(k, rotary)
        alone = attend(q, k, v, m) if self.settings.isolate_anchor else attend_shared(q, k, v, m, anchor, 1.0)
        if self.mode == "capture":
            # Cloned, since the view would keep the text's and a fused projection's memory.
            processor.anchor = replace(anchor, value=anchor.value.clone())
            return alone
        if len(query) == 1:
            return alone
        q, k, v = (self._without(x, a) for x in (query, key, value))
        others = attend_targets(q, k, v, None if mask is None else self._without(mask, a), anchor)
        return torch.cat([others[:a], alone, others[a:]])

    def _image(self) -> slice:
        return slice(self.text_length, self.text_length + self.image_length)

    def _anchor(self, query, key, value, rotate) -> Anchor:
        query, key, value = (x[:, self._image()] for x in (query, key, value))
        return Anchor(token_statistics(query), token_statistics(key), rotate(key, self.shifted), value)

    def _restyled(self, x: torch.Tensor, statistics: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        image = adain(x[:, self._image()], *statistics)
        x = x.clone() if x.requires_grad else x  # in place where no gradient needs it: a layer's queries are large
        x[:, self._image()] = image
        return x

    @staticmethod
    def _without(x: torch.Tensor, row: int) -> torch.Tensor:
        return x[1:] if row == 0 else torch.cat([x[:row], x[row + 1 :]])
