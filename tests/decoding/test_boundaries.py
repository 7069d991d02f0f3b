# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The table of boundaries."""

import pytest

from alignext.decoding.boundaries import no_boundary, paragraph_boundary, sentence_boundary


ENDS = [
    "Tom went home.",
    "Who is there?",
    "No!",
    'He said "no."',
    "He said 'no.'",
    "(He said no.)",
    "[Laughs.]",
    "He said “no.”",
    "A heading without a stop\n\n",
    "A heading\n \n",
    "Tom went home.\n\n",
    "Tom went home. ",
    "Tom went home.\n",
    "We bought pens, etc.\n\n",  # whatever comes before a blank line, the paragraph is over
    "It took 5 ms.",
    "This is plan B.",
    "Version 2.",
    "1. Wash your hands.",
    "- Wash your hands.",
    "Step 3: wash your hands.",
    "He saw a bug.",  # "e.g" is not its end
    "He is a betc.",
    "Sometimes.",
    "First line\nsecond line.",
    'He said: (hi.)"',
    'hi.)"',
    "hi.\"')",
    'She said "go!").',
    "**Stop!**",
    "_Stop._",
    "« Non. »",
    "Wait...",
    "Wait…",
    'He said "wait…"',
    "Is he a Dr.?",
    "\n\nTom went home.",
    "\n\nA heading\n\n",
    "It costs 3.50.",
    "They won 2 to 1.",
    "He reached stage 2.",
    "Stage 2. Mix it.",
    "It was Tom and I.",
    "He came 1st.",
]
GOES_ON = [
    "",
    "Tom",
    "Tom went home",
    "Tom went home,",
    "Tom went home. He",
    "A heading\n",
    "Tom: ",
    "We saw Dr.",
    "We saw Mr.",
    "We saw Mrs.",
    "We saw Ms.",
    "We saw Prof.",
    "Mr.",
    "fruit, e.g.",
    "E.g.",
    "fruit (e.g.",
    "the best, i.e.",
    "pens, paper, etc.",
    "(pens, paper, etc.)",
    "cats vs.",
    "cf.",
    "Smith et al.",
    "Mr. ",
    "1.",
    "12.",
    "2)",
    "A.",
    "b)",
    "-",
    "Step 3:",
    "Step 3:\n\n",
    "1.\n\n",
    "-\n\n",
    "A.\n",
    "Here is what to do.\n\n1.",
    "Here is what to do.\n  2.\n\n",
    "Here is what to do.\nStep 12:\n\n",
    "Stage 2.",
    "Stage 2.\n\n",
    "Here is what to do.\nPart 2.",
    "Phase IV.",
    "Chapter 1.",
    "Question 3)",
    "Step one.",
    "**Step 2.**",
    "### 2.",
    "1.2.",
    "iv.",
    "(1)",
    "[a]\n\n",
    "\n\n",
    " \n\n",
    "\n \n\n",
    "...",
    "…",
    '"',
    "•\n\n",
    'pens, paper, etc.)"',
    "He came from the U.S.",
    "at 5 a.m.",
    "We went to St.",
    "see Fig.",
    "George W.",
    "J. R.",
    "Mr. J.",
]


@pytest.mark.parametrize("text", ENDS)
def test_a_sentence_ends(text):
    assert sentence_boundary(text)


@pytest.mark.parametrize("text", GOES_ON)
def test_a_sentence_goes_on(text):
    assert not sentence_boundary(text)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("Step 1: add.\n\n", True),
        ("Step 1: add.\n\nStep", True),  # one token may hold more than the blank line
        ("Step 1: add.\n", False),
        ("\n\n", False),  # an empty step is none
        ("\n\nStep 1: add.", False),
        ("\n\nStep 1: add.\n\n", True),
    ],
)
def test_paragraphs(text, ends):
    assert paragraph_boundary(text) == ends


def test_a_reply_has_no_boundary():
    assert not any(no_boundary(text) for text in ENDS)
