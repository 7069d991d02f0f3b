# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Whether views show one object: a reward of sets of pictures."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from alignext.functional import multi_view as of
from alignext.functional.multi_view import Cameras


Renderer = Callable[[Cameras], torch.Tensor]


class VisualHull:
    """
    The simplest reconstructor: the largest object with the silhouettes of its views, whose voxels have the mean colour
    of the pixels that see them. Knows white paper from ink, and nothing of what silhouettes do not show.

    Args:
        side (`int`, *optional*, defaults to 32): Voxels along an edge of the cube.
        size (`int`, *optional*): Side of the renderings; that of the voxels if not given.
        background (`float`, *optional*, defaults to 1.0): Of the renderings.
    """

    def __init__(self, side: int = 32, size: int | None = None, background: float = 1.0) -> None:
        self.side, self.size, self.background = side, side if size is None else size, background

    def fit(self, views: torch.Tensor, cameras: Cameras) -> Renderer:
        """
        Reconstruct.

        Args:
            views (`torch.Tensor` of shape `(n, V, 3, H, W)`): In [0, 1].
            cameras ([`~alignext.functional.multi_view.Cameras`]): V of them.

        Returns:
            `Callable`: `render(cameras) -> (n, V, 3, size, size)`.
        """
        occupied = of.visual_hull(of.foreground(views), cameras, self.side)
        small = views.flatten(0, 1)
        if small.shape[-1] != self.size:
            small = torch.nn.functional.interpolate(small, size=self.size, mode="area")
        n, hits = len(views), of.first_hits(occupied, cameras, self.size).flatten(1)  # (n, V size size)
        pixels = small.unflatten(0, views.shape[:2]).permute(0, 1, 3, 4, 2).flatten(1, 3)
        # A place more than there are voxels, for rays that meet none.
        place = torch.where(hits < 0, self.side**3, hits)[..., None]
        zeros = pixels.new_zeros(n, self.side**3 + 1, 1)
        total = zeros.expand(-1, -1, 3).scatter_add(1, place.expand(-1, -1, 3), pixels)
        colors = total / zeros.scatter_add(1, place, torch.ones_like(pixels[..., :1])).clamp(min=1)
        colors[:, -1] = self.background

        def render(cameras: Cameras) -> torch.Tensor:
            hits = of.first_hits(occupied, cameras, self.size)
            flat = torch.where(hits < 0, self.side**3, hits).flatten(1)[..., None].expand(-1, -1, 3)
            return colors.gather(1, flat).unflatten(1, hits.shape[1:]).permute(0, 1, 4, 2, 3)

        return render


class MultiViewReport(NamedTuple):
    """
    What [`MultiViewConsistency`] sees in sets of views.

    Attributes:
        rewards (`torch.Tensor` of shape `(n,)`): The reward of each set.
        per_view (`torch.Tensor` of shape `(n, V)`): The distance of each view from its rendering.
        area (`torch.Tensor` of shape `(n, V)`): Share of each view that is not white paper.
        renderings (`torch.Tensor` of shape `(n, V, 3, h, w)`): What the reconstruction looks like.
    """

    rewards: torch.Tensor
    per_view: torch.Tensor
    area: torch.Tensor
    renderings: torch.Tensor


class MultiViewConsistency:
    """
    Minus the distance of the views of an object from what their reconstruction looks like (Carve3D, arXiv 2312.13980):
    0 at the most. Blank views reconstruct to a blank object and would be the best; sets with one are given the worst
    value. Not differentiable: for `DDPOTrainer`, for a search, and for evaluation.

    Args:
        reconstructor (`VisualHull` or any): With `fit(views, cameras) -> render`, as [`VisualHull`] has it. Try a new
            one with [`swap_gap`]: one that copies its views finds everything consistent.
        cameras ([`~alignext.functional.multi_view.Cameras`]): Of the views, in their order.
        metric (`str` or `Callable`, *optional*, defaults to `"l1+ssim"`): Or `"l1"`, or a distance `(a, b) -> (m,)` of
            pictures `(m, 3, h, w)` in [0, 1].
        views (`str`, *optional*, defaults to `"stack"`): `"stack"` for videos `(n, V, 3, H, W)`; `"tile:2x2"` for
            pictures that have the views in rows and columns, row by row.
        size (`int`, *optional*, defaults to 64): Of the crops that are compared.
        min_area (`float`, *optional*, defaults to 0.01): Share of a view that must not be white paper.
        worst (`float`, *optional*, defaults to -3.0): The reward of a set with a blank view.

    Raises:
        ValueError: There are fewer than two cameras, `views` or `metric` is not known.
    """

    differentiable = False

    def __init__(
        self,
        reconstructor: Any,
        cameras: Cameras,
        metric: str | Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = "l1+ssim",
        views: str = "stack",
        *,
        size: int = 64,
        min_area: float = 0.01,
        worst: float = -3.0,
    ) -> None:
        self.reconstructor, self.cameras, self.size = reconstructor, cameras, size
        self.min_area, self.worst, self.num_views = min_area, worst, len(cameras.c2w)
        known: dict[str, Callable[..., torch.Tensor]] = {
            "l1+ssim": of.l1_and_ssim,
            "l1": lambda a, b: (a - b).abs().flatten(1).mean(1),
        }
        if isinstance(metric, str) and metric not in known:
            raise ValueError(f"`metric` must be one of {', '.join(known)}, or a function, received {metric!r}.")
        self.metric = known[metric] if isinstance(metric, str) else metric
        if self.num_views < 2:
            raise ValueError(f"`cameras` must be two or more, received {self.num_views}.")
        self.tiles = _tiles(views)
        if self.tiles is not None and self.tiles[0] * self.tiles[1] != self.num_views:
            raise ValueError(f"`views` is {views!r}, and there are {self.num_views} cameras. Make them one number.")

    def __call__(self, images: torch.Tensor, prompts: str | list[str] | None = None) -> torch.Tensor:
        return self.report(images).rewards

    @torch.no_grad()
    def report(self, images: torch.Tensor) -> MultiViewReport:
        """
        Rewards, and what they are made of.

        Args:
            images (`torch.Tensor`): Sets `(n, V, 3, H, W)`, or tiled pictures `(n, 3, H, W)`, in [0, 1].

        Raises:
            ValueError: Another number of views, values out of range, or a rendering that is not one of each view.
        """
        return self._report(self._split(images))

    @torch.no_grad()
    def swap_gap(self, images: torch.Tensor) -> float:
        """
        By how much the reward of sets falls, on the average, when the first two views of each are exchanged. With
        consistent sets it is well above 0 for a reconstructor that can be trained on.

        Args:
            images (`torch.Tensor`): As of [`report`].
        """
        views = self._split(images)
        order = [1, 0, *range(2, self.num_views)]
        return (self._report(views).rewards - self._report(views[:, order]).rewards).mean().item()

    def _report(self, views: torch.Tensor) -> MultiViewReport:
        rendered = self.reconstructor.fit(views, self.cameras)(self.cameras)
        name = type(self.reconstructor).__name__
        if rendered.shape[:3] != views.shape[:3] or not rendered.isfinite().all():
            raise ValueError(
                f"{name} must render a finite picture of each view, {tuple(views.shape[:3])}, received "
                f"{tuple(rendered.shape)}."
            )
        masks = of.foreground(views.flatten(0, 1))
        boxes = of.square_boxes(masks)
        a, b = (of.crop(x.flatten(0, 1).float(), boxes, self.size).clamp(0, 1) for x in (views, rendered))
        per_view = self.metric(a, b).unflatten(0, views.shape[:2])
        area = masks.float().mean((1, 2)).unflatten(0, views.shape[:2])
        blank = (area < self.min_area).any(1)
        return MultiViewReport(torch.where(blank, self.worst, -per_view.mean(1)), per_view, area, rendered)

    def _split(self, images: torch.Tensor) -> torch.Tensor:
        if images.ndim != (5 if self.tiles is None else 4) or images.shape[-3] != 3:
            form = "sets (n, V, 3, H, W)" if self.tiles is None else "tiled pictures (n, 3, H, W)"
            raise ValueError(f"`images` must be {form}, received {tuple(images.shape)}.")
        if images.min() < 0 or images.max() > 1:
            raise ValueError(f"`images` must lie in [0, 1], received {images.min():.3g} to {images.max():.3g}.")
        if self.tiles is not None:
            rows, columns = self.tiles
            if images.shape[-2] % rows or images.shape[-1] % columns:
                raise ValueError(f"`images` of {tuple(images.shape[-2:])} cannot be cut into {rows}x{columns} tiles.")
            images = images.unflatten(-1, (columns, -1)).unflatten(-3, (rows, -1))  # (n, 3, rows, h, columns, w)
            images = images.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        if images.shape[1] != self.num_views:
            raise ValueError(
                f"`images` must have a view for each of {self.num_views} cameras, found {images.shape[1]}."
            )
        return images.float().to(self.cameras.c2w.device)


def _tiles(views: str) -> tuple[int, int] | None:
    if views == "stack":
        return None
    kind, _, grid = views.partition(":")
    rows, _, columns = grid.partition("x")
    if kind != "tile" or not rows.isdigit() or not columns.isdigit():
        raise ValueError(f"`views` must be 'stack', or such as 'tile:2x2', received {views!r}.")
    return int(rows), int(columns)
