# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The things that a run learns besides weights. They travel in `fdpg_state.json` of every checkpoint."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from alignext.files import replacing


FILE = "fdpg_state.json"


def context_key(row: dict[str, Any]) -> str:
    """A digest of the prompt and all other columns of a row, pictures by their pixels: what `Z` depends on."""

    def plain(value: Any) -> Any:
        if hasattr(value, "tobytes"):  # a picture or an array
            return hashlib.md5(value.tobytes(), usedforsecurity=False).hexdigest()
        return repr(value)

    text = json.dumps(row, sort_keys=True, default=plain)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


@dataclass
class FDPGState:
    """
    Attributes:
        coefficients (`list[float]`, *optional*): `lambda` of a distributional target, once it was fitted.
        z (`dict[str, list[float]]`): By context: the log of the sum of its importance weights, and their number.
        window (`list[float]`): The last pseudo-rewards, for `baseline="window"`.
        weights (`list[float]`): Number, sum and sum of squares of all importance weights, for a binary target.
        unmet (`list[float]`): Share of contexts with `Z = 0` in the last 50 batches.
        behind (`list[float]`): Per batch since the last check, how much nearer to the target the policy is than the
            proposal (negative is nearer).
        checked (`int`): Step of the last check of the proposal.
    """

    coefficients: list[float] | None = None
    z: dict[str, list[float]] = field(default_factory=dict)
    window: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    unmet: list[float] = field(default_factory=list)
    behind: list[float] = field(default_factory=list)
    checked: int = 0

    def history(self, key: str) -> tuple[float, int]:
        """Log-sum and number of the weights of a context."""
        log_sum, count = self.z.get(key, (-math.inf, 0))
        return log_sum, int(count)

    def add(self, key: str, log_w: torch.Tensor) -> None:
        """Take the weights of new samples of a context into account; NaN is left out."""
        log_w = log_w[~log_w.isnan()]
        log_sum, count = self.history(key)
        total = torch.logaddexp(torch.tensor(log_sum, dtype=log_w.dtype), log_w.logsumexp(0))
        self.z[key] = [total.item(), count + len(log_w)]

    def copied(self) -> "FDPGState":
        """As it is now, whatever is added later."""
        return replace(self, z=dict(self.z), behind=list(self.behind))

    def save(self, folder: Path) -> None:
        with replacing(folder / FILE) as part:
            part.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> "FDPGState":
        """The saved state; that of a fresh run where another trainer wrote the checkpoint."""
        file = folder / FILE
        return cls(**json.loads(file.read_text())) if file.is_file() else cls()
