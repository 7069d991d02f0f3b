# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""A real language model whose completions can be counted: 5 tokens, at most 4 of them behind the prompt."""

import functools
import itertools

import torch
from transformers import LlamaConfig, LlamaForCausalLM


VOCABULARY, LENGTH, EOS = 5, 4, 0
PROMPT = [3, 1]


@functools.cache
def model() -> LlamaForCausalLM:
    """In float64, far from uniform; its first token ends a text."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
        bos_token_id=3,
        eos_token_id=EOS,
        pad_token_id=EOS,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).double().eval()


@functools.cache
def next_log_probs(prefix: tuple[int, ...]) -> torch.Tensor:
    """Behind the prompt and some tokens, shape `(V,)`."""
    with torch.no_grad():
        return model()(torch.tensor([[*PROMPT, *prefix]])).logits[0, -1].log_softmax(-1)


@functools.cache
def states() -> tuple[tuple[int, ...], ...]:
    """All completions: those that end, and those that are cut."""
    open_ones = [tuple(c) for n in range(LENGTH) for c in itertools.product(range(1, VOCABULARY), repeat=n)]
    ended = [(*c, EOS) for c in open_ones]
    cut = [tuple(c) for c in itertools.product(range(1, VOCABULARY), repeat=LENGTH)]
    return (*ended, *cut)


def log_prob(completion: tuple[int, ...], start: int = 0) -> float:
    """Of the tokens from `start` on, given those before."""
    return sum(float(next_log_probs(completion[:i])[completion[i]]) for i in range(start, len(completion)))


def log_probs() -> torch.Tensor:
    """Of all completions."""
    return torch.tensor([log_prob(state) for state in states()], dtype=torch.float64)


def reward(completion: tuple[int, ...]) -> float:
    """It likes token 2 and long completions, in no simple way."""
    return 0.8 * completion.count(2) + 0.5 * len(completion) - 0.3 * (completion[:1] == (4,))


class Tokenizer:
    """Tokens as digits; the first is special."""

    pad_token_id = eos_token_id = EOS

    def decode(self, ids: list[int], skip_special_tokens: bool = False, **kwargs: object) -> str:
        return "".join(str(i) for i in ids if not (skip_special_tokens and i == EOS))


def scored(completion_ids: list[list[int]], **kwargs: object) -> list[float]:
    """The reward, of token ids."""
    return [reward(tuple(ids)) for ids in completion_ids]
