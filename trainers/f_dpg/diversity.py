# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Diversity of samples: distinct-n within each, self-BLEU between them. Words and punctuation marks are tokens."""

import math
import re
from collections import Counter
from collections.abc import Sequence


def words(text: str) -> list[str]:
    """Lower-case words, numbers and single punctuation marks."""
    return re.findall(r"\w+(?:'\w+)?|[^\w\s]", text.lower())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct_n(texts: Sequence[str], n: int) -> float:
    """The mean over texts of distinct n-grams divided by tokens, in [0, 1]; empty texts are left out.

    Args:
        texts (`Sequence[str]`): The samples.
        n (`int`): Length of the n-grams.

    Returns:
        `float`: NaN if all texts are empty.
    """
    tokens = [t for t in map(words, texts) if t]
    return sum(len(set(ngrams(t, n))) / len(t) for t in tokens) / len(tokens) if tokens else math.nan


def self_bleu(texts: Sequence[str], max_n: int = 5) -> float:
    """The mean BLEU of each text with all others as references, in [0, 1]: 1 if all are the same.

    Uniform weights up to `max_n`-grams; an n-gram precision of 0 counts as 0.1 matches ("smoothing 1" of Chen and
    Cherry). Linear in the number of texts, since of each n-gram the two largest counts suffice.

    Args:
        texts (`Sequence[str]`): The samples; empty ones are left out.
        max_n (`int`, *optional*, defaults to 5): Longest n-grams.

    Returns:
        `float`: NaN with fewer than two texts.
    """
    tokens = [t for t in map(words, texts) if t]
    if len(tokens) < 2:
        return math.nan
    lengths = Counter(map(len, tokens))
    log_precision = [0.0] * len(tokens)
    for n in range(1, max_n + 1):
        counts = [Counter(ngrams(t, n)) for t in tokens]
        best: dict[tuple[str, ...], tuple[int, int, int]] = {}  # largest count, whose, second largest
        for i, count in enumerate(counts):
            for gram, k in count.items():
                first, owner, second = best.get(gram, (0, -1, 0))
                best[gram] = (k, i, first) if k > first else (first, owner, max(second, k))
        for i, count in enumerate(counts):
            matched = 0
            for gram, k in count.items():
                first, owner, second = best[gram]
                matched += min(k, second if owner == i else first)
            log_precision[i] += math.log(max(matched, 0.1) / max(1, sum(count.values()))) / max_n
    total = 0.0
    for t, precision in zip(tokens, log_precision, strict=True):
        length = len(t)
        others = [other for other, number in lengths.items() if number > (other == length)]
        closest = min(others, key=lambda other: (abs(other - length), other))
        total += math.exp(precision + min(0.0, 1 - closest / length))
    return total / len(tokens)
