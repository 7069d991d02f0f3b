# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""How diverse a model's pictures of one prompt are, and by how much that differs from another model's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from alignext.diffusion.drawing import draw
from alignext.diffusion.pictures import to_pil
from alignext.functional import diversity as of


METRICS = ("pairwise", "vendi", "tonal", "duplicates")


@dataclass(frozen=True)
class DiversityReport:
    """
    What [`DiversityEvaluator`] measured; `print` shows it as a table.

    Attributes:
        values (`dict[str, float]`): Mean over the prompts of each metric; `tonal` also part by part, as
            `tonal/brightness` and so on.
        per_prompt (`dict[str, torch.Tensor]`): The same for each prompt, `(P,)`.
        prompts (`list[str]`): In this order.
        num_images (`int`): m, per prompt. Values of another m are other quantities.
        deltas (`dict[str, tuple[float, float, float]]`): Difference to the base: mean, and the ends of a 95 % interval
            of a bootstrap over the prompts. Empty without a base.
    """

    values: dict[str, float]
    per_prompt: dict[str, torch.Tensor]
    prompts: list[str]
    num_images: int
    deltas: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    def minus(self, base: "DiversityReport", seed: int = 0) -> dict[str, tuple[float, float, float]]:
        """
        The difference to a base model's report, prompt by prompt: mean and the ends of a 95 % interval.

        Args:
            base ([`DiversityReport`]): Of the same prompts and number of pictures.
            seed (`int`, *optional*, defaults to 0): Of the bootstrap.

        Raises:
            ValueError: If prompts, number of pictures or metrics are others.
        """
        if base.prompts != self.prompts or base.num_images != self.num_images:
            raise ValueError(
                f"`base` must have the same prompts and {self.num_images} pictures of each, received "
                f"{len(base.prompts)} prompts ({len(self.prompts)} here) and {base.num_images} pictures."
            )
        if base.per_prompt.keys() != self.per_prompt.keys():
            raise ValueError(
                f"`base` must have the same metrics, received {', '.join(base.values)} for {', '.join(self.values)}."
            )
        return {k: of.bootstrap(v - base.per_prompt[k], seed=seed) for k, v in self.per_prompt.items()}

    def __str__(self) -> str:
        width = max(map(len, self.values))
        lines = [f"{'':{width}}  {'mean':>8}" + (f"  {'minus base':>10}  95 % interval" if self.deltas else "")]
        for name, value in self.values.items():
            line = f"{name:{width}}  {value:>8.4f}"
            if self.deltas:
                mean, low, high = self.deltas[name]
                line += f"  {mean:>+10.4f}  {low:+.4f} to {high:+.4f}"
            lines.append(line)
        lines.append(f"{len(self.prompts)} prompts, {self.num_images} pictures of each")
        return "\n".join(lines)


class DiversityEvaluator:
    """
    Measures how unlike a model's pictures of the same prompt are, and averages over the prompts:

    - `pairwise`: mean cosine distance of features; 0 for copies.
    - `vendi`: effective number of pictures, 1 for copies, m where all features are orthogonal (arXiv 2210.02410).
    - `tonal`: standard deviation across pictures, mean of brightness, contrast, saturation and warmth, and each.
    - `duplicates`: share of pairs with nearly the same 64-bit perceptual hash. Lower is more diverse.

    Args:
        encoder (`Callable`, *optional*): Pictures `(n, 3, H, W)` in [0, 1] to features `(n, d)`, such as
            `CLIPReward(...).encode_image` or a judge's features. DINOv2 is a good choice; a reward's own tower sees
            what the reward sees. `pairwise` and `vendi` need it.
        metrics (`Sequence[str]`, *optional*): Which; all by default, without an encoder those that need none.
        max_bits (`int`, *optional*, defaults to 4): Hashes of a pair that differ in so many of 64 bits are duplicates.
        batch_size (`int`, *optional*, defaults to 32): Pictures encoded at once.

    Raises:
        ValueError: There is no such metric, or one needs an encoder.
    """

    def __init__(
        self,
        encoder: Callable[[torch.Tensor], torch.Tensor] | None = None,
        metrics: Sequence[str] | None = None,
        *,
        max_bits: int = 4,
        batch_size: int = 32,
    ) -> None:
        self.encoder, self.max_bits, self.batch_size = encoder, max_bits, batch_size
        self.metrics = list(metrics) if metrics is not None else list(METRICS if encoder is not None else METRICS[2:])
        for name in self.metrics:
            if name not in METRICS:
                raise ValueError(f"`metrics` must be of {', '.join(METRICS)}, received {name!r}.")
            if name in METRICS[:2] and encoder is None:
                raise ValueError(f"`encoder` must be given for the metric {name!r}: pictures to features (n, d).")

    @torch.no_grad()
    def __call__(
        self, images_by_prompt: Mapping[str, Any], base: "Mapping[str, Any] | DiversityReport | None" = None
    ) -> DiversityReport:
        """
        Measure.

        Args:
            images_by_prompt (`Mapping[str, Any]`): The pictures of each prompt: `(m, 3, H, W)` in [0, 1], videos
                `(m, F, 3, H, W)`, which count by their middle frame, or a list of pictures of any kind. As many for
                each, two or more.
            base (`Mapping` or [`DiversityReport`], *optional*): The base model's, of the same prompts.

        Returns:
            [`DiversityReport`]

        Raises:
            ValueError: There are not as many pictures of each prompt, or fewer than two.
        """
        if not images_by_prompt:
            raise ValueError("`images_by_prompt` must have a prompt, received none.")
        sets = {prompt: _as_tensor(images) for prompt, images in images_by_prompt.items()}
        sizes = {len(images) for images in sets.values()}
        if len(sizes) > 1 or min(sizes) < 2:
            raise ValueError(
                f"`images_by_prompt` must have as many pictures of each prompt, two or more, received {sorted(sizes)}."
            )
        (m,) = sizes
        rows = [self._of(images) for images in sets.values()]
        per_prompt = {name: torch.cat([row[name] for row in rows]).cpu() for name in rows[0]}
        report = DiversityReport(
            {name: value.mean().item() for name, value in per_prompt.items()}, per_prompt, list(sets), m
        )
        if base is None:
            return report
        base = base if isinstance(base, DiversityReport) else self(base)
        return DiversityReport(report.values, per_prompt, report.prompts, m, report.minus(base))

    def of_pipeline(
        self, pipe: Any, prompts: Sequence[str], num_images: int = 4, *, seed: int = 0, **call: Any
    ) -> dict[str, torch.Tensor]:
        """
        The pictures of a pipeline, for a call of this evaluator. The same seeds for each prompt and each model.

        Args:
            pipe (`DiffusionPipeline`): Stays as it is.
            prompts (`Sequence[str]`): Different ones.
            num_images (`int`, *optional*, defaults to 4): Of each, two or more.
            seed (`int`, *optional*, defaults to 0): Of the first picture of a prompt; the next has the next.
            call: Further arguments of the pipeline's call.
        """
        texts = [prompt for prompt in prompts for _ in range(num_images)]
        seeds = [seed + j for _ in prompts for j in range(num_images)]
        return by_prompt(draw(pipe, texts, seeds, **call), prompts)

    def _of(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The metrics of one prompt, each `(1,)`."""
        found: dict[str, torch.Tensor] = {}
        if self.encoder is not None and {"pairwise", "vendi"} & set(self.metrics):
            features = torch.cat([self.encoder(part) for part in images.split(self.batch_size)])[None]
            found |= {"pairwise": of.pairwise_distance(features), "vendi": of.vendi_score(features)}
        if "tonal" in self.metrics:
            spread = of.tonal_variance(images[None])
            found["tonal"] = spread.mean(1)
            found |= {f"tonal/{name}": spread[:, i] for i, name in enumerate(of.TONES)}
        if "duplicates" in self.metrics:
            found["duplicates"] = of.duplicate_rate(of.perceptual_hash(images[None]), self.max_bits)
        return {name: value for name, value in found.items() if name.partition("/")[0] in self.metrics}


def by_prompt(images: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """
    Pictures `(P * m, ...)`, those of a prompt beside each other, as one tensor for each prompt.

    Raises:
        ValueError: A prompt is there twice.
    """
    if isinstance(prompts, str) or len(set(prompts)) < len(prompts) or not prompts:
        raise ValueError(f"`prompts` must be a list of different texts, received {prompts!r}.")
    return dict(zip(prompts, images.unflatten(0, (len(prompts), -1)), strict=True))


def _as_tensor(images: Any) -> torch.Tensor:
    """`(m, 3, H, W)`, float32; of videos the middle frames."""
    if not isinstance(images, torch.Tensor):
        arrays = [np.asarray(to_pil(image), dtype=np.float32) / 255 for image in images]
        if len({array.shape for array in arrays}) > 1:
            raise ValueError("`images_by_prompt` must have pictures of one size for each prompt.")
        images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    if images.ndim == 5:
        images = images[:, images.shape[1] // 2]
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"`images_by_prompt` must have float pictures (m, 3, H, W) or videos (m, F, 3, H, W) in [0, 1], received "
            f"{tuple(images.shape)} of {images.dtype}."
        )
    return images.detach().float()
