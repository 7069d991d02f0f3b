# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Contact sheets and galleries: one HTML page beside its pictures, which opens from disk and needs no script."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from alignext.cli.charts import Chart, draw
from alignext.files import check_output, replacing


# Lies in every folder we write to, so that a second run knows the folder as ours.
_MARKER = ".alignext-output"
_FRAME = 125  # milliseconds of a video's frame

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #5f5f65; --paper: #fbfbf9; --line: #e2e2de; --box: #f1f1ee;
  --c0: #0b62c4; --c1: #c2500a; --c2: #2a7a3a; --c3: #8a3ab9; --c4: #7d6b00; --c5: #b3245c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececea; --soft: #a8a8ad; --paper: #17171a; --line: #35353a; --box: #222226;
    --c0: #6db3ff; --c1: #ff9f5a; --c2: #6fd08a; --c3: #cf9bf5; --c4: #d9c34a; --c5: #ff8fb6; }
}
body { margin: 0 auto; padding: clamp(1.5rem, 6vw, 3rem) 1.5rem 5rem; max-width: 62rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, sans-serif; overflow-wrap: break-word; }
a { color: var(--c0); }
h1 { font-size: clamp(1.5rem, 6vw, 2rem); line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 0 0 .5rem; }
section { margin-top: 3rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
nav ul { columns: 2 20rem; padding-left: 1.2rem; margin: 1.5rem 0 0; }
p { max-width: 44rem; margin: .5rem 0; }
.figures { display: flex; flex-wrap: wrap; gap: 0 1.5rem; }
figure { margin: 1.2rem 0 .3rem; max-width: 100%; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 6px; }
figcaption { color: var(--soft); font-size: .9rem; text-align: left; padding: .4rem 0; max-width: 44rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 0 2rem; }
.chart svg { display: block; width: 100%; height: auto; margin-top: .4rem; overflow: visible; }
.chart text { font-size: 13px; fill: var(--soft); }
.chart .grid { stroke: var(--line); }
.chart polyline { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
.chart circle { fill: currentColor; }
.keys { display: flex; flex-wrap: wrap; gap: 0 1.2rem; font-size: .9rem; }
.key::before { content: ""; display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em;
  background: currentColor; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.c3 { color: var(--c3); } .c4 { color: var(--c4); } .c5 { color: var(--c5); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; line-height: 1.45; }
th, td { padding: .4rem 1.5rem .4rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th.number, td.number { text-align: right; }
td.long { min-width: 16rem; }
pre { background: var(--box); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; font-size: .9rem; }
"""


@dataclass(frozen=True)
class Figure:
    """A picture of the gallery, or a video.

    Args:
        name (`str`): Stem of its file, unique in the gallery.
        image (`PIL.Image.Image` or `Sequence[PIL.Image.Image]`):
            The picture, written as PNG, or the frames of a video, written as GIF.
        alt (`str`): What it shows, for those who cannot see it.
        caption (`str`, *optional*, defaults to `""`): The line below it.
    """

    name: str
    image: Image.Image | Sequence[Image.Image]
    alt: str
    caption: str = ""

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.name}.{'png' if isinstance(self.image, Image.Image) else 'gif'}"


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
    """One part of the gallery, in the order shown: text, figures, charts, tables, commands.

    Args:
        title (`str`): Its heading.
        text (`str`, *optional*, defaults to `""`): Plain text; an empty line starts a new paragraph.
        figures (`Sequence[Figure]`, *optional*, defaults to `()`): Its pictures.
        charts (`Sequence[Chart]`, *optional*, defaults to `()`): Its plots.
        tables (`Sequence[Table]`, *optional*, defaults to `()`): What was measured.
        commands (`Sequence[str]`, *optional*, defaults to `()`): Shell lines that make this section again.
    """

    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    charts: Sequence[Chart] = ()
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
        OSError: If it cannot be written to.
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
    check_output(folder, name="--out")
    (folder / _MARKER).touch()
    return folder


def write_gallery(folder: str | Path, sections: Sequence[Section], *, title: str, intro: str = "") -> Path:
    """Write the figures as files and `index.html` beside them.

    Several sections get a table of contents. Each file is written whole or not at all, and the page comes last: a
    page that exists has its pictures.

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
        with replacing(folder / figure.file) as file:
            file.write_bytes(_encode(figure.image))
    page = folder / "index.html"
    with replacing(page) as file:
        file.write_text(_page(sections, title, intro), encoding="utf-8")
    return page


def print_table(table: Table) -> None:
    """Print what was measured, in columns, numbers to the right."""
    lines = [[_text(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = _numeric(table)
    print()
    for line in lines:
        cells = zip(line, widths, numeric, strict=True)
        print("  ".join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number in cells).rstrip())
    print(flush=True)


def _encode(image: Image.Image | Sequence[Image.Image]) -> bytes:
    """A PNG of a picture, a GIF that runs for ever of several."""
    file = BytesIO()
    if isinstance(image, Image.Image):
        image.save(file, format="PNG", optimize=True)
    else:
        image[0].save(file, format="GIF", save_all=True, append_images=image[1:], duration=_FRAME, loop=0)
    return file.getvalue()


def _page(sections: Sequence[Section], title: str, intro: str) -> str:
    named = [(f"{number}-{_slug(section.title)}", section) for number, section in enumerate(sections, start=1)]
    head = [f"<h1>{escape(title)}</h1>", *_paragraphs(intro)]
    if len(named) > 1:
        entries = [f'<li><a href="#{anchor}">{escape(section.title)}</a></li>' for anchor, section in named]
        head.append('<nav aria-label="Contents">\n<ul>\n' + "\n".join(entries) + "\n</ul>\n</nav>")
    body = "\n".join([*head, *(_section(anchor, section) for anchor, section in named)])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _slug(title: str) -> str:
    return re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")


def _section(anchor: str, section: Section) -> str:
    parts = [f'<section id="{anchor}">', f"<h2>{escape(section.title)}</h2>", *_paragraphs(section.text)]
    if section.figures:
        parts.append('<div class="figures">\n' + "\n".join(map(_figure, section.figures)) + "\n</div>")
    if section.charts:
        parts.append('<div class="charts">\n' + "\n".join(map(draw, section.charts)) + "\n</div>")
    parts += map(_table, section.tables)
    if section.commands:
        commands = "\n".join(section.commands)
        parts.append(f"<p>Make it again:</p>\n<pre><code>{escape(commands)}</code></pre>")
    return "\n".join([*parts, "</section>"])


def _paragraphs(text: str) -> list[str]:
    return [f"<p>{escape(' '.join(part.split()))}</p>" for part in text.split("\n\n") if part.strip()]


def _figure(figure: Figure) -> str:
    file, alt = escape(quote(figure.file)), escape(figure.alt)
    caption = f"\n<figcaption>{escape(figure.caption)}</figcaption>" if figure.caption else ""
    width, height = (figure.image if isinstance(figure.image, Image.Image) else figure.image[0]).size
    # On a narrow screen a wide sheet is scrolled sideways: shrunk to fit, nothing on it can be seen.
    least = f' style="min-width: min({width}px, 36rem)"'
    image = f'<img src="{file}" alt="{alt}" width="{width}" height="{height}"{least}>'
    return f'<figure>\n<div class="scroll"><a href="{file}">{image}</a></div>{caption}\n</figure>'


def _table(table: Table) -> str:
    # Outside of what is scrolled, where a long one would be as wide as the table.
    caption = f"<figcaption>{escape(table.caption)}</figcaption>\n" if table.caption else ""
    numeric = _numeric(table)
    head = "".join(_cell("th", value, number) for value, number in zip(table.header, numeric, strict=True))
    rows = [
        "".join(_cell("td", value, number) for value, number in zip(row, numeric, strict=True)) for row in table.rows
    ]
    lines = "\n".join(f"<tr>{row}</tr>" for row in [head, *rows])
    return f'<figure>\n{caption}<div class="scroll"><table>\n{lines}\n</table></div>\n</figure>'


def _numeric(table: Table) -> list[bool]:
    """Which columns hold numbers only."""
    return [all(isinstance(row[i], int | float) for row in table.rows) for i in range(len(table.header))]


def _cell(tag: str, value: str | int | float, number: bool) -> str:
    text = _text(value)
    kind = ' class="number"' if number else ' class="long"' if len(text) > 40 else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"


def _text(value: str | int | float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
