# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Diffusion-DPO on real drawings: a preferred style."""

import tempfile

import torch
from datasets import Dataset
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from PIL.Image import Image

from alignext import DiffusionDPOConfig, DiffusionDPOTrainer, mini
from alignext.demos.charts import Chart
from alignext.demos.gallery import Figure, Section, Table, print_table
from alignext.demos.stories import curve, quieten, settings
from alignext.demos.verdicts import shares, verdict
from alignext.diffusion.sheets import contact_sheet
from alignext.mini.judges import Judge


_PREFERRED = "glossy"


def demo(*, seed: int, steps: int | None) -> list[Section]:
    """Diffusion-DPO on real drawings: a style that was preferred, in drawings of other things. Few `steps` of sampling
    mean few updates, too."""

    steps = steps or 20
    drawings: dict[str, dict[str, mini.Picture]] = {}
    for picture in mini.pictures():
        drawings.setdefault(picture.concept, {})[picture.style] = picture
    styles = ("noto", "blob", "flat", "glossy", "ink")
    trained = [concept for concept, of in drawings.items() if set(styles) <= set(of)]
    pairs = [
        {
            "prompt": of[_PREFERRED].caption.partition(",")[0],
            "image_chosen": of[_PREFERRED].image,
            "image_rejected": of[other].image,
        }
        for of in (drawings[concept] for concept in trained)
        for other in styles
        if other != _PREFERRED
    ]
    pipe = StableDiffusionPipeline.from_pretrained(mini.path("sd"))
    pipe.set_progress_bar_config(disable=True)
    others = [picture for picture in mini.pictures("unseen_style") if picture.concept not in trained]
    prompts = [picture.caption for picture in others[::3]]

    def draw() -> list[Image]:
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        return pipe(prompts, num_inference_steps=steps, guidance_scale=3.0, generator=generators).images

    print(f"Diffusion-DPO: drawing {len(prompts)} things before training", flush=True)
    before = draw()
    with tempfile.TemporaryDirectory() as folder:
        trainer = DiffusionDPOTrainer(
            model=pipe,
            args=DiffusionDPOConfig(
                **settings(
                    folder,
                    seed,
                    3 * steps,
                    per_device_train_batch_size=12,
                    learning_rate=5e-4,
                    precompute_latents=True,
                )
            ),
            train_dataset=Dataset.from_list(pairs),
            peft_config=LoraConfig(r=16, lora_alpha=16),
        )
        print(f"Diffusion-DPO: {3 * steps} updates on {len(pairs)} pairs", flush=True)
        quieten(trainer)
        trainer.train()
    after = draw()

    judge = Judge("style")
    hits = [[name == _PREFERRED for name in judge.name(images)] for images in (after, before)]
    measures = Table(
        ["drawings", f"share in the style {_PREFERRED!r}"],
        [["before", sum(hits[1]) / len(prompts)], ["after", sum(hits[0]) / len(prompts)]],
        caption=f"By the embedded style judge, of {len(prompts)} drawings of things that were in no pair.",
        verdict=verdict("drawings in that style", "after", "before", shares(*hits), f"{len(prompts)} drawings each"),
    )
    print_table(measures)
    chosen, shown = drawings["red fox"], slice(0, 24, 3)
    sheet = contact_sheet(
        [before[shown], after[shown]], row_labels=["before", "after"], col_labels=prompts[shown], cell=96
    )
    pair = contact_sheet(
        [[chosen[_PREFERRED].image, *(chosen[s].image for s in styles if s != _PREFERRED)]],
        col_labels=[f"preferred: {_PREFERRED}", *(s for s in styles if s != _PREFERRED)],
        cell=96,
    )
    return [
        Section(
            "Diffusion-DPO: a preferred style",
            f"{len(pairs)} pairs of real drawings: the same thing in the preferred style and in another one, with a "
            f"prompt that names no style. {3 * steps} updates of a LoRA.",
            figures=[
                Figure(
                    "diffusion-dpo-pairs",
                    pair,
                    alt="A fox in five styles: four pairs.",
                    caption="Four of the pairs: the drawing on the left is preferred to each of the others.",
                ),
                Figure(
                    "diffusion-dpo",
                    sheet,
                    alt="Eight things drawn before and after training.",
                    caption="Things that were in no pair, before and after. The same noise above and below.",
                ),
            ],
            charts=[
                Chart(
                    "Preferred and other drawings part",
                    "update",
                    "implicit reward, mean of the batch",
                    {name: curve(trainer, f"rewards/{name}") for name in ("chosen", "rejected")},
                )
            ],
            tables=[measures],
        )
    ]
