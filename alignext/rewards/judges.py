# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The embedded judges as rewards."""

import torch

from alignext.mini.judges import Judge
from alignext.rewards.pixels import check_images, over_frames
from alignext.rewards.protocol import as_prompts


class JudgeReward:
    """
    Log-probability, by an embedded judge, that a picture is what its prompt names, or one thing whatever the prompt.
    For captions of the embedded models such as `"a red fox, flat style"`. Differentiable.

    Args:
        name (`str`): `"concept"`, what is drawn, or `"style"`, in which of the five styles.
        wanted (`str`, *optional*): A label of the judge that is looked for in all pictures, such as `"flat"`; what
            each prompt names if not given.
        probability (`bool`, *optional*, defaults to `False`): The probability instead of its logarithm.

    Raises:
        ValueError: The judge has no such label.
    """

    differentiable = True

    def __init__(self, name: str, wanted: str | None = None, probability: bool = False) -> None:
        self.name, self.judge, self.wanted, self.probability = name, Judge(name), wanted, probability
        if wanted is not None and wanted not in self.judge.labels:
            raise ValueError(
                f"`wanted` must be one of the {name} judge's labels, such as {', '.join(self.judge.labels[:5])}, "
                f"received {wanted!r}."
            )

    def label(self, prompt: str) -> str:
        """
        What the judge looks for.

        Raises:
            ValueError: If the prompt names nothing that the judge knows.
        """
        thing, *more = prompt.split(", ")  # a style, and of clips how they move
        style = next((part for part in more if part.endswith(" style")), ", ".join(more))
        found = style.removesuffix(" style") if self.name == "style" else thing.partition(" ")[2]
        if found not in self.judge.labels:
            raise ValueError(
                f"The {self.name} judge knows captions such as 'a red fox, flat style'; it finds no {self.name} that "
                f"it knows in {prompt!r}."
            )
        return found

    def __call__(self, images: torch.Tensor, prompts: str | list[str] | None = None) -> torch.Tensor:
        check_images(images)
        prompts = as_prompts(prompts, len(images))
        if prompts is None and self.wanted is None:
            raise ValueError("JudgeReward compares with the prompts: pass `prompt`, not embeddings alone.")
        labels = [self.wanted or self.label(prompt) for prompt in prompts or [""] * len(images)]
        columns = torch.tensor([self.judge.labels.index(label) for label in labels])
        if images.ndim == 5:
            columns = columns.repeat_interleave(images.shape[1])

        def score(frames: torch.Tensor) -> torch.Tensor:
            logs = self.judge(frames).logits.log_softmax(1)
            found = logs.gather(1, columns.to(logs.device)[:, None])[:, 0]
            return found.exp() if self.probability else found

        return over_frames(score, images)
