# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Batches of pairs and of votes: files decoded, cut to size and stacked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import load_video
from transformers.utils import logging

from alignext.diffusion.pictures import to_mask, to_pil

from .columns import IMAGES, LATENTS, SCORES, VIDEOS, VOTES, is_embedding, named


logger = logging.get_logger(__name__)


@dataclass
class PictureCollator:
    """
    Makes batches of rows with pictures. They are scaled until they cover a rectangle, and its centre is cut out.

    Args:
        resolution (`int`):
            Side of the square in pixels, rounded down to a multiple of `vae_scale_factor`.
        vae_scale_factor (`int`):
            Pixels per latent, times the patch size of the denoiser.
        buckets (`bool`, *optional*, defaults to `False`):
            Keep about the shape of each row's first picture: a rectangle with about as many pixels as the square. A
            batch of several shapes is a dictionary with `parts`, one batch for each shape.
        num_frames (`int`, *optional*):
            Frames of a video that are kept, from its start; all of them if not given.
    """

    resolution: int
    vae_scale_factor: int
    buckets: bool = False
    num_frames: int | None = None
    pictures: tuple[str, ...] = field(default=IMAGES, repr=False)
    videos: tuple[str, ...] = field(default=VIDEOS, repr=False)
    latents: tuple[str, ...] = field(default=LATENTS, repr=False)

    def __post_init__(self) -> None:
        if self.resolution < self.vae_scale_factor:
            raise ValueError(
                f"`resolution` is {self.resolution}, but one latent takes {self.vae_scale_factor} pixels."
            )
        rounded = self.resolution - self.resolution % self.vae_scale_factor
        if rounded != self.resolution:
            logger.warning(
                f"`resolution` is {self.resolution}; {rounded} is used, a multiple of what one latent takes."
            )
            self.resolution = rounded
        self._processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, resample="bilinear")

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if self.latents[0] in rows[0]:
            return self._batch(rows, [], (0, 0))
        videos = [self._decoded(row) for row in rows]
        sizes = [self.size(pictures[0][0].size) for pictures in videos]
        parts = []
        for size in dict.fromkeys(sizes):
            chosen = [i for i, other in enumerate(sizes) if other == size]
            parts.append(self._batch([rows[i] for i in chosen], [videos[i] for i in chosen], size))
        return parts[0] if len(parts) == 1 else {"parts": parts}

    def size(self, picture: tuple[int, int]) -> tuple[int, int]:
        """Height and width that a picture of this width and height is cut to."""
        if not self.buckets:
            return self.resolution, self.resolution
        width, height = picture
        step, area = self.vae_scale_factor, self.resolution**2
        sides = [max(step, round((area * shape) ** 0.5 / step) * step) for shape in (height / width, width / height)]
        return sides[0], sides[1]

    def _batch(
        self, rows: Sequence[dict[str, Any]], videos: Sequence[list[list[PIL.Image.Image]]], size: tuple[int, int]
    ) -> dict[str, Any]:
        batch: dict[str, Any] = {"index": torch.tensor([int(row["index"]) for row in rows])}
        if self.latents[0] in rows[0]:
            batch["latents"] = stack(rows, self.latents)
        else:
            batch["pixel_values"] = self._stacked(rows, videos, size)
        batch |= self.told(rows)
        if "mask" in rows[0]:
            batch["mask"] = self._masks(rows, size if videos else self._size_of(batch["latents"]))
        return batch

    def _size_of(self, latents: torch.Tensor) -> tuple[int, int]:
        """Height and width in pixels of what latents that were computed beforehand are of, or in their proportion."""
        height, width = latents.shape[-2:]
        scale = max(1, round(self.resolution / height))
        return height * scale, width * scale

    def told(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The part of a batch that the denoiser is told: prompts, what is edited, and masks as pictures."""
        batch: dict[str, Any] = {"index": torch.tensor([int(row["index"]) for row in rows])}
        embeddings = [name for name in rows[0] if is_embedding(name)]
        if embeddings and "prompt" not in rows[0]:
            batch |= {name: stack(rows, [name], ragged=True) for name in embeddings}
        else:
            batch["prompts"] = [_captions(row) for row in rows]
        if "source" in rows[0]:
            batch["sources"] = [_sources(row) for row in rows]
        if "mask" in rows[0]:
            batch["mask_images"] = [to_mask(row["mask"]) for row in rows]
        return batch

    def _decoded(self, row: dict[str, Any]) -> list[list[PIL.Image.Image]]:
        """The pictures of a row, each as a video of its frames."""
        names = [name for name in (*self.videos, *self.pictures) if name in row]
        videos = []
        for name in names:
            try:
                videos.append(_frames(row[name], self.num_frames) if name in self.videos else [to_pil(row[name])])
            except (ValueError, OSError) as error:
                raise ValueError(f"`{named(row, name)}` of row {row['index']}: {error}") from error
        counts = [len(video) for video in videos]
        if len(set(counts)) > 1:
            raise ValueError(
                f"`{named(row, names[1])}` of row {row['index']} has {counts[1]} frames, but `{named(row, names[0])}` "
                f"has {counts[0]}. Both videos of a pair must have one length; `num_frames` cuts them."
            )
        size = to_mask(row["mask"]).size if "mask" in row else videos[0][0].size
        if size != videos[0][0].size:
            raise ValueError(
                f"`mask` of row {row['index']} is of size {size}, but the picture is of size {videos[0][0].size}. A "
                "mask must have the size of the pictures."
            )
        return videos

    def _pixels(self, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
        """Of rows of one size, the first picture of each first."""
        videos = [self._decoded(row) for row in rows]
        return self._stacked(rows, videos, self.size(videos[0][0][0].size))

    def _stacked(
        self, rows: Sequence[dict[str, Any]], videos: Sequence[list[list[PIL.Image.Image]]], size: tuple[int, int]
    ) -> torch.Tensor:
        frames = len(videos[0][0])
        for row, pictures in zip(rows, videos, strict=True):
            if len(pictures[0]) != frames:
                raise ValueError(
                    f"Row {row['index']} has videos of {len(pictures[0])} frames, but row {rows[0]['index']} of "
                    f"{frames}. All videos of a batch must have one length; `num_frames` cuts them."
                )
        flat = [image for side in range(len(videos[0])) for pictures in videos for image in pictures[side]]
        pixels = self._processor.preprocess(flat, height=size[0], width=size[1], resize_mode="crop")
        if self.videos[0] not in rows[0]:
            return pixels
        return pixels.unflatten(0, (-1, frames)).transpose(1, 2)

    def _masks(self, rows: Sequence[dict[str, Any]], size: tuple[int, int]) -> torch.Tensor:
        """Cut as the pictures are, or were where there are latents in their place."""
        masks = [to_mask(row["mask"]).convert("RGB") for row in rows]
        pixels = self._processor.preprocess(masks, height=size[0], width=size[1], resize_mode="crop")
        return (pixels[:, :1] + 1) / 2


@dataclass
class PairCollator(PictureCollator):
    """
    Makes batches of the rows of [`~alignext.trainers.diffusion_preference.data.prepare_pairs`]. Arguments are those of
    [`PictureCollator`].

    Winners come first: rows 0 to B - 1 of `pixel_values` and `latents` are the preferred ones, rows B to 2B - 1 the
    others.

    | in the batch | shape | |
    |---|---|---|
    | `index` | (B,) | row of the dataset |
    | `pixel_values` | (2B, 3, H, W), or (2B, 3, F, H, W) of videos | in [-1, 1]; or |
    | `latents` | (2B, C, h, w) | float32, as in the dataset |
    | `prompts` | B texts, or lists of texts to draw from | or |
    | `prompt_embeds`, `pooled_prompt_embeds`, ... | (B, L, D), (B, P) | lists of tensors where lengths differ |
    | `sources` | B lists of pictures | where the dataset has them |
    | `mask`, `mask_images` | (B, 1, H, W) in [0, 1], B pictures | where the dataset has it |
    | `preference_prob` | (B,) | where the dataset has it, or votes |
    | `scores` | (B, 2) | where the dataset has them, the winner's first |
    """

    def _batch(
        self, rows: Sequence[dict[str, Any]], videos: Sequence[list[list[PIL.Image.Image]]], size: tuple[int, int]
    ) -> dict[str, Any]:
        batch = super()._batch(rows, videos, size)
        if "preference_prob" in rows[0]:
            batch["preference_prob"] = torch.tensor([float(row["preference_prob"]) for row in rows])
        elif "votes_chosen" in rows[0]:
            votes = torch.tensor([[float(row[name]) for name in VOTES] for row in rows])
            batch["preference_prob"] = votes[:, 0] / votes.sum(1)
        if "score_chosen" in rows[0]:
            batch["scores"] = torch.tensor([[float(row[name]) for name in SCORES] for row in rows])
        return batch


@dataclass
class VoteCollator(PictureCollator):
    """
    Makes batches of the rows of [`~alignext.trainers.diffusion_preference.data.prepare_votes`]: as [`PairCollator`]
    with one picture a row, and `labels` of shape (B,), True for a thumb up.
    """

    pictures: tuple[str, ...] = field(default=("image",), repr=False)
    videos: tuple[str, ...] = field(default=("video",), repr=False)
    latents: tuple[str, ...] = field(default=("latents",), repr=False)

    def _batch(
        self, rows: Sequence[dict[str, Any]], videos: Sequence[list[list[PIL.Image.Image]]], size: tuple[int, int]
    ) -> dict[str, Any]:
        return super()._batch(rows, videos, size) | {"labels": torch.tensor([bool(row["label"]) for row in rows])}


def _frames(video: Any, count: int | None) -> list[PIL.Image.Image]:
    """The pictures of a video: of a file, an array (F, H, W, 3), or a list of pictures."""
    if isinstance(video, Mapping):
        video = video.get("path") or video.get("bytes")
    if isinstance(video, str):
        frames = load_video(video)
    elif isinstance(video, np.ndarray | torch.Tensor) or (video and isinstance(video[0], list)):
        frames = list(np.asarray(video if not isinstance(video, list) else np.asarray(video, dtype=np.uint8)))
    else:
        frames = list(video or ())
    frames = [to_pil(frame) for frame in frames]
    if (count is not None and len(frames) < count) or not frames:
        raise ValueError(f"The video has {len(frames)} frames, but {count or 'one or more'} are needed.")
    return frames[:count]


def _sources(row: dict[str, Any]) -> list[PIL.Image.Image]:
    source = row["source"]
    try:
        return [to_pil(picture) for picture in (source if isinstance(source, list | tuple) else [source])]
    except ValueError as error:
        raise ValueError(f"`{named(row, 'source')}` of row {row['index']}: {error}") from error


def _captions(row: dict[str, Any]) -> str | list[str]:
    prompt = row["prompt"]
    texts = prompt if isinstance(prompt, list) else [prompt]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"`{named(row, 'prompt')}` of row {row['index']} is {prompt!r}, expected a text or a list of texts."
        )
    return prompt


def stack(rows: Sequence[dict[str, Any]], names: Sequence[str], ragged: bool = False) -> Any:
    """One tensor of these columns, the first column's rows first: float32, or integers. With `ragged`, a list where
    they have not one shape."""
    tensors: list[torch.Tensor] = []
    first = f"`{named(rows[0], names[0])}` of row {rows[0]['index']}"
    for name in names:
        for row in rows:
            value, here = np.asarray(row[name]), named(row, name)
            tensor = torch.as_tensor(value if value.dtype.kind in "biu" else value.astype(np.float32))
            if not tensor.isfinite().all():
                raise ValueError(
                    f"`{here}` of row {row['index']} has values that are not finite. If a VAE in float16 overflowed, "
                    "encode again in float32."
                )
            if tensors and tensor.shape != tensors[0].shape and not ragged:
                raise ValueError(
                    f"`{here}` of row {row['index']} has shape {tuple(tensor.shape)}, but {first} has "
                    f"{tuple(tensors[0].shape)}. All rows of a batch must have one size."
                )
            tensors.append(tensor)
    alike = len({tensor.shape for tensor in tensors}) == 1
    return torch.stack(tensors) if alike else tensors
