# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Train the embedded models: `python -m alignext.mini.recipe.train vae sd flux video sharper judge-concept clip`.

Each name is a file in `configs/` (or a YAML file of your own). A run resumes from its last checkpoint in the cache;
`sd-longer` and the like begin with what is shipped.
Its randomness comes from (seed, step), so an interrupted run ends where the uninterrupted one would.
"""

import shutil
import sys
from pathlib import Path

import torch
import yaml

from alignext import mini
from alignext.mini.recipe import render
from alignext.mini.recipe.autoencoder import train_sharper, train_vae
from alignext.mini.recipe.dual_encoder import train_clip
from alignext.mini.recipe.fitting import compact, forget_origin
from alignext.mini.recipe.flux import train_flux
from alignext.mini.recipe.judging import train_judge
from alignext.mini.recipe.sd import train_sd
from alignext.mini.recipe.video import train_video


WEIGHTS = "diffusion_pytorch_model.safetensors"


def main(names: list[str]) -> None:
    torch.set_num_threads(1)  # two single-thread runs beat one run with two threads
    for name in names:
        file = Path(name) if name.endswith(".yaml") else Path(__file__).parent / "configs" / f"{name}.yaml"
        config = yaml.safe_load(file.read_text())
        folder = render.CACHE / "train" / file.stem
        torch.manual_seed(config["seed"])
        kinds = {
            "vae": train_vae, "sd": train_sd, "flux": train_flux, "video": train_video, "sharper": train_sharper,
            "judge": train_judge, "clip": train_clip,
        }  # fmt: skip
        kinds[config["kind"]](config, folder)
        model = file.stem.removesuffix("-longer")
        if model in mini.NAMES:
            forget_origin(folder / model)
            compact(folder / model)
            stays = shutil.ignore_patterns("tokenizer", "tokenizer_2") if config.get("goes_on") else None
            shutil.copytree(folder / model, Path(__file__).parents[1] / model, ignore=stays, dirs_exist_ok=True)
        if config["kind"] == "sharper":  # the three share one autoencoder
            for owner in ("sd", "flux", "video"):
                shutil.copy(folder / "vae" / WEIGHTS, mini.path(owner) / "vae" / WEIGHTS)


if __name__ == "__main__":
    main(sys.argv[1:])
