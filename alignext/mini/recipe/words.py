# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Captions and the tokenizers that know their words."""

import re
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from alignext.mini.recipe import render


if TYPE_CHECKING:
    from transformers import CLIPTextConfig, CLIPTokenizer, T5Tokenizer


def captions_of(rows: list[dict]) -> list[str]:
    """Three captions for each picture: whole, without its style, and none (one for all, the last)."""
    return [row["caption"] for row in rows] + [render.caption(row["concept"]) for row in rows] + [""]


def make_tokenizer(captions: list[str], length: int) -> "CLIPTokenizer":
    """CLIP's byte-level BPE with `</w>`, merged until every word of the captions is one token."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    words = Counter(re.findall(r"[a-z]+|[^a-z\s]", " ".join(captions)))
    pieces = {word: (*word[:-1], word[-1] + "</w>") for word in sorted(words)}
    merges: list[tuple[str, str]] = []
    while pairs := Counter(p for word, parts in pieces.items() for p in pairwise(parts) for _ in range(words[word])):
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))  # ties by name: the same on every machine
        for word, parts in pieces.items():
            merged = list(parts[:1])
            for part in parts[1:]:
                merged[-1:] = [merged[-1] + part] if (merged[-1], part) == merges[-1] else [merged[-1], part]
            pieces[word] = tuple(merged)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*alphabet, *(a + "</w>" for a in alphabet), *(a + b for a, b in merges)])
    tokens = [*tokens, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({token: i for i, token in enumerate(tokens)}, merges, model_max_length=length)


def make_clip_config(tokenizer: "CLIPTokenizer", config: dict) -> "CLIPTextConfig":
    """The configuration of a CLIP text encoder that reads this tokenizer."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **config,
    )


def make_t5_tokenizer(captions: list[str]) -> "T5Tokenizer":
    """T5's Unigram pieces: the words of the captions, also with a capital, and single characters for all else."""
    from transformers import T5Tokenizer

    words = sorted(set(re.findall(r"[a-z]+", " ".join(captions))))
    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in words), *(f"▁{word.capitalize()}" for word in words)]
    letters = ["▁", *(chr(code) for code in range(33, 127))]
    # a word costs less than its letters
    vocabulary = [(piece, -1.0) for piece in pieces] + [(letter, -4.0) for letter in letters]
    return T5Tokenizer(vocabulary, extra_ids=0, model_max_length=512)


@torch.no_grad()
def read_capitals(embedding: torch.nn.Embedding, tokenizer: "T5Tokenizer") -> None:
    """Let pieces with capitals, which no caption has, mean what those with small letters mean.

    `T5Tokenizer` knows no lower-casing; CLIP's tokenizer does it by itself.
    """
    vocabulary = tokenizer.get_vocab()
    for piece, i in vocabulary.items():
        embedding.weight[i] = embedding.weight[vocabulary.get(piece.lower(), i)]
