# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""A sequence classifier as a function of prompts and texts so far, and the one forward pass of reward models."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from alignext.wrapping import evaluating


Prompt = str | list[dict[str, Any]]


class SequenceReward:
    """
    Scores texts by a sequence classifier: the probability of the second of two labels, or the raw value of the only
    one, as TRL's `RewardTrainer` trains it.

    The model reads a prompt and the text so far as they stand; a conversation through the chat template, the text so
    far as the assistant's whole message.

    Args:
        model (`PreTrainedModel` or `PeftModel`): A sequence classifier with one or two labels.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        batch_size (`int`, *optional*, defaults to 32): Texts per forward pass.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 32) -> None:
        labels = model.config.num_labels
        if labels not in (1, 2):
            raise ValueError(
                f"`model` has {labels} labels. A reward model has one, or two of which the second is good; for others "
                "pass a function."
            )
        if model.config.get_text_config().pad_token_id is None:
            batch_size = 1  # without a padding token the stock class cannot tell where the shorter texts end
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Any], **kwargs: Any) -> torch.Tensor:
        """
        The score of each text.

        Args:
            prompts (`Sequence` of `str` or `list[dict]`): Text or conversations.
            completions (`Sequence` of `str` or `list[dict]`): The texts so far.
            **kwargs: Whatever else a caller of reward functions gives; unused.

        Returns:
            `torch.Tensor` of shape `(n,)`, float32, on the CPU.
        """
        rows = [self._ids(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        found = [
            logits_of(self.model, rows[start : start + self.batch_size])
            for start in range(0, len(rows), self.batch_size)
        ]
        logits = torch.cat(found)
        return (logits.softmax(-1)[:, 1] if logits.shape[-1] == 2 else logits[:, 0]).cpu()

    def _ids(self, prompt: Prompt, completion: Any) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer(prompt + text_of(completion))["input_ids"]
        messages = [*prompt, {"role": "assistant", "content": text_of(completion)}]
        return self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]


def text_of(completion: str | list[dict[str, Any]]) -> str:
    """The text of a completion, or of the last message of one."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


@torch.no_grad()
def logits_of(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """Logits of token ids of unequal length, float32."""
    batch = [torch.tensor(ids) for ids in rows]
    # Whatever fills up is masked. A sequence classifier however looks for its own padding token.
    filler = model.config.get_text_config().pad_token_id
    ids = pad_sequence(batch, batch_first=True, padding_value=0 if filler is None else filler).to(model.device)
    mask = pad_sequence([torch.ones_like(row) for row in batch], batch_first=True).to(model.device)
    with evaluating(model):
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
