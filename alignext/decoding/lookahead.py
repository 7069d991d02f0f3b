# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The loop of Transfer Q*: candidates, rollouts behind them, their values, and the token that is taken."""

import math
from typing import Any, NamedTuple

import torch

from alignext.decoding.branches import Branches
from alignext.decoding.custom import Scorer
from alignext.functional.transfer_q import candidate_values, tilted_scores


class Rollouts(NamedTuple):
    """
    What branches have become.

    Attributes:
        ids (`torch.Tensor` of shape `(R, n)`): The candidate and what followed it.
        lengths (`list[int]`): How many of them count: up to an end of sequence.
        logits (`list[torch.Tensor]`): Behind each token that was read, each of shape `(R, V)`.
    """

    ids: torch.Tensor
    lengths: list[int]
    logits: list[torch.Tensor]


class Lookahead:
    """
    One call of [`TransferQ`].

    Args:
        options ([`TransferQ`]): The settings.
        scorers (`list[Scorer]`): Of the target, and of the baseline's own reward for indirect transfer.
        processors (`LogitsProcessorList`): Of next-token scores, of rollouts, too.
        criteria (`StoppingCriteriaList`): End completions and rollouts.
        config (`GenerationConfig`): Of the call.
    """

    def __init__(self, options: Any, scorers: list[Scorer], processors: Any, criteria: Any, config: Any) -> None:
        self.options, self.scorers, self.processors, self.criteria = options, scorers, processors, criteria
        self.limit, self.sampled = config.max_length, config.do_sample
        self.pad = 0 if config._pad_token_tensor is None else int(config._pad_token_tensor)
        self.candidates: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.waiting: list[list[int]] = []  # tokens of each row that are chosen already
        self.rollout_tokens = self.passes = 0
        # One greedy rollout says what it says; more must differ.
        self.rolls = options.num_rollouts > 1 or options.value == "soft"

    def run(self, model: Any, rollout_model: Any, ids: torch.Tensor, model_kwargs: dict[str, Any]) -> torch.Tensor:
        """Sequences of shape `(B, P + N)`, of prompts of shape `(B, P)`."""
        self.generator = torch.Generator(ids.device).manual_seed(self.options.seed)
        self.prompt = ids.shape[1]
        base = Branches(model, ids, model_kwargs)
        other = None if rollout_model is None else Branches(rollout_model, ids, model_kwargs)
        active = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        self.waiting = [[] for _ in ids]
        while True:
            scores = self.processors(ids, base.logits)
            chosen = torch.tensor([bool(own) for own in self.waiting], device=ids.device)
            looks, kept, found = self._candidates(scores, active & ~chosen)
            values = torch.full(found.shape, math.nan, dtype=torch.float64)
            self.candidates.append(found.masked_fill(~kept | chosen[:, None], -1).cpu())
            self.values.append(values)
            if looks.any():
                new = self._look(base, other, scores, active, looks, kept, found, values)
            else:
                new = self._unlooked(scores, kept, found)[:, None]
            for token in new.unbind(1):
                token = torch.where(active, token, self.pad)
                ids = torch.cat([ids, token[:, None]], 1)
                if self.options.streamer is not None:
                    self.options.streamer.put(token.cpu())
                active = active & ~self.criteria(ids, None)
                if not active.any():
                    self.passes = base.passes[0] + (0 if other is None else other.passes[0])
                    return ids
            for rows in (base,) if other is None else (base, other):  # what has not been read on the way
                for token in ids[:, rows.ids.shape[1] :].unbind(1):
                    rows.read(token)

    def _candidates(
        self, scores: torch.Tensor, active: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Which rows look ahead, shape `(B,)`, and the candidates, shape `(B, k)`, with those that count."""
        top, found = scores.topk(self.options.k)
        log_p = scores.log_softmax(-1)
        kept = top > -math.inf
        if self.options.min_p > 0:
            kept &= top >= top[:, :1] + math.log(self.options.min_p)
        looks = active & (kept.sum(1) > 1) & (not math.isinf(self.options.alpha))
        if self.options.entropy_gate is not None:
            entropy = -torch.where(log_p > -math.inf, log_p.exp() * log_p, 0.0).sum(-1)
            looks &= entropy >= self.options.entropy_gate
        return looks, kept, found

    def _take(self, scores: torch.Tensor, kept: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """A candidate of each row by scores of shape `(B, V)`, shape `(B,)`."""
        inside = torch.zeros_like(scores, dtype=torch.bool).scatter(1, found, kept)
        scores = scores.masked_fill(~inside, -math.inf)
        # As the stock loop does it, so that the same seed draws the same.
        return scores.softmax(-1).multinomial(1)[:, 0] if self.sampled else scores.argmax(-1)

    def _unlooked(self, scores: torch.Tensor, kept: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """The tokens of rows that do not look ahead, shape `(B,)`: those that are waiting, or taken now."""
        taken = self._take(scores, kept, found)
        for row, own in enumerate(self.waiting):
            if own:
                taken[row] = own.pop(0)
        return taken

    def _look(
        self,
        base: Branches,
        other: Branches | None,
        scores: torch.Tensor,
        active: torch.Tensor,
        looks: torch.Tensor,
        kept: torch.Tensor,
        found: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """The tokens to commit, shape `(B, m)`; fills in the values of candidates."""
        options, device = self.options, found.device
        # Rows that do not look take their token now, and have one branch.
        taken = found[:, 0] if bool(looks.all()) else self._unlooked(scores, kept, found)
        branches: list[list[tuple[int, int]]] = [
            [(int(token), i) for token in found[row][kept[row]] for i in range(options.num_rollouts)]
            if looking
            else [(int(taken[row]), 0)]
            for row, looking in enumerate(looks.tolist())
        ]
        rows = [row for row, own in enumerate(branches) for _ in own]
        tokens = torch.tensor([token for own in branches for token, _ in own], device=device)
        before = [line[self.prompt :] for line in base.ids.tolist()]
        forks = (base if other is None else other).fork(torch.tensor(rows, device=device))
        rolled = self._roll(forks, tokens, looks[rows])
        scored = [i for i, row in enumerate(rows) if looks[row]]
        texts = [before[rows[i]] + rolled.ids[i, : rolled.lengths[i]].tolist() for i in scored]
        rewards = iter(torch.stack([scorer([rows[i] for i in scored], texts) for scorer in self.scorers]).T)
        tilted, gains = scores.clone(), []
        for row, own in enumerate(branches):
            if not looks[row]:
                gains.append(torch.zeros(1, 1))
                continue
            r = torch.stack([next(rewards) for _ in own], 1).unflatten(1, (-1, options.num_rollouts))
            q = candidate_values(
                r[0],
                options.value,
                alpha=options.alpha,
                baseline_rewards=r[1] if len(r) > 1 else None,
                beta=options.beta,
            )
            values[row, kept[row].cpu()] = q
            chosen = found[row][kept[row]]
            tilted[row, chosen] = tilted_scores(scores[row, chosen], q.to(device), options.alpha)
            gains.append(r[0] - r[1] if len(r) > 1 else r[0])
        picked = torch.where(looks, self._take(tilted, kept, found), taken).tolist()
        winners, start = [], 0
        for own, token, gain in zip(branches, picked, gains, strict=True):
            first = [candidate for candidate, _ in own].index(token)
            winners.append(start + first + self._rollout(gain[first // gain.shape[1]]))
            start += len(own)
        keep = options.commit_tokens
        if not bool((looks == active).all()):
            # A row that did not look may do so at its next token: all go on by one, and the others' tokens wait.
            for row in looks.nonzero()[:, 0].tolist():
                winner = winners[row]
                self.waiting[row] = rolled.ids[winner, 1 : min(keep, rolled.lengths[winner])].tolist()
            keep = 1
        return self._commit(forks, rolled, torch.tensor(winners, device=device), keep)

    def _rollout(self, gain: torch.Tensor) -> int:
        """Which rollout of the winner is kept, where some of its tokens are: as tokens are chosen, by its reward."""
        if len(gain) == 1 or self.options.commit_tokens == 1:
            return 0
        if not self.sampled:
            return int(gain.argmax())
        weights = (gain / self.options.alpha).softmax(0).to(self.generator.device)
        return int(weights.multinomial(1, generator=self.generator))

    def _roll(self, forks: Branches, tokens: torch.Tensor, active: torch.Tensor) -> Rollouts:
        """Continue candidates of shape `(R,)` until each ends. The last token of a rollout is not read."""
        room = min(self.options.rollout_tokens, self.limit - forks.ids.shape[1] - 1)
        ids, columns, logits = torch.cat([forks.ids, tokens[:, None]], 1), [tokens], []
        done = self.criteria(ids, None) | ~active
        lengths = torch.ones_like(tokens)
        for _ in range(room):
            if bool(done.all()):
                break
            logits.append(forks.read(columns[-1]))
            scores = self.processors(ids, logits[-1])
            if self.rolls:
                token = scores.softmax(-1).multinomial(1, generator=self.generator)[:, 0]
            else:
                token = scores.argmax(-1)
            token = torch.where(done, self.pad, token)
            lengths += (~done).long()
            columns.append(token)
            ids = torch.cat([ids, token[:, None]], 1)
            done = done | self.criteria(ids, None)
        self.rollout_tokens += int((lengths - 1).sum())
        return Rollouts(torch.stack(columns, 1), lengths.tolist(), logits)

    def _commit(self, forks: Branches, rolled: Rollouts, winners: torch.Tensor, count: int) -> torch.Tensor:
        """Go on from the winners, of shape `(B,)`, behind `count` tokens of theirs at most."""
        new = rolled.ids[winners][:, :count]
        read = len(rolled.logits)
        if forks.plain:
            keep = min(read, new.shape[1])
            forks.select(winners, cut=read - keep)
            if keep:
                forks.logits = rolled.logits[keep - 1][winners]
        return new
