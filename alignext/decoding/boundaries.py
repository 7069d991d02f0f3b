# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Where a step of a text ends: the rules of guided decoding, as functions of the text of the step so far."""

import re


_SENTENCE_END = re.compile(r"""[.!?]["'\u201d\u2019\u00bb)\]}]?$""")
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*$")
# Titles only as they are written: "ms." may be milliseconds at the end of a sentence.
_ABBREVIATION = re.compile(r"(?:^|[^\w.])(?:(?i:e\.g|i\.e|etc|vs|cf|et al)|Dr|Mr|Mrs|Ms|Prof)\.\W?$")
_LIST_MARKER = re.compile(r"(?:[-*+\u2022\u2013]|\d+[.)]|[A-Za-z][.)]|(?i:step) \d+[:.)]?)$")


def sentence_boundary(text: str) -> bool:
    """
    Whether a sentence or paragraph ends where `text` ends: in a blank line, or in `.`, `!` or `?` and at most one
    closing quote or bracket. Not after an abbreviation (e.g. i.e. etc. vs. cf. et al. Dr. Mr. Mrs. Ms. Prof.), and
    not where the last line is nothing but the marker of a list (a bullet, `1.`, `2)`, `A.`, `Step 3:`), a blank line
    behind it or not. White space at the end does not matter.
    """
    seen = text.rstrip()
    if _LIST_MARKER.match(seen.rpartition("\n")[2].lstrip()):
        return False
    if _PARAGRAPH_END.search(text):
        return True
    return bool(_SENTENCE_END.search(seen)) and not _ABBREVIATION.search(seen)


def paragraph_boundary(text: str) -> bool:
    """Whether `text` has a blank line behind its first words. A tokenizer may join more to it in one token."""
    return "\n\n" in text.lstrip()


def no_boundary(text: str) -> bool:
    """Never: a step then ends with the end-of-sequence token or at its limit, and is a whole reply."""
    return False
