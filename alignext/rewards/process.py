# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Reward models as functions of prompts and texts so far: for guided decoding, and wherever TRL takes a function.

Both classes are called as TRL calls reward functions, `reward(prompts=..., completions=..., **more)`, and return one
float per completion, larger is better.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from peft import AutoPeftModelForTokenClassification
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from alignext.rewards.sequence import Prompt, SequenceReward, logits_of, text_of


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The token ids of a prompt; a conversation gets the chat template and the header of the answer to come."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    answering = prompt[-1]["role"] == "assistant"
    return tokenizer.apply_chat_template(
        prompt,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=not answering,
        continue_final_message=answering,
    )["input_ids"]


def encode_steps(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, steps: Sequence[str], step_separator: str
) -> tuple[list[int], list[int]]:
    """
    A solution as a process reward model reads it: the prompt, then every step, stripped and followed by the separator.
    Steps are tokenized one by one, so that what stands before a separator does not depend on what comes after it.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Of the reward model.
        prompt (`str` or `list[dict]`): Text or conversation.
        steps (`Sequence[str]`): The steps so far.
        step_separator (`str`): What is put after a step; its score is read at the last token of it.

    Returns:
        `tuple[list[int], list[int]]`: Token ids, and the position of the last token of each separator.
    """
    ids, ends = list(prompt_ids(tokenizer, prompt)), []
    separator = tokenizer(step_separator, add_special_tokens=False)["input_ids"]
    for step in steps:
        ids += tokenizer(step.strip(), add_special_tokens=False)["input_ids"] + separator
        ends.append(len(ids) - 1)
    return ids, ends


class ValueHead(nn.Sequential):
    """
    The value head of the paper's verifiable tasks, `Linear(d, d) - ReLU - Linear(d, 1)` in float32 on the hidden
    states of a model that need not be trained itself. Weights are drawn from N(0, 0.02), biases are 0.

    Put in the place of the `score` of a token classifier it is trained by `ProcessRewardTrainer` like any head; a
    stock class opens only the rest of what is saved then.

    Args:
        hidden_size (`int`): `d`.
        generator (`torch.Generator`, *optional*): Draws the weights; the global one if not given.
    """

    def __init__(self, hidden_size: int, generator: torch.Generator | None = None) -> None:
        first, last = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, 1)
        super().__init__(first, nn.ReLU(), last)
        for layer in (first, last):
            nn.init.normal_(layer.weight, std=0.02, generator=generator)
            nn.init.zeros_(layer.bias)
        self.float()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Values of shape `(..., 1)`, float32, of hidden states of shape `(..., d)`."""
        return super().forward(input.float())


class ProcessReward:
    """
    Scores texts by a process reward model, a token classifier that says at the separator after each step how well
    things go: the probability of success, or the raw value of a model trained on values.

    Args:
        model (`PreTrainedModel` or `PeftModel`): A token classifier with one label, or with two of which 1 is good.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        step_separator (`str`, *optional*): As in training; what `ProcessRewardTrainer` wrote into the model's config,
            else a line break.
        loss_type (`str`, *optional*): `"bce"`: the one logit is that of a probability; `"mse"`: it is the value. What
            the config says, else `"mse"`. With two labels it is the probability of the second.
        batch_size (`int`, *optional*, defaults to 32): Solutions per forward pass.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        step_separator: str | None = None,
        loss_type: str | None = None,
        batch_size: int = 32,
    ) -> None:
        labels = model.config.num_labels
        if labels not in (1, 2):
            raise ValueError(
                f"`model` has {labels} labels. A process reward model has one, or two of which the second is good."
            )
        trained = getattr(model.config, "process_reward", None) or {}
        self.step_separator = step_separator or trained.get("step_separator", "\n")
        self.loss_type = loss_type or trained.get("loss_type", "mse")
        if self.loss_type not in ("bce", "mse"):
            raise ValueError(f"`loss_type` is {self.loss_type!r}. Choose 'bce' or 'mse'.")
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, batch_size: int = 32, **kwargs: Any) -> "ProcessReward":
        """
        Load what `ProcessRewardTrainer` saved, a whole model or an adapter.

        Args:
            name_or_path (`str` or `Path`): A folder or a Hub id.
            batch_size (`int`, *optional*, defaults to 32): Solutions per forward pass.
            **kwargs: For the model's own `from_pretrained`, such as `device_map` and `dtype`.
        """
        adapter = find_adapter_config_file(name_or_path) is not None
        loader: Any = AutoPeftModelForTokenClassification if adapter else AutoModelForTokenClassification
        trained = getattr(AutoConfig.from_pretrained(name_or_path), "process_reward", None)
        model = loader.from_pretrained(name_or_path, **({"num_labels": 1} if adapter else {}), **kwargs)
        model.config.process_reward = trained  # an adapter's base model does not know it
        return cls(model, AutoTokenizer.from_pretrained(name_or_path), batch_size=batch_size)

    def scores(self, prompts: Sequence[Prompt], steps: Sequence[Sequence[str]]) -> list[torch.Tensor]:
        """
        The score after every step, from one forward pass per solution.

        Args:
            prompts (`Sequence` of `str` or `list[dict]`): Text or conversations.
            steps (`Sequence[Sequence[str]]`): The steps of each solution.

        Returns:
            `list[torch.Tensor]`: One float32 tensor of shape `(number of steps,)` per solution, on the CPU.
        """
        found = []
        for start in range(0, len(prompts), self.batch_size):
            rows = list(zip(prompts, steps, strict=True))[start : start + self.batch_size]
            encoded = [encode_steps(self.tokenizer, *row, self.step_separator) for row in rows]
            logits = logits_of(self.model, [ids for ids, _ in encoded])
            values = self._values(logits)
            found += [row[ends].cpu() for row, (_, ends) in zip(values, encoded, strict=True)]
        return found

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Any] | None = None,
        steps: Sequence[Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """
        The score of the last step of each solution.

        Args:
            prompts (`Sequence` of `str` or `list[dict]`): Text or conversations.
            completions (`Sequence` of `str` or `list[dict]`, *optional*): Texts, cut into steps at the separator.
            steps (`Sequence[Sequence[str]]`, *optional*): The steps, which `guided_generate` knows.
            **kwargs: Whatever else a caller of reward functions gives; unused.

        Returns:
            `torch.Tensor` of shape `(n,)`, float32. A text without words has one empty step.
        """
        if steps is None:
            if completions is None:
                raise ValueError("Neither `steps` nor `completions` is given. Pass one of them.")
            steps = [text_of(completion).split(self.step_separator) for completion in completions]
        written = [[step for step in row if step.strip()] or [""] for row in steps]
        return torch.stack([row[-1] for row in self.scores(prompts, written)])

    def _values(self, logits: torch.Tensor) -> torch.Tensor:
        if logits.shape[-1] == 2:
            return logits.softmax(-1)[..., 1]
        return logits[..., 0].sigmoid() if self.loss_type == "bce" else logits[..., 0]


def as_reward(reward: Any, device: torch.device | str | None = None) -> Any:
    """A reward model, or its folder, as a function, with the tokenizer saved beside it; a function as it is."""
    if isinstance(reward, (str, Path)):
        config = AutoConfig.from_pretrained(reward)
        kind = (config.architectures or [""])[0]
        if kind.endswith("ForSequenceClassification"):
            model = AutoModelForSequenceClassification.from_pretrained(reward)
            loaded: Any = SequenceReward(model, AutoTokenizer.from_pretrained(reward))
        elif kind.endswith("ForTokenClassification") or hasattr(config, "process_reward"):
            loaded = ProcessReward.from_pretrained(reward)
        else:
            raise ValueError(f"`reward_fn` is {str(reward)!r}, a {kind or 'model'} rather than a reward model.")
        loaded.model.to(device)
        return loaded
    if not callable(reward):
        raise ValueError(
            f"`reward_fn` is a {type(reward).__name__}. Pass a function of `prompts`, `completions` and `**kwargs`, a "
            "reward model, or a list of them."
        )
    if not isinstance(reward, nn.Module):
        return reward
    model = reward.get_base_model() if is_peft_model(reward) else reward
    kinds = {"ForTokenClassification": ProcessReward, "ForSequenceClassification": SequenceReward}
    kind = next((kinds[name] for name in kinds if type(model).__name__.endswith(name)), None)
    if kind is None:
        raise ValueError(
            f"`reward_fn` is a {type(model).__name__}. Pass a token classifier (process rewards), a sequence "
            "classifier, or a function that scores with it."
        )
    return kind(reward, AutoTokenizer.from_pretrained(model.config._name_or_path))
