# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Masks, sizes and prompt lists as users pass them, brought to one form."""

import PIL.Image
import torch
from diffusers.image_processor import VaeImageProcessor

from alignext.diffusion.calls import number_of_prompts
from alignext.diffusion.pictures import as_masks


TEXTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")
EMBEDDINGS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


def binary_mask(mask, size: tuple[int, int], scale: int) -> torch.Tensor:
    """Mask(s) of any kind to (n, 1, height, width) of zeros and ones, turned, cropped and resized like the picture."""
    processor = VaeImageProcessor(
        vae_scale_factor=scale, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )
    masks = as_masks(mask)
    if not masks:
        raise ValueError("`mask_image` must hold at least one mask, received none.")
    return torch.cat([processor.preprocess(one, *size, resize_mode="crop") for one in masks])


def to_repaint(mask, size: tuple[int, int], scale: int, rows: int) -> torch.Tensor:
    """Mask(s), white = repaint, to (rows, 1, h, w) bool at latent resolution, cropped and resized like the picture."""
    mask = binary_mask(mask, size, scale)
    repaint = torch.nn.functional.interpolate(mask.float(), size=[side // scale for side in size]) > 0.5
    cells = repaint.flatten(1).sum(1)
    if cells.min() < 2:
        raise ValueError(
            f"`mask_image` repaints {cells.min().item()} latent cells of {scale}x{scale} pixels; 2 are needed. "
            "White is repainted: enlarge the white area, or invert the mask if it marks what to keep."
        )
    if rows % len(repaint):
        raise ValueError(f"`mask_image` has {len(repaint)} masks for {rows} images. Pass one mask, or one per image.")
    return repaint.repeat_interleave(rows // len(repaint), dim=0)


def match_prompts(call: dict, references: int) -> None:
    """Repeat the prompts of `call` in place until there are as many as references, prompt-major."""
    prompts = number_of_prompts(call)
    if not prompts:
        raise ValueError("`prompt` must hold at least one text, received none.")
    if max(prompts, references) % min(prompts, references):
        raise ValueError(
            f"{prompts} prompts and {references} reference pictures do not divide each other. Pass one of either, as "
            "many of both, or a multiple."
        )
    if prompts >= references:
        return
    copies = references // prompts
    for name in TEXTS:
        if isinstance(call.get(name), list):
            call[name] = [text for text in call[name] for _ in range(copies)]
        elif isinstance(call.get(name), str):  # stock calls want all of them as lists, or none
            call[name] = [call[name]] * references
    for name in EMBEDDINGS:
        if call.get(name) is not None:
            call[name] = call[name].repeat_interleave(copies, dim=0)


def own_prompts(call: dict, references: int) -> dict:
    """The prompts of `call`, one per reference: what the reference shows when its prompt is "the same as `prompt`"."""
    per_reference = number_of_prompts(call) // references
    own = {}
    for name in ("prompt", "prompt_2", "prompt_embeds", "pooled_prompt_embeds"):
        value = call.get(name)
        if value is None:
            continue
        if isinstance(value, str):
            own[name] = value
            continue
        first = value[::per_reference]
        for i, reference in enumerate(first):
            for other in value[i * per_reference : (i + 1) * per_reference]:
                if not (torch.equal(other, reference) if isinstance(other, torch.Tensor) else other == reference):
                    raise ValueError(
                        "Several different prompts share one reference picture, so `reference_prompt` cannot default "
                        'to `prompt`. Pass `reference_prompt` (what the picture shows, or "").'
                    )
        own[name] = first
    return own


def control_size(processor: VaeImageProcessor, control) -> tuple[int, int]:
    """Height and width of a ControlNet picture, or the first of a list of them, as the stock pipeline reads them."""
    while isinstance(control, (list, tuple)):
        control = control[0]
    if not isinstance(control, PIL.Image.Image) and control.ndim == 3:
        control = control[None]
    return processor.get_default_height_width(control)
