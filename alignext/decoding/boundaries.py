# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The rules for the end of a step in guided decoding, as functions of the text of the step so far."""

import re


# Quotes, brackets and marks of emphasis that may close behind the last stop, as many as there are.
_CLOSING = r"""(?:["'\u201d\u2019)\]}*_]|\s?\u00bb)*"""
_SENTENCE_END = re.compile(rf"[.!?\u2026]{_CLOSING}$")
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*$")
# Titles only as they are written: "ms." may be milliseconds at the end of a sentence.
_TITLES = "Dr|Mr|Mrs|Ms|Prof|St|Mt|Jr|Sr|Rev|Hon|Gov|Gen|Col|Capt|Lt|Sgt|Mme|Mlle"
_ABBREVIATION = re.compile(
    rf"""(?:^|[^\w.])(?:
        (?i:(?:[a-z]\.)+[a-z]|etc|vs|cf|et\ al|viz|ca|approx|incl|resp|fig|eq|vol|pp)  # letters as in e.g. and U.S.
        | {_TITLES}
    )\.{_CLOSING}$""",
    re.VERBOSE,
)
# "J." behind a name is an initial; behind any other word ("plan B.") it ends a sentence.
_INITIAL = re.compile(r"(?:^|\s)[A-Z][\w.]*\s[A-Z]\.$")
_LABELS = (
    "step|stage|part|phase|chapter|section|lesson|unit|level|round|day|act|scene|question|problem|exercise|task|"
    "example|case|option|method|reason|rule|tip|point|item|idea|note|figure|table"
)
_NUMBER = r"(?:\d+(?:\.\d+)*|[ivxlc]+|[a-z]|one|two|three|four|five|six|seven|eight|nine|ten)"
_LIST_MARKER = re.compile(
    rf"""[#>*_\s]*(?:
        [-*+\u2022\u2013\u2014]?              # a bullet, or marks of a heading alone
        | (?:\d+(?:\.\d+)*|[ivxlc]+|[a-z])[.):]    # 1.  2)  1.2.  iv.  A.
        | [(\[](?:\d+|[ivxlc]+|[a-z])[)\]]         # (1)  [a]
        | (?:{_LABELS})\ {_NUMBER}\s?[.:)\-\u2013\u2014]?
    )[*_]*$""",
    re.VERBOSE | re.IGNORECASE,
)


def sentence_boundary(text: str) -> bool:
    """
    Tell whether a sentence or paragraph ends with `text`: in a blank line, or in `.`, `!`, `?` or an ellipsis and
    any closing quotes and brackets. It does not end:

    - before its first word: a blank line or a bullet alone is no sentence,
    - after an abbreviation (e.g. i.e. etc. vs. U.S. Dr. Mrs. Prof. and the like) or an initial behind a name,
    - where the last line is nothing but the marker of a list (a bullet, `1.`, `2)`, `A.`, `Step 3:`, `Stage 2.`), a
      blank line behind it or not.

    White space at the end does not matter.
    """
    seen = text.rstrip()
    if not re.search(r"\w", seen) or _LIST_MARKER.match(seen.rpartition("\n")[2].lstrip()):
        return False
    if _PARAGRAPH_END.search(text):
        return True
    return bool(_SENTENCE_END.search(seen)) and not _ABBREVIATION.search(seen) and not _INITIAL.search(seen)


def paragraph_boundary(text: str) -> bool:
    """Tell whether `text` has a blank line behind its first words. A tokenizer may join more to it in one token."""
    return "\n\n" in text.lstrip()


def no_boundary(text: str) -> bool:
    """Never: a step then ends with the end-of-sequence token or at its limit, and is a whole reply."""
    return False
