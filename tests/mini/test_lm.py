# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The embedded story model is a stock checkpoint that really tells stories."""

import logging
import random
import string

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase
from trl.chat_template_utils import has_generation_markers, is_chat_template_prefix_preserving

import alignext.mini


FOLDER = alignext.mini.path("lm")
STORY = (
    "Sara had a small blue boat. She took it to the pond with her dad. The boat went far away and Sara could not "
    'reach it. "Oh no, my boat!" she said. A big frog jumped into the water and pushed the boat back. Sara clapped '
    "her hands and said thank you to the frog. Her dad smiled. They went home and ate cake."
)
CHAT = [
    {"role": "system", "content": "A story about a fox."},
    {"role": "user", "content": "Once upon a time, there was a fox."},
    {"role": "assistant", "content": "The fox liked to run."},
    {"role": "user", "content": "One day it rained."},
    {"role": "assistant", "content": "The fox went home."},
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


def sampled_stories(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, seed: int, number: int) -> list[str]:
    torch.manual_seed(seed)
    start = tokenizer(["Once upon a time"] * number, return_tensors="pt")
    ids = model.generate(**start, do_sample=True, top_k=0, max_new_tokens=150)
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def words_of(text: str) -> list[str]:
    return text.lower().translate(str.maketrans("", "", string.punctuation)).split()


def distinct(words: list[str], n: int) -> float:
    """Share of different ones among the n-grams of a text."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams)


def nll(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    """Mean negative log-likelihood per token."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        return model(ids, labels=ids).loss.item()


def test_stock_auto_classes_open_it_without_a_word(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers keeps its messages from the root logger, where caplog listens
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        model, info = AutoModelForCausalLM.from_pretrained(FOLDER, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(FOLDER)
        model.generate(**tokenizer("Once", return_tensors="pt"), do_sample=False, max_new_tokens=4)
    assert not caplog.records
    assert not any(info.values())
    assert type(model) is LlamaForCausalLM
    assert model.dtype == torch.float32
    assert tokenizer.is_fast
    assert len(tokenizer) == model.config.vocab_size == model.get_input_embeddings().num_embeddings


def test_it_is_small_enough_to_embed() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 14.5e6
    assert sum(file.stat().st_size for file in FOLDER.rglob("*")) <= 16e6


def test_special_tokens_agree_everywhere(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    for holder in (model.config, model.generation_config, tokenizer):
        assert (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id) == (1, 1, 2)
    # a pad that is also `eos` would be masked out of every loss
    assert tokenizer.pad_token not in (tokenizer.eos_token, tokenizer.unk_token)
    assert tokenizer("One").input_ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    "text",
    [
        STORY,
        "naïve café, Zoë, straße, ¿qué?",
        "東京へ行く, Привет, مرحبا",
        "🦊👩‍🚀🏳️‍🌈 emoji 🇫🇷",
        " leading, trailing and  double  spaces ",
        "tabs\tand\n\nlines\r\n",
        "▁ \x00 \u200b",
        "",
    ],
)
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids
    expected = text.replace(
        "▁", " "
    )  # this one character stands for the space inside, as in every SentencePiece model
    assert tokenizer.decode(ids, skip_special_tokens=True) == expected


def test_a_story_has_few_tokens_that_are_bytes(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenizer.tokenize(STORY)
    assert not [token for token in tokens if token.startswith("<0x")]
    assert len(tokens) < 1.4 * len(STORY.split())


def test_greedy_text_is_a_story(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    start = tokenizer("Once upon a time", return_tensors="pt")
    ids = model.generate(**start, do_sample=False)
    again = model.generate(**start, do_sample=False, max_new_tokens=40)
    assert torch.equal(ids[:, : again.shape[1]], again)
    words = words_of(tokenizer.decode(ids[0], skip_special_tokens=True))
    assert ids[0, -1] == tokenizer.eos_token_id or ids.shape[1] == start.input_ids.shape[1] + 200
    assert all(word.isascii() and word.isalpha() for word in words)
    assert distinct(words, 1) > 0.35
    assert distinct(words, 3) > 0.85


@pytest.mark.slow
def test_sampled_stories_end_and_differ(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    stories = sampled_stories(model, tokenizer, seed=0, number=10)
    assert stories == sampled_stories(model, tokenizer, seed=0, number=10)
    assert len(set(stories)) == len(stories)
    words = [words_of(story) for story in stories]
    assert all(distinct(story, 3) > 0.8 for story in words)
    # most of what is sampled are words that stories use: those of the other stories cover each of them well
    for i, story in enumerate(words):
        others = {word for j, other in enumerate(words) if j != i for word in other}
        assert sum(word in others for word in story) / len(story) > 0.5
    ends = [len(tokenizer(story).input_ids) < 150 for story in stories]
    assert any(ends)


def test_stories_are_likelier_than_their_shuffled_words(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    words = STORY.split()
    shuffled = " ".join(random.Random(0).sample(words, len(words)))
    assert nll(model, tokenizer, STORY) < 2.5  # 4,096 equally likely tokens would be 8.3
    assert nll(model, tokenizer, shuffled) > 2 * nll(model, tokenizer, STORY)


@pytest.mark.parametrize("tokenize", [False, True], ids=["text", "tokens"])
def test_what_the_chat_template_rendered_stays_a_prefix(tokenizer: PreTrainedTokenizerBase, tokenize: bool) -> None:
    def render(messages: list[dict[str, str]], generation: bool = False) -> str | list[int]:
        return tokenizer.apply_chat_template(
            messages, tokenize=tokenize, return_dict=False, add_generation_prompt=generation
        )

    whole = render(CHAT)
    for count in range(1, len(CHAT) + 1):
        part = render(CHAT[:count])
        assert whole[: len(part)] == part
        prompt = render(CHAT[:count], generation=True)
        if CHAT[count - 1]["role"] != "assistant":
            assert whole[: len(prompt)] == prompt
    assert is_chat_template_prefix_preserving(tokenizer)


def test_chat_template_is_the_documented_text(tokenizer: PreTrainedTokenizerBase) -> None:
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert text == (
        "<s>A story about a fox.\nOnce upon a time, there was a fox.\nThe fox liked to run.<s>"
        "One day it rained.\nThe fox went home.<s>"
    )


def test_assistant_mask_covers_the_assistant_and_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    assert has_generation_markers(tokenizer.chat_template)
    encoded = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    chosen = [i for i, on in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(chosen) == "The fox liked to run.<s>The fox went home.<s>"


def test_left_padding_changes_no_text(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    starts = ["One day", "Once upon a time, there was a little dog named Spot. Spot liked"]
    batch = tokenizer(starts, return_tensors="pt", padding=True, padding_side="left")
    together = tokenizer.batch_decode(
        model.generate(**batch, do_sample=False, max_new_tokens=30), skip_special_tokens=True
    )
    for start, text in zip(starts, together, strict=True):
        alone = model.generate(**tokenizer(start, return_tensors="pt"), do_sample=False, max_new_tokens=30)
        assert tokenizer.decode(alone[0], skip_special_tokens=True) == text
