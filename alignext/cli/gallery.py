# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Contact sheets and galleries: one HTML page beside its PNGs, which opens from disk and needs no script."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


# Lies in every folder we write to, so that a second run knows the folder as ours.
_MARKER = ".alignext-output"

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #6b6b70; --paper: #fbfbf9; --line: #e2e2de; --box: #f1f1ee; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececea; --soft: #a0a0a4; --paper: #17171a; --line: #35353a; --box: #222226; }
}
body { margin: 0 auto; padding: 3rem 1.5rem 5rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; margin: 3.5rem 0 .5rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
p { max-width: 44rem; margin: .5rem 0; }
figure { margin: 1.5rem 0; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 6px; }
figcaption, caption { color: var(--soft); font-size: .9rem; text-align: left; padding: .4rem 0; max-width: 44rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1.5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1.5rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left; }
th.number, td.number { text-align: right; }
pre { background: var(--box); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; font-size: .9rem; }
"""


@dataclass(frozen=True)
class Figure:
    """A picture of the gallery.

    Args:
        name (`str`): Stem of its file, unique in the gallery.
        image (`PIL.Image.Image`): The picture.
        alt (`str`): What it shows, for those who cannot see it.
        caption (`str`, *optional*, defaults to `""`): The line below it.
    """

    name: str
    image: Image.Image
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """What was measured.

    Args:
        header (`Sequence[str]`): Names of the columns.
        rows (`Sequence[Sequence[str | int | float]]`): The cells; floats are shown with three decimals.
        caption (`str`, *optional*, defaults to `""`): How to read it.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """One part of the gallery, in the order shown: text, figures, tables, commands.

    Args:
        title (`str`): Its heading.
        text (`str`, *optional*, defaults to `""`): Plain text; an empty line starts a new paragraph.
        figures (`Sequence[Figure]`, *optional*, defaults to `()`): Its pictures.
        tables (`Sequence[Table]`, *optional*, defaults to `()`): What was measured.
        commands (`Sequence[str]`, *optional*, defaults to `()`): Shell lines that make this section again.
    """

    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    commands: Sequence[str] = ()


def claim_folder(folder: str | Path, *, overwrite: bool = False) -> Path:
    """Make the output folder ours before any work is done, so that nobody waits minutes for an error.

    A folder that is new, empty or written by an earlier run is taken as it is. Nothing in it is ever deleted: files
    are replaced by files of the same name only.

    Args:
        folder (`str` or `Path`): Where the output goes.
        overwrite (`bool`, *optional*, defaults to `False`): Take a folder with other files in it, too.

    Returns:
        `Path`: The folder, which exists now.

    Raises:
        ValueError: If the folder is a file, or holds files that are not ours and `overwrite` is off.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file. Name a folder.")
    is_ours = (folder / _MARKER).exists()
    if not (is_ours or overwrite) and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"--out {folder} holds files that alignext did not write. Name another folder, for example --out "
            f"{folder / 'alignext'}, or pass --overwrite: only files of the same name are replaced, none is deleted."
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
    return folder


def write_gallery(folder: str | Path, sections: Sequence[Section], *, title: str, intro: str = "") -> Path:
    """Write the figures as PNGs and `index.html` beside them.

    Each file is written whole or not at all, and the page comes last: a page that exists has its pictures.

    Args:
        folder (`str` or `Path`): The folder, see [`claim_folder`][alignext.cli.gallery.claim_folder].
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
        png = BytesIO()
        figure.image.save(png, format="PNG", optimize=True)
        _write(folder / f"{figure.name}.png", png.getvalue())
    page = folder / "index.html"
    _write(page, _page(sections, title, intro).encode())
    return page


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
        cell (`int`, *optional*, defaults to 160): Side of a cell in pixels. Pictures keep their aspect ratio.

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
    left = cell + gap if beside else 0
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
    """Scale to the cell, keeping the aspect ratio, transparent parts on white."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    scale = cell / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


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


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _page(sections: Sequence[Section], title: str, intro: str) -> str:
    body = "\n".join([f"<h1>{escape(title)}</h1>", *_paragraphs(intro), *(_section(section) for section in sections)])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>", *_paragraphs(section.text)]
    parts += [_figure(figure) for figure in section.figures]
    parts += [_table(table) for table in section.tables]
    if section.commands:
        commands = "\n".join(section.commands)
        parts.append(f"<p>Make it again:</p>\n<pre><code>{escape(commands)}</code></pre>")
    return "\n".join(parts)


def _paragraphs(text: str) -> list[str]:
    return [f"<p>{escape(' '.join(part.split()))}</p>" for part in text.split("\n\n") if part.strip()]


def _figure(figure: Figure) -> str:
    src, alt = escape(f"{figure.name}.png"), escape(figure.alt)
    caption = f"\n<figcaption>{escape(figure.caption)}</figcaption>" if figure.caption else ""
    width, height = figure.image.size
    return f'<figure>\n<img src="{src}" alt="{alt}" width="{width}" height="{height}">{caption}\n</figure>'


def _table(table: Table) -> str:
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    numeric = [all(isinstance(row[i], int | float) for row in table.rows) for i in range(len(table.header))]
    head = "".join(_cell("th", value, number) for value, number in zip(table.header, numeric, strict=True))
    rows = [
        "".join(_cell("td", value, number) for value, number in zip(row, numeric, strict=True)) for row in table.rows
    ]
    lines = "\n".join(f"<tr>{row}</tr>" for row in [head, *rows])
    return f'<div class="scroll"><table>{caption}\n{lines}\n</table></div>'


def _cell(tag: str, value: str | int | float, number: bool) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    kind = ' class="number"' if number else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"
