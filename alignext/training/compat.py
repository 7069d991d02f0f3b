# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The installed TRL, held against what the trainers rest on."""

import warnings
from importlib import import_module
from importlib.metadata import version
from typing import Any

from packaging.version import Version


# From the first to below the second: what the suite was run with, see docs/compatibility.md.
TESTED = ("1.16.0", "1.17")
_PAGE = "docs/compatibility.md tells the tested versions, tests/seams.py has the table of seams"

# What each trainer overrides or calls of TRL, beside the classes that it is made from.
NAMES: dict[str, tuple[str, ...]] = {
    "BCO": (
        "trl.KTOConfig",
        "trl.KTOTrainer._compute_loss",
        "trl.KTOTrainer._prepare_dataset",
        "trl.KTOTrainer._set_signature_columns_if_needed",
        "trl.models.utils.disable_gradient_checkpointing",
        "trl.trainer.utils.get_config_model_id",
        "trl.trainer.utils.pad",
        "trl.trainer.utils.use_adapter",
    ),
    "MAH-DPO": (
        "trl.DPOConfig",
        "trl.DPOTrainer._compute_loss",
        "trl.DPOTrainer._get_train_sampler",
        "trl.DPOTrainer._precompute_ref_logps",
        "trl.DPOTrainer._prepare_dataset",
        "trl.DPOTrainer._set_signature_columns_if_needed",
        "trl.DPOTrainer.compute_ref_log_probs",
        "trl.trainer.utils.FusedCausalLMOutput",
        "trl.trainer.utils.add_fused_lm_head",
        "trl.trainer.utils.get_config_model_id",
    ),
    "Process Reward": (
        "trl.RewardConfig",
        "trl.RewardTrainer._prepare_dataset",
        "trl.RewardTrainer._set_signature_columns_if_needed",
        "trl.data_utils.get_dataset_column_names",
        "trl.trainer.utils.create_model_from_path",
        "trl.trainer.utils.get_config_model_id",
        "trl.trainer.utils.global_then_local_main_first",
        "trl.trainer.utils.pad",
    ),
    "f-DPG": (
        "trl.RLOOConfig",
        "trl.RLOOTrainer._calculate_rewards",
        "trl.RLOOTrainer._compute_loss",
        "trl.RLOOTrainer._generate_and_score_completions",
        "trl.RLOOTrainer._get_per_token_logps_and_entropies",
        "trl.RLOOTrainer._load_optimizer_and_scheduler",
        "trl.RLOOTrainer._save_checkpoint",
        "trl.models.prepare_deepspeed",
        "trl.models.prepare_fsdp",
        "trl.models.utils.disable_gradient_checkpointing",
        "trl.trainer.utils.add_fused_lm_head",
        "trl.trainer.utils.disable_dropout_in_model",
        "trl.trainer.utils.get_config_model_id",
        "trl.trainer.utils.use_adapter",
    ),
}
_warned = False


def check_trl(trainer: str) -> None:
    """
    Warn once of a TRL outside the tested range, and name what a trainer would miss in it.

    Args:
        trainer (`str`): A key of `NAMES`.

    Raises:
        ImportError: TRL lacks a name that the trainer rests on.
    """
    global _warned
    installed = version("trl")
    pin = f"trl>={TESTED[0]},<{TESTED[1]}"
    missing = [name for name in NAMES[trainer] if not _is_there(name)]
    if missing:
        raise ImportError(
            f"TRL {installed} has no {', '.join(missing)}, on which the {trainer} trainer of alignext rests. It is "
            f"tested with {pin}: `pip install '{pin}'`. {_PAGE}."
        )
    if not Version(TESTED[0]) <= Version(installed) < Version(TESTED[1]) and not _warned:
        _warned = True
        warnings.warn(
            f"TRL {installed} is outside the range that the trainers of alignext are tested with, {pin}. {_PAGE}.",
            stacklevel=3,
        )


def _is_there(name: str) -> bool:
    parts = name.split(".")
    found: Any = import_module(parts[0])
    for depth, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            try:
                import_module(".".join(parts[:depth]))
            except ImportError:
                return False
        found = getattr(found, part)
    return True
