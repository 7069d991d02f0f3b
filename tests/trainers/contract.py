# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What the contract suite of the trainers asks of a row, and the rows of language models: small data and models."""

import atexit
import copy
import functools
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset
from huggingface_hub import HfApi, ModelCard, constants
from peft import LoraConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)

import alignext.mini

from ..fake_hub import FakeHub, fake_hub


MINI_LM = alignext.mini.path("lm")


def random_lm() -> Path:
    """
    A language model for what is true of any: two layers with the embedded one's tokenizer, random, its gradients not
    small, the same for everybody. It costs a tenth of the embedded one.
    """
    folder = Path(tempfile.mkdtemp(prefix="alignext-lm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(MINI_LM / name, folder)
    known = AutoConfig.from_pretrained(MINI_LM).to_dict()
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**known | small | {"num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


LM = random_lm()

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


@dataclass(frozen=True, eq=False, kw_only=True)  # compared and hashed by identity: it holds dicts
class AnyRow(ABC):
    """One trainer under contract: what a clause may ask of it, whatever the model is that it trains.

    Args:
        name (`str`, *optional*): Of the row; that of the trainer if not given.
        learns (`str`, *optional*, defaults to `"pairs"`): What a row of its data holds: `"votes"`, `"pairs"`,
            `"prompts"` or `"steps"`.
        samples (`bool`, *optional*, defaults to `False`): Whether it generates: evaluation then draws random numbers.
        ours (`bool`, *optional*, defaults to `True`): Whether the class is alignext's: a few clauses bind only those.
        at_reference (`bool`, *optional*, defaults to `True`): Whether the first rewards are zero.
        slow (`bool`, *optional*, defaults to `False`): Whether its tests are.
    """

    trainer: type[Trainer]
    config: type[TrainingArguments]
    name: str | None = None
    learns: str = "pairs"
    samples: bool = False
    ours: bool = True
    at_reference: bool = True
    slow: bool = False

    # What a class of rows has in common.
    lora = LORA
    summed = ("loss", "grad_norm")  # metrics of a step that do not depend on how it is cut into batches
    close = 1e-3  # how close they are, relative to what they are
    rate = 1e-3  # of SGD
    draws: ClassVar[dict[str, Any]] = {}  # config fields that let the data draw random numbers
    from_instance = False  # whether `start` hands a model over, where it is not told; it names a path otherwise
    files = frozenset({"README.md"})  # what is pushed
    idle = None  # part of the names of weights that a model has and its output does not depend on

    def __str__(self) -> str:
        return self.name or self.trainer.__name__

    @abstractmethod
    def data(self) -> Dataset:
        """Eight or more rows to train on."""

    @abstractmethod
    def start(self, folder: Path, *, peft_config: Any = None, dataset: Any = None, **settings: Any) -> Trainer:
        """The trainer, ready for three steps of four rows; `settings` override the config."""

    @abstractmethod
    def bare(self, **arguments: Any) -> Trainer:
        """The trainer with the least that it takes."""

    @abstractmethod
    def origins(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of `start` that name the untrained model by its path, and that hand it over."""

    @abstractmethod
    def trained(self, trainer: Trainer) -> torch.nn.Module:
        """What it trains."""

    @abstractmethod
    def untrained(self) -> torch.nn.Module:
        """The same before training, without a trainer."""

    @abstractmethod
    def said(self, trainer: Trainer) -> torch.Tensor:
        """What the trained model says to a fixed input."""

    @abstractmethod
    def opened(self, saved: Path | None, lora: bool) -> torch.Tensor:
        """The same of what stock classes open in a folder; of the untrained model without one."""

    def moves(self, name: str) -> bool:
        """Whether a LoRA run trains the parameter of that name."""
        return "lora_" in name

    def check_first(self, log: dict[str, float]) -> None:
        """Holds what is logged of the first step; a row may know more of it."""
        assert "loss" in log

    def check_card(self, card: ModelCard) -> None:
        """Holds the model card; a row may know more of it."""
        assert card.text


@dataclass(frozen=True, eq=False)
class Row(AnyRow):
    """A trainer of language models, on a small random one.

    Args:
        trainer (`type`): The class.
        config (`type`): Its config class.
        dataset (`Callable[[bool], Dataset]`): Builds its data; `True` asks for the conversational format.
        settings (`dict`, *optional*): Config fields that the class needs beyond those every run gets.
        arguments (`dict`, *optional*): Constructor arguments beyond model, config, data, tokenizer and adapter.
        auto (*optional*): The stock class that opens what was saved, by default that of causal language models.
        auto_settings (`dict`, *optional*): What its `from_pretrained` needs to open the model.
        task (`str`, *optional*, defaults to `"CAUSAL_LM"`): The task of its adapters.
        head (`str`, *optional*): The module that is trained whole beside an adapter.
    """

    trainer: type[Trainer]
    config: type[TrainingArguments]
    dataset: Callable[[bool], Dataset]
    settings: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    auto: Any = AutoModelForCausalLM
    auto_settings: dict[str, Any] = field(default_factory=dict)
    task: str = "CAUSAL_LM"
    head: str | None = None

    files = AnyRow.files | {"model.safetensors", "config.json", "tokenizer.json"}

    def load(self, folder: Path = LM) -> PreTrainedModel:
        """The model in a folder. A head that is not in it is drawn from the seed of every config."""
        set_seed(42)
        return self.auto.from_pretrained(folder, **self.auto_settings)

    def data(self) -> Dataset:
        return self.dataset(False)

    def start(
        self,
        folder: Path,
        *,
        conversational: bool = False,
        peft_config: Any = None,
        dataset: Dataset | None = None,
        eval_dataset: Any = None,
        model: object = str(LM),
        trainer: type[Trainer] | None = None,
        **settings: Any,
    ) -> Trainer:
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

    def bare(self, **arguments: Any) -> Trainer:
        return self.trainer(model=str(LM), train_dataset=self.data(), **self.arguments | arguments)

    def origins(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"model": str(LM)}, {"model": self.load()}

    def trained(self, trainer: Trainer) -> torch.nn.Module:
        return trainer.model

    def untrained(self) -> torch.nn.Module:
        return self.load()

    def said(self, trainer: Trainer) -> torch.Tensor:
        return logits(trainer.model)

    def opened(self, saved: Path | None, lora: bool) -> torch.Tensor:
        model = self.load(LM if lora or saved is None else saved)
        if saved is None:
            return logits(model)
        tokenizer = AutoTokenizer.from_pretrained(saved)
        assert tokenizer.get_vocab() == untouched_tokenizer().get_vocab()
        assert tokenizer.chat_template
        return logits(PeftModel.from_pretrained(model, saved) if lora else model)

    def moves(self, name: str) -> bool:
        return "lora_" in name or f"{self.head}.modules_to_save" in name

    def check_card(self, card: ModelCard) -> None:
        (snippet,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
        compile(snippet, "card", "exec")
        assert ("pipeline(" in snippet) == (self.auto is AutoModelForCausalLM)  # which the other classes do without


@functools.cache
def untouched_tokenizer() -> PreTrainedTokenizerBase:
    """The model's, which no trainer has had in its hands."""
    return AutoTokenizer.from_pretrained(LM)


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = untouched_tokenizer()("Lily and Tom went home.", return_tensors="pt").input_ids
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


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
