# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Galleries: one HTML page beside its pictures, which opens from disk and needs no script."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from alignext.demos.charts import COLORS, Chart, draw
from alignext.files import check_output, replacing


# Lies in every folder we write to, so that a second run knows the folder as ours.
_MARKER = ".alignext-output"
_FRAME = 125  # milliseconds of a video's frame


@dataclass(frozen=True)
class Figure:
    """A picture of the gallery, or a video.

    Args:
        name (`str`): Stem of its file, unique in the gallery.
        image (`PIL.Image.Image` or `Sequence[PIL.Image.Image]`):
            The picture, written as PNG, or the frames of a video, written as GIF.
        alt (`str`): What it shows, for those who cannot see it.
        caption (`str`, *optional*, defaults to `""`): The line below it.
        settings (`dict[str, Any]`, *optional*): How it was made, kept in the PNG as text under `alignext`.
    """

    name: str
    image: Image.Image | Sequence[Image.Image]
    alt: str
    caption: str = ""
    settings: dict[str, Any] | None = None

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.name}.{'png' if isinstance(self.image, Image.Image) else 'gif'}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return (self.image if isinstance(self.image, Image.Image) else self.image[0]).size


@dataclass(frozen=True)
class Table:
    """What was measured.

    Args:
        header (`Sequence[str]`): Names of the columns.
        rows (`Sequence[Sequence[str | int | float]]`): The cells; floats are shown with three decimals.
        caption (`str`, *optional*, defaults to `""`): How to read it.
        verdict (`str`, *optional*, defaults to `""`): What it shows, in a sentence below it.
        mark (`str`, *optional*, defaults to `""`): A regular expression of words that are marked in texts.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]
    caption: str = ""
    verdict: str = ""
    mark: str = ""

    def __post_init__(self) -> None:
        if wrong := [row for row in self.rows if len(row) != len(self.header)]:
            raise ValueError(f"`rows` must have {len(self.header)} cells each, as `header` has, received {wrong[0]}.")

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers only."""
        return [all(isinstance(row[i], int | float) for row in self.rows) for i in range(len(self.header))]


@dataclass(frozen=True)
class Section:
    """One part of the gallery, in the order shown: text, figures, charts, tables, commands.

    Args:
        title (`str`): Its heading.
        text (`str`, *optional*, defaults to `""`): Plain text; an empty line starts a new paragraph.
        figures (`Sequence[Figure]`, *optional*, defaults to `()`): Its pictures.
        charts (`Sequence[Chart]`, *optional*, defaults to `()`): Its plots.
        tables (`Sequence[Table]`, *optional*, defaults to `()`): What was measured.
        passages (`Sequence[str]`, *optional*, defaults to `()`): Texts that are HTML already.
        commands (`Sequence[str]`, *optional*, defaults to `()`): Shell lines that make this section again.
    """

    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    passages: Sequence[str] = ()
    commands: Sequence[str] = ()


def claim_folder(folder: str | Path, *, overwrite: bool = False, again: bool = False) -> Path:
    """Make the output folder ours before any work is done, so that nobody waits minutes for an error.

    A folder that is new or empty is taken as it is. Where an earlier run has written, the results go beside it, into
    `folder-2`, `folder-3` and so on: two runs are never mixed. Nothing is ever deleted.

    Args:
        folder (`str` or `Path`): Where the output goes.
        overwrite (`bool`, *optional*, defaults to `False`):
            Take a folder with other files in it, too. Files of the same name are replaced.
        again (`bool`, *optional*, defaults to `False`): Take a folder of an earlier run, whose files have fixed names.

    Returns:
        `Path`: The folder, which exists now.

    Raises:
        ValueError: If the folder is a file, or holds files that are not ours and `overwrite` is off.
        OSError: If it cannot be written to.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file. Name a folder.")
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if held and _MARKER not in held and not overwrite:
        raise ValueError(
            f"--out {folder} holds files that alignext did not write. Name another folder, for example --out "
            f"{folder / 'alignext'}, or pass --overwrite: only files of the same name are replaced, none is deleted."
        )
    if held - {_MARKER} and not (overwrite or again):
        whole = folder.resolve()  # "." has no name, and that of ".." is not its own
        taken = (whole.with_name(f"{whole.name}-{k}") for k in count(2))
        folder = next(path for path in taken if not path.exists())
    check_output(folder, name="--out")
    (folder / _MARKER).touch()
    return folder


def write_gallery(folder: str | Path, sections: Sequence[Section], *, title: str, intro: str = "") -> Path:
    """Write the figures as files and `index.html` beside them.

    Several sections get a table of contents. Each file is written whole or not at all, and the page comes last: a
    page that exists has its pictures.

    Args:
        folder (`str` or `Path`): The folder, see [`claim_folder`][alignext.demos.gallery.claim_folder].
        sections (`Sequence[Section]`): The parts, in order.
        title (`str`): Title of the page.
        intro (`str`, *optional*, defaults to `""`): Plain text below the title.

    Returns:
        `Path`: The page.

    Raises:
        ValueError: If two figures have the same name.
    """
    folder = Path(folder)
    figures = [figure for section in sections for figure in section.figures]
    names = [figure.name for figure in figures]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Figure names must be unique in a gallery, got {', '.join(twice)} more than once.")
    for figure in figures:
        with replacing(folder / figure.file) as file:
            file.write_bytes(_encode(figure))
    page = folder / "index.html"
    with replacing(page) as file:
        file.write_text(_page(sections, title, intro), encoding="utf-8")
    return page


def print_table(table: Table) -> None:
    """Print what was measured, in columns, numbers to the right, and what it shows. Numbers alone say nothing."""
    if not table.verdict:
        raise ValueError("`table.verdict` must say what was measured, received none.")
    lines = [[_text(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = table.numeric
    shown = []
    for line in lines:
        cells = zip(line, widths, numeric, strict=True)
        shown.append(
            "  ".join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number in cells).rstrip()
        )
    # In one go: another process may print, too.
    print("\n".join(["", *shown, "", table.verdict, ""]), flush=True)


def _encode(figure: Figure) -> bytes:
    """A PNG of a picture, a GIF that runs for ever of several."""
    file, image = BytesIO(), figure.image
    if isinstance(image, Image.Image):
        text = PngInfo()
        if figure.settings:
            text.add_itxt("alignext", json.dumps(figure.settings, ensure_ascii=False))
        image.save(file, format="PNG", optimize=True, pnginfo=text)
    else:
        image[0].save(file, format="GIF", save_all=True, append_images=image[1:], duration=_FRAME, loop=0)
    return file.getvalue()


def middle_frame(image: Any) -> Image.Image:
    """A picture, or the middle frame of a video, from a tensor in [0, 1]."""
    frame = image if image.ndim == 3 else image[len(image) // 2]
    if frame.shape[0] != 3:  # a reward of latents
        frame = frame[:1].expand(3, -1, -1).sigmoid()
    return Image.fromarray((frame.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def _page(sections: Sequence[Section], title: str, intro: str) -> str:
    page = Environment(loader=PackageLoader("alignext.demos", ""), autoescape=True, undefined=StrictUndefined)
    page.filters |= {"quoted": quote, "shown": _text, "drawn": lambda chart: Markup(draw(chart)), "slug": _slug}
    page.filters["marked"] = _marked
    words = {"sections": sections, "title": title, "intro": intro, "colors": COLORS}
    return page.get_template("gallery.html").render(words)


def _slug(title: str) -> str:
    return re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")


def _marked(value: str | int | float, pattern: str) -> Markup:
    """The text of a cell, what the pattern finds in it marked."""
    text = _text(value)
    if not pattern or not isinstance(value, str):
        return escape(text)
    parts, at = [], 0
    for found in re.finditer(pattern, text):
        parts += [escape(text[at : found.start()]), Markup("<mark>{}</mark>").format(found[0])]
        at = found.end()
    return Markup("").join([*parts, escape(text[at:])])


def _text(value: str | int | float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
