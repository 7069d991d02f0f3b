# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Our trainers as axolotl makes them: from settings of its own classes, with rows that it has tokenized."""

import importlib
from collections.abc import Collection
from dataclasses import fields
from typing import Any, TypeVar

from alignext.trainers.bco import BCOConfig, BCOTrainer
from alignext.trainers.process_reward import ProcessRewardConfig, ProcessRewardTrainer


Config = TypeVar("Config")


class AxolotlBCOTrainer(BCOTrainer):
    """[`BCOTrainer`] for `alignext_trainer: bco`."""

    def __init__(self, model: Any, *, args: Any, **kwargs: Any) -> None:
        # Of axolotl's KTO settings these two are KTO's.
        settings = settings_of(BCOConfig, args, without=("loss_type", "train_sampling_strategy"))
        super().__init__(model, args=settings, **kwargs)


class AxolotlProcessRewardTrainer(ProcessRewardTrainer):
    """[`ProcessRewardTrainer`] for `alignext_trainer: process-reward`."""

    def __init__(self, model: Any, *, args: Any, **kwargs: Any) -> None:
        for name in ("data_collator", "dataset_tags"):  # our own pads labels that are numbers
            kwargs.pop(name, None)
        super().__init__(model, settings_of(ProcessRewardConfig, args, without=("loss_type",)), **kwargs)


def settings_of(config: type[Config], given: Any, without: Collection[str] = ()) -> Config:
    """
    Our settings, from axolotl's and from what stands under `alignext` in its configuration.

    Args:
        config (`type`): The class of our settings.
        given (`TrainingArguments`): Axolotl's.
        without (`Collection[str]`, *optional*): Fields that are not taken from there.

    Raises:
        ValueError: A field under `alignext` is none of ours.
    """
    names = [f.name for f in fields(config) if f.init]  # ty: ignore[invalid-argument-type]
    manager = importlib.import_module("axolotl.integrations.base").PluginManager.get_instance()
    own = dict((manager.cfg or {}).get("alignext") or {})
    if unknown := sorted(own.keys() - set(names)):
        raise ValueError(f"`alignext` must hold fields of {config.__name__}, received {unknown}.")
    taken = {name: getattr(given, name) for name in names if hasattr(given, name) and name not in without}
    return config(**taken | own)
