# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The figures of the language model's card."""

import random

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


# Written for this measurement, so that no model has seen them.
HELD_OUT = [
    "Once upon a time, there was a little girl named Mia. She had a red kite with a long tail. One windy day, "
    "Mia took her kite to the hill behind her house. The kite went up, up, up into the sky. Then the string "
    "broke and the kite flew away. Mia was very sad and started to cry. A boy named Tom saw her. He said, "
    '"Don\'t cry. I will help you look for it." They walked through the field and looked in all the trees. At '
    "last they saw something red in a tall tree. Tom climbed up and got the kite. Mia gave him a big hug. "
    '"Thank you," she said. From that day on, Mia and Tom were best friends and they played with the kite '
    "every day.",
    "One morning, a small brown bear woke up and felt hungry. He went to the river to catch a fish, but the "
    'water was too cold. "I do not like cold water," said the bear. A duck heard him and laughed. "You have '
    'thick fur," she said. "You will not be cold for long." The bear put one paw in the water. Then he put in '
    "another paw. Soon he was swimming and splashing with the duck. He forgot that the water was cold. When "
    "his mom called him, he did not want to go home. He learned that new things can be fun if you try them.",
    "Ben liked to build things. He built a tower with his blocks. It was so big that it was taller than the "
    "chair. His little sister Anna wanted to help, but she pushed the tower and it fell down. Ben was angry. "
    '"Look what you did!" he shouted. Anna felt bad and her eyes were full of tears. Ben thought about it. He '
    'remembered that he broke her doll last week and that she forgave him. "It is okay," he said. "We can '
    'build a new one together." Anna smiled. They made a castle with a door and a window, and their toys lived'
    " in it.",
]


ROUND_TRIP = "Zoë's naïve café: 東京, Привет — “ok”? 🦊👩‍🚀 1+1=2\n\ttabs  and  spaces "


@torch.no_grad()
def story_nll(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, stories: list[str]) -> tuple[float, int]:
    """Total negative log-likelihood in nats of the stories, and the number of tokens predicted."""
    total, count = 0.0, 0
    for story in stories:
        ids = tokenizer(story, return_tensors="pt").input_ids
        total += torch.nn.functional.cross_entropy(
            model(ids).logits[0, :-1].double(), ids[0, 1:], reduction="sum"
        ).item()
        count += ids.shape[1] - 1
    return total, count


def greedy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, start: str, max_new_tokens: int = 200) -> str:
    inputs = tokenizer(start, return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> dict[str, float | str]:
    """The figures of the model card for one model."""
    words = random.Random(seed)
    shuffled = [" ".join(words.sample(story.split(), len(story.split()))) for story in HELD_OUT]
    nll, tokens = story_nll(model, tokenizer, HELD_OUT)
    shuffled_nll, shuffled_tokens = story_nll(model, tokenizer, shuffled)
    decoded = tokenizer.decode(tokenizer(ROUND_TRIP).input_ids, skip_special_tokens=True)
    return {
        "parameters": model.num_parameters() / 1e6,
        "nll": nll,
        "tokens": tokens,
        "mean": nll / tokens,
        "shuffled": shuffled_nll / shuffled_tokens,
        "round_trip": "yes" if decoded == ROUND_TRIP else "no",
        "sample": greedy(model, tokenizer, "Once upon a time"),
    }
