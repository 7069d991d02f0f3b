# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The sentences below the demo's tables."""

import math

import pytest

from alignext.demos.gallery import Section, Table, print_table, write_gallery
from alignext.demos.stories import SPEECH
from alignext.demos.verdicts import moved, paired, shares, verdict


def test_differences_that_belong_together():
    """1, 2 and 3: their mean is 2, their standard deviation 1, the error of the mean 1 / sqrt(3)."""
    difference, error = paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert difference == 2 and error == pytest.approx(1 / math.sqrt(3))
    assert paired([1.0], [0.0]) == (1.0, math.inf)  # one picture says nothing
    with pytest.raises(ValueError, match="argument 2"):
        paired([1.0], [1.0, 2.0])


def test_differences_of_shares():
    """Half of 64 twice: each share, with one hit and one miss added, is a half, so its variance is 1 / 4 / 64."""
    hits = [True, False] * 32
    difference, error = shares(hits, hits)
    assert difference == 0 and error == pytest.approx(math.sqrt(2 / 4 / 64))
    assert shares([True] * 64, [False] * 64)[1] > 0


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ((0.5, 0.1), "In speech, after is ahead of before by 0.500, with a standard error of 0.100 over 4 stories."),
        ((-0.5, 0.1), "In speech, before is ahead of after by 0.500, with a standard error of 0.100 over 4 stories."),
        ((0.2, 0.1), "In speech, after and before cannot be told apart here: +0.200, with a standard error of 0.100"),
        ((-0.1, math.inf), "In speech, after and before cannot be told apart here: -0.100"),
    ],
)
def test_who_is_ahead(found, said):
    assert verdict("speech", "after", "before", found, "4 stories").startswith(said)


def test_how_far_something_has_moved():
    assert (
        moved("It", (0.5, 0.1), "4 stories")
        == "It is 0.500, more than twice its standard error of 0.100 over 4 stories."
    )
    assert "It is 0.200, no more than twice its" in moved("It", (0.2, 0.1), "4 stories")


def test_what_was_measured_is_not_printed_without_a_verdict(capsys):
    with pytest.raises(ValueError, match=r"`table\.verdict` must say what was measured"):
        print_table(Table(("a",), [[1.0]]))
    print_table(Table(("a",), [[1.0]], verdict="Level."))
    assert capsys.readouterr().out.split() == ["a", "1.000", "Level."]


def test_words_are_marked_and_nothing_else_is_trusted(tmp_path):
    rows = [['He said "run <b>" to her.', 'and "no end', "plain & simple", 2]]
    table = Table(("a", "b", "c", "number"), rows, verdict="Level <3.", mark=SPEECH)
    page = write_gallery(tmp_path, [Section("Stories", tables=[table])], title="t").read_text()
    assert "He said <mark>&#34;run &lt;b&gt;&#34;</mark> to her." in page
    assert "and <mark>&#34;no end</mark>" in page and "plain &amp; simple" in page
    assert '<p class="verdict">Level &lt;3.</p>' in page
    page = write_gallery(tmp_path, [Section("Stories", tables=[Table(("a",), [["x"]])])], title="t").read_text()
    assert "<mark>" not in page and 'class="verdict"' not in page
