# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The judges: small classifiers of what is drawn and in which style."""

from pathlib import Path

import torch
import torch.nn.functional as F

from alignext.mini.recipe.drawings import augment, corrupt, pictures
from alignext.mini.recipe.fitting import fit, load_in_float32


def train_judge(config: dict, folder: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    images, rows = pictures(*config["splits"])
    labels = sorted({row[config["label"]] for row in rows})
    answers = torch.tensor([labels.index(row[config["label"]]) for row in rows])
    names = dict(enumerate(labels))
    model = ResNetForImageClassification(
        ResNetConfig(**config["model"], id2label=names, label2id={name: i for i, name in names.items()})
    )
    # every label equally often
    odds = (1 / answers.bincount().float())[answers]

    def loss_fn(step: int, rng: torch.Generator) -> torch.Tensor:
        chosen = torch.multinomial(odds, config["batch"], replacement=True, generator=rng)
        x = augment(images[chosen].float() / 255, rng, **config["augment"])
        x = corrupt(x, rng, config["colour"])
        logits = model(x * 2 - 1).logits.float()
        return F.cross_entropy(logits, answers[chosen], label_smoothing=0.1)

    def export(average: torch.nn.Module) -> None:
        average.half().save_pretrained(folder / folder.name)
        load_in_float32(folder / folder.name)

    fit(model.train(), loss_fn, config, folder, export)
