# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Shared attention on a stock Flux transformer, put on it for the time of a `with` block and taken off again."""

import functools
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, _get_qkv_projections

from alignext.functional.alignedgen import (
    adain,
    grid_size,
    shared_attention,
    shifted_ids,
    token_statistics,
)
from alignext.pipelines.alignedgen.checks import (
    Settings,
    check_reference,
    check_schedule,
    check_transformer,
    layer_range,
)
from alignext.pipelines.alignedgen.style import StyleReference


@contextmanager
def aligned_attention(
    transformer: torch.nn.Module,
    *,
    scheduler=None,
    style_reference: StyleReference | None = None,
    style_lambda: float = 1.1,
    lambda_schedule: str | Callable[[float], float] = "constant",
    share_blocks: str | tuple[int, int] = "single",
    share_start: float = 0.0,
    share_end: float = 1.0,
    adain: bool = True,
    shift: str | tuple[float, ...] = "width",
    isolate_anchor: bool = True,
    anchor_index: int = 0,
    target_batch_size: int | None = None,
    record: bool = False,
    step: int | None = None,
    num_inference_steps: int | None = None,
    sigma: float | None = None,
) -> Generator["AlignedAttention"]:
    r"""
    Within the `with` block, images that go through the transformer together share the anchor's style: in the chosen
    layers and steps every other image (a target) also attends to the anchor's image tokens. On leaving, also by an
    exception, the transformer is as it was.

    Serves any pipeline around the transformer (img2img, ControlNet, ...) if its scheduler is given, and a transformer
    called directly.

    Args:
        transformer ([`FluxTransformer2DModel`]):
            The model. Nothing is shared outside the layers and steps below, where it runs its stock processors.
        scheduler (`SchedulerMixin`, *optional*):
            The scheduler of the loop, which tells step, number of steps and noise level. Without one see `step`,
            `num_inference_steps` and `sigma`.
        style_reference ([`StyleReference`], *optional*):
            A picture or a recorded anchor instead of an image of the batch: all images of the batch are targets.
        style_lambda (`float`, *optional*, defaults to 1.1):
            `lambda >= 0`, by which the shared keys are multiplied. More is closer to the anchor. 0 does not switch
            sharing off.
        lambda_schedule (`str` or `Callable[[float], float]`, *optional*, defaults to `"constant"`):
            `"constant"`; `"sigma_squared"`, `lambda = sigma^2`, for which `style_lambda` is not used; or a function
            of `sigma`, from 1 (noise) to 0.
        share_blocks (`str` or `tuple[int, int]`, *optional*, defaults to `"single"`):
            `"single"` for the single-stream layers, `"double"` for the double-stream ones, `"all"`, or `(lo, hi)`,
            half open, counted through both kinds, double first: `(19, 57)` is `"single"` for FLUX.1.
        share_start, share_end (`float`, *optional*, defaults to 0.0 and 1.0):
            Step i of N shares if `share_start <= i / N < share_end`. `share_end=0` switches sharing off.
        adain (`bool`, *optional*, defaults to `True`):
            Give the image queries and keys of the targets the anchor's mean and variance, per head and channel.
        shift (`str` or `tuple[float, ...]`, *optional*, defaults to `"width"`):
            Where the targets see the anchor: `"width"` to their right, `"height"` below, `"none"` in their own place,
            or what is added to each axis of its positions.
        isolate_anchor (`bool`, *optional*, defaults to `True`):
            The anchor attends to itself only, which leaves it the image that the stock model makes. Else it also sees
            its own shifted keys, at `lambda = 1`.
        anchor_index (`int`, *optional*, defaults to 0):
            Row of the anchor in the batch.
        target_batch_size (`int`, *optional*):
            So many images per call of the transformer, after one call for the anchor, which bounds memory for any
            number of images. All together if not given.
        record (`bool`, *optional*, defaults to `False`):
            Keep the anchor's latents, for [`~AlignedAttention.recorded`].
        step (`int`, *optional*):
            Index of the current step; [`AlignedAttention`] has it as an attribute to set in a loop. If not given, the
            scheduler's; without one, steps are counted: a call whose `timestep` is not that of the call before begins
            the next step.
        num_inference_steps (`int`, *optional*):
            N; the scheduler's if not given. Without a scheduler it is needed only if `share_start` or `share_end` is
            set.
        sigma (`float`, *optional*):
            Noise level of the current step, an attribute like `step`. If not given, the scheduler's; without one, the
            `timestep` argument of the call, which is the noise level for flow matching models.

    Yields:
        [`AlignedAttention`]: Its attributes `step`, `num_inference_steps` and `sigma` may be set during a loop.

    Raises:
        `ValueError`: On settings out of range, and on a transformer that has other processors, is split over devices
            or has a cache that does not go with several calls per step.
        `NotImplementedError`: For models without the positions that the method needs.

    Example:

    ```py
    >>> from alignext import aligned_attention

    >>> with aligned_attention(pipe.transformer, scheduler=pipe.scheduler, style_lambda=1.1):
    ...     images = pipe(["a fox, watercolor", "a lighthouse, watercolor"]).images

    >>> with aligned_attention(transformer, step=3, num_inference_steps=28, share_blocks=(19, 57)):
    ...     velocity = transformer(hidden_states=latents, timestep=sigmas, **conditions).sample
    ```
    """
    settings = Settings(
        style_lambda=style_lambda,
        lambda_schedule=lambda_schedule,
        share_blocks=share_blocks,
        share_start=share_start,
        share_end=share_end,
        adain=adain,
        shift=shift,
        isolate_anchor=isolate_anchor,
        anchor_index=anchor_index,
        target_batch_size=target_batch_size,
    )
    transformer = getattr(transformer, "_orig_mod", transformer)  # inside `torch.compile(transformer)`
    sharing = AlignedAttention(transformer, settings, scheduler, style_reference, record)
    sharing.step, sharing.num_inference_steps, sharing.sigma = step, num_inference_steps, sigma
    with sharing.installed():
        yield sharing


class AlignedFluxAttnProcessor(FluxAttnProcessor):
    """[`FluxAttnProcessor`] that shares the anchor's image tokens while its [`AlignedAttention`] says so."""

    def __init__(self, sharing: "AlignedAttention", layer: int, stock: FluxAttnProcessor):
        super().__init__()
        self.sharing, self.layer = sharing, layer
        self._attention_backend, self._parallel_config = stock._attention_backend, stock._parallel_config

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if self.sharing.mode == "stock":
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
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

        out = self.sharing.attention(
            self.layer,
            query,
            key,
            value,
            rotate=lambda x, table: apply_rotary_emb(x, table, sequence_dim=1),
            rotary=image_rotary_emb,
            attend=functools.partial(dispatch_attention_fn, backend=self._attention_backend),
        )
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
    The sharing of one `with aligned_attention(...)` block.

    Attributes:
        step (`int`, *optional*): Index of the current step, if it is not to be found out; may be set at any time.
        num_inference_steps (`int`, *optional*): Number of steps, likewise.
        sigma (`float`, *optional*): Noise level of the current step, likewise.
    """

    processor_class = AlignedFluxAttnProcessor

    def __init__(self, transformer, settings: Settings, scheduler, reference: StyleReference | None, record: bool):
        check_transformer(transformer, settings, reference)
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
        self.anchors: dict[int, Anchor] = {}  # by layer, between "capture" and "inject"
        self.style_lambda: torch.Tensor | float = settings.style_lambda
        self.text_length = 0
        self.image_length = 0
        self.shifted: Any = None  # rotary table of the shifted positions
        self._shifted_for: torch.Tensor | None = None
        self._captured_for: tuple | None = None
        self._placed: torch.device | None = None  # where the reference's tensors are
        self._moment: tuple[int, Any] | None = None
        self._calls_in_step = 0
        self._records: dict[str, list[torch.Tensor]] = {}
        self._open = False
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        self.layers = {i: blocks[i].attn for i in layer_range(transformer, settings.share_blocks)}
        self._signature = inspect.signature(type(transformer).forward)

    # -------------------------------------------------------------------------------------------------- on and off

    @contextmanager
    def installed(self) -> Generator[None]:
        """Put processors on the chosen layers and a wrapper on `transformer.forward`, and take them off again."""
        own = vars(self.transformer)
        kept = {i: attn.processor for i, attn in self.layers.items()}
        absent = object()
        previous = own.get("forward", absent)  # hooks of accelerate and diffusers are kept there, too
        self._inner = self.transformer.forward
        forward = functools.wraps(self._inner)(lambda *args, **kwargs: self._forward(*args, **kwargs))
        self._open = True
        try:
            for i, attn in self.layers.items():
                attn.set_processor(self.processor_class(self, i, kept[i]))
            self.transformer.forward = forward
            yield
        finally:
            self._open = False
            # Offloading renews its hooks at the end of a pipeline call; what it then put in place stays.
            if own.get("forward") is forward:
                if previous is absent:
                    del self.transformer.forward
                else:
                    self.transformer.forward = previous
            for i, attn in self.layers.items():
                attn.set_processor(kept[i])
            self._forget()

    def _forget(self) -> None:
        self.mode, self.anchors, self._captured_for = "stock", {}, None
        self.shifted = self._shifted_for = None

    # -------------------------------------------------------------------------------------------- around the model

    def _forward(self, *args, **kwargs):
        if not self._open:  # something kept the wrapper beyond the block
            return self._inner(*args, **kwargs)
        bound = self._signature.bind(self.transformer, *args, **kwargs).arguments
        call: dict[str, Any] = {name: value for name, value in bound.items() if name != "self"}
        step, steps, sigma = self._enter(call)
        rows = len(call["hidden_states"])
        anchor = self.settings.anchor_index
        if self.reference is None and anchor >= rows:
            raise ValueError(f"`anchor_index` must be below the number of images, {rows}, received {anchor}.")
        if self.record and self.reference is None:
            self._record(call, sigma)
        try:
            if not self.settings.active(step, steps):
                return self._in_chunks(call, list(range(rows)), "stock")
            self.style_lambda = self.settings.lambda_at(sigma, call["hidden_states"])
            self._measure(call)
            if self.reference is not None:
                self._capture_reference(call, step, sigma)
                return self._in_chunks(call, list(range(rows)), "inject")
            if self.settings.target_batch_size is None:
                self.mode = "joint"
                return self._inner(**call)
            alone = self._run(self._rows(call, [anchor]), "capture")
            targets = [i for i in range(rows) if i != anchor]
            if not targets:
                return self._output(call, alone)
            others = self._in_chunks(call, targets, "inject")[0]
            return self._output(call, torch.cat([others[:anchor], alone, others[anchor:]]))
        finally:
            self.mode = "stock"
            if self.reference is None:
                self.anchors = {}

    def _enter(self, call: dict) -> tuple[int, int | None, Any]:
        """Step, number of steps and noise level of this call."""
        scheduler, steps = self.scheduler, self.num_inference_steps
        # Pipelines set new timesteps at each call, a loop without scheduler a new timestep at each step.
        run = float(call["timestep"].flatten()[0]) if scheduler is None else scheduler.timesteps
        before, ran = self._moment or (-1, None)
        same_run = run is ran or (scheduler is None and run == ran)
        if self.step is not None:
            step = self.step
        elif scheduler is not None:
            step = scheduler.step_index  # None before the first step
            step = (scheduler.begin_index or 0) if step is None else step
        else:
            step = before + (not same_run)
        if step < before or (scheduler is not None and not same_run):  # another loop begins
            self._records = {}
            if self.reference is not None and scheduler is not None:
                check_schedule(self.reference, scheduler.sigmas[: len(scheduler.timesteps)])
        if not (same_run and step == before):
            self._moment, self._calls_in_step = (step, run), 0
        self._calls_in_step += 1
        if steps is None and scheduler is not None:
            steps = len(scheduler.timesteps)
        sigma = self.sigma
        if sigma is None:
            sigma = call["timestep"].flatten()[0] if scheduler is None else scheduler.sigmas[step]
        return step, steps, sigma

    def _measure(self, call: dict) -> None:
        """Lengths of text and image, and the rotary table at the shifted positions."""
        ids = call["img_ids"]
        ids = ids[0] if ids.ndim == 3 else ids
        self.text_length = call["encoder_hidden_states"].shape[1]
        self.image_length = len(ids)
        if self._shifted_for is not None and (self._shifted_for is ids or torch.equal(self._shifted_for, ids)):
            return
        shift = self.settings.offset(grid_size(ids), ids.shape[-1])
        own = ids if self.reference is None else self._reference_ids(ids)
        self.shifted = self.transformer.pos_embed(shifted_ids(own, shift))
        self._shifted_for, self._captured_for = ids, None

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

    @staticmethod
    def _rows(call: dict, rows: list[int]) -> dict:
        """The same call for some of its images: whatever has one entry per image is cut, positions are shared."""
        total = len(call["hidden_states"])

        def cut(value):
            if isinstance(value, (list, tuple)):
                return type(value)(cut(x) for x in value)
            per_image = isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == total
            return value[rows] if per_image else value

        return {name: x if name in ("img_ids", "txt_ids") else cut(x) for name, x in call.items()}

    @staticmethod
    def _output(call: dict, sample: torch.Tensor):
        return Transformer2DModelOutput(sample=sample) if call.get("return_dict", True) else (sample,)

    # ------------------------------------------------------------------------------------------ external reference

    def _reference_ids(self, ids: torch.Tensor) -> torch.Tensor:
        assert self.reference is not None
        h, w = self.reference.grid
        own = torch.zeros(h, w, ids.shape[-1])
        own[..., 1] = torch.arange(h)[:, None]
        own[..., 2] = torch.arange(w)
        return own.flatten(0, 1).to(ids)

    def _capture_reference(self, call: dict, step: int, sigma) -> None:
        """Run the reference alone, unless this step's second call can read what the first one kept."""
        hidden = call["hidden_states"]
        if self._placed != hidden.device:
            self.reference, self._placed = self.reference.to(hidden.device), hidden.device
        reference = self.reference
        text, pooled, negative = reference.prompt_embeds, reference.pooled_prompt_embeds, False
        if self._calls_in_step > 1 and reference.negative_prompt_embeds is not None:
            text, pooled = reference.negative_prompt_embeds, reference.negative_pooled_prompt_embeds
            negative = True
        guidance = call.get("guidance")
        conditions = [call["timestep"][:1], *([] if guidance is None else [guidance[:1]])]
        if self._captured_for is not None and self._calls_in_step > 1:
            was_negative, was = self._captured_for
            if was_negative == negative and all(map(torch.equal, was, conditions)):
                return
        ids = call["img_ids"]
        own = {
            "hidden_states": reference.latents(sigma, step).to(hidden),
            "encoder_hidden_states": text.to(call["encoder_hidden_states"]),
            "pooled_projections": pooled.to(call["pooled_projections"]),
            "timestep": call["timestep"][:1],
            "guidance": None if guidance is None else guidance[:1],
            "img_ids": self._reference_ids(ids[0] if ids.ndim == 3 else ids),
            "txt_ids": torch.zeros(text.shape[1], ids.shape[-1]).to(ids),
            "joint_attention_kwargs": call.get("joint_attention_kwargs"),
        }
        lengths = self.text_length, self.image_length
        self.text_length, self.image_length = text.shape[1], len(own["img_ids"])
        self.anchors = {}
        self._run(own, "capture")
        self.text_length, self.image_length = lengths
        self._captured_for = (negative, [x.clone() for x in conditions])

    # ------------------------------------------------------------------------------------------------- recording

    def _record(self, call: dict, sigma) -> None:
        a = self.settings.anchor_index
        texts = {
            "prompt_embeds": call["encoder_hidden_states"],
            "pooled_prompt_embeds": call.get("pooled_projections"),
        }
        texts = {name: x[a : a + 1].clone() for name, x in texts.items() if x is not None}
        if self._calls_in_step == 1:
            if not self._records:
                ids = call["img_ids"]
                self._records = {"trajectory": [], "sigmas": []} | {name: [x] for name, x in texts.items()}
                self._grid = grid_size(ids[0] if ids.ndim == 3 else ids)
            self._records["trajectory"].append(call["hidden_states"][a : a + 1].clone())
            self._records["sigmas"].append(torch.as_tensor(sigma, dtype=torch.float32).cpu())
        elif self._calls_in_step == 2 and "negative_prompt_embeds" not in self._records:
            self._records |= {f"negative_{name}": [x] for name, x in texts.items()}

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
        if not self._records:
            raise ValueError("Nothing was recorded. Pass `record=True`, and call the transformer inside the block.")
        stacked = {name: torch.stack(self._records[name]) for name in ("trajectory", "sigmas")}
        single = {name: values[0] for name, values in self._records.items() if name not in stacked}
        return StyleReference(**{"pooled_prompt_embeds": None} | stacked | single, grid=self._grid, scaling=scaling)

    # -------------------------------------------------------------------------------------------- inside one layer

    def attention(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        rotate: Callable[[torch.Tensor, Any], torch.Tensor],
        rotary,
        attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """
        Attention of one layer, from queries and keys that are normed and not yet rotated.

        Args:
            layer (`int`): Global index.
            query, key, value (`torch.Tensor` of shape `(B, S, n, d)`): Text tokens first, then the image's.
            rotate (`Callable`): Rotates a tensor by a table.
            rotary: The call's own table.
            attend (`Callable`): Plain attention.

        Returns:
            `torch.Tensor` of shape `(B, S, n, d)`.
        """
        image = slice(self.text_length, self.text_length + self.image_length)
        if self.mode == "inject":
            return self._targets(self.anchors[layer], query, key, value, image, rotate, rotary, attend)
        a = 0 if self.mode == "capture" else self.settings.anchor_index
        q, k, v = (x[a : a + 1] for x in (query, key, value))
        anchor = Anchor(
            token_statistics(q[:, image]),
            token_statistics(k[:, image]),
            rotate(k[:, image], self.shifted),
            v[:, image],
        )
        q, k = rotate(q, rotary), rotate(k, rotary)
        alone = attend(q, k, v) if self.settings.isolate_anchor else self._shared(q, k, v, anchor, 1.0, attend)
        if self.mode == "capture":
            # Cloned, since the view would keep the text's and a fused projection's memory.
            self.anchors[layer] = Anchor(
                anchor.query_statistics, anchor.key_statistics, anchor.key, anchor.value.clone()
            )
            return alone
        if len(query) == 1:
            return alone
        q, k, v = (x[1:] if a == 0 else torch.cat([x[:a], x[a + 1 :]]) for x in (query, key, value))
        others = self._targets(anchor, q, k, v, image, rotate, rotary, attend)
        return torch.cat([others[:a], alone, others[a:]])

    def _targets(self, anchor: Anchor, query, key, value, image: slice, rotate, rotary, attend) -> torch.Tensor:
        if self.settings.adain:
            query = self._restyled(query, anchor.query_statistics, image)
            key = self._restyled(key, anchor.key_statistics, image)
        query, key = rotate(query, rotary), rotate(key, rotary)
        return self._shared(query, key, value, anchor, self.style_lambda, attend)

    @staticmethod
    def _shared(query, key, value, anchor: Anchor, style_lambda, attend) -> torch.Tensor:
        return shared_attention(query, key, value, anchor.key, anchor.value, style_lambda=style_lambda, attend=attend)

    @staticmethod
    def _restyled(x: torch.Tensor, statistics: tuple[torch.Tensor, torch.Tensor], image: slice) -> torch.Tensor:
        return torch.cat([x[:, : image.start], adain(x[:, image], *statistics), x[:, image.stop :]], dim=1)
