# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Rows of CDAS: a prompt without and with the concept, each with an answer to it; made, checked and batched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm

from alignext.decoding.rows import added_text, left_padded
from alignext.steering.texts import encode_answer, encode_prompt
from alignext.training import door
from alignext.wrapping import evaluating


COLUMNS = ("neutral_prompt", "neutral_completion", "concept_prompt", "concept_completion")
CHECKS: dict[str, Any] = {
    "columns": [COLUMNS],
    "example": {
        "neutral_prompt": "Tell me of your day.",
        "neutral_completion": " It was fine.",
        "concept_prompt": "Tell me of your day like a pirate.",
        "concept_completion": " Arr, it was fine!",
    },
    "texts": COLUMNS,
    "hint": "A prompt may be a list of messages. `make_quads` lets the model write the completions.",
}


@torch.no_grad()
def make_quads(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    add_concept: Callable[[Any], Any],
    *,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> Dataset:
    """
    Rows for [`CDASTrainer`]: each prompt without and with the concept, and the model's own sampled answers, which the
    method needs.

    Args:
        model (`PreTrainedModel`): The model that will be steered.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts (`Sequence`): Neutral prompts: texts, or lists of messages.
        add_concept (`Callable`): Makes of a neutral prompt one that asks for the concept.
        max_new_tokens (`int`, *optional*, defaults to 128): Length of answers.
        temperature (`float`, *optional*, defaults to 1.0): Of sampling; 0 takes the likeliest tokens.
        batch_size (`int`, *optional*, defaults to 8): Answers per call of `generate`.
        seed (`int`, *optional*, defaults to 0): Of sampling.
        progress (`bool`, *optional*, defaults to `True`): Show a bar.

    Returns:
        `Dataset`: Columns `neutral_prompt`, `neutral_completion`, `concept_prompt`, `concept_completion`.

    Raises:
        ValueError: If there is no prompt, or `add_concept` changes nothing.
    """
    if not prompts:
        raise ValueError("`prompts` must have at least one prompt.")
    asked = [*prompts]
    for prompt in prompts:
        with door.users_function(f"`add_concept`, given {prompt!r},"):
            asked.append(add_concept(prompt))
    ids = [_prompt(tokenizer, prompt, "prompts") for prompt in asked]
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    how: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    how = {"do_sample": False, "max_new_tokens": max_new_tokens, "min_new_tokens": 1, "pad_token_id": pad} | how
    answers: list[str] = [""] * len(asked)
    order = sorted(range(len(asked)), key=lambda i: len(ids[i]))
    cuda = [model.device] if model.device.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        starts = range(0, len(order), batch_size)
        for start in tqdm(starts, desc="Writing answers", disable=not progress):
            batch = order[start : start + batch_size]
            prompt_ids, mask = left_padded([ids[i] for i in batch], pad, model.device)
            out = model.generate(prompt_ids, attention_mask=mask, **how)
            for i, written in zip(batch, out[:, prompt_ids.shape[1] :].tolist(), strict=True):
                if isinstance(asked[i], str):  # goes on: decoded alone it may lose the space before its first word
                    answers[i] = added_text(tokenizer, ids[i], written)
                else:
                    answers[i] = tokenizer.decode(written, skip_special_tokens=True)
    told = [
        [{"role": "assistant", "content": answer}] if isinstance(prompt, list) else answer
        for prompt, answer in zip(asked, answers, strict=True)
    ]
    n = len(prompts)
    columns = (asked[:n], told[:n], asked[n:], told[n:])
    rows = Dataset.from_dict(dict(zip(COLUMNS, columns, strict=True)))
    check_rows(rows, "prompts")
    return rows


def check_rows(dataset: Dataset, name: str) -> None:
    """
    Raises:
        ValueError: If a row's two prompts are the same, or a completion is empty.
    """
    for i, row in enumerate(dataset.select_columns(list(COLUMNS))):
        if row["neutral_prompt"] == row["concept_prompt"]:
            raise ValueError(
                f"Row {i} of `{name}` has the same neutral and concept prompt, {str(row['neutral_prompt'])[:80]!r}: "
                "there is nothing to learn from it."
            )
        for column in ("neutral_completion", "concept_completion"):
            if not row[column]:
                raise ValueError(f"Row {i} of `{name}` has an empty `{column}`. Leave it out, or fill it in.")


def tokenize(dataset: Dataset, tokenizer: Any, name: str, max_completion_length: int | None) -> Dataset:
    """Ids of prompts and answers. Tokens are joined later, not texts, so that an answer's are the same behind both."""

    def encode(row: dict[str, Any]) -> dict[str, list[int]]:
        found = {}
        for side in ("neutral", "concept"):
            prompt = _prompt(tokenizer, row[f"{side}_prompt"], name)
            answer = encode_answer(tokenizer, row[f"{side}_prompt"], prompt, row[f"{side}_completion"])
            if not answer:
                raise ValueError(f"`{name}` has the {side} completion {row[f'{side}_completion']!r} without a token.")
            found |= {f"{side}_prompt_ids": prompt, f"{side}_answer_ids": answer[:max_completion_length]}
        return found

    return dataset.map(encode, remove_columns=dataset.column_names, desc=f"Tokenizing {name}")


def _prompt(tokenizer: Any, prompt: Any, name: str) -> list[int]:
    ids = encode_prompt(tokenizer, prompt)
    if not ids:
        raise ValueError(f"`{name}` has the prompt {prompt!r}, which has no token, and its last one is looked at.")
    return ids


@dataclass
class QuadCollator:
    """One or two items of each row: what [`~alignext.trainers.cdas.module.InterchangeModel`] takes."""

    pad_token_id: int
    directions: str = "both"

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        items = []
        for row in rows:
            neutral, concept = row["neutral_prompt_ids"], row["concept_prompt_ids"]
            if self.directions != "remove":
                items.append((neutral, concept, row["concept_answer_ids"]))
            if self.directions != "add":
                items.append((concept, neutral, row["neutral_answer_ids"]))
        bases, sources, answers = zip(*items, strict=True)
        found = {"answers": padded(answers, -100)[0]}
        for name, prompts in (("base", bases), ("source", sources)):
            whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
            found[f"{name}_ids"], found[f"{name}_mask"] = padded(whole, self.pad_token_id)
            found[f"{name}_starts"] = torch.tensor([len(prompt) for prompt in prompts])
        return found


def padded(rows: Sequence[Sequence[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows `(B, L)`, filled up on the right, and 1 where their tokens are."""
    length = max(map(len, rows))
    ids, mask = torch.full((len(rows), length), value), torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    return ids, mask
