# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""From pairs of answers to steering vectors."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tqdm.auto import tqdm

from alignext.functional.steering import fit_direction
from alignext.steering.layers import decoder_layers, parse_layers, states_seen
from alignext.steering.texts import encode_answer, encode_prompt
from alignext.steering.vector import SteeringVector
from alignext.wrapping import evaluating


@torch.no_grad()
def fit_steering(
    model: Any,
    tokenizer: Any,
    pairs: Iterable[Mapping[str, Any]],
    *,
    layers: int | str | list[int] = "25%-60%",
    direction: str = "logistic",
    c: float = 1.0,
    batch_size: int = 8,
    max_length: int | None = None,
    progress: bool = True,
) -> SteeringVector | list[SteeringVector]:
    """
    Fit a direction to answers with and without a trait. Each answer becomes one vector per layer: the mean, over the
    tokens of the answer, of the layer's output. See [`~alignext.functional.steering.fit_direction`].

    Args:
        model (`PreTrainedModel`): The model whose own answers these are, ideally.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer, with a chat template for conversational pairs.
        pairs (`Iterable[Mapping]`, a `Dataset` for example): Rows with `positive` and `negative`: either conversations
            that end with the assistant's answer, or texts that follow `prompt`.
        layers (`int`, `str` or `list[int]`, *optional*, defaults to `"25%-60%"`): Which decoder layers.
        direction (`str`, *optional*, defaults to `"logistic"`): Or `"mean_difference"`.
        c (`float`, *optional*, defaults to 1.0): `C` of the logistic regression.
        batch_size (`int`, *optional*, defaults to 8): Answers per forward pass.
        max_length (`int`, *optional*): Tokens of prompt and answer that are read; the end is cut.
        progress (`bool`, *optional*, defaults to `True`): Show a bar.

    Returns:
        [`SteeringVector`] for one `int`, else a list in the order of the layers.

    Raises:
        ValueError: If there are fewer than 4 pairs, a row lacks a column or its answer has no token, layers are out of
            range, or the direction does not separate the answers.
    """
    stack = decoder_layers(model)
    indices = parse_layers(layers, len(stack))
    rows = list(pairs)
    if len(rows) < 4:
        raise ValueError(f"`pairs` must have at least 4 rows, received {len(rows)}.")
    texts = [
        _ids(tokenizer, row, side, i, max_length) for side in ("positive", "negative") for i, row in enumerate(rows)
    ]
    means = _answer_states(model, [stack[i] for i in indices], texts, tokenizer, batch_size, progress)
    name = getattr(model.config, "_name_or_path", "") or None
    found = []
    for index, states in zip(indices, means, strict=True):
        fit = fit_direction(states[: len(rows)], states[len(rows) :], kind=direction, c=c)
        found.append(
            SteeringVector(fit.v, index, fit.boundary, fit.mu_positive, fit.mu_negative, fit.sigma_positive, name)
        )
    return found[0] if isinstance(layers, int) else found


def _ids(
    tokenizer: Any, row: Mapping[str, Any], side: str, index: int, max_length: int | None
) -> tuple[list[int], int]:
    """Tokens of prompt and answer, and the number of those of the prompt."""
    value = row.get(side)
    if isinstance(value, list) and value:
        prompt, answer = value[:-1], value[-1:]
    elif isinstance(value, str) and isinstance(row.get("prompt"), str):
        prompt, answer = row["prompt"], value
    else:
        raise ValueError(
            f"Row {index} of `pairs` must have `{side}` as a conversation, or as a text beside `prompt`, found "
            f"columns {sorted(row)} with `{side}` = {value!r}. Example: {{'prompt': 'Tell me.', "
            "'positive': 'Gladly.', 'negative': 'No.'}."
        )
    ids = encode_prompt(tokenizer, prompt)
    whole = (ids + encode_answer(tokenizer, prompt, ids, answer))[:max_length]
    if len(whole) <= len(ids):
        raise ValueError(f"`{side}` of row {index} has no token of its answer within `max_length={max_length}`.")
    return whole, len(ids)


def _answer_states(
    model: Any, layers: list[Any], texts: list[tuple[list[int], int]], tokenizer: Any, batch_size: int, progress: bool
) -> list[torch.Tensor]:
    """Mean state `(n, d)` of every answer at the output of each layer, in float64."""
    means: list[dict[int, torch.Tensor]] = [{} for _ in layers]
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # the head's logits are of no use
    pad = tokenizer.pad_token_id or 0
    order = sorted(range(len(texts)), key=lambda i: len(texts[i][0]))  # batches of like length
    starts = range(0, len(order), batch_size)
    with evaluating(model), states_seen(layers) as kept:
        for start in tqdm(starts, desc="Reading answers", disable=not progress):
            batch = order[start : start + batch_size]
            length = max(len(texts[i][0]) for i in batch)
            padded = [texts[i][0] + [pad] * (length - len(texts[i][0])) for i in batch]
            ids = torch.tensor(padded, device=model.device)
            real = torch.tensor([len(texts[i][0]) for i in batch], device=model.device)[:, None]
            prompt = torch.tensor([texts[i][1] for i in batch], device=model.device)[:, None]
            places = torch.arange(length, device=model.device)
            decoder(input_ids=ids, attention_mask=(places < real).long(), use_cache=False)
            answer = ((places >= prompt) & (places < real)).double()[..., None]
            for i in range(len(layers)):
                mean = (kept[i].double() * answer).sum(1) / answer.sum(1)
                for row, value in zip(batch, mean.cpu(), strict=True):
                    means[i][row] = value
    return [torch.stack([found[i] for i in range(len(texts))]) for found in means]
