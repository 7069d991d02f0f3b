# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What each method keeps of gradients: those of the target are learnt first, then batches of candidates are scored.

The gradients of a batch come block by block, one per parameter, and no candidate's are ever held whole.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from transformers import Trainer

from alignext.checks import check_counts
from alignext.data.core import Values, tensors_key
from alignext.data.gradients import RowGradients
from alignext.functional.gist import (
    adam_direction,
    basis,
    count_sketch,
    gist_scores,
    group_means,
    less_scores,
    subspace,
)


class GISTFeatures:
    """The subspace of the target's gradients; see [`~alignext.functional.gist.subspace`]."""

    key = ""  # what scores depend on besides the gradients and the settings

    def __init__(
        self, gradients: RowGradients, groups: torch.Tensor, *, rank: int | None, full: bool, **_: Any
    ) -> None:
        self.groups, self.rank, self.full = groups, rank, full
        self.held: list[list[torch.Tensor]] = [[] for _ in gradients.sizes]

    def learn(self, blocks: Iterable[torch.Tensor]) -> None:
        """Take the gradients of some of the target's rows."""
        for held, block in zip(self.held, blocks, strict=True):
            held.append(block)

    def finish(self) -> None:
        """Find the subspace, and let the target's gradients go."""
        gram: Any = 0.0
        for held in self.held:
            block = torch.cat(held).double()
            gram = gram + block @ block.T
        u, s = subspace(gram.cpu(), self.rank)
        if len(s) == 1 and not self.full:
            raise ValueError(
                f"`target` has {len(gram)} rows with one and the same gradient, where every cosine is 1 or -1. Give "
                "rows that differ, or `normalisation='full'`."
            )
        self.bases = [basis(torch.cat(held), u.to(held[0].device), s.to(held[0].device)) for held in self.held]
        self.held = []
        self.targets = group_means(u * s, self.groups)  # no second pass: G P = U S

    def score(self, blocks: Iterable[torch.Tensor], count: int) -> Values:
        """Scores and energies of a batch."""
        z, squares = torch.zeros(count, self.targets.shape[1], dtype=torch.float64), torch.zeros(count).double()
        for block, of in zip(blocks, self.bases, strict=True):
            z += (block @ of).double().cpu()
            squares += block.double().square().sum(1).cpu()
        norms = squares.sqrt()
        scores = gist_scores(z, self.targets, norms if self.full else None)
        return {"gist": scores.tolist(), "gist_energy": (z.norm(dim=1) / norms).tolist()}


class CosineFeatures:
    """The mean gradient of each group of the target."""

    key = ""

    def __init__(self, gradients: RowGradients, groups: torch.Tensor, **_: Any) -> None:
        self.groups, self.place = groups, 0
        self.counts = torch.bincount(groups)
        self.sums = [torch.zeros(len(self.counts), size) for size in gradients.sizes]

    def learn(self, blocks: Iterable[torch.Tensor]) -> None:
        """Take the gradients of some of the target's rows."""
        count = 0
        for i, block in enumerate(blocks):
            count = len(block)
            groups = self.groups[self.place : self.place + count].to(block.device)
            self.sums[i] = self.sums[i].to(block).index_add(0, groups, block)
        self.place += count

    def finish(self) -> None:
        """Make the means."""
        self.means = [total / self.counts[:, None].to(total) for total in self.sums]
        self.norms = sum(mean.double().square().sum(1).cpu() for mean in self.means) ** 0.5

    def score(self, blocks: Iterable[torch.Tensor], count: int) -> Values:
        """Scores of a batch."""
        products, squares = torch.zeros(count, len(self.counts)).double(), torch.zeros(count).double()
        for block, mean in zip(blocks, self.means, strict=True):
            products += (block @ mean.T).double().cpu()
            squares += block.double().square().sum(1).cpu()
        return {"cosine": (products / self.norms / squares.sqrt()[:, None]).max(1).values.tolist()}


class LESSFeatures:
    """Random projections of the target's gradients, and of the steps that Adam would take with a candidate's."""

    def __init__(
        self,
        gradients: RowGradients,
        groups: torch.Tensor,
        *,
        optimizer_state: str | Path,
        size: int,
        seed: int,
        **_: Any,
    ) -> None:
        check_counts(projection_size=size)
        self.groups, self.moments, self.betas = groups, *adam_moments(optimizer_state, gradients)
        # Not the path: a training that goes on writes other moments there.
        moments = ((str(i), moment) for i, pair in enumerate(self.moments) for moment in pair)
        self.key = f"{tensors_key(moments)} {self.betas}"
        self.sketch = SketchFeatures(gradients, size, seed)
        self.targets: list[torch.Tensor] = []

    def learn(self, blocks: Iterable[torch.Tensor]) -> None:
        """Take the gradients of some of the target's rows."""
        self.targets.append(self.sketch.of(blocks))

    def finish(self) -> None:
        """Nothing is left to do."""
        self.known = torch.cat(self.targets)

    def score(self, blocks: Iterable[torch.Tensor], count: int) -> Values:
        """Scores of a batch."""
        found = self.sketch.of(self._steps(blocks))
        return {"less": less_scores(found, self.known, self.groups.to(found.device)).tolist()}

    def _steps(self, blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        for block, (first, second) in zip(blocks, self.moments, strict=True):
            yield adam_direction(block, first.to(block), second.to(block), *self.betas)


class SketchFeatures:
    """Gradients at a width that can be kept: a random projection, or all of them where `size` is 0."""

    def __init__(self, gradients: RowGradients, size: int, seed: int) -> None:
        if size < 0:
            raise ValueError(f"`projection` must be 0 or more, received {size}.")
        # Where all numbers fit, there is nothing to project.
        self.size, self.seed = (0 if sum(gradients.sizes) <= size else size), seed
        self.width = size

    def of(self, blocks: Iterable[torch.Tensor]) -> torch.Tensor:
        """The features `(B, width)` of a batch, float32 or more."""
        if not self.size:
            whole = torch.cat(list(blocks), 1)
            return torch.nn.functional.pad(whole, (0, max(0, self.width - whole.shape[1])))
        found: Any = 0.0
        for i, block in enumerate(blocks):
            found = found + count_sketch(block, self.size, self.seed * 1_000_003 + i)
        return found


FEATURES = {"gist": GISTFeatures, "less": LESSFeatures, "cosine": CosineFeatures}


def adam_moments(
    path: str | Path, gradients: RowGradients
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], tuple[float, float, float]]:
    """
    Adam's `m` and `v` of each parameter, flat, and its betas and epsilon, from a trainer's checkpoint.

    Raises:
        FileNotFoundError: If there is no `optimizer.pt`.
        ValueError: If it is not Adam's, or of other parameters.
    """
    file = Path(path, "optimizer.pt") if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"`optimizer_state` must be a checkpoint with `optimizer.pt`, received {path}.")
    found = torch.load(file, map_location="cpu", weights_only=True)
    state, groups = found["state"], found["param_groups"]
    order = list(gradients.parameters)
    if len(groups) > 1 and groups[1]["params"]:
        # A second group has what does not decay, so that the order is not the model's.
        decays = set(Trainer.get_decay_parameter_names(cast(Any, None), gradients.model))
        order = sorted(order, key=lambda name: name not in decays)
    numbers = [i for group in groups for i in group["params"]]
    shapes = [tuple(state[i]["exp_avg"].shape) if i in state and "exp_avg" in state[i] else None for i in numbers]
    wanted = [tuple(gradients.parameters[name].shape) for name in order]
    if shapes != wanted:
        at = next((i for i, pair in enumerate(zip(shapes, wanted, strict=False)) if pair[0] != pair[1]), 0)
        raise ValueError(
            f"`optimizer_state` {file} is not Adam's for the trained parameters of `model`: {len(shapes)} parameters "
            f"where there are {len(wanted)}, the first that differs is number {at}."
        )
    by_name = {
        name: (state[i]["exp_avg"].flatten(), state[i]["exp_avg_sq"].flatten())
        for name, i in zip(order, numbers, strict=True)
    }
    beta1, beta2 = groups[0].get("betas", (0.9, 0.999))
    return [by_name[name] for name in gradients.parameters], (beta1, beta2, groups[0].get("eps", 1e-8))
