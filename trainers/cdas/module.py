# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The frozen language model and the vector that is learnt in it, as one module."""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from alignext.functional.cdas import answer_means, token_losses
from alignext.functional.steering import project, steer
from alignext.steering.layers import decoder_layers, states_of, with_states


class UnitVector(nn.Module):
    """A direction `v` of shape `(d,)`, in float32. What reads it takes `v / |v|`, so that the loss knows no length."""

    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed))
        self.v = nn.Parameter(drawn / drawn.norm())

    def forward(self) -> torch.Tensor:
        return self.v / self.v.norm()

    @torch.no_grad()
    def normalize(self) -> None:
        """Give the parameter length 1 again, or steps of one learning rate would turn it less and less."""
        self.v.copy_(self.v.double() / self.v.double().norm())


class KeepLength(TrainerCallback):
    """Gives the vector length 1 after every step."""

    def __init__(self, vector: UnitVector) -> None:
        self.vector = vector

    def on_optimizer_step(self, args: object, state: object, control: object, **kwargs: object) -> None:
        self.vector.normalize()


class InterchangeModel(nn.Module):
    """
    `forward` gives the loss of each item: a base prompt whose states are given the source's coordinate, held against
    the source prompt, along one answer. No parameter but the vector's is trained, and dropout is off.

    Args:
        lm (`PreTrainedModel` or `PeftModel`): A causal language model. Its parameters are frozen.
        layer (`int`): The decoder layer.
        exclude_first (`int`): Positions at the start that are left alone.
        objective (`str`): See [`~alignext.functional.cdas.token_losses`].
        seed (`int`): Draws the vector.
    """

    def __init__(self, lm: Any, layer: int, exclude_first: int, objective: str, seed: int) -> None:
        super().__init__()
        self.lm = lm.requires_grad_(False)
        self.layer, self.exclude_first, self.objective = layer, exclude_first, objective
        self.vector = UnitVector(lm.config.get_text_config(decoder=True).hidden_size, seed)
        forward = getattr(lm, "get_base_model", lambda: lm)().forward
        self._cuts = "logits_to_keep" in inspect.signature(forward).parameters

    def train(self, mode: bool = True) -> "InterchangeModel":
        super().train(mode)
        self.lm.eval()
        return self

    def forward(
        self,
        base_ids: torch.Tensor,
        base_mask: torch.Tensor,
        base_starts: torch.Tensor,
        source_ids: torch.Tensor,
        source_mask: torch.Tensor,
        source_starts: torch.Tensor,
        answers: torch.Tensor,
        intervene: bool = True,
    ) -> torch.Tensor:
        """
        Args:
            base_ids, source_ids (`torch.Tensor` of shape `(N, L)`): Prompt and answer, padded on the right.
            base_mask, source_mask (`torch.Tensor` of shape `(N, L)`): 1 at tokens.
            base_starts, source_starts (`torch.Tensor` of shape `(N,)`): Length of the prompt.
            answers (`torch.Tensor` of shape `(N, A)`): The answers' tokens, -100 behind them.
            intervene (`bool`, *optional*, defaults to `True`): Without it, the base is left as it is.

        Returns:
            `torch.Tensor` of shape `(N,)`.
        """
        real = answers != -100
        with torch.no_grad():
            seen: list[torch.Tensor] = []
            logits = self._run(lambda output: seen.append(states_of(output)), source_ids, source_mask, source_starts)
            target = _of_answers(logits, source_starts, source_ids.shape[1], real)
        source = seen[0][torch.arange(len(source_ids)), source_starts - 1]
        change = (lambda output: self._interchange(output, source)) if intervene else (lambda output: None)
        logits = self._run(change, base_ids, base_mask, base_starts)
        found = _of_answers(logits, base_starts, base_ids.shape[1], real)
        return answer_means(token_losses(found, target, answers[real], self.objective), real.sum(1))

    def _interchange(self, output: Any, source: torch.Tensor) -> Any:
        h, v = states_of(output), self.vector()
        a = project(source, v)[:, None] - project(h, v)
        a = a * (torch.arange(h.shape[1], device=h.device) >= self.exclude_first)
        return with_states(output, steer(h, v, a))

    def _run(self, hook: Any, ids: torch.Tensor, mask: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """The logits from the first that an answer needs on, with the output of the layer in the hook's hands."""
        cut = {"logits_to_keep": ids.shape[1] - int(starts.min()) + 1} if self._cuts else {}
        layer = decoder_layers(self.lm)[self.layer]
        handle = layer.register_forward_hook(lambda module, args, output: hook(output), prepend=True)
        try:
            return self.lm(input_ids=ids, attention_mask=mask, use_cache=False, **cut).logits
        finally:
            handle.remove()

    @torch.no_grad()
    def at_prompt_ends(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's output `(N, d)` and the logits `(N, V)` at the last token of each prompt, in float32."""
        seen: list[torch.Tensor] = []
        rows, ends = torch.arange(len(ids)), mask.sum(1)
        logits = self._run(lambda output: seen.append(states_of(output)), ids, mask, ends)
        left_out = ids.shape[1] - logits.shape[1]
        return seen[0][rows, ends - 1].float(), logits[rows, ends - 1 - left_out].float()


def _of_answers(logits: torch.Tensor, starts: torch.Tensor, length: int, real: torch.Tensor) -> torch.Tensor:
    """The logits `(M, V)` that predict the answers' tokens: of token `k`, those at `start + k - 1`."""
    left_out = length - logits.shape[1]
    places = starts[:, None] - 1 - left_out + torch.arange(real.shape[1], device=real.device)
    rows = torch.arange(len(real), device=real.device)[:, None].expand_as(real)
    return logits[rows[real], places[real]]
