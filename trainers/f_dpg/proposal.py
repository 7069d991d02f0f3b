# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The adaptive proposal: a frozen copy of the policy that samples, and follows the policy now and then."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from trl.trainer.utils import use_adapter

from alignext.files import replacing


ADAPTER = "proposal"
FILE = "fdpg_proposal.safetensors"


class Proposal:
    """
    A copy of the policy: of its adapter, or of the whole model where there is none.

    Args:
        policy (`PreTrainedModel` or `PeftModel`): The policy, not wrapped.
        copied (`PreTrainedModel`, *optional*): Its copy, prepared; `None` to copy the adapter of `policy`.
        unwrap (`Callable`): Of the accelerator.
    """

    def __init__(self, policy: Any, copied: Any, unwrap: Any) -> None:
        self.model, self.unwrap = copied, unwrap
        if copied is None:
            policy.add_adapter(ADAPTER, policy.peft_config["default"])
            self.follow(policy)
            policy.set_adapter("default")

    @torch.no_grad()
    def follow(self, policy: Any) -> None:
        """Become what the policy is."""
        if self.model is not None:
            self.unwrap(self.model).load_state_dict(policy.state_dict())
            return
        parameters = dict(policy.named_parameters())
        for name, value in parameters.items():
            if ".default." in name:
                parameters[name.replace(".default.", f".{ADAPTER}.")].copy_(value)

    @contextmanager
    def sampling(self, trainer: Any) -> Generator[None]:
        """Let the parent of a trainer sample from the proposal, and score with it."""
        if self.model is None:
            with use_adapter(self.unwrap(trainer.model), adapter_name=ADAPTER):
                yield
            return
        policy = trainer.model, trainer.model_wrapped
        self.model.train(trainer.model.training)
        trainer.model = trainer.model_wrapped = self.model
        try:
            yield
        finally:
            trainer.model, trainer.model_wrapped = policy

    def save(self, folder: Path) -> None:
        """Write a whole copy; the trainer saves an adapter with its model."""
        if self.model is not None:
            with replacing(folder / FILE) as part:
                safetensors.torch.save_model(self.unwrap(self.model), str(part))

    def load(self, folder: Path) -> None:
        if self.model is not None and (folder / FILE).is_file():
            safetensors.torch.load_model(self.unwrap(self.model), str(folder / FILE))
