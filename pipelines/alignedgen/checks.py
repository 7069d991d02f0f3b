# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The settings of shared attention, and what it refuses at the door."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from alignext.functional.alignedgen import sigma_squared
from alignext.pipelines.alignedgen.style import StyleReference


@dataclass(frozen=True)
class Settings:
    """The levers of one `aligned_attention` block, checked. The pipelines' call says what they mean."""

    style_lambda: float = 1.1
    lambda_schedule: str | Callable[[float], float] = "constant"
    share_blocks: str | tuple[int, int] = "single"
    share_start: float = 0.0
    share_end: float = 1.0
    adain: bool = True
    shift: str | tuple[float, ...] = "width"
    isolate_anchor: bool = True
    anchor_index: int = 0
    target_batch_size: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.style_lambda) and self.style_lambda >= 0):
            raise ValueError(f"`style_lambda` must be finite and not negative, received {self.style_lambda}.")
        if not callable(self.lambda_schedule) and self.lambda_schedule not in ("constant", "sigma_squared"):
            raise ValueError(
                "`lambda_schedule` must be 'constant', 'sigma_squared' or a function of sigma, received "
                f"{self.lambda_schedule!r}."
            )
        if not 0 <= self.share_start <= self.share_end <= 1:
            raise ValueError(
                "`share_start` and `share_end` must satisfy 0 <= share_start <= share_end <= 1, received "
                f"{self.share_start} and {self.share_end}."
            )
        if isinstance(self.shift, str) and self.shift not in ("width", "height", "none"):
            raise ValueError(
                f"`shift` must be 'width', 'height', 'none' or one number per position axis, received {self.shift!r}."
            )
        if self.anchor_index < 0:
            raise ValueError(f"`anchor_index` must be a row of the batch, 0 or more, received {self.anchor_index}.")
        if self.target_batch_size is not None and self.target_batch_size < 1:
            raise ValueError(f"`target_batch_size` must be None or at least 1, received {self.target_batch_size}.")

    @property
    def off(self) -> bool:
        """Whether no step shares."""
        return self.share_start == self.share_end

    def active(self, step: int, steps: int | None) -> bool:
        """Whether this step of so many shares."""
        if self.off:
            return False
        if steps is None:
            if (self.share_start, self.share_end) == (0, 1):
                return True
            raise ValueError(
                f"`share_start={self.share_start}` and `share_end={self.share_end}` need `num_inference_steps` or a "
                "`scheduler`. Pass one of them to `aligned_attention`."
            )
        return self.share_start <= step / steps < self.share_end

    def lambda_at(self, sigma: float | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """`lambda` at a noise level, as a tensor on the device of `like`: compiled code sees no new constant."""
        value, schedule = self.style_lambda, self.lambda_schedule
        if not isinstance(schedule, str):
            value = schedule(float(sigma))
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"`lambda_schedule` must give a finite number, 0 or more, received {value} at sigma "
                    f"{float(sigma)}."
                )
        elif schedule == "sigma_squared":
            value = sigma_squared(sigma)
        return torch.as_tensor(value, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)

    def offset(self, grid: tuple[int, int], axes: int) -> tuple[float, ...]:
        """What is added to the anchor's positions when the targets are `grid` = (h, w) tokens large."""
        if not isinstance(self.shift, str):
            if len(self.shift) != axes:
                raise ValueError(f"`shift` must have {axes} numbers, one per position axis, received {self.shift}.")
            return tuple(self.shift)
        h, w = grid
        row, column = {"width": (0, w), "height": (h, 0), "none": (0, 0)}[self.shift]
        return (0, row, column, *(0,) * (axes - 3))


def layer_range(transformer, blocks: str | tuple[int, int]) -> range:
    """Global indices of the layers that share; double-stream layers come first."""
    double = len(transformer.transformer_blocks)
    total = double + len(getattr(transformer, "single_transformer_blocks", ()))
    if isinstance(blocks, str):
        named = {"single": (double, total), "double": (0, double), "all": (0, total)}
        if blocks not in named:
            raise ValueError(f"`share_blocks` must be one of {list(named)} or (lo, hi), received {blocks!r}.")
        lo, hi = named[blocks]
    elif len(blocks) == 2:
        lo, hi = blocks
    else:
        raise ValueError(f"`share_blocks` must have two numbers, (lo, hi), received {blocks!r}.")
    if not 0 <= lo < hi <= total:
        raise ValueError(
            f"`share_blocks={blocks!r}` selects no layer, or layers that are not there: the transformer has {double} "
            f"double-stream layers, from 0, and {total - double} single-stream layers, from {double}. To switch "
            "sharing off use `share_end=0`."
        )
    return range(lo, hi)


def check_transformer(transformer, processors: dict, settings: Settings, reference: StyleReference | None) -> None:
    """Refuse a model in a state that sharing cannot be put on."""
    installed = transformer.attn_processors.values()
    foreign = sorted({type(p).__name__ for p in installed if type(p) not in processors})
    if any("IPAdapter" in name for name in foreign):
        raise ValueError(
            f"The transformer has an IP-Adapter (`{foreign[0]}`), which sharing does not go with. Call "
            "`unload_ip_adapter()`; `style_image` takes its place."
        )
    if foreign:
        stock = sorted(p.__name__ for p in processors)
        raise ValueError(
            f"The transformer has processors {foreign}, which sharing would replace. Use it with the stock {stock}, "
            "and one `aligned_attention` block at a time."
        )
    if any(p._parallel_config is not None for p in installed):
        raise ValueError(
            "The transformer is split over devices by context parallelism (`_parallel_config` is set), but sharing "
            "needs all tokens of a layer. Switch it off."
        )
    if transformer.is_cache_enabled and (settings.target_batch_size is not None or reference is not None):
        given = "`style_reference`" if reference is not None else "`target_batch_size`"
        cache = type(transformer._cache_config).__name__
        raise ValueError(
            f"{given} calls the transformer several times per step, which its cache ({cache}) does not allow. Call "
            "`transformer.disable_cache()`."
        )


def check_reference(transformer, reference: StyleReference) -> None:
    """Refuse a style of another model."""
    config = transformer.config
    if reference.num_channels != config.in_channels:
        raise ValueError(
            f"`style_reference` has {reference.num_channels} channels, the transformer takes {config.in_channels}. "
            "Make it with this model."
        )
    widths = {
        "prompt_embeds": config.joint_attention_dim,
        "pooled_prompt_embeds": config.get("pooled_projection_dim"),  # FLUX.1 only
    }
    for name, wanted in widths.items():
        text = getattr(reference, name)
        found = None if text is None else text.shape[-1]
        if found != wanted:
            raise ValueError(
                f"`style_reference.{name}` has {found} channels, the transformer takes {wanted}. Make it with this "
                "model."
            )


def check_schedule(reference: StyleReference, sigmas: torch.Tensor) -> None:
    """Refuse a recorded style whose noise levels are not those of the loop."""
    recorded = reference.sigmas
    if recorded is None:
        return
    if len(recorded) != len(sigmas):
        raise ValueError(
            f"`style_reference` was recorded with {len(recorded)} steps, received {len(sigmas)} steps. Use as many, "
            "or a style made by `encode_style`, which goes with any number."
        )
    difference = (recorded.to(sigmas) - sigmas).abs().max().item()
    if difference > 1e-4:
        raise ValueError(
            f"`style_reference` was recorded at other noise levels than those of this loop, up to {difference:.4f} "
            "apart: they depend on the size of the images and on the scheduler. Use the ones of the recording, or a "
            "style made by `encode_style`, which goes with any."
        )


def count_images(call: dict) -> int:
    """How many images a stock call makes."""
    prompt, embeds = call.get("prompt"), call.get("prompt_embeds")
    prompts = len(prompt) if isinstance(prompt, list) else len(embeds) if prompt is None and embeds is not None else 1
    return prompts * (call.get("num_images_per_prompt") or 1)


def check_call(
    pipe, call: dict, reference, style_image, style_prompt: str | None, anchor_index: int, record: bool, off: bool
) -> None:
    """Refuse arguments that do not belong together, before anything is computed."""
    if reference is not None and style_image is not None:
        raise ValueError("Pass either `style_reference` or `style_image`, received both.")
    if style_prompt is not None and style_image is None:
        raise ValueError(
            f"`style_prompt` {style_prompt!r} describes `style_image`, which was not passed. A `style_reference` "
            "carries its own text; put the style of generated images into their prompts."
        )
    if reference is not None and not isinstance(reference, StyleReference):
        raise ValueError(
            f"`style_reference` must be a `StyleReference`, received {type(reference).__name__}. For a picture use "
            "`style_image`, for a file `StyleReference.load(path)`."
        )
    images, external = count_images(call), reference is not None or style_image is not None
    if images < 2 and not (external or record or off):
        raise ValueError(
            f"Sharing a style needs at least 2 images or a style reference, received {images} image. Pass more "
            "prompts, `num_images_per_prompt`, `style_image` or `style_reference`."
        )
    if record and external:
        raise ValueError(
            "`record_style=True` records the anchor, but with `style_reference` or `style_image` there is none. "
            "Keep the style you have."
        )
    if not external and not 0 <= anchor_index < images:
        raise ValueError(f"`anchor_index` must be in 0..{images - 1} for {images} images, received {anchor_index}.")
    here = None if pipe.vae is None else pipe._scaling()
    if reference is not None and reference.scaling is not None and here is not None:
        if any(abs(a - b) > 1e-6 for a, b in zip(reference.scaling, here, strict=True)):
            raise ValueError(
                f"`style_reference` comes from a VAE with shift and scaling factor {reference.scaling}, this one has "
                f"{here}. Make it with this pipeline."
            )
