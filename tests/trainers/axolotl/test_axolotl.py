# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The plug-in of axolotl, against what its documentation says of plug-ins: axolotl pins other versions of TRL and
transformers, so that it cannot be installed here. What stands for it below has its names and nothing of its code.
"""

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForTokenClassification, AutoTokenizer, TrainingArguments
from trl import KTOConfig

from alignext import BCOConfig, BCOTrainer, mini
from alignext.trainers.axolotl import AlignextArgs, AlignextPlugin


# TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


@dataclass
class AxolotlKTOConfig(KTOConfig):
    """With a field of axolotl's own, which ours does not have."""

    sample_packing: bool = False


@pytest.fixture
def axolotl(monkeypatch):
    """The two names that a plug-in meets: the class it is a subclass of, and the manager that holds the settings."""
    base: Any = ModuleType("axolotl.integrations.base")

    class PluginManager:
        cfg: Any = None

        @classmethod
        def get_instance(cls):
            return cls

    base.BasePlugin, base.PluginManager = type("BasePlugin", (), {}), PluginManager
    for name, module in {"axolotl": ModuleType("axolotl"), "axolotl.integrations": ModuleType("i")}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "axolotl.integrations.base", base)
    return PluginManager


def configured(axolotl: Any, **cfg: Any) -> dict[str, Any]:
    """As axolotl reads a YAML file: the plug-in first, then its keys are checked, then they are its settings."""
    AlignextPlugin().register(cfg)
    AlignextArgs(**{key: cfg.get(key) for key in AlignextArgs.model_fields})
    axolotl.cfg = cfg
    return cfg


def class_of(name: str) -> type:
    module, _, attribute = name.rpartition(".")
    return getattr(__import__(module, fromlist=[attribute]), attribute)


def test_the_plugin_is_named_as_axolotl_loads_it():
    assert class_of("alignext.trainers.axolotl.AlignextPlugin") is AlignextPlugin
    assert class_of(AlignextPlugin().get_input_args()) is AlignextArgs


def test_bco_is_trained_as_our_trainer_does(axolotl, tmp_path):
    cfg = configured(axolotl, alignext_trainer="bco", alignext={"reward_shift_decay": 0.9})
    assert cfg["rl"] == "kto" and AlignextPlugin().get_trainer_cls(cfg) is None
    rows = [{"prompt": "a fox", "completion": f" runs {i}", "label": i % 2 == 0} for i in range(4)]
    common = {
        "per_device_train_batch_size": 2, "max_steps": 2, "report_to": "none", "use_cpu": True, "logging_steps": 1,
        "learning_rate": 1e-3, "beta": 0.2, "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(mini.path("lm"))
    trainer = class_of(cfg["trainer_cls"])(
        mini.path("lm").as_posix(),
        args=AxolotlKTOConfig(output_dir=str(tmp_path / "a"), **common),
        train_dataset=Dataset.from_list(rows),
        callbacks=[],
        processing_class=tokenizer,
    )
    assert trainer.args.reward_shift_decay == 0.9 and trainer.args.beta == 0.2
    assert trainer.args.loss_type == "bco" and trainer.args.train_sampling_strategy == "random"
    trainer.train()
    ours = BCOTrainer(
        mini.path("lm").as_posix(),
        args=BCOConfig(output_dir=str(tmp_path / "b"), reward_shift_decay=0.9, **common),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    ours.train()
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (trainer, ours)]
    assert losses[0] == losses[1] and len(losses[0]) == 2


def test_process_rewards_are_trained_on_tokenized_rows(axolotl, tmp_path):
    cfg = configured(axolotl, alignext_trainer="process-reward", alignext={"step_separator": " ;"})
    assert cfg["process_reward_model"] is True and cfg["num_labels"] == 1
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, y, -100, 1], "attention_mask": [1] * 4} for y in (0, 1, 1, 0)]
    model = AutoModelForTokenClassification.from_pretrained(mini.path("lm"), num_labels=cfg["num_labels"])
    args = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, max_steps=1, report_to="none", use_cpu=True,
        logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = AlignextPlugin().get_trainer_cls(cfg)(
        model=model,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=None,
        args=args,
        data_collator=object(),
        callbacks=[],
        processing_class=AutoTokenizer.from_pretrained(mini.path("lm")),
        dataset_tags=["someone/steps"],
    )
    assert trainer.model.config.process_reward["step_separator"] == " ;"
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert 0 < entry["loss"] < 5 and "mean_score" in entry


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"alignext_trainer": "dpo"}, r"`alignext_trainer` must be one of bco, process-reward, received 'dpo'"),
        ({"alignext_trainer": "bco", "rl": "dpo"}, r"needs `rl: kto`, received 'dpo'\. Leave `rl` out"),
    ],
)
def test_a_wrong_configuration_is_said_when_it_is_read(cfg, message):
    with pytest.raises(ValueError, match=message):
        AlignextPlugin().register(cfg)


def test_an_unknown_setting_is_said(axolotl, tmp_path):
    cfg = configured(axolotl, alignext_trainer="bco", alignext={"reward_shft": "ema"})
    with pytest.raises(ValueError, match=r"`alignext` must hold fields of BCOConfig, received \['reward_shft'\]"):
        class_of(cfg["trainer_cls"])("x", args=AxolotlKTOConfig(output_dir=str(tmp_path), use_cpu=True))


def test_without_our_key_nothing_changes():
    cfg: dict[str, Any] = {"rl": "dpo"}
    plugin = AlignextPlugin()
    plugin.register(cfg)
    assert cfg == {"rl": "dpo"} and plugin.get_trainer_cls(cfg) is None
