# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The states of QAlign's chains, what it returns, and which states become answers."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput

from alignext.functional.qalign import majority, minimum_bayes_risk, tilt_weights


SELECTIONS = ("last", "all", "majority", "mbr", "max_reward", "soft")


@dataclass
class QAlignState:
    """
    One state of a chain, or one independent draw.

    Attributes:
        ids (`list[int]`): The completion, its end-of-sequence token included.
        text (`str`): What it adds to the prompt.
        reward (`float`): Of the text.
        accepted (`bool`): Whether it came by the last proposal; False where the state before is kept, and counts
            again.
        index (`int`): How many tokens the last proposal had kept.
        log_alpha (`float`): Logarithm of that proposal's acceptance ratio; 0 for the first state.
        drawn (`int`): Tokens of that proposal that were drawn.
    """

    ids: list[int]
    text: str
    reward: float
    accepted: bool
    index: int
    log_alpha: float
    drawn: int


@dataclass
class QAlignOutput(ModelOutput):
    """
    What [`QAlign`] returns from `generate`. A row is one of `B * num_return_sequences`; chains are row by row,
    `num_chains` of each.

    Attributes:
        sequences (`torch.Tensor` of shape `(rows, P + N)`): Prompts and selected completions, padded on the right.
            With `select="all"` all kept states, chain by chain.
        chains (`list[list[QAlignState]]`): All states of each chain, those of the burn-in included.
        rewards (`torch.Tensor` of shape `(rows,)`): Of the selected completions, in their order.
        acceptance_rate (`torch.Tensor` of shape `(rows,)`): Share of proposals; NaN without steps.
        effective_sample_size (`torch.Tensor` of shape `(rows,)`): Of the rewards of kept states.
        split_rhat (`torch.Tensor` of shape `(rows,)`): Of the rewards of kept states; above 1.05 chains are too short.
        proposed_tokens (`list[int]`): Drawn for each chain, the first completion included.
        decode_steps (`int`): Tokens drawn one after the other, for all rows together.
        reward_calls (`int`): Completions that were scored; none twice.
    """

    sequences: torch.Tensor | None = None
    chains: list[list[QAlignState]] | None = None
    rewards: torch.Tensor | None = None
    acceptance_rate: torch.Tensor | None = None
    effective_sample_size: torch.Tensor | None = None
    split_rhat: torch.Tensor | None = None
    proposed_tokens: list[int] | None = None
    decode_steps: int | None = None
    reward_calls: int | None = None


def selected(chains: list[list[QAlignState]], options: Any) -> list[QAlignState]:
    """
    What is returned of the chains of one sequence.

    Args:
        chains (`list[list[QAlignState]]`): All states of each.
        options ([`QAlign`]): The settings.
    """
    states = [state for chain in chains for state in chain[options.burn_in :]]
    if options.select == "all":
        return states
    if options.select == "last":
        return [chains[0][-1]]
    if options.select == "max_reward":
        return [max(states, key=lambda state: state.reward)]
    weights = None
    if options.sampler == "independent":
        weights = tilt_weights(torch.tensor([state.reward for state in states]).double(), options.beta).tolist()
    if options.select == "soft":
        return [states[int(torch.multinomial(torch.tensor(weights), 1))]]
    if options.select == "mbr":
        return [states[minimum_bayes_risk([state.ids for state in states], weights)]]
    return [states[majority([options.extract(state.text) for state in states], weights)]]


def padded_sequences(prompts: torch.Tensor, completions: list[list[int]], pad: int) -> torch.Tensor:
    """Prompts of shape `(n, P)` with their completions behind them, padded on the right."""
    width = max(len(ids) for ids in completions)
    tails = [ids + [pad] * (width - len(ids)) for ids in completions]
    return torch.cat([prompts, torch.tensor(tails, dtype=prompts.dtype, device=prompts.device)], 1)
