# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""distinct-n and self-BLEU against slow, literal versions of their definitions."""

import math
from collections import Counter

import pytest

from alignext.trainers.f_dpg.diversity import distinct_n, ngrams, self_bleu, words


TEXTS = [
    "The cat sat on the mat.",
    "The cat sat on the mat, and the dog sat, too.",
    "A dog ran. A dog ran. A dog ran away!",
    "Rain",
    "",
    "The dog's ball is on the mat.",
]


def literal_self_bleu(texts: list[str], max_n: int) -> float:
    tokens = [words(text) for text in texts if words(text)]
    total = 0.0
    for i, hypothesis in enumerate(tokens):
        references = tokens[:i] + tokens[i + 1 :]
        log_precision = 0.0
        for n in range(1, max_n + 1):
            count = Counter(ngrams(hypothesis, n))
            of_references = [Counter(ngrams(reference, n)) for reference in references]
            matched = sum(min(k, max(r[gram] for r in of_references)) for gram, k in count.items())
            log_precision += math.log((matched or 0.1) / max(1, len(ngrams(hypothesis, n)))) / max_n
        closest = min((abs(len(r) - len(hypothesis)), len(r)) for r in references)[1]
        brevity = 1.0 if len(hypothesis) > closest else math.exp(1 - closest / len(hypothesis))
        total += brevity * math.exp(log_precision)
    return total / len(tokens)


def test_words_are_words_and_marks():
    assert words("Tom's 2 dogs, Rex!") == ["tom's", "2", "dogs", ",", "rex", "!"]


@pytest.mark.parametrize("max_n", [1, 3, 5])
def test_self_bleu_is_its_definition(max_n):
    assert self_bleu(TEXTS, max_n) == pytest.approx(literal_self_bleu(TEXTS, max_n), rel=1e-12)
    assert self_bleu(TEXTS[:3], max_n) == pytest.approx(literal_self_bleu(TEXTS[:3], max_n), rel=1e-12)


def test_self_bleu_between_the_extremes():
    assert self_bleu(["one two three four five six"] * 4) == pytest.approx(1)
    assert self_bleu(["a b c d e f", "g h i j k l"]) < 0.1
    assert math.isnan(self_bleu(["alone"]))


def test_distinct_n_is_a_mean_over_texts():
    assert distinct_n(["a b a b", "a b c d"], 1) == pytest.approx((2 / 4 + 1) / 2)
    assert distinct_n(["a b a b", ""], 2) == pytest.approx(2 / 4)
    assert math.isnan(distinct_n(["", ""], 1))
