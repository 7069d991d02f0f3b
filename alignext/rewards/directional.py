# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Rewards whose text embedding is led elsewhere: by a fitted direction (D²-Align), by a pair of words (SRPO)."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import HFValidationError, validate_repo_id

from alignext.diffusion.drawing import draw
from alignext.functional.d2_align import DirectionFit, fit_direction, guided_text, relative_text
from alignext.hub_files import FileHubMixin
from alignext.methods import method
from alignext.rewards.dual_encoder import DualEncoderReward
from alignext.rewards.protocol import as_prompts


class _LedReward(DualEncoderReward):
    """One whose pictures and scale are those of `base_reward`."""

    base_reward: Any

    @property
    def scale(self) -> float:
        """That of the base reward."""
        return float(self.base_reward.scale)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """As the base reward."""
        return self.base_reward.encode_image(images)

    def _check_base(self) -> None:
        lacking = [name for name in ("encode_image", "encode_text", "scale") if not hasattr(self.base_reward, name)]
        if lacking:
            raise ValueError(
                f"`base_reward` must have two encoders, as `CLIPReward` and `PickScoreReward` do, received "
                f"{type(self.base_reward).__name__} without `{lacking[0]}`."
            )


@dataclass(eq=False)
class DirectionalReward(FileHubMixin, _LedReward):
    """
    D²-Align: a reward of two encoders with a direction in its text space that takes the reward's own taste out of it.
    All else is the base reward's. `fit` finds the direction on a frozen generator; the reward then goes to a trainer,
    a search, or wherever a reward goes. Without a direction it is the base reward, bit for bit.

    Args:
        base_reward ([`DualEncoderReward`]): [`CLIPReward`], [`PickScoreReward`], [`HPSReward`], or any object with
            `encode_image(images) -> (n, d)` and `encode_text(prompts) -> (n, d)`, unit vectors, and `scale`.
        guidance_scale (`float`, *optional*, defaults to 1.5): `w`; 0.5 takes the mean of both sides, 1 only that
            towards the direction.
        direction (`torch.Tensor` of shape `(d,)`, *optional*): As `fit` found it.

    Raises:
        ValueError: If the base reward has no two encoders, or the direction is not finite or of another width.

    Example:

    ```python
    >>> reward = DirectionalReward(PickScoreReward())
    >>> reward.fit(pipe, prompts, num_inference_steps=20)
    >>> reward.save_pretrained("unbiased-pickscore")
    ```
    """

    _key: ClassVar[str] = "directional_reward"
    _file_name: ClassVar[str] = "directional_reward.safetensors"
    _method: ClassVar[str] = "alignext.rewards.directional:DirectionalReward"
    _kind: ClassVar[str] = "Directional reward"
    _use: ClassVar[str] = (
        "A direction in the text space of a reward of pictures, for alignext. It takes the reward's own taste out, "
        "before a model trains on it: `AlignPropTrainer(pipe, reward_funcs=found, ...)`."
    )
    _tag_names: ClassVar[list[str]] = ["alignext", "d2-align"]
    _paper: ClassVar[dict[str, str]] = method("D²-Align").paper

    base_reward: Any
    guidance_scale: float = 1.5
    direction: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self._check_base()
        if self.direction is not None:
            self.direction = self._checked(self.direction)

    def _checked(self, b: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            width = self.base_reward.encode_text(["a"]).shape[-1]
        if tuple(b.shape) != (width,) or not b.isfinite().all():
            raise ValueError(
                f"`direction` must be finite and of shape ({width},), the width of {type(self.base_reward).__name__}, "
                f"received {tuple(b.shape)}. It belongs to the reward it was fitted to: pass that one."
            )
        return b.detach().float().cpu()

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """`e~` of the texts, `(n, d)`: not of length 1 where there is a direction."""
        e = self.base_reward.encode_text(texts)
        return e if self.direction is None else guided_text(e, self.direction.to(e), self.guidance_scale)

    def fit(
        self,
        pipeline: Any,
        prompts: Sequence[str],
        num_steps: int = 2000,
        max_norm: float | None = 0.3,
        *,
        keep_margin: float | None = 0.8,
        learning_rate: float = 1e-3,
        batch_size: int = 64,
        image_batch_size: int = 8,
        images: torch.Tensor | None = None,
        seed: int = 0,
        **call: Any,
    ) -> DirectionFit:
        """
        Stage 1: draw a picture of each prompt, embed pictures and prompts once, and find the direction along which the
        reward likes them all. No network gets a gradient. Two bounds, which the paper does not have, keep the reward
        from forgetting the prompts; see [`alignext.functional.d2_align`].

        Args:
            pipeline (`DiffusionPipeline`): The frozen generator; may be `None` with `images`.
            prompts (`Sequence[str]`): 1000 to 2000 of those it will be trained with, two different ones at least.
            num_steps (`int`, *optional*, defaults to 2000): At most so many steps; they take seconds.
            max_norm (`float`, *optional*, defaults to 0.3): Largest norm of the direction; `None` is the bare formula.
            keep_margin (`float`, *optional*, defaults to 0.8): Share of the margin between own and other prompts that
                stays; `None` never ends early.
            learning_rate (`float`, *optional*, defaults to 1e-3): Of Adam.
            batch_size (`int`, *optional*, defaults to 64): Embeddings in a step.
            image_batch_size (`int`, *optional*, defaults to 8): Pictures that are drawn and embedded at once.
            images (`torch.Tensor`, *optional*): Pictures `(n, 3, H, W)` or videos that the generator made, one per
                prompt, in [0, 1]; they are drawn if not given.
            seed (`int`, *optional*, defaults to 0): Of the noise of the first picture, the next has the next; and of
                the batches.
            call: Further arguments of the pipeline's call, such as `num_inference_steps`.

        Returns:
            [`DirectionFit`]: What was found, also kept as `direction`.

        Raises:
            ValueError: See [`fit_direction`]; or there is not one picture per prompt.
        """
        if isinstance(prompts, str) or len(set(prompts)) < 2:
            raise ValueError(f"`prompts` must be a list with two different prompts or more, received {prompts!r}.")
        prompts = list(prompts)
        if images is None and pipeline is None:
            raise ValueError("`pipeline` must be the generator, or `images` what it made, received None for both.")
        if images is not None and len(images) != len(prompts):
            raise ValueError(f"`images` must be one per prompt, received {len(images)} for {len(prompts)} prompts.")
        found = []
        for start in range(0, len(prompts), image_batch_size):
            rows = slice(start, start + image_batch_size)
            texts = as_prompts(prompts[rows], len(prompts[rows])) or []
            seeds = range(seed + start, seed + start + len(texts))
            made = draw(pipeline, texts, seeds, batch_size=len(texts), **call) if images is None else images[rows]
            with torch.no_grad():
                frames = made.flatten(0, 1) if made.ndim == 5 else made
                # The reward of a video is the mean over its frames, and so that of the mean of their vectors.
                found.append(self.base_reward.encode_image(frames).unflatten(0, (len(made), -1)).mean(1))
        unique = list(dict.fromkeys(prompts))
        with torch.no_grad():
            texts = self.base_reward.encode_text(unique).float()
        found = torch.cat(found).to(texts)
        place = {prompt: i for i, prompt in enumerate(unique)}
        index = torch.tensor([place[prompt] for prompt in prompts], device=texts.device)
        result = fit_direction(
            found, texts, index, self.guidance_scale, num_steps=num_steps, max_norm=max_norm, keep_margin=keep_margin,
            learning_rate=learning_rate, batch_size=batch_size, seed=seed,
        )  # fmt: skip
        self.direction = result.direction.cpu()
        return result

    # ------------------------------------------------------------------------------------------------------- files

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """
        Write the direction, the guidance scale and the name of the base reward, one small file.

        Args:
            folder (`str` or `Path`): Where; it is made.

        Raises:
            ValueError: There is no direction yet.
        """
        self._check_fitted()
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.save(Path(folder, self._file_name))

    def _check_fitted(self) -> None:
        if self.direction is None:
            raise ValueError("There is no `direction` to save yet: call `fit` first.")

    def save(self, path: str | os.PathLike) -> None:
        """The one file of [`save_pretrained`]."""
        self._check_fitted()
        super().save(path)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, base_reward: Any = None, **kwargs: Any) -> Self:
        """
        Read what `save_pretrained` wrote, or `push_to_hub` put on the Hub.

        Args:
            source (`str` or `Path`): Folder or Hub id.
            base_reward ([`DualEncoderReward`], *optional*): The reward it was fitted to. Built-in ones with a model of
                the Hub are loaded if not given.
            kwargs: Of `huggingface_hub.hf_hub_download`, such as `revision` and `token`.

        Raises:
            ValueError: The direction has another width than the reward, or the reward cannot be told.
        """
        local = Path(source, cls._file_name)
        if Path(source).exists() and not local.is_file():
            raise FileNotFoundError(f"`source` {os.fspath(source)} has no {cls._file_name}.")
        path = local if local.is_file() else hf_hub_download(os.fspath(source), cls._file_name, **kwargs)
        return cls.load(path, base_reward)

    @classmethod
    def load(cls, path: str | os.PathLike, base_reward: Any = None) -> Self:
        """
        Read one file.

        Args:
            path (`str` or `Path`): Of `save`.
            base_reward ([`DualEncoderReward`], *optional*): As of [`from_pretrained`].
        """
        tensors, plain = cls._read(path, cls._key)
        return cls(_rebuilt(plain["base"]) if base_reward is None else base_reward, plain["guidance_scale"], **tensors)

    def _plain(self) -> dict[str, Any]:
        source = getattr(self.base_reward, "name_or_path", "")
        public = not os.path.exists(source) and _is_hub_id(source)  # folders exist on this machine only
        base = {"class": type(self.base_reward).__name__, "model": source if public else None}
        return {"guidance_scale": self.guidance_scale, "base": base}


def _is_hub_id(text: str) -> bool:
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return bool(text)


def _rebuilt(base: dict[str, str | None]) -> Any:
    """The reward that a file names: one of ours, of a model on the Hub."""
    if base["class"] not in ("CLIPReward", "PickScoreReward") or base["model"] is None:
        raise ValueError(
            f"`base_reward` must be given: it was fitted to a {base['class']} whose model is not on the Hub."
        )
    return getattr(import_module("alignext.rewards.clip"), base["class"])(base["model"])


class RelativeReward(_LedReward):
    """
    SRPO's relative preference (arXiv 2509.06942): how much more a picture fits its prompt with a wanted word than with
    an unwanted one, `scale <e_image, (1 + k) e_positive - e_negative>`. Needs no fit. Differentiable.

    Args:
        base_reward ([`DualEncoderReward`]): As of [`DirectionalReward`].
        positive, negative (`str`): Put before the prompt, such as `"Realistic photo."` and `"CG render."`.
        strength (`float`, *optional*, defaults to 0.1): `k`, 0 or more; the reference raises it to 0.25 in training.

    Raises:
        ValueError: If the base reward has no two encoders, or `strength` is negative.
    """

    def __init__(self, base_reward: Any, positive: str, negative: str, strength: float = 0.1) -> None:
        self.base_reward, self.positive, self.negative, self.strength = base_reward, positive, negative, strength
        self._check_base()
        if not strength >= 0:
            raise ValueError(f"`strength` must be 0 or more, received {strength}.")

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """`(1 + k) e_positive - e_negative` of the texts, `(n, d)`: not of length 1."""
        both = [
            self.base_reward.encode_text([f"{word} {text}" for text in texts])
            for word in (self.positive, self.negative)
        ]
        return relative_text(*both, self.strength)
