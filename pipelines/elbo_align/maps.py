# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Sums of attention over layers, heads and noise levels, and maps of the words of a prompt while a picture is made."""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

from alignext.diffusion.attention import TEXT_SIDE, AttentionCall, attention_seen, grid_of, is_attention
from alignext.diffusion.denoiser import get_denoiser
from alignext.functional.elbo_align import layer_weights, min_max, resized
from alignext.pipelines.elbo_align.words import spans_of, token_positions
from alignext.signatures import check_names
from alignext.wrapping import wrapped


def text_side(pipe: Any) -> str | None:
    """
    Where the text stands in joint attention; None for U-Nets.

    Raises:
        NotImplementedError: If the pipeline's denoiser is none of those whose attention is understood.
    """
    name = type(get_denoiser(pipe)).__name__
    if name not in TEXT_SIDE:
        raise NotImplementedError(
            f"`pipe` has a {name}, but attention is understood of {', '.join(TEXT_SIDE)} only: of Stable Diffusion 1, "
            "2, XL and 3, and FLUX.1."
        )
    return TEXT_SIDE[name]


def late_layers(denoiser: torch.nn.Module, side: str | None) -> frozenset[str]:
    """The attention layers of a U-Net that go up; of a transformer, the last half."""
    names = [name for name, module in denoiser.named_modules() if is_attention(module)]
    if side is None:
        return frozenset(name for name in names if name.startswith("up_blocks"))
    return frozenset(names[len(names) // 2 :])


class AttentionSums:
    """
    Running sums of what picture positions attend to: of words, a map per layer, and of other positions two matrices.
    No layer's matrices are kept.

    Args:
        positions (`Sequence[Sequence[int]]`): Tokens of every word.
        size (`tuple[int, int]`): Height and width of the latents.
        side (`str` or `None`): Of [`text_side`].
        text_length (`int`): Number of text tokens.
        with_self (`bool`): Also sum up attention within the picture.
        late (`frozenset[str]`): Of [`late_layers`].
        rows (`Callable[[int], slice]`): Which rows of a batch of that size count.
    """

    def __init__(
        self,
        positions: Sequence[Sequence[int]],
        size: tuple[int, int],
        side: str | None,
        text_length: int,
        *,
        with_self: bool = True,
        late: frozenset[str] = frozenset(),
        rows: Callable[[int], slice] = lambda count: slice(None),
    ) -> None:
        self.positions, self.size, self.side, self.text_length = positions, size, side, text_length
        self.with_self, self.rows = with_self, rows
        self.cross: dict[str, torch.Tensor] = {}  # (rows, words, h, w)
        self.counts: dict[str, int] = {}
        self.late = late
        # Of all layers of the finest grid, and of the late ones: their sums, and how many were summed.
        self._self: dict[bool, tuple[Any, int]] = {}
        self._grid = (0, 0)

    def __call__(self, call: AttentionCall) -> None:
        """Add one attention."""
        queries = keys = slice(None)
        columns = None
        if self.side is None and call.text is not None:
            length, columns = call.query.shape[2], 0
        elif call.key.shape[2] > self.text_length and self._is_joint(call):
            length = call.key.shape[2] - self.text_length
            columns = 0 if self.side == "before" else length
            queries = slice(self.text_length, None) if self.side == "before" else slice(0, length)
            keys = queries
        else:
            length = call.query.shape[2]
        grid = grid_of(length, self.size)
        if grid is None or (columns is None and not self._wants(grid)):
            return
        words = []
        for row in range(len(call.query))[self.rows(len(call.query))]:  # the matrix of one row in memory at a time
            probabilities = call.probabilities(slice(row, row + 1), queries)
            if columns is not None:
                text = probabilities[..., columns : columns + self.text_length]
                words.append(torch.stack([text[..., list(tokens)].mean(-1) for tokens in self.positions], 1))
            if (self.side is not None or columns is None) and self._wants(grid):
                self._add_self(call.name, probabilities[0, :, keys], grid)
        if words:
            self._add_words(call.name, torch.cat(words).unflatten(-1, grid))

    def _is_joint(self, call: AttentionCall) -> bool:
        """Also layers that are given text and picture as one sequence."""
        own = grid_of(call.key.shape[2] - self.text_length, self.size) is not None
        return (
            self.side is not None and own and (call.text is not None or grid_of(call.key.shape[2], self.size) is None)
        )

    def _add_words(self, name: str, words: torch.Tensor) -> None:
        self.cross[name] = self.cross[name] + words if name in self.cross else words
        self.counts[name] = self.counts.get(name, 0) + 1

    def _wants(self, grid: tuple[int, int]) -> bool:
        return self.with_self and grid[0] * grid[1] >= self._grid[0] * self._grid[1]

    def _add_self(self, name: str, probabilities: torch.Tensor, grid: tuple[int, int]) -> None:
        if grid != self._grid:  # finer than all before, which no longer count
            self._grid, self._self = grid, {}
        # Rows of joint attention leave a share to the text.
        late = name in self.late
        total, count = self._self.get(late, (0, 0))
        self._self[late] = total + probabilities / probabilities.sum(-1, keepdim=True), count + 1

    def self_maps(self) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
        """
        `S_1`, the mean over the layers of the finest grid, and `S_2`, that over the late ones among them.

        Returns:
            `tuple`: Two matrices `(h w, h w)` whose rows sum to 1, and `(h, w)`.
        """
        total, count = (sum(parts) for parts in zip(*self._self.values(), strict=True))
        late, late_count = self._self.get(True, (total, count))
        return total / count, late / late_count, self._grid

    def word_maps(self, weights: Sequence[float] | None = None) -> torch.Tensor:
        """
        Maps of the words: the weighted mean over layers, each brought to the size of the finest.

        Args:
            weights (`Sequence[float]`, *optional*): Of the layers in their order; otherwise a Gaussian about the
                middle.

        Returns:
            `torch.Tensor` of shape `(rows, words, h, w)`.

        Raises:
            ValueError: If there are more or fewer weights than layers, or they are no weights.
        """
        names = list(self.cross)
        if weights is None:
            chosen = layer_weights(len(names), self._centre(names))
        else:
            chosen = torch.tensor([float(w) for w in weights], dtype=torch.float64)
            if len(chosen) != len(names) or (chosen < 0).any() or not chosen.sum() > 0:
                raise ValueError(
                    f"`layer_weights` must have {len(names)} numbers of 0 or more, not all 0, one for each of "
                    f"{', '.join(names)}, received {list(weights)}."
                )
            chosen = chosen / chosen.sum()
        h, w = max((self.cross[n].shape[-2:] for n in names), key=lambda s: s[0] * s[1])
        total = torch.zeros(())
        for weight, name in zip(chosen.tolist(), names, strict=True):
            maps = self.cross[name] / self.counts[name]
            total = total.to(maps) + weight * resized(maps.flatten(0, 1), (h, w)).unflatten(0, maps.shape[:2])
        return total

    def _centre(self, names: list[str]) -> float:
        if self.side is not None:
            return (len(names) - 1) / 2
        down, middle = (sum(name.startswith(part) for name in names) for part in ("down_blocks", "mid_block"))
        return down + (middle - 1) / 2


@dataclass
class AttentionMapsOutput(BaseOutput):
    """
    Pictures, and where each word of their prompt was looked at.

    Attributes:
        images (`list` or `torch.Tensor`): As the stock call returns them.
        maps (`torch.Tensor` of shape `(n, words, h, w)`): In [0, 1], at the size of the finest layer.
        words (`list[str]`): The words.
    """

    images: Any
    maps: torch.Tensor
    words: list[str]


@torch.no_grad()
def attention_maps(
    pipe: Any,
    prompt: str,
    words: Sequence[str] | None = None,
    *,
    layer_weights: Sequence[float] | None = None,
    **call: Any,
) -> AttentionMapsOutput:
    """
    Generate, and keep what the picture attended to: a map for every word, the mean over heads, layers and steps. The
    picture is that of the stock call, bit for bit.

    Args:
        pipe (`DiffusionPipeline`): Of Stable Diffusion 1, 2, XL, 3 or FLUX.1, or a subclass. It stays as it is.
        prompt (`str`): One prompt; `num_images_per_prompt` makes several pictures.
        words (`Sequence[str]`, *optional*): Words or phrases of the prompt; all of its words otherwise.
        layer_weights (`Sequence[float]`, *optional*): Of the layers in their order; a Gaussian about the middle if not
            given.
        call: Further arguments of the stock call.

    Returns:
        [`AttentionMapsOutput`].

    Raises:
        ValueError: If a word does not stand in the prompt, or lies beyond what is read of it.
        TypeError: If an argument is a misspelt one of the stock call.
        NotImplementedError: If the denoiser's attention is not understood, cannot be seen, or is compiled.
    """
    side = text_side(pipe)
    check_names(call, inspect.signature(type(pipe).__call__).parameters, f"{type(pipe).__name__}.__call__")
    words = list(dict.fromkeys(_words(prompt))) if words is None else list(words)
    spans = spans_of(prompt, words, name="words")
    sums: list[AttentionSums] = []
    count = call.get("num_images_per_prompt") or 1
    denoiser = get_denoiser(pipe)

    def watching(forward: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not sums:
                given = kwargs.get("encoder_hidden_states", args[2] if len(args) > 2 else None)
                length = int(given.shape[1])
                size = _latent_size(pipe, args, kwargs, call)
                positions = token_positions(pipe, prompt, spans, length)
                # Classifier-free guidance puts the rows without a prompt before those with it.
                rows = lambda n: slice(n - count, None)  # noqa: E731
                sums.append(AttentionSums(positions, size, side, length, with_self=False, rows=rows))
            with attention_seen(denoiser, sums[0]):
                return forward(*args, **kwargs)

        return wrapper

    if call.get("true_cfg_scale", 1.0) > 1.0 and "negative_prompt" in call:
        raise ValueError(
            "`true_cfg_scale` with a `negative_prompt` also calls the denoiser for other words. Leave one of them out."
        )
    with wrapped(denoiser, watching):
        images = copy.copy(pipe)(prompt=prompt, **call).images
    maps = sums[0].word_maps(layer_weights)
    return AttentionMapsOutput(
        images=images, maps=min_max(maps.flatten(0, 1)).unflatten(0, maps.shape[:2]), words=words
    )


def _words(prompt: str) -> list[str]:
    return [word.strip(".,;:!?()\"'") for word in prompt.split() if word.strip(".,;:!?()\"'")]


def _latent_size(pipe: Any, args: tuple, kwargs: dict[str, Any], call: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the latents that the denoiser is called with; packed ones do not tell."""
    sample = kwargs.get("hidden_states", kwargs.get("sample", args[0] if args else None))
    if sample is not None and sample.ndim == 4:
        return int(sample.shape[-2]), int(sample.shape[-1])
    native = pipe.default_sample_size * pipe.vae_scale_factor
    h, w = (2 * (int(call.get(name) or native) // (2 * pipe.vae_scale_factor)) for name in ("height", "width"))
    return h, w
