# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Sampling whole completions in proportion to a reward, after "Sample, Don't Search: Rethinking Test-Time Alignment
for Language Models" ([arXiv 2504.03790](https://huggingface.co/papers/2504.03790)).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from alignext.checks import check_counts
from alignext.decoding.chains import SELECTIONS, QAlignOutput, QAlignState, padded_sequences, selected
from alignext.decoding.custom import CustomGenerate, Scorer
from alignext.decoding.rows import drawing_from
from alignext.decoding.suffixes import SuffixSampler
from alignext.functional.qalign import (
    effective_sample_size,
    log_acceptance,
    split_rhat,
    suffix_starts,
)
from alignext.methods import method
from alignext.rewards.process import Prompt


SHARINGS = ("across_prompts", "all", "none")


class QAlign(CustomGenerate):
    r"""
    Draws completions from `p(y | x) exp(r(x, y) / beta) / Z(x)` by a Markov chain, with a frozen language model and
    any reward: a step keeps the beginning of a completion, draws the rest anew, and accepts it or not. Hand it to
    `generate`; with `num_steps=0` that is the stock method, token for token.

    All sampling arguments of `generate` (`temperature`, `top_k`, `top_p`, logits processors) are part of `p`, and
    `max_new_tokens` is the length of a whole completion.

    Example:

    ```python
    >>> qalign = QAlign(reward_funcs=reward, processing_class=tokenizer, beta=0.5, num_steps=64)
    >>> out = model.generate(**inputs, custom_generate=qalign, do_sample=True, top_k=0, max_new_tokens=128)
    >>> tokenizer.batch_decode(out.sequences), out.acceptance_rate
    ```

    Args:
        reward_funcs (`Callable`, `PreTrainedModel`, `str` or a list of them):
            Functions as TRL's trainers take them, `f(prompts, completions, completion_ids, **columns) -> list[float]`,
            sequence classifiers or process reward models, or the ids of such. Every completion needs a finite number.
        processing_class (`PreTrainedTokenizerBase`): The tokenizer of the model.
        beta (`float`, *optional*, defaults to 1.0): Positive; the smaller, the more reward, and the slower the chain.
        num_steps (`int`, *optional*, defaults to 64): Proposals for each chain.
        num_chains (`int`, *optional*, defaults to 1): For each sequence that is returned; rows of one batch.
        burn_in (`int`, *optional*, defaults to 0): First states that are not selected from, at most `num_steps`.
        select (`str`, *optional*, defaults to `"last"`):
            What is returned: `"last"`, a draw; `"all"` kept states; the answer of the `"majority"`; `"mbr"`, the one
            most like the others; `"max_reward"`, which over-optimises a reward; `"soft"`, one in proportion to
            `exp(r / beta)`, for independent draws.
        sampler (`str`, *optional*, defaults to `"metropolis"`):
            `"independent"` draws `num_steps + 1` completions afresh: best-of-n with `select="max_reward"`, soft
            best-of-n with `"soft"`, and votes weighted by `softmax(r / beta)` with `"majority"` and `"mbr"`.
        extract (`Callable[[str], Hashable | None]`, *optional*):
            The answer in a completion's text, for `"majority"`; None does not vote.
        index_sharing (`str`, *optional*, defaults to `"across_prompts"`):
            Which rows share the draw of where a proposal begins, so that a batch waits for no row: rows of different
            prompts, `"all"`, or `"none"`. No chain is changed by it; with `"all"` those of one prompt are correlated.
        reward_weights (sequence of `float`, *optional*): Of several rewards.
        reward_clip (`tuple[float, float]`, *optional*): Limits that rewards are clipped to.
        stop_strings (`str` or `Sequence[str]`, *optional*):
            A completion ends behind one of them; in the place of the argument of `generate`, which reaches no
            callable.
        generator (`torch.Generator`, *optional*): Draws everything, on the model's device; the global one if not
            given.
        on_step (`Callable[[int, list[QAlignState]], None]`, *optional*):
            Called after each step with its number and the newest state of every chain.

    Raises:
        ValueError: An argument is out of range.
    """

    _paper = method("QAlign").paper

    def __init__(
        self,
        reward_funcs: Any,
        processing_class: PreTrainedTokenizerBase,
        *,
        beta: float = 1.0,
        num_steps: int = 64,
        num_chains: int = 1,
        burn_in: int = 0,
        select: str = "last",
        sampler: str = "metropolis",
        extract: Callable[[str], Hashable | None] | None = None,
        index_sharing: str = "across_prompts",
        reward_weights: Sequence[float] | None = None,
        reward_clip: tuple[float, float] | None = None,
        stop_strings: str | Sequence[str] | None = None,
        generator: torch.Generator | None = None,
        on_step: Callable[[int, list[QAlignState]], None] | None = None,
    ) -> None:
        super().__init__(reward_funcs, processing_class, reward_weights, stop_strings)
        if not 0 < beta < float("inf"):
            raise ValueError(f"`beta` must be positive and finite, received {beta}.")
        check_counts(num_chains=num_chains)
        check_counts(0, num_steps=num_steps, burn_in=burn_in)
        if burn_in > num_steps:
            raise ValueError(f"`burn_in` must leave a state of {num_steps + 1}, received {burn_in}.")
        for name, choice, choices in (
            ("select", select, SELECTIONS),
            ("sampler", sampler, ("metropolis", "independent")),
            ("index_sharing", index_sharing, SHARINGS),
        ):
            if choice not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, received {choice!r}.")
        if select == "majority" and extract is None:
            raise ValueError("`extract` must be given with `select='majority'`: a function from a text to its answer.")
        if select == "soft" and sampler == "metropolis":
            raise ValueError(
                "`select='soft'` weighs states by their rewards, which a chain has done already. Use `'last'`, or "
                "`sampler='independent'`."
            )
        if reward_clip is not None and not reward_clip[0] < reward_clip[1]:
            raise ValueError(f"`reward_clip` must be (low, high) with low < high, received {reward_clip}.")
        self.beta, self.num_steps, self.num_chains, self.burn_in = beta, num_steps, num_chains, burn_in
        self.select, self.sampler, self.extract, self.index_sharing = select, sampler, extract, index_sharing
        self.reward_clip, self.generator, self.on_step = reward_clip, generator, on_step

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        prompts: Sequence[Prompt] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        **model_kwargs: Any,
    ) -> QAlignOutput:
        """
        Called by `generate`, which takes `prompts` and `columns` as well.

        Args:
            model (`PreTrainedModel`): Generates, as do all arguments that are not named here.
            input_ids (`torch.Tensor` of shape `(rows, P)`): The prompts, padded on the left.
            logits_processor (`LogitsProcessorList`): Prepared.
            stopping_criteria (`StoppingCriteriaList`): Prepared.
            generation_config (`GenerationConfig`): Prepared.
            prompts (`Sequence` of `str` or `list[dict]`, *optional*):
                What rewards get as prompts, such as conversations; the decoded ids if not given.
            columns (`Mapping[str, Sequence]`, *optional*): Further columns that rewards get, an entry for each prompt.

        Returns:
            [`QAlignOutput`].

        Raises:
            ValueError: An argument is out of range, or a reward is not finite.
            NotImplementedError: The model or an argument of `generate` is not supported.
        """
        self.check(model, input_ids, generation_config, model_kwargs)
        if not generation_config.do_sample:
            raise ValueError("`do_sample` must be True for QAlign, received False: proposals would all be the same.")
        returned = len(input_ids)
        input_ids = input_ids.repeat_interleave(self.num_chains, 0)
        model_kwargs = {
            name: value.repeat_interleave(self.num_chains, 0) if torch.is_tensor(value) and len(value) > 1 else value
            for name, value in model_kwargs.items()
        }
        mask = model_kwargs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        reward = self.reward_of(self.reward_funcs, model.device)
        score = Scorer(self.processing_class, reward, input_ids, mask, prompts, columns)
        sampler = SuffixSampler(
            model, input_ids, mask, logits_processor, self.criteria(stopping_criteria), generation_config, model_kwargs
        )
        of_prompt = self.num_chains * generation_config.num_return_sequences
        before = reward.calls
        with drawing_from(self.generator, input_ids.device):
            chains = self._chains(sampler, score, of_prompt)
            picked = [
                choice
                for row in range(returned)
                for choice in selected(chains[row * self.num_chains : (row + 1) * self.num_chains], self)
            ]
        kept = torch.tensor([[state.reward for state in chain[self.burn_in :]] for chain in chains]).double()
        moved = torch.tensor([[float(state.accepted) for state in chain[1:]] for chain in chains])
        by_row = kept.unflatten(0, (returned, self.num_chains))
        start = torch.repeat_interleave(torch.arange(returned), len(picked) // returned).to(input_ids.device)
        return QAlignOutput(
            sequences=padded_sequences(
                input_ids[start * self.num_chains], [state.ids for state in picked], sampler.pad
            ),
            chains=chains,
            rewards=torch.tensor([state.reward for state in picked], dtype=torch.float64),
            acceptance_rate=moved.unflatten(0, (returned, self.num_chains)).mean((1, 2)),
            effective_sample_size=torch.stack([effective_sample_size(row) for row in by_row]),
            split_rhat=torch.stack([split_rhat(row) for row in by_row]),
            proposed_tokens=[sum(state.drawn for state in chain) for chain in chains],
            decode_steps=sampler.decode_steps,
            reward_calls=reward.calls - before,
        )

    def _chains(self, sampler: SuffixSampler, score: Scorer, of_prompt: int) -> list[list[QAlignState]]:
        """All states of every chain."""
        rows = list(range(len(sampler.ids)))
        now = sampler.first()
        reward = self._scored(score, rows, now)
        chains = [
            [QAlignState(now[i], score.text(i, now[i]), float(reward[i]), True, 0, 0.0, len(now[i]))] for i in rows
        ]
        device = sampler.ids.device
        for step in range(self.num_steps):
            length = torch.tensor([len(ids) for ids in now])
            if self.sampler == "independent":
                starts = [0] * len(rows)
            else:
                starts = suffix_starts(self._shared(len(rows), of_prompt, device), length).tolist()
            new = sampler.rest([ids[:start] for ids, start in zip(now, starts, strict=True)])
            its_reward = self._scored(score, rows, new)
            its_length = torch.tensor([len(ids) for ids in new])
            log_alpha = log_acceptance(reward, its_reward, length, its_length, self.beta)
            u = torch.rand(len(rows), device=device).cpu().double()
            accepted = (u.log() < log_alpha) | torch.tensor(self.sampler == "independent")
            for i in rows:
                if accepted[i]:
                    now[i], reward[i] = new[i], its_reward[i]
                text = score.text(i, now[i]) if accepted[i] else chains[i][-1].text
                how = bool(accepted[i]), starts[i], float(log_alpha[i]), len(new[i]) - starts[i]
                chains[i].append(QAlignState(now[i], text, float(reward[i]), *how))
            if self.on_step is not None:
                self.on_step(step, [chain[-1] for chain in chains])
        return chains

    def _scored(self, score: Scorer, rows: list[int], completions: list[list[int]]) -> torch.Tensor:
        rewards = score(rows, completions)
        return rewards if self.reward_clip is None else rewards.clamp(*self.reward_clip)

    def _shared(self, rows: int, of_prompt: int, device: torch.device) -> torch.Tensor:
        """Uniform numbers, some of them shared by rows, whose chains stay what they are."""
        drawn = {"across_prompts": of_prompt, "all": 1, "none": rows}[self.index_sharing]
        return torch.rand(drawn, device=device).cpu().repeat(rows // drawn)
