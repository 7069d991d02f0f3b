# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Pages say on which version of the embedded models their figures were measured."""

import re
from pathlib import Path

import pytest

from alignext import mini


PAGES = "alignedgen", "d2_align", "diffusion_preference", "diversity", "elbo_align", "fade", "latent_search", "rival"
DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", PAGES)
def test_figures_of_pictures_name_a_version_of_the_models(page):
    text = (DOCS / f"{page}.md").read_text()
    measured = re.split("^## ", text, flags=re.M)
    (section,) = [part for part in measured if part.startswith(("What it does, measured", "What was measured"))]
    named = re.findall(r"\[version (\d+)\]\(mini\.md#versions\)", section)
    assert len(named) == 1 and 1 <= int(named[0]) <= mini.VERSION


def test_the_page_of_the_models_lists_every_version():
    section = (DOCS / "mini.md").read_text().split("## Versions\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| (\d+) \|", section, flags=re.M) == [str(n) for n in range(1, mini.VERSION + 1)]
