# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Contact sheets: pictures on a labelled grid."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from alignext.diffusion.pictures import to_pil


def contact_sheet(
    rows: Sequence[Sequence[Image.Image | None]],
    *,
    row_labels: Sequence[str] = (),
    col_labels: Sequence[str] = (),
    cell: int = 160,
) -> Image.Image:
    """Lay pictures out on a labelled grid.

    Args:
        rows (`Sequence[Sequence[PIL.Image.Image | None]]`):
            The pictures, row by row. `None` leaves a cell empty, and a row may be shorter than others.
        row_labels (`Sequence[str]`, *optional*, defaults to `()`): One label per row, on its left.
        col_labels (`Sequence[str]`, *optional*, defaults to `()`): One label per column, above it.
        cell (`int`, *optional*, defaults to 160): Side of a cell in pixels. Pictures keep their aspect ratio; they are
            turned as their EXIF says, and transparent parts are white.

    Returns:
        `PIL.Image.Image`: The sheet, RGB on white.

    Raises:
        ValueError: If there is no picture, or the labels do not match the grid.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("contact_sheet needs at least one picture.")
    for name, labels, count in (("row_labels", row_labels, len(rows)), ("col_labels", col_labels, columns)):
        if labels and len(labels) != count:
            raise ValueError(f"{name} has {len(labels)} labels for {count} rows or columns: give one each, or none.")

    gap = max(4, cell // 20)
    font = ImageFont.load_default(size=max(12, cell // 11))
    line = _line_height(font)
    above = [_wrap(label, font, cell) for label in col_labels]
    beside = [_wrap(label, font, cell) for label in row_labels]
    left = max((math.ceil(font.getlength(label)) for lines in beside for label in lines), default=-gap) + gap
    top = max((len(lines) for lines in above), default=0) * line + (gap if above else 0)
    size = (left + columns * (cell + gap) + gap, top + len(rows) * (cell + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(above):
        x = left + gap + column * (cell + gap)
        draw.multiline_text((x, gap), "\n".join(lines), fill="#333333", font=font, spacing=4)
    for index, row in enumerate(rows):
        y = top + gap + index * (cell + gap)
        if beside:
            draw.multiline_text((gap, y), "\n".join(beside[index]), fill="#333333", font=font, spacing=4)
        for column, image in enumerate(row):
            if image is not None:
                fitted = _fit(image, cell)
                x = left + gap + column * (cell + gap)
                sheet.paste(fitted, (x + (cell - fitted.width) // 2, y + (cell - fitted.height) // 2))
    return sheet


def _fit(image: Image.Image, cell: int) -> Image.Image:
    """Scale to the cell, keeping the aspect ratio."""
    image = to_pil(image)
    scale = cell / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break at spaces so that each line fits the width; a word that is too long stays whole."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _line_height(font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> int:
    """Pixels that one line of text takes, with a letter that goes below the line."""
    return round(font.getbbox("Ég")[3]) + 2


def heat_overlay(picture: Image.Image, heat: torch.Tensor) -> Image.Image:
    """
    A picture in grey with what a map lights up in colour.

    Args:
        picture (`PIL.Image.Image`): Of size `W x H`.
        heat (`torch.Tensor` of shape `(H, W)`): In [0, 1].
    """
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32) * 0.5 + 127.5
    value = heat.float().cpu().numpy()[..., None]
    return Image.fromarray((grey * (1 - 0.8 * value) + np.array(_COLOURS[0]) * 0.8 * value).astype(np.uint8))


def label_overlay(picture: Image.Image, labels: torch.Tensor, names: Sequence[str]) -> Image.Image:
    """
    A picture with each class in a colour, and their names below it.

    Args:
        picture (`PIL.Image.Image`): Of size `W x H`.
        labels (`torch.Tensor` of shape `(H, W)`): 0 for what stays as it is, then the classes from 1.
        names (`Sequence[str]`): Of the classes.
    """
    colours = np.array([_COLOURS[k % len(_COLOURS)] for k in range(len(names))], dtype=np.float32)
    pixels, of = np.asarray(picture.convert("RGB"), dtype=np.float32), labels.cpu().numpy()
    mixed = np.where((of > 0)[..., None], 0.4 * pixels + 0.6 * colours[np.clip(of - 1, 0, None)], pixels)
    laid = Image.fromarray(mixed.astype(np.uint8))
    scale = max(1, -(-320 // laid.width))
    laid = laid.resize((laid.width * scale, laid.height * scale), Image.Resampling.NEAREST)
    font = ImageFont.load_default(size=16)
    line = _line_height(font) + 4
    sheet = Image.new("RGB", (laid.width, laid.height + line * len(names) + 8), "white")
    sheet.paste(laid)
    draw = ImageDraw.Draw(sheet)
    for k, name in enumerate(names):
        y = laid.height + 4 + k * line
        draw.rectangle((4, y + 3, 16, y + 15), fill=tuple(int(c) for c in colours[k]))
        draw.text((24, y), name, fill="#333333", font=font)
    return sheet


# Told apart by most who do not see all colours (Okabe and Ito), the yellow and the black left out.
_COLOURS = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0))
