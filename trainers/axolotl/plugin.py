# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What axolotl asks a plug-in for: which trainer runs, and which keys of its YAML are ours."""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel


if TYPE_CHECKING:
    _Plugin = object
else:
    try:
        from axolotl.integrations.base import BasePlugin as _Plugin
    except ImportError:
        _Plugin = object


# What each of our trainers needs of axolotl's own keys.
KEYS: dict[str, dict[str, Any]] = {
    # Its builder for preferences hands no model to a class of a plug-in, but does to a `trainer_cls`.
    "bco": {"rl": "kto", "trainer_cls": "alignext.trainers.axolotl.trainers.AxolotlBCOTrainer"},
    "process-reward": {
        "process_reward_model": True,
        "model_type": "AutoModelForTokenClassification",
        "num_labels": 1,
    },
}


class AlignextArgs(BaseModel):
    """
    Our keys of an axolotl configuration.

    Args:
        alignext_trainer (`str`, *optional*): `"bco"` or `"process-reward"`.
        alignext (`dict`, *optional*): Fields of [`BCOConfig`] or [`ProcessRewardConfig`] that axolotl has no key for.
    """

    alignext_trainer: str | None = None
    alignext: dict[str, Any] | None = None


class AlignextPlugin(_Plugin):
    """Trains with [`BCOTrainer`] or [`ProcessRewardTrainer`] where the configuration says `alignext_trainer`."""

    def register(self, cfg: Any) -> None:
        """
        Fill in what the trainer needs of axolotl's keys.

        Args:
            cfg (`dict`): The configuration as it was read.

        Raises:
            ValueError: There is no such trainer, or a key says something else.
        """
        name = cfg.get("alignext_trainer")
        if name is None:
            return
        if name not in KEYS:
            raise ValueError(f"`alignext_trainer` must be one of {', '.join(KEYS)}, received {name!r}.")
        for key, value in KEYS[name].items():
            if cfg.get(key) not in (None, value):
                raise ValueError(
                    f"`alignext_trainer: {name}` needs `{key}: {value}`, received {cfg.get(key)!r}. Leave `{key}` out."
                )
            cfg[key] = value

    def get_input_args(self) -> str:
        """Where axolotl finds our keys."""
        return "alignext.trainers.axolotl.AlignextArgs"

    def get_trainer_cls(self, cfg: Any) -> type | None:
        """The trainer that takes the place of axolotl's for process rewards."""
        if cfg.get("alignext_trainer") != "process-reward":
            return None
        from alignext.trainers.axolotl.trainers import AxolotlProcessRewardTrainer

        return AxolotlProcessRewardTrainer
