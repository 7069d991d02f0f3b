# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""HPS v2, whose weights are those of an open_clip model."""

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from alignext.rewards.dual_encoder import DualEncoderReward, fitted, normalised, warn_of_cut


class HPSReward(DualEncoderReward):
    """
    Human Preference Score v2 (arXiv 2306.09341): cosine of picture and prompt in a CLIP model that was trained on
    which picture people prefer. Differentiable. Needs open_clip: `pip install open_clip_torch`.

    Args:
        checkpoint (`str` or `Path`): The file that its authors publish, such as `HPS_v2.1_compressed.pt`; read without
            code.
        model (`str`, *optional*, defaults to `"ViT-H-14"`): open_clip's name of the model.
        device, dtype (*optional*): Where and how to keep the model.

    Raises:
        ImportError: open_clip is not installed.
        FileNotFoundError: There is no such file.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike,
        model: str = "ViT-H-14",
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        try:
            open_clip: Any = import_module("open_clip")
        except ImportError as error:
            raise ImportError("HPSReward needs open_clip: pip install open_clip_torch.") from error
        if not os.path.isfile(checkpoint):
            raise FileNotFoundError(
                f"`checkpoint` {os.fspath(checkpoint)} is no file. Pass the .pt file of HPS v2 or v2.1."
            )
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        self.model: Any = open_clip.create_model(model)
        self.model.load_state_dict(state.get("state_dict", state))
        self.model.to(device, dtype).eval().requires_grad_(False)
        self.tokenizer = open_clip.get_tokenizer(model)
        self.name_or_path = os.fspath(checkpoint)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors `(n, d)`, float32, of pictures `(n, 3, H, W)` in [0, 1]."""
        weight = self.model.logit_scale
        side = self.model.visual.image_size
        x = fitted(images.to(weight.device, torch.float32), side if isinstance(side, int) else side[0])
        x = normalised(x, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        return F.normalize(self.model.encode_image(x.to(weight.dtype)).float(), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors `(n, d)`, float32; long texts are cut, with a warning."""
        tokens = self.tokenizer(list(texts))
        if tokens[:, -1].any():  # no padding: as long as can be, or longer
            lengths = [len(self.tokenizer.encode(text)) + 2 for text in texts]
            warn_of_cut(texts, lengths, tokens.shape[1])
        return F.normalize(self.model.encode_text(tokens.to(self.model.logit_scale.device)).float(), dim=-1)
