# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What the trainer contract suite runs on: a row per trainer, small data, a way to start it on the mini-LM."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub import HfApi, constants
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)

import alignext.mini

from ..fake_hub import FakeHub, fake_hub


MINI_LM = alignext.mini.path("lm")

STORIES = [
    ("Once upon a time, there was a cat named Tom.", " Tom liked milk and was happy.", " Tom fell and was very sad."),
    ("Lily went to the park with her mom.", " She played with a big red ball.", " It was closed, so she cried."),
    ("Ben had a new toy car.", " He let his sister play with it too.", " He broke it and hid it under the bed."),
    ("The little bird could not fly.", " Her friends helped her and she tried again.", " She gave up."),
    ("One day, it started to rain.", " The kids jumped in the puddles and laughed.", " The kids went home."),
    ("A bear lived in the forest.", " He shared his honey with the bees.", " He did not want to share."),
    ("Mia found a shiny stone.", " She gave it to her grandma.", " She lost it in the river and was angry."),
    ("Tim was scared of the dark.", " His dad gave him a small light.", " He did not sleep at all."),
]


def preference(conversational: bool = False) -> Dataset:
    """Pairs: `prompt`, `chosen`, `rejected`."""
    return Dataset.from_list(
        [
            {
                "prompt": _user(prompt, conversational),
                "chosen": _told(chosen, conversational),
                "rejected": _told(rejected, conversational),
            }
            for prompt, chosen, rejected in STORIES
        ]
    )


def unpaired(conversational: bool = False) -> Dataset:
    """Single completions with a thumb up or down: `prompt`, `completion`, `label`."""
    return Dataset.from_list(
        [
            {"prompt": _user(p, conversational), "completion": _told(text, conversational), "label": label}
            for p, chosen, rejected in STORIES
            for text, label in ((chosen, True), (rejected, False))
        ]
    )


def preference_by_objective(conversational: bool = False) -> Dataset:
    """Pairs of two objectives: `prompt`, `chosen`, `rejected`, `objective`."""
    return preference(conversational).add_column("objective", ["kind", "lively"] * (len(STORIES) // 2))


def solutions(conversational: bool = False) -> Dataset:
    """Texts in steps, each with its label: `prompt`, `steps`, `labels`."""
    return Dataset.from_list(
        [
            {"prompt": _user(prompt, conversational), "steps": [chosen, rejected], "labels": [1.0, 0.0]}
            for prompt, chosen, rejected in STORIES
        ]
    )


def prompts(conversational: bool = False) -> Dataset:
    """Beginnings to go on from: `prompt`."""
    return Dataset.from_list([{"prompt": _user(p, conversational)} for p, *_ in STORIES])


def _user(text: str, conversational: bool) -> str | list[dict[str, str]]:
    return [{"role": "user", "content": text}] if conversational else text


def _told(text: str, conversational: bool) -> str | list[dict[str, str]]:
    return [{"role": "assistant", "content": text.strip()}] if conversational else text


def count_vowels(completions: list, **kwargs: object) -> list[float]:
    """A reward that seldom ties, so that a group of two samples has something to learn from."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [float(sum(letter in "aeiou" for letter in text)) for text in texts]


# Three steps of four rows on the CPU, each of them logged, nothing written.
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])  # `Row.start` says for what kind of model
# For other architectures than the rows' own, on which the suite trains both.
with_and_without_lora = pytest.mark.parametrize(
    "peft_config", [pytest.param(None, id="full"), pytest.param(LORA, id="lora", marks=pytest.mark.slow)]
)
SHORT_RUN = {
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "activation_checkpointing": False,
    "disable_tqdm": True,
}


@dataclass(frozen=True, eq=False)  # compared and hashed by identity: it holds dicts
class Row:
    """One trainer under contract.

    Args:
        trainer (`type`): The class.
        config (`type`): Its config class.
        dataset (`Callable[[bool], Dataset]`): Builds its data; `True` asks for the conversational format.
        settings (`dict`, *optional*): Config fields that the class needs beyond those every run gets.
        arguments (`dict`, *optional*): Constructor arguments beyond model, config, data, tokenizer and adapter.
        samples (`bool`, *optional*, defaults to `False`): Whether it generates: evaluation then draws random numbers.
        ours (`bool`, *optional*, defaults to `False`): Whether the class is alignext's: a few clauses bind only those.
        auto (*optional*): The stock class that opens what was saved, by default that of causal language models.
        auto_settings (`dict`, *optional*): What its `from_pretrained` needs to open the mini-LM.
        task (`str`, *optional*, defaults to `"CAUSAL_LM"`): The task of its adapters.
        head (`str`, *optional*): The module that is trained whole beside an adapter.
    """

    trainer: type[Trainer]
    config: type[TrainingArguments]
    dataset: Callable[[bool], Dataset]
    settings: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    samples: bool = False
    ours: bool = False
    auto: Any = AutoModelForCausalLM
    auto_settings: dict[str, Any] = field(default_factory=dict)
    task: str = "CAUSAL_LM"
    head: str | None = None

    def __str__(self) -> str:
        return self.trainer.__name__

    def load(self, folder: Path = MINI_LM) -> PreTrainedModel:
        """The model in a folder. A head that is not in it is drawn from the seed of every config."""
        set_seed(42)
        return self.auto.from_pretrained(folder, **self.auto_settings)

    def start(
        self,
        folder: Path,
        *,
        conversational: bool = False,
        peft_config: Any = None,
        dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        model: object = str(MINI_LM),
        trainer: type[Trainer] | None = None,
        **settings: Any,
    ) -> Trainer:
        """The trainer on the mini-LM, ready for three steps of four rows; `settings` override the config."""
        defaults = SHORT_RUN | {"output_dir": str(folder), "lr_scheduler_type": "constant", "bf16": False}
        peft_config = copy.deepcopy(peft_config)  # peft writes into it
        if peft_config is not None:
            peft_config.task_type = self.task
        return (trainer or self.trainer)(
            model=model,
            args=self.config(**defaults | self.settings | settings),
            train_dataset=self.dataset(conversational) if dataset is None else dataset,
            eval_dataset=eval_dataset,
            peft_config=peft_config,
            **self.arguments,
        )


def curve(trainer: Trainer) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of every logged training step."""
    return [(log["step"], log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "loss" in log]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def moved(before: dict[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    """Names of the weights that are not what they were."""
    return {name for name, weight in model.named_parameters() if not torch.equal(before[name], weight)}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """That two models have the same weights, bit for bit."""
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, different


class Steps(TrainerCallback):
    """Notes the steps that are really taken; the log of a resumed run also holds those it was handed."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def on_step_end(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        self.taken.append(state.global_step)


@contextmanager
def hub_of_trainers(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The test's Hub, as the one that a trainer of this process pushes to."""
    with fake_hub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the test's Hub does not speak that protocol
        monkeypatch.setattr("transformers.trainer.hf_api", lambda: HfApi(endpoint=hub.url, token="hf_test"))
        yield hub
