# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Contact sheets, the gallery page, and the folder they are written into."""

import os
from html.parser import HTMLParser

import pytest
from PIL import Image

from alignext.demos.charts import Chart
from alignext.demos.gallery import Figure, Section, Table, claim_folder, print_table, write_gallery
from alignext.diffusion.sheets import contact_sheet


RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def picture(color=RED, size=(64, 64)):
    return Image.new("RGB", size, color)


class Page(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


# ------------------------------------------------------------------------------------------------------------ folder


def test_a_new_folder_and_its_parents_are_made(tmp_path):
    assert claim_folder(tmp_path / "a" / "b").is_dir()


def test_an_empty_folder_and_our_own_are_taken(tmp_path):
    claim_folder(tmp_path)
    (tmp_path / "index.html").write_text("old")
    claim_folder(str(tmp_path))
    assert (tmp_path / "index.html").read_text() == "old"


@pytest.mark.parametrize("name", [".", "../mine", "inner/.."])
def test_a_folder_without_a_name_gets_those_beside_it(tmp_path, monkeypatch, name):
    (tmp_path / "mine" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mine")
    claim_folder(name, overwrite=True)
    for k in (2, 3):
        assert claim_folder(name).samefile(tmp_path / f"mine-{k}")
    assert sorted(os.listdir(tmp_path)) == ["mine", "mine-2", "mine-3"]


def test_a_folder_of_others_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"holds files that alignext did not write.*--overwrite"):
        claim_folder(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_overwrite_deletes_nothing(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    (tmp_path / "a.png").write_text("replaced")
    claim_folder(tmp_path, overwrite=True)
    write_gallery(tmp_path, [Section("s", figures=[Figure("a", picture(), "red")])], title="t")
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    with Image.open(tmp_path / "a.png") as written:
        assert written.getpixel((0, 0)) == RED


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        claim_folder(tmp_path / "file", overwrite=True)


# -------------------------------------------------------------------------------------------------------------- page


def test_page_shows_everything_and_needs_nothing_else(tmp_path):
    sections = [
        Section(
            "Foxes & others",
            text="One.\n\nTwo <b>.",
            figures=[
                Figure("fox-1", picture(), 'a "red" square', "caption <1>"),
                Figure("fox-2", picture(BLUE), "blue"),
            ],
            charts=[Chart("Curve", "step", "loss", {"a": [(0, 1.0), (1, 0.5)]})],
            tables=[Table(["what", "score", "n"], [["a<b", 0.12345, 3], ["c", 1.0, 10]], "Higher is better.")],
            commands=["alignext demo --out 'x y' && ls"],
        ),
        Section("Empty"),
    ]
    page = Page(write_gallery(tmp_path, sections, title="T & t", intro="Intro."))
    images = page.all("img")
    assert [image["src"] for image in images] == ["fox-1.png", "fox-2.png"]
    assert [image["alt"] for image in images] == ['a "red" square', "blue"]
    for image in images:
        with Image.open(tmp_path / image["src"]) as written:
            assert written.size == (int(image["width"]), int(image["height"]))
    for text in (
        "T & t",
        "Intro.",
        "Foxes & others",
        "One.",
        "Two <b>.",
        "caption <1>",
        "a<b",
        "0.123",
        "1.000",
        "10",
    ):
        assert text in page.text
    assert "Higher is better." in page.text and "alignext demo --out 'x y' && ls" in page.text
    assert len(page.all("svg")) == 1 and "loss" in page.text
    assert page.all("script") == page.all("link") == []
    assert "http" not in (tmp_path / "index.html").read_text()
    assert sorted(os.listdir(tmp_path)) == ["fox-1.png", "fox-2.png", "index.html"]


def test_every_section_is_in_the_contents(tmp_path):
    titles = ["Foxes & others", "Foxes & others", "狐"]
    page = Page(write_gallery(tmp_path, [Section(title) for title in titles], title="t"))
    anchors = [section["id"] for section in page.all("section")]
    assert [link["href"] for link in page.all("a")] == [f"#{anchor}" for anchor in anchors]
    assert len(set(anchors)) == 3
    assert page.text.count("Foxes & others") == 4
    alone = Page(write_gallery(tmp_path, [Section("one")], title="t"))
    assert alone.all("nav") == alone.all("a") == []


def test_a_picture_leads_to_its_file_and_a_video_is_a_gif(tmp_path):
    frames = [picture(RED), picture(BLUE), picture(RED)]
    figures = [Figure("50% #1", picture(), "red"), Figure("clip", frames, "red and blue")]
    page = Page(write_gallery(tmp_path, [Section("s", figures=figures)], title="t"))
    sources = [image["src"] for image in page.all("img")]
    assert sources == [link["href"] for link in page.all("a")] == ["50%25%20%231.png", "clip.gif"]
    assert (tmp_path / "50% #1.png").is_file()
    with Image.open(tmp_path / "clip.gif") as video:
        assert (video.n_frames, video.info["loop"], video.size) == (3, 0, (64, 64))
        video.seek(1)
        assert video.convert("RGB").getpixel((9, 9)) == BLUE


def test_a_table_is_printed_in_columns(capsys):
    print_table(Table(["made by", "score"], [["a long name", 0.12345], ["b", 10]], verdict="Level."))
    assert capsys.readouterr().out == "\nmade by      score\na long name  0.123\nb               10\n\nLevel.\n\n"


def test_columns_of_numbers_are_marked(tmp_path):
    table = Table(["what", "score"], [["a", 0.5], ["b", 2]])
    page = Page(write_gallery(tmp_path, [Section("s", tables=[table])], title="t"))
    assert [cell.get("class") for cell in page.all("td")] == [None, "number", None, "number"]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="`rows` must have 2 cells"):
        Table(["a", "b"], [["too", "many", "cells"]])


def test_two_figures_of_one_name_are_refused_before_anything_is_written(tmp_path):
    sections = [Section("a", figures=[Figure("x", picture(), "")]), Section("b", figures=[Figure("x", picture(), "")])]
    with pytest.raises(ValueError, match=r"unique.*x"):
        write_gallery(tmp_path, sections, title="t")
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    sections = [Section("s", figures=[Figure("a", picture(), "red")])]
    write_gallery(tmp_path, sections, title="old")

    def replace(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="disk full"):
        write_gallery(tmp_path, sections, title="new")
    assert sorted(os.listdir(tmp_path)) == ["a.png", "index.html"]
    assert "old" in Page(tmp_path / "index.html").text


# ------------------------------------------------------------------------------------------------------------- sheet


def colors(image):
    return {color for _, color in image.getcolors(maxcolors=1 << 24)}


def test_sheet_without_labels_places_every_picture():
    cell, gap = 100, 5
    sheet = contact_sheet([[picture(RED), picture(BLUE)], [picture(BLUE)]], cell=cell)
    assert sheet.size == (2 * cell + 3 * gap, 2 * cell + 3 * gap)
    centre = [cell // 2 + gap + i * (cell + gap) for i in range(2)]
    assert [sheet.getpixel((x, y)) for y in centre for x in centre] == [RED, BLUE, BLUE, WHITE]


def test_sheet_makes_room_for_labels():
    bare = contact_sheet([[picture()] * 2])
    labelled = contact_sheet(
        [[picture()] * 2], row_labels=["a row with a label of some length"], col_labels=["a", "b"]
    )
    assert labelled.width > bare.width and labelled.height > bare.height
    assert colors(bare) == {RED, WHITE}
    assert len(colors(labelled)) > 2


def test_sheet_keeps_the_aspect_ratio_and_leaves_gaps():
    sheet = contact_sheet([[picture(RED, (200, 50)), None, picture(BLUE, (8, 8))]], cell=100)
    assert sum(n for n, color in sheet.getcolors() if color == RED) == 100 * 25
    assert sum(n for n, color in sheet.getcolors() if color == BLUE) == 100 * 100


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1"])
def test_sheet_takes_any_mode_and_lays_transparency_on_white(mode):
    image = Image.new(mode, (64, 64))  # black, and transparent where the mode can be
    sheet = contact_sheet([[image]])
    expected = WHITE if mode in ("RGBA", "LA") else (0, 0, 0)
    assert sheet.getpixel((80, 80)) == expected


def test_sheet_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])
    with pytest.raises(ValueError, match="row_labels has 2 labels for 1"):
        contact_sheet([[picture()]], row_labels=["a", "b"])
    with pytest.raises(ValueError, match="col_labels has 1 labels for 2"):
        contact_sheet([[picture(), picture()]], col_labels=["a"])
