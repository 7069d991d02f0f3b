# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Small trained models and held-out pictures that come with the package, so that everything runs offline.

    path("sd")             # a StableDiffusionPipeline folder for 64x64 pictures
    path("flux")           # a FluxPipeline folder for the same pictures; call it with FLUX_CALL
    path("lm")             # a causal language model folder with tokenizer and chat template
    path("video")          # a LattePipeline folder for clips of 8 such pictures; call it with VIDEO_CALL
    path("clip")           # a CLIPModel folder with tokenizer and processor: rewards from text
    path("judge-concept")  # an image classifier: what is drawn
    path("judge-style")    # an image classifier: in which style
    pictures("unseen_concept")  # drawings that the models were not trained on

Needs neither torch nor diffusers nor transformers.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from PIL.Image import Image

NAMES = ("sd", "flux", "lm", "video", "clip", "judge-concept", "judge-style", "pictures")
VERSION = 3  # of the models that draw: docs/mini.md lists what changed, and other pages say which one they measured
# How to call mini-Flux, whose stock defaults are for 1024 pixels. True CFG also needs a negative prompt per prompt.
FLUX_CALL = {"height": 64, "width": 64, "max_sequence_length": 16, "true_cfg_scale": 3.0}
# How to call mini-video, whose stock defaults are for 16 frames of 512 pixels.
VIDEO_CALL = {"height": 64, "width": 64, "video_length": 8, "guidance_scale": 4.0, "clean_caption": False}
MOTIONS = ("left", "right", "up", "down", "growing", "shrinking")  # which its captions name


def path(name: str) -> Path:
    """The folder of an embedded model or of the pictures, for `from_pretrained`.

    Args:
        name (`str`): one of `NAMES`.

    Raises:
        ValueError: the name is not one of them.
        FileNotFoundError: the folder is missing from this installation.
    """
    if name not in NAMES:
        raise ValueError(f"`name` is {name!r}, expected one of {', '.join(NAMES)}.")
    folder = Path(__file__).parent / name
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: reinstall alignext, or rebuild it with `make mini`.")
    return folder


@dataclass(frozen=True)
class Picture:
    """A 64x64 drawing on white.

    Attributes:
        path (`Path`): the PNG file.
        concept (`str`): what is drawn, as captions say it, for example `"red fox"`.
        style (`str`): `"noto"`, `"blob"`, `"flat"`, `"glossy"` or `"ink"`; `"fx"` for the style that no model knows.
        caption (`str`): for example `"a red fox, flat style"`; pictures of the unseen style name no style.
        split (`str`): `"unseen_concept"`, `"unseen_drawing"`, `"unseen_style"` or `"train"`.
    """

    path: Path
    concept: str
    style: str
    caption: str
    split: str

    @property
    def image(self) -> "Image":
        """The drawing as an RGB `PIL.Image`."""
        from PIL import Image

        with Image.open(self.path) as file:
            return file.convert("RGB")


def pictures(split: str | None = None) -> list[Picture]:
    """The embedded pictures, in a fixed order.

    Args:
        split (`str`, *optional*): keep the pictures of one split: `"unseen_concept"` (no generative model saw the
            concept in any style), `"unseen_drawing"` (no model saw this concept in this style), `"unseen_style"`
            (known concepts in a style that no model saw), `"train"` (a few that the models were trained on).

    Raises:
        ValueError: there is no such split.
    """
    folder = path("pictures")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    splits = sorted({row["split"] for row in rows})
    if split is not None and split not in splits:
        raise ValueError(f"`split` is {split!r}, expected one of {', '.join(splits)}.")
    return [Picture(folder / row.pop("file_name"), **row) for row in rows if split is None or row["split"] == split]
