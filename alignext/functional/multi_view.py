# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
r"""
Views of one object: cameras, tiles, crops, the visual hull, and how alike two pictures are.

What a reward of multi-view consistency needs, after "Carve3D: Improving Multi-view Reconstruction Consistency for
Diffusion Models with RL Finetuning", Xie et al., arXiv 2312.13980: reconstruct the object from its views, render it
from the same cameras, compare within the object's box. Objects lie in the cube `[-1/2, 1/2]^3`; y points up in the
world. Cameras have OpenCV's axes: x right, y down, z forward.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Cameras(NamedTuple):
    """
    The cameras of V views.

    Attributes:
        c2w (`torch.Tensor` of shape `(V, 4, 4)`): From camera to world.
        intrinsics (`torch.Tensor` of shape `(V, 4)`): `fx, fy, cx, cy` in pixels.
        size (`int`): Side of the square pictures that these pixels are of.
        orthographic (`bool`): Parallel rays; then `fx` is pixels per unit of length.
    """

    c2w: torch.Tensor
    intrinsics: torch.Tensor
    size: int
    orthographic: bool = False


def orbit(
    azimuths: Sequence[float],
    elevation: float = 0.0,
    size: int = 64,
    *,
    distance: float = 2.0,
    focal: float | None = None,
    orthographic: bool = False,
) -> Cameras:
    """
    Cameras on a circle that look at the origin.

    Args:
        azimuths (`Sequence[float]`): Degrees.
        elevation (`float`, *optional*, defaults to 0): Degrees, less than 90.
        size (`int`, *optional*, defaults to 64): Side of the pictures.
        distance (`float`, *optional*, defaults to 2.0): Of the cameras, more than 0.9.
        focal (`float`, *optional*): `fx` in sides of the picture; 1.5 if not given, 1 for orthographic cameras.
        orthographic (`bool`, *optional*, defaults to `False`): Parallel rays.
    """
    a = torch.tensor(list(azimuths), dtype=torch.float64).deg2rad()
    e = torch.tensor(elevation, dtype=torch.float64).deg2rad()
    position = distance * torch.stack([a.sin() * e.cos(), e.sin().expand_as(a), a.cos() * e.cos()], -1)
    z = F.normalize(-position, dim=-1)
    x = F.normalize(torch.linalg.cross(z, z.new_tensor([0.0, 1.0, 0.0]).expand_as(z)), dim=-1)
    c2w = torch.eye(4, dtype=torch.float64).repeat(len(a), 1, 1)
    c2w[:, :3] = torch.stack([x, torch.linalg.cross(z, x), z, position], -1)
    f = size * ((1.0 if orthographic else 1.5) if focal is None else focal)
    return Cameras(c2w.float(), torch.tensor([f, f, size / 2, size / 2]).repeat(len(a), 1), size, orthographic)


def _rays(cameras: Cameras, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Origins and unit directions `(V, side, side, 3)` of the rays through the centres of pixels."""
    c2w, k = cameras.c2w, cameras.intrinsics * side / cameras.size
    at = torch.arange(side, device=c2w.device) + 0.5
    v, u = torch.meshgrid(at, at, indexing="ij")
    fx, fy, cx, cy = (k[:, i, None, None] for i in range(4))
    x, y, one = (u - cx) / fx, (v - cy) / fy, torch.ones_like(u).expand(len(c2w), -1, -1)
    turn, start = c2w[:, None, None, :3, :3], c2w[:, None, None, :3, 3]
    if cameras.orthographic:
        origin = (turn @ torch.stack([x, y, 0 * one], -1)[..., None])[..., 0] + start
        return origin, turn[..., 2].expand_as(origin)
    direction = F.normalize((turn @ torch.stack([x, y, one], -1)[..., None])[..., 0], dim=-1)
    return start.expand_as(direction), direction


def _pixels(cameras: Cameras, points: torch.Tensor) -> torch.Tensor:
    """Where points `(P, 3)` are seen, `(V, P, 2)` in sides of the picture."""
    turn, start = cameras.c2w[:, :3, :3], cameras.c2w[:, None, :3, 3]
    xyz = (points - start) @ turn  # the inverse of a rotation is its transpose
    xy = xyz[..., :2] if cameras.orthographic else xyz[..., :2] / xyz[..., 2:].clamp(min=1e-6)
    f, c = cameras.intrinsics[:, None, :2], cameras.intrinsics[:, None, 2:]
    return (f * xy + c) / cameras.size


def foreground(views: torch.Tensor, threshold: float = 0.95) -> torch.Tensor:
    """
    What is not white paper.

    Args:
        views (`torch.Tensor` of shape `(..., 3, H, W)`): In [0, 1].
        threshold (`float`, *optional*, defaults to 0.95): A channel below it marks a pixel.

    Returns:
        `torch.Tensor` of shape `(..., H, W)`, bool.
    """
    return (views < threshold).any(-3)


def visual_hull(masks: torch.Tensor, cameras: Cameras, side: int) -> torch.Tensor:
    """
    The largest object with these silhouettes.

    Args:
        masks (`torch.Tensor` of shape `(n, V, H, W)`): bool.
        cameras ([`Cameras`]): V of them.
        side (`int`): Voxels along an edge of the cube.

    Returns:
        `torch.Tensor` of shape `(n, side, side, side)`, bool, by x, y and z.
    """
    at = ((torch.arange(side) + 0.5) / side - 0.5).to(cameras.c2w)
    points = torch.stack(torch.meshgrid(at, at, at, indexing="ij"), -1).flatten(0, 2)
    uv = _pixels(cameras, points) * masks.new_tensor([masks.shape[-1], masks.shape[-2]], dtype=torch.float32)
    column, row = uv.floor().long().unbind(-1)
    inside = (column >= 0) & (column < masks.shape[-1]) & (row >= 0) & (row < masks.shape[-2])
    flat = row.clamp(0, masks.shape[-2] - 1) * masks.shape[-1] + column.clamp(0, masks.shape[-1] - 1)
    seen = masks.flatten(2).gather(2, flat.expand(len(masks), -1, -1)) & inside
    return seen.all(1).unflatten(1, (side, side, side))


def first_hits(occupied: torch.Tensor, cameras: Cameras, side: int) -> torch.Tensor:
    """
    The first voxel that each pixel's ray meets.

    Args:
        occupied (`torch.Tensor` of shape `(n, N, N, N)`): bool.
        cameras ([`Cameras`]): V of them.
        side (`int`): Of the pictures.

    Returns:
        `torch.Tensor` of shape `(n, V, side, side)`: Index into the flattened voxels, -1 for none.
    """
    N = occupied.shape[-1]
    origin, direction = _rays(cameras, side)
    middle = cameras.c2w[:, :3, 3].norm(dim=-1)[:, None, None, None]
    t = middle + ((torch.arange(2 * N) + 0.5) / N - 1).to(origin)  # steps of a voxel, through the whole cube
    at = ((origin[..., None, :] + t[..., None] * direction[..., None, :] + 0.5) * N).floor().long()
    inside = ((at >= 0) & (at < N)).all(-1)
    x, y, z = at.clamp(0, N - 1).unbind(-1)
    flat = (x * N + y) * N + z  # (V, side, side, 2 N)
    hit = occupied.flatten(1)[:, flat] & inside
    first = flat.expand(len(occupied), *flat.shape).gather(-1, hit.int().argmax(-1, keepdim=True))[..., 0]
    return torch.where(hit.any(-1), first, -1)


def square_boxes(masks: torch.Tensor, pad: float = 5 / 256) -> torch.Tensor:
    """
    Square boxes around what is marked.

    Args:
        masks (`torch.Tensor` of shape `(m, H, W)`): bool.
        pad (`float`, *optional*, defaults to 5 / 256): Added on each side, in sides of the picture.

    Returns:
        `torch.Tensor` of shape `(m, 3)`: Left, top and side, in sides of the picture, so that a box holds for
        renderings of any size. Without a mark it is the whole picture.
    """
    ends = []
    for marked in (masks.any(-2), masks.any(-1)):
        n, at = marked.shape[-1], torch.arange(marked.shape[-1], device=masks.device)
        low = torch.where(marked, at, n).amin(-1) / n
        ends.append((low, (torch.where(marked, at, -1).amax(-1) + 1) / n))
    (left, right), (top, bottom) = ends
    side = torch.maximum(right - left, bottom - top) + 2 * pad
    boxes = torch.stack([(left + right - side) / 2, (top + bottom - side) / 2, side], -1)
    return torch.where(masks.flatten(1).any(1)[:, None], boxes, boxes.new_tensor([0.0, 0.0, 1.0]))


def crop(pictures: torch.Tensor, boxes: torch.Tensor, side: int, background: float = 1.0) -> torch.Tensor:
    """
    What is in the boxes, resized.

    Args:
        pictures (`torch.Tensor` of shape `(m, 3, H, W)`): In [0, 1].
        boxes (`torch.Tensor` of shape `(m, 3)`): Of [`square_boxes`].
        side (`int`): Of the result.
        background (`float`, *optional*, defaults to 1.0): Beyond the picture.

    Returns:
        `torch.Tensor` of shape `(m, 3, side, side)`.
    """
    left, top, size = boxes.to(pictures).unbind(-1)
    zero = torch.zeros_like(size)
    theta = torch.stack([size, zero, 2 * left + size - 1, zero, size, 2 * top + size - 1], -1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(pictures), 3, side, side], align_corners=False)
    return F.grid_sample(pictures - background, grid, mode="bilinear", align_corners=False) + background


def l1_and_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """
    Mean absolute difference plus `1 - SSIM` with windows of 7 pixels: 0 for equal pictures, 3 at most.

    Args:
        a, b (`torch.Tensor` of shape `(m, 3, H, W)`): In [0, 1].

    Returns:
        `torch.Tensor` of shape `(m,)`.
    """

    def mean(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 7, stride=1)

    ma, mb = mean(a), mean(b)
    va, vb, covariance = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    ssim = (2 * ma * mb + 1e-4) * (2 * covariance + 9e-4) / ((ma * ma + mb * mb + 1e-4) * (va + vb + 9e-4))
    return (a - b).abs().flatten(1).mean(1) + 1 - ssim.flatten(1).mean(1)
