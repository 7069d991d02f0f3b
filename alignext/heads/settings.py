# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The settings of objective heads, as they stand in the config of a model, and weights of objectives as tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from alignext.checks import check_counts
from alignext.functional.mah_dpo import normalize_weights


# A mapping from names, numbers in the order of the objectives, one row of them per prompt, or the untouched base head.
ObjectiveWeights = Mapping[str, float] | Sequence[float] | torch.Tensor | str | None
_DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass
class HeadSettings:
    """
    The dictionary `config.objective_heads`, checked. The arguments of `from_pretrained` and `from_config` that set
    `rank`, `alpha` and `dtype` are called `head_rank`, `head_alpha` and `head_dtype`.

    Args:
        objectives (`list[str]`): Names, in the order of the heads.
        head_type (`str`, *optional*, defaults to `"full"`): Or `"low_rank"`.
        rank (`int`, *optional*, defaults to 64): Of heads of low rank.
        alpha (`float`, *optional*): They are scaled by `alpha / rank`; the rank if not given.
        dtype (`str`, *optional*, defaults to `"float32"`): Of the heads.
        default_weights (`list[float]`, *optional*): For calls without weights.

    Raises:
        ValueError: A setting is out of range.
    """

    objectives: list[str]
    head_type: str = "full"
    rank: int = 64
    alpha: float | None = None
    dtype: str = "float32"
    default_weights: list[float] | None = None

    def __post_init__(self) -> None:
        names: Any = self.objectives
        if not names or isinstance(names, str) or len(set(names)) < len(names):
            raise ValueError(
                "`objectives` must name at least one objective, each once, such as ['honest', 'helpful'], received "
                f"{names!r}. The checkpoint has no objective heads of its own."
            )
        self.objectives = [str(name) for name in names]
        if self.head_type not in ("full", "low_rank"):
            raise ValueError(f"`head_type` must be 'full' or 'low_rank', received {self.head_type!r}.")
        check_counts(head_rank=self.rank)
        self.alpha = self.rank if self.alpha is None else self.alpha
        self.dtype = str(self.dtype).removeprefix("torch.")
        if self.dtype not in _DTYPES:
            raise ValueError(f"`head_dtype` must be one of {', '.join(_DTYPES)}, received {self.dtype!r}.")
        if self.default_weights is not None:
            weights = weights_tensor(self.default_weights, self.objectives, "default_weights")
            normalize_weights(weights)  # the same errors now as at every call later
            self.default_weights = weights.tolist()

    @classmethod
    def of(cls, saved: dict[str, Any] | None, given: dict[str, Any]) -> "HeadSettings":
        """
        The settings of a checkpoint, or new ones.

        Args:
            saved (`dict`, *optional*): `config.objective_heads` of a checkpoint with heads.
            given (`dict`): The arguments of a caller; `None` is not given. They must agree with what was saved, but
                for `default_weights`.
        """
        given = {name: value for name, value in given.items() if value is not None}
        fields = {name.removeprefix("head_") if name != "head_type" else name: name for name in given}
        if saved is None:
            values: dict[str, Any] = {"objectives": []}
            return cls(**values | {field: given[name] for field, name in fields.items()})
        for field, name in fields.items():
            value = list(given[name]) if field == "objectives" else given[name]
            value = str(value).removeprefix("torch.") if field == "dtype" else value
            if field != "default_weights" and value != saved[field]:
                raise ValueError(
                    f"`{name}` is {value}, but the checkpoint was saved with {saved[field]}. Leave it out."
                )
        return cls(**(saved | {"default_weights": given.get("default_weights", saved.get("default_weights"))}))

    def to_dict(self) -> dict[str, Any]:
        """The form in which the config keeps them."""
        return asdict(self)


def weights_tensor(weights: Any, names: Sequence[str], argument: str) -> torch.Tensor:
    """Weights of objectives, by name or in their order, as a tensor of shape `(H,)` or `(B, H)`."""
    if isinstance(weights, Mapping):
        unknown = [name for name in weights if name not in names]
        if unknown:
            raise ValueError(f"`{argument}` names {unknown}, but the model's objectives are {list(names)}.")
        weights = [float(weights.get(name, 0.0)) for name in names]
    if isinstance(weights, str):
        raise ValueError(f"`{argument}` is {weights!r}. Besides numbers only 'base' is known, for one call.")
    weights = torch.as_tensor(weights, dtype=torch.float32, device="cpu")
    if weights.ndim not in (1, 2) or weights.shape[-1] != len(names):
        raise ValueError(
            f"`{argument}` has shape {tuple(weights.shape)}, expected ({len(names)},), or one such row per prompt, "
            f"for the objectives {list(names)}."
        )
    return weights
