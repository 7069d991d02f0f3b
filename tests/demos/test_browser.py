# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The gallery in a real browser, opened from disk: wide and narrow, light and dark. Skipped where there is none."""

import pytest
from PIL import Image

from alignext.demos.charts import COLORS, Chart
from alignext.demos.gallery import Figure, Section, Table, write_gallery
from alignext.diffusion.sheets import contact_sheet
from tests.browser import assert_sound, look


@pytest.fixture
def page(tmp_path):
    red, blue = (Image.new("RGB", (64, 64), color) for color in ("red", "blue"))
    wide = contact_sheet([[red] * 8] * 2, row_labels=["one", "two"], cell=128)
    series = {f"series {i}": [(x, x * i) for x in range(5)] for i in range(COLORS)}
    sections = [
        Section(
            f"Section {k}: ä & <b>",
            "Text. " * 40,
            figures=[
                Figure(f"wide #{k}", wide, "a sheet", "A caption."),
                Figure(f"video-{k}", [red, blue], "a video"),
                *(Figure(f"small-{k}-{i}", red, "red") for i in range(3)),
            ],
            charts=[Chart("Lines", "x", "y", series), Chart("Points", "x", "y", {"a": [(0, 1), (2, 3)]}, lines=False)],
            tables=[Table(["what", *(f"column {i}" for i in range(9))], [["a", *range(9)]], "How to read it. " * 9)],
            commands=["alignext demo " + "--a-long-option " * 20],
        )
        for k in range(3)
    ]
    return write_gallery(tmp_path / "gallery", sections, title="A gallery", intro="An intro.")


@pytest.fixture(autouse=True)
def folder(tmp_path):
    (tmp_path / "gallery").mkdir()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_is_there_and_can_be_read(page, tmp_path, dark):
    report = look(page, tmp_path / "browser", dark=dark)
    assert_sound(report)
    for name in ("desktop", "phone"):
        seen = report[name]
        assert (seen["paper"] < 0.2) == dark
        assert len(seen["images"]) == 15 and len(seen["charts"]) == 6
        assert [link["href"] for link in seen["anchors"]] == [f"#{k}-section-{k - 1}-b" for k in (1, 2, 3)]
        assert {link["href"] for link in seen["files"]} == {image["file"] for image in seen["images"]}
        assert "Section 1: ä & <b>" in seen["text"] and "How to read it." in seen["text"]
    # on a phone a sheet is scrolled sideways, not shrunk until nothing can be seen on it
    assert report["phone"]["images"][0]["shown"] > 390 > report["phone"]["images"][1]["shown"]


def test_what_is_broken_is_found(page, tmp_path):
    (page.parent / "small-0-0.png").unlink()
    (page.parent / "video-1.gif").write_bytes(b"no picture")
    html = page.read_text().replace('href="#2-', 'href="#nowhere-')
    page.write_text(html.replace("</body>", "<script>undefined.name</script></body>"))
    report = look(page, tmp_path / "browser")
    with pytest.raises(AssertionError):
        assert_sound(report)
    assert any("undefined" in line for line in report["errors"])
    seen = report["desktop"]
    assert [image["file"] for image in seen["images"] if not image["natural"]] == ["small-0-0.png", "video-1.gif"]
    assert [link["href"] for link in seen["files"] if not link["works"]] == ["small-0-0.png"]
    assert [link["href"] for link in seen["anchors"] if not link["works"]] == ["#nowhere-section-1-b"]
