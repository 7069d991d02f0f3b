# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Views of one object: consistent toys, known faults, blank sheets, a reconstructor that copies."""

import pytest
import torch

from alignext.functional.multi_view import Cameras, crop, first_hits, l1_and_ssim, orbit, square_boxes, visual_hull
from alignext.rewards import MultiViewConsistency, VisualHull


N = 16
CAMERAS = orbit([0, 90, 180, 270], size=N, orthographic=True)


def objects(n: int = 12) -> torch.Tensor:
    """Each of three random boxes, none of them symmetric."""
    generator, found = torch.Generator().manual_seed(0), torch.zeros(n, N, N, N, dtype=torch.bool)
    for shape in found:
        for _ in range(3):
            low = torch.randint(1, 9, (3,), generator=generator)
            high = (low + torch.randint(2, 7, (3,), generator=generator)).clamp(max=N - 1)
            shape[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = True
    return found


SHAPES = objects()
VIEWS = torch.where(first_hits(SHAPES, CAMERAS, N) < 0, 1.0, 0.25)[:, :, None].expand(-1, -1, 3, -1, -1).contiguous()


def shifted(views: torch.Tensor, pixels: int) -> torch.Tensor:
    moved = torch.ones_like(views)
    moved[..., pixels:] = views[..., : N - pixels]
    return moved


def test_the_hull_holds_the_object_and_has_its_silhouettes():
    masks = VIEWS[:, :, 0] < 0.95
    hull = visual_hull(masks, CAMERAS, N)
    assert (hull | ~SHAPES).all() and hull.sum() > SHAPES.sum()
    assert torch.equal(first_hits(hull, CAMERAS, N) >= 0, masks)


def test_known_faults_are_ordered():
    reward = MultiViewConsistency(VisualHull(N), CAMERAS, size=N)
    good = reward(VIEWS, ["a toy"] * len(VIEWS))
    torch.testing.assert_close(good, torch.zeros(len(VIEWS)), atol=1e-5, rtol=0)
    assert (reward(VIEWS[:, [1, 0, 2, 3]]) < good - 0.01).all()
    assert reward.swap_gap(VIEWS) > 0.05
    means = []
    for pixels in (0, 1, 2, 4):
        views = VIEWS.clone()
        views[:, 0] = shifted(views[:, 0], pixels)
        means.append(reward(views).mean().item())
    assert means == sorted(means, reverse=True) and means[0] - means[1] > 1e-3


def test_blank_views_are_the_worst_and_a_copy_is_found_out():
    class Copy:
        def fit(self, views, cameras):
            return lambda cameras: views

    reward = MultiViewConsistency(VisualHull(N), CAMERAS, size=N)
    swapped = reward(VIEWS[:, [1, 0, 2, 3]])
    assert (reward(torch.ones_like(VIEWS)) < swapped.min()).all()
    copied = MultiViewConsistency(Copy(), CAMERAS, size=N)
    assert copied.swap_gap(VIEWS) == 0 and copied(torch.rand_like(VIEWS)).abs().max() < 1e-6


def test_tiles_are_rows_of_views():
    rows = [torch.cat(list(VIEWS[:, i : i + 2].unbind(1)), -1) for i in (0, 2)]
    tiled = torch.cat(rows, -2)
    by_tile = MultiViewConsistency(VisualHull(N), CAMERAS, views="tile:2x2", size=N)
    stacked = MultiViewConsistency(VisualHull(N), CAMERAS, size=N).report(VIEWS)
    assert torch.equal(by_tile.report(tiled).renderings, stacked.renderings)
    assert stacked.per_view.shape == stacked.area.shape == (12, 4)


def test_a_box_holds_for_a_rendering_of_another_size():
    picture = torch.ones(1, 3, 64, 64)
    picture[..., 20:36, 8:40] = 0
    boxes = square_boxes(picture[:, 0] < 0.5, pad=0)
    torch.testing.assert_close(boxes, torch.tensor([[8, 12, 32]]) / 64)
    small = torch.nn.functional.interpolate(picture, size=32, mode="area")
    torch.testing.assert_close(crop(small, boxes, 16), torch.nn.functional.avg_pool2d(crop(picture, boxes, 32), 2))
    assert square_boxes(torch.zeros(1, 4, 4, dtype=torch.bool)).tolist() == [[0, 0, 1]]


def test_the_metric_by_hand():
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(l1_and_ssim(x, x), torch.zeros(2), atol=1e-6, rtol=0)
    black, white = torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    assert l1_and_ssim(black, white).item() == pytest.approx(2, abs=1e-3)


def test_cameras_look_at_the_origin():
    for orthographic in (False, True):
        cameras = orbit([0, 90, 200], 20, orthographic=orthographic)
        turn = cameras.c2w[:, :3, :3]
        torch.testing.assert_close(turn @ turn.mT, torch.eye(3).expand(3, 3, 3), atol=1e-6, rtol=0)
        assert torch.linalg.det(turn).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
        point = torch.zeros(1, N, N, N, dtype=torch.bool)
        point[:, 7:9, 7:9, 7:9] = True
        seen = first_hits(point, cameras, 32)[0] >= 0
        at = seen.nonzero()
        for view in range(3):
            middle = at[at[:, 0] == view][:, 1:].float().mean(0) + 0.5
            assert (middle - 16).abs().max() < 1


@pytest.mark.parametrize(
    "images, text",
    [
        (VIEWS[:, :3], "a view for each of 4 cameras, found 3"),
        (VIEWS[:, 0], "must be sets"),
        (VIEWS * 2, r"must lie in \[0, 1\], received 0.5 to 2"),
    ],
)
def test_bad_sets_are_named(images, text):
    with pytest.raises(ValueError, match=text):
        MultiViewConsistency(VisualHull(N), CAMERAS)(images)


def test_bad_settings_are_named():
    class Wrong:
        def fit(self, views, cameras):
            return lambda cameras: views[:, :1]

    one = Cameras(CAMERAS.c2w[:1], CAMERAS.intrinsics[:1], N, True)
    with pytest.raises(ValueError, match="`cameras` must be two or more, received 1"):
        MultiViewConsistency(VisualHull(N), one)
    with pytest.raises(ValueError, match="`views` must be 'stack', or such as 'tile:2x2', received 'rows'"):
        MultiViewConsistency(VisualHull(N), CAMERAS, views="rows")
    with pytest.raises(ValueError, match="there are 4 cameras"):
        MultiViewConsistency(VisualHull(N), CAMERAS, views="tile:2x3")
    with pytest.raises(ValueError, match=r"`metric` must be one of l1\+ssim, l1, or a function, received 'lpips'"):
        MultiViewConsistency(VisualHull(N), CAMERAS, "lpips")
    with pytest.raises(ValueError, match="Wrong must render a finite picture of each view"):
        MultiViewConsistency(Wrong(), CAMERAS)(VIEWS)
    with pytest.raises(ValueError, match="cannot be cut into 2x2 tiles"):
        MultiViewConsistency(VisualHull(N), CAMERAS, views="tile:2x2")(torch.rand(1, 3, 15, 16))
