# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What mkdocs does beside `mkdocs.yml`: the API by areas, and the types of docstrings as they are meant.

`api.md` lists everything public, a section for each area. Each section becomes a page of its own, and links to
`api.md#name` lead there. Docstrings are written in the form of Hugging Face, which the generator does not know.
"""

import re
from html import unescape
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

import alignext


API = Path(__file__).with_name("api.md")
# Their tables have the room of the list of contents, too.
WIDE = {"methods.md", "support.md", "measured.md"}


def areas() -> dict[str, tuple[str, str]]:
    """File of each area, with its title and what stands there."""
    _, *parts = re.split(r"^## (.+)\n", API.read_text(encoding="utf-8"), flags=re.MULTILINE)
    names = [f"api_{re.sub('[^a-z]+', '_', title.lower())}.md" for title in parts[::2]]
    return dict(zip(names, zip(parts[::2], parts[1::2], strict=True), strict=True))


def on_config(config: Any) -> Any:
    """The pages of the areas stand below that of the API in the navigation."""

    def filled(entry: Any) -> Any:
        if isinstance(entry, list):
            return [filled(each) for each in entry]
        if isinstance(entry, dict):
            return {title: filled(each) for title, each in entry.items()}
        return {"API": ["api.md", *areas()]} if entry == "api.md" else entry

    config.nav = filled(config.nav)
    return config


def on_files(files: Any, config: Any) -> Any:
    """The pages of the areas."""
    for name, (title, body) in areas().items():
        files.append(File.generated(config, name, content=f"# {title}\n\n{body}"))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The API's page lists its areas; elsewhere, links to it lead to their area."""
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]
    found = areas()
    if page.file.src_uri == "api.md":
        lines = [markdown.partition("\n## ")[0].rstrip(), ""]
        for name, (title, body) in found.items():
            words = [f"[`{x.rpartition('.')[2]}`]({name}#{x})" for x in re.findall(r"^::: (\S+)$", body, re.MULTILINE)]
            lines += [f"## [{title}]({name})", "", ", ".join(words), ""]
        return "\n".join(lines)
    places = {x: name for name, (_, body) in found.items() for x in re.findall(r"^::: (\S+)$", body, re.MULTILINE)}

    def of_area(match: re.Match) -> str:
        owner = max((x for x in places if f"{match[1]}.".startswith(f"{x}.")), key=len, default=None)
        return f"({places[owner]}#{match[1]})" if owner else match[0]

    return re.sub(r"\(api\.md#([\w.]+)\)", of_area, markdown)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Types and references of docstrings as they are meant."""
    if not page.file.src_uri.startswith("api_"):
        return html
    # The generator takes "`int`, *optional*, defaults to 4" for one type, and then tells the default again.
    html = re.sub(r"\(<code>([^<]*`[^<]*)</code>(?:, default:\s*<code>[^<]*</code>\s*)?\)", _type, html)
    html = re.sub(r"<code>([^<]*`[^<]*)</code>", lambda found: _type(found)[1:-1], html)
    return re.sub(r"\[<code>([\w.~]+)</code>\]", lambda found: _reference(found[1]), html)


def _type(found: re.Match) -> str:
    text = re.sub(r"\*(\w+)\*", r"<em>\1</em>", found[1])
    text = re.sub(r"\[`([\w.~]+)`\]", lambda inner: _reference(inner[1]), text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return f"({text})"


def _reference(name: str) -> str:
    """A link to what is listed; anything else is just a name."""
    place = unescape(name).removeprefix("~")
    if place in alignext._MODULES:
        place = f"{alignext._MODULES[place]}.{place}"
    shown = name.rpartition(".")[2] if name.startswith("~") else name
    return f'<autoref optional identifier="{place}"><code>{shown}</code></autoref>'
