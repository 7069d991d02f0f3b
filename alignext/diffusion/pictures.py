# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Pictures as users pass them, brought to one form."""

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch


def as_list(pictures) -> list:
    """One picture, a list of them, or a batched tensor or array, as a list of single pictures."""
    if isinstance(pictures, (list, tuple)):
        return list(pictures)
    if isinstance(pictures, (torch.Tensor, np.ndarray)) and pictures.ndim == 4:
        return list(pictures)
    return [pictures]


def to_pil(picture) -> PIL.Image.Image:
    """Any picture as an upright RGB image; transparent areas are laid on white."""
    if isinstance(picture, torch.Tensor) and picture.ndim == 3 and picture.shape[0] in (1, 3):
        picture = picture.detach().float().permute(1, 2, 0).cpu().numpy()
    if isinstance(picture, np.ndarray) and (
        picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (1, 3, 4))
    ):
        if picture.dtype != np.uint8:
            if not np.isfinite(picture).all() or picture.min() < 0 or picture.max() > 1:
                raise ValueError(
                    f"Float pictures must lie in [0, 1], received values in [{picture.min()}, {picture.max()}]. "
                    "Divide 0..255 pictures by 255, or pass them as uint8."
                )
            picture = (picture * 255).round().astype(np.uint8)
        picture = PIL.Image.fromarray(picture.squeeze(2) if picture.shape[2:] == (1,) else picture)
    if not isinstance(picture, PIL.Image.Image):
        shape = f" of shape {tuple(picture.shape)}" if hasattr(picture, "shape") else ""
        raise ValueError(
            "A picture must be a PIL image, an array (H, W, 3), or a tensor (3, H, W) or (B, 3, H, W), received "
            f"{type(picture).__name__}{shape}."
        )
    picture = PIL.ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")
