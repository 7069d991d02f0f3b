# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Tokens of prompts and answers, plain or conversational. They are joined, not texts: the boundary would merge."""

from typing import Any


def encode_prompt(tokenizer: Any, prompt: Any) -> list[int]:
    """
    The tokens of a prompt.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Of the model.
        prompt (`str` or `list[dict]`): A text, or messages, to which the chat template is applied.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
        return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids  # some tokenizers end every text
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]


def encode_answer(tokenizer: Any, prompt: Any, prompt_ids: list[int], answer: Any) -> list[int]:
    """
    The tokens that an answer adds to its prompt.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Of the model.
        prompt (`str` or `list[dict]`): The prompt.
        prompt_ids (`list[int]`): Its tokens, see [`encode_prompt`].
        answer (`str` or `list[dict]`): A text, or the assistant's messages.

    Raises:
        ValueError: If the chat template changes the prompt when an answer follows.
    """
    if isinstance(prompt, str):
        text = answer if isinstance(answer, str) else answer[0]["content"]
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    messages = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    whole = tokenizer.apply_chat_template([*prompt, *messages], return_dict=True)["input_ids"]
    if whole[: len(prompt_ids)] != prompt_ids:
        raise ValueError(f"The chat template changes the prompt {prompt!r} when its answer follows.")
    return whole[len(prompt_ids) :]
