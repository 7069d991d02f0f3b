# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Decoding with look-ahead values from an aligned baseline, after "Transfer Q*: Principled Decoding for LLM Alignment"
([arXiv 2405.20495](https://huggingface.co/papers/2405.20495)).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from alignext.checks import check_counts
from alignext.decoding.custom import CustomGenerate, Scorer
from alignext.decoding.lookahead import Lookahead
from alignext.functional.transfer_q import VALUES
from alignext.methods import method
from alignext.rewards.process import Prompt


@dataclass
class TransferQOutput(ModelOutput):
    """
    What [`TransferQ`] returns from `generate`.

    Attributes:
        sequences (`torch.Tensor` of shape `(B, P + N)`): Prompts and completions, padded on the right.
        candidates (`list[torch.Tensor]`):
            Of each decision, the tokens that were looked at, shape `(B, k)`, the likeliest first; -1 where there are
            fewer.
        values (`list[torch.Tensor]`): What each is worth, float64 of shape `(B, k)`; NaN where nothing was looked
            ahead.
        rollout_tokens (`int`): Tokens of all rollouts, padding left out.
        reward_calls (`int`): Texts that were scored, with each of the rewards; none twice.
        passes (`int`): Forward passes of the models.
    """

    sequences: torch.Tensor | None = None
    candidates: list[torch.Tensor] | None = None
    values: list[torch.Tensor] | None = None
    rollout_tokens: int | None = None
    reward_calls: int | None = None
    passes: int | None = None


class TransferQ(CustomGenerate):
    r"""
    Decodes with an aligned model so that another reward rises, or the same one further: the `k` likeliest next tokens
    are each continued by a short rollout, a reward scores the results, and a token is taken by `log-probability +
    value / alpha`. Hand it to `generate`; with `alpha=float("inf")` or `k=1` greedy search is the stock method's.

    With `do_sample=True` the token is drawn from the softmax of those sums, over the candidates alone.

    Example:

    ```python
    >>> transfer_q = TransferQ(reward_funcs=reward, processing_class=tokenizer, k=10, alpha=0.5)
    >>> out = model.generate(**inputs, custom_generate=transfer_q, do_sample=False, max_new_tokens=64)
    >>> tokenizer.batch_decode(out.sequences)
    ```

    Args:
        reward_funcs (`Callable`, `PreTrainedModel`, `str` or a list of them):
            The target, as for [`QAlign`]. Texts are what is written so far, a candidate and its rollout.
        processing_class (`PreTrainedTokenizerBase`): The tokenizer of the model.
        k (`int`, *optional*, defaults to 10): Candidates for a token. Others are out of reach, however good.
        alpha (`float`, *optional*, defaults to 1.0): Positive; the smaller, the more reward.
        rollout_tokens (`int`, *optional*, defaults to 20):
            Tokens behind a candidate at most; 0 scores the text up to the candidate.
        num_rollouts (`int`, *optional*, defaults to 1): Of each candidate, greedy if it is one, else sampled.
        value (`str`, *optional*, defaults to `"mean"`):
            `"mean"` of the rewards, `"max"`, or `"soft"`, whose rollouts are sampled and which tilts the model by
            `exp(r / alpha)` with many of them.
        baseline_reward_funcs (`Callable`, `PreTrainedModel`, `str` or a list of them, *optional*):
            What the model was aligned to, if not to the target: values are then those of a policy aligned to it
            (indirect transfer).
        beta (`float`, *optional*, defaults to 1.0): Of the weights of indirect transfer; `alpha` with `"soft"`.
        rollout_model (`PreTrainedModel`, *optional*): Continues candidates, with the same vocabulary.
        commit_tokens (`int`, *optional*, defaults to 1):
            Tokens of the winner that are kept, at most `rollout_tokens + 1`. Divides the cost.
        min_p (`float`, *optional*, defaults to 0.0):
            Candidates with less than this times the largest probability are not looked at.
        entropy_gate (`float`, *optional*): No look-ahead where the entropy of the next token is less, in nats.
        reward_weights (sequence of `float`, *optional*): Of several target rewards.
        stop_strings (`str` or `Sequence[str]`, *optional*): A completion ends behind one of them.
        seed (`int`, *optional*, defaults to 0): Of sampled rollouts, which leave the global generator alone.
        streamer (`BaseStreamer`, *optional*): Gets the tokens of a single prompt as they are chosen.

    Raises:
        ValueError: An argument is out of range.
    """

    _paper = method("Transfer Q*").paper

    def __init__(
        self,
        reward_funcs: Any,
        processing_class: PreTrainedTokenizerBase,
        *,
        k: int = 10,
        alpha: float = 1.0,
        rollout_tokens: int = 20,
        num_rollouts: int = 1,
        value: str = "mean",
        baseline_reward_funcs: Any = None,
        beta: float = 1.0,
        rollout_model: Any = None,
        commit_tokens: int = 1,
        min_p: float = 0.0,
        entropy_gate: float | None = None,
        reward_weights: Sequence[float] | None = None,
        stop_strings: str | Sequence[str] | None = None,
        seed: int = 0,
        streamer: Any = None,
    ) -> None:
        super().__init__(reward_funcs, processing_class, reward_weights, stop_strings)
        if not alpha > 0:
            raise ValueError(f"`alpha` must be positive, received {alpha}. `float('inf')` turns values off.")
        if not 0 < beta < math.inf:
            raise ValueError(f"`beta` must be positive and finite, received {beta}.")
        check_counts(k=k, num_rollouts=num_rollouts, commit_tokens=commit_tokens)
        check_counts(0, rollout_tokens=rollout_tokens)
        if commit_tokens > rollout_tokens + 1:
            raise ValueError(
                f"`commit_tokens` must be at most `rollout_tokens` + 1 = {rollout_tokens + 1}, received "
                f"{commit_tokens}."
            )
        if not 0 <= min_p <= 1:
            raise ValueError(f"`min_p` must be in [0, 1], received {min_p}.")
        if value not in VALUES:
            raise ValueError(f"`value` must be one of {', '.join(VALUES)}, received {value!r}.")
        if baseline_reward_funcs is not None:
            if value == "max" or (value == "mean" and num_rollouts < 2):
                raise ValueError(
                    "`value` must be 'mean' with `num_rollouts` of at least 2, or 'soft', for "
                    f"`baseline_reward_funcs`, received {value!r} with {num_rollouts}."
                )
            if value == "soft" and alpha != beta:
                raise ValueError(
                    f"`beta` must be `alpha` for `value='soft'` with `baseline_reward_funcs`, received "
                    f"{beta} and {alpha}."
                )
        self.k, self.alpha, self.rollout_tokens, self.num_rollouts = k, alpha, rollout_tokens, num_rollouts
        self.value, self.baseline_reward_funcs, self.beta = value, baseline_reward_funcs, beta
        self.rollout_model, self.commit_tokens, self.min_p = rollout_model, commit_tokens, min_p
        self.entropy_gate, self.seed, self.streamer = entropy_gate, seed, streamer

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
    ) -> TransferQOutput:
        """
        Called by `generate`, which takes `prompts` and `columns` as well.

        Args:
            model (`PreTrainedModel`): Generates, as do all arguments that are not named here.
            input_ids (`torch.Tensor` of shape `(B, P)`): The prompts, padded on the left.
            logits_processor (`LogitsProcessorList`): Prepared.
            stopping_criteria (`StoppingCriteriaList`): Prepared.
            generation_config (`GenerationConfig`): Prepared.
            prompts (`Sequence` of `str` or `list[dict]`, *optional*):
                What rewards get as prompts, such as conversations; the decoded ids if not given.
            columns (`Mapping[str, Sequence]`, *optional*): Further columns that rewards get, an entry for each prompt.

        Returns:
            [`TransferQOutput`].

        Raises:
            ValueError: An argument is out of range, or a reward is not finite.
            NotImplementedError: The model or an argument of `generate` is not supported.
        """
        self.check(model, input_ids, generation_config, model_kwargs)
        roller = model if self.rollout_model is None else self.rollout_model
        size, other = (one.get_output_embeddings().weight.shape[0] for one in (model, roller))
        if self.k > size:
            raise ValueError(f"`k` must be at most {size}, the size of the vocabulary, received {self.k}.")
        if size != other:
            raise ValueError(
                f"`rollout_model` must have the vocabulary of the model, received {other} for {size} tokens."
            )
        if self.streamer is not None and len(input_ids) > 1:
            raise ValueError(f"`streamer` must be left out for more than one prompt, received {len(input_ids)}.")
        mask = model_kwargs.get("attention_mask")
        funcs = {"reward_funcs": self.reward_funcs}
        if self.baseline_reward_funcs is not None:
            funcs["baseline_reward_funcs"] = self.baseline_reward_funcs
        rewards = [self.reward_of(function, model.device, name) for name, function in funcs.items()]
        before = sum(reward.calls for reward in rewards)
        search = Lookahead(
            options=self,
            scorers=[Scorer(self.processing_class, reward, input_ids, mask, prompts, columns) for reward in rewards],
            processors=logits_processor,
            criteria=self.criteria(stopping_criteria),
            config=generation_config,
        )
        if self.streamer is not None:
            self.streamer.put(input_ids.cpu())
        sequences = search.run(model, self.rollout_model, input_ids, model_kwargs)
        if self.streamer is not None:
            self.streamer.end()
        return TransferQOutput(
            sequences=sequences,
            candidates=search.candidates,
            values=search.values,
            rollout_tokens=search.rollout_tokens,
            reward_calls=sum(reward.calls for reward in rewards) - before,
            passes=search.passes,
        )
