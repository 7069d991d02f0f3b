# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Pictures and masks as users pass them, brought to one form."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch


_CHANNELS = (1, 3, 4)


def as_list(pictures: Any) -> list:
    """One picture, a list of them, or a batched tensor or array, as a list of single pictures."""
    if isinstance(pictures, (list, tuple)):
        return list(pictures)
    if isinstance(pictures, (torch.Tensor, np.ndarray)) and pictures.ndim == 4:
        return list(pictures)
    return [pictures]


def to_pil(picture: Any) -> PIL.Image.Image:
    """
    Any picture as an upright RGB image of 8 bits; transparent areas are laid on white.

    Args:
        picture: A PIL image of any mode; a file as a path, as bytes, or as the dictionary in which `datasets` has
            it; an array `(H, W)` or `(H, W, 1 | 3 | 4)`; or a tensor `(H, W)` or `(1 | 3 | 4, H, W)`. Values are bool,
            uint8, uint16, or numbers in [0, 1].

    Returns:
        `PIL.Image.Image`: Of mode `"RGB"`.

    Raises:
        ValueError: If it is none of these, cannot be read, or has values out of range. The message names the file.
    """
    return _laid_on(_upright(picture), "white").convert("RGB")


def to_mask(mask: Any) -> PIL.Image.Image:
    """
    A mask of any kind that [`to_pil`] takes as an upright grey image; white is what it marks. Transparent areas are
    not marked, whatever colour lies under them. Integers that are 0 and 1 alone count as False and True.

    Returns:
        `PIL.Image.Image`: Of mode `"L"`.

    Raises:
        ValueError: As [`to_pil`].
    """
    if isinstance(mask, (torch.Tensor, np.ndarray)) and mask.dtype in (torch.uint8, np.uint8) and 0 < mask.max() <= 1:
        mask = mask > 0
    return _laid_on(_upright(mask), "black").convert("L")


def as_masks(masks: Any) -> list[PIL.Image.Image]:
    """One mask, a list of them, or a batched tensor `(n, H, W)` or `(n, 1, H, W)` or array, each as [`to_mask`]."""
    if isinstance(masks, (torch.Tensor, np.ndarray)) and masks.ndim == 3:
        last = isinstance(masks, np.ndarray) and masks.shape[2] in (1, 3, 4)
        return [to_mask(mask) for mask in ([masks] if last else masks)]
    return [to_mask(mask) for mask in as_list(masks)]


def _laid_on(picture: PIL.Image.Image, ground: str) -> PIL.Image.Image:
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    return PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, ground), picture)


def _upright(picture: Any) -> PIL.Image.Image:
    """The picture as a loaded image of 8 bits, with whatever transparency it has, turned as its EXIF says."""
    if isinstance(picture, torch.Tensor) and (picture.ndim == 2 or (picture.ndim == 3 and len(picture) in _CHANNELS)):
        picture = picture.detach().cpu()
        picture = (picture.float() if picture.is_floating_point() else picture).numpy()
        picture = picture.transpose(1, 2, 0) if picture.ndim == 3 else picture
    if isinstance(picture, np.ndarray) and (
        picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in _CHANNELS)
    ):
        array = _eight_bits(picture)
        return PIL.Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2:] == (1,) else array))
    if not isinstance(picture, (PIL.Image.Image, str, Path, bytes, bytearray, dict)):
        shape = f" of shape {tuple(picture.shape)}" if hasattr(picture, "shape") else ""
        raise ValueError(
            "A picture must be a PIL image, a file, an array (H, W, 3), or a tensor (3, H, W) or (B, 3, H, W), "
            f"received {type(picture).__name__}{shape}."
        )
    opened = None
    try:
        opened = _opened(picture)
        opened.load()
        image = PIL.ImageOps.exif_transpose(opened)
        if image.mode in ("La", "LAB"):
            raise ValueError(f"its mode is {image.mode}, which Pillow does not convert. Save it as RGB")
    except PIL.Image.DecompressionBombError as error:
        fix = "Make it smaller, or raise `PIL.Image.MAX_IMAGE_PIXELS`."
        raise ValueError(f"The picture{_name(picture)} is too large: {error} {fix}") from error
    except Exception as error:  # PIL has no common class of errors
        raise ValueError(f"The picture{_name(picture)} cannot be read: {error}.") from error
    finally:
        if opened is not None and opened is not picture:
            opened.close()
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image)
    if image.mode == "I" and values.min() >= 0:  # 16 bits of a PNG come like this from some versions of Pillow
        deep = opened.format == "PNG" or 255 < values.max() <= 65535
        values = values.astype(np.uint16 if deep else np.uint8) if values.max() <= 65535 else values
    grey = PIL.Image.fromarray(_eight_bits(values))
    if "transparency" in image.info:  # of the one value that it names
        grey.putalpha(PIL.Image.fromarray(_eight_bits(values != image.info["transparency"])))
    return grey


def _opened(picture: Any) -> PIL.Image.Image:
    if isinstance(picture, dict):  # as `datasets` keeps a file
        picture = picture.get("path") if picture.get("bytes") is None else picture["bytes"]
    if isinstance(picture, (bytes, bytearray)):
        return PIL.Image.open(io.BytesIO(picture))
    if isinstance(picture, str) and "://" in picture:  # where `datasets` streams one from
        import datasets

        return datasets.Image().decode_example({"bytes": None, "path": picture})
    if picture is None:
        raise ValueError("there is neither a path nor bytes")
    return picture if isinstance(picture, PIL.Image.Image) else PIL.Image.open(picture)


def _name(picture: Any) -> str:
    """The file of a picture in an error, where it is known."""
    if isinstance(picture, dict):
        picture = picture.get("path")
    name = picture if isinstance(picture, (str, Path)) else getattr(picture, "filename", None)
    return f" {name}" if name else ""


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """uint8 of booleans, of 8 and 16 bits, and of numbers in [0, 1]."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return (values / 257).round().astype(np.uint8)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        kind = "Float pictures" if values.dtype.kind == "f" else f"Pictures of {values.dtype}"
        raise ValueError(
            f"{kind} must lie in [0, 1], received values in [{values.min()}, {values.max()}]. Divide 0..255 pictures "
            "by 255, or pass them as uint8; of -1..1 pictures `x` pass `x / 2 + 0.5`."
        )
    return (values * 255).round().astype(np.uint8)
