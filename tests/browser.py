# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Opens a page from disk in a headless Chromium and reports what is on it. No network, no driver, no package."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest


NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
WIDTHS = {"desktop": 1200, "phone": 390}

# The page stands in frames of several widths, untouched; this script looks at it from outside.
_WRAPPER = """<!doctype html><meta charset="utf-8"><title>wrapper</title>
{frames}
<pre id="report"></pre>
<script>
const luminance = color => color.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const loads = url => {{
  const request = new XMLHttpRequest();
  try {{ request.open("GET", url, false); request.send(); return request.responseText.length > 0; }}
  catch {{ return false; }}
}};
const look = frame => {{
  const page = frame.contentDocument, win = frame.contentWindow, root = page.documentElement;
  const paper = luminance(win.getComputedStyle(page.body).backgroundColor);
  const report = {{ width: win.innerWidth, overflow: root.scrollWidth - root.clientWidth, text: page.body.innerText,
                    paper, images: [], charts: [], anchors: [], files: [], contrast: {{}} }};
  for (const image of page.images)
    report.images.push({{ file: image.getAttribute("src"), natural: image.naturalWidth,
                          shown: image.getBoundingClientRect().width }});
  for (const svg of page.querySelectorAll("svg")) {{
    const outer = svg.getBoundingClientRect();
    report.charts.push({{ label: svg.getAttribute("aria-label"), width: outer.width, height: outer.height,
                          marks: svg.querySelectorAll("g[id^='series'] use").length,
                          letter: Math.min(...[...svg.querySelectorAll("text")].map(
                            t => t.getBoundingClientRect()).map(r => Math.min(r.width, r.height))) }});
  }}
  for (const link of page.querySelectorAll("a[href]")) {{
    const href = link.getAttribute("href");
    if (href.startsWith("#")) {{
      link.click();
      const target = page.querySelector(":target");
      const top = target ? target.getBoundingClientRect().top : NaN;
      report.anchors.push({{ href, works: !!target && top >= -1 && top < win.innerHeight }});
    }} else report.files.push({{ href, works: link.href.startsWith("file:") && loads(link.href) }});
  }}
  for (const what of ["body", "a", "figcaption", ".chart text", ".c0", ".c1", ".c2", ".c3", ".c4", ".c5"]) {{
    const element = page.querySelector(what);
    if (!element) continue;
    const style = win.getComputedStyle(element), ink = luminance(element.matches("text") ? style.fill : style.color);
    report.contrast[what] = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  }}
  return report;
}};
window.onload = () => {{
  const report = {{}};
  for (const frame of document.querySelectorAll("iframe"))
    try {{ report[frame.name] = look(frame); }} catch (error) {{ report[frame.name] = {{ error: String(error) }}; }}
  document.getElementById("report").textContent = JSON.stringify(report);
}};
</script>
"""


def look(page: Path, folder: Path, *, dark: bool = False) -> dict[str, Any]:
    """
    What a page looks like at each of `WIDTHS`, and `errors`: what the browser's console says.

    Skips the test where there is no Chromium. `folder` is for the browser's own files.
    """
    browser = next((path for path in map(shutil.which, NAMES) if path), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (on Debian: apt install chromium)")
    folder.mkdir(exist_ok=True)
    frames = "\n".join(
        f'<iframe name="{name}" src="{page.resolve().as_uri()}" width="{width}" height="800"></iframe>'
        for name, width in WIDTHS.items()
    )
    wrapper = folder / "wrapper.html"
    wrapper.write_text(_WRAPPER.format(frames=frames))
    options = [
        "--headless",
        "--no-sandbox",  # which root cannot have
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--allow-file-access-from-files",  # lets the wrapper see into its frames
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--dump-dom",
    ]
    answer = subprocess.run([browser, *options, wrapper.as_uri()], capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="report">(.+?)</pre>', answer.stdout, flags=re.DOTALL)
    assert found, answer.stderr
    report = json.loads(unescape(found[1]))
    report["errors"] = [line for line in answer.stderr.splitlines() if "CONSOLE" in line]
    return report


def assert_sound(report: dict[str, Any]) -> None:
    """Nothing is broken, too wide, or too pale to read."""
    assert report["errors"] == []
    for name, width in WIDTHS.items():
        page = report[name]
        assert page.get("error") is None
        assert page["width"] == width
        assert page["overflow"] <= 0, f"{name}: {page['overflow']} pixels too wide"
        broken = [image for image in page["images"] if not (image["natural"] > 0 and image["shown"] > 0)]
        assert broken == []
        assert [link for link in (*page["anchors"], *page["files"]) if not link["works"]] == []
        flat = [chart for chart in page["charts"] if min(chart["width"], chart["height"]) < 100 or not chart["marks"]]
        assert flat == []
        assert {what: ratio for what, ratio in page["contrast"].items() if ratio < 4.5} == {}
