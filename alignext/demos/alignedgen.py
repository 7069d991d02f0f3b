# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""AlignedGen on prompts that leave the style open, and on styles of held-out drawings."""

from itertools import combinations
from statistics import fmean

import torch
from PIL.Image import Image

from alignext import AlignedGenPipeline, mini
from alignext.demos.gallery import Figure, Section, Table, print_table
from alignext.demos.measured import quoted
from alignext.demos.verdicts import paired, verdict
from alignext.diffusion.sheets import contact_sheet
from alignext.mini.judges import Judge, likeness


_SETS = (
    ("a red fox", "an owl", "a house", "a rocket"),
    ("a hamburger", "a cat", "a red car", "a mushroom"),
    ("a sunflower", "a ghost", "a bell", "a penguin"),
)
_PICTURES = (("snail", "ink"), ("panda", "flat"), ("guitar", "glossy"))  # concepts that the model has never seen


def demo(*, seed: int, steps: int | None) -> list[Section]:
    """AlignedGen on prompts that leave the style open, against stock, and with held-out drawings as the style."""
    pipe = AlignedGenPipeline.from_pretrained(mini.path("flux"))
    pipe.set_progress_bar_config(disable=True)

    def draw(prompts: tuple[str, ...], k: int, **levers) -> list[Image]:
        generators = [torch.Generator().manual_seed(seed + 100 * k + i) for i in range(len(prompts))]
        settings = mini.FLUX_CALL | {"negative_prompt": [""] * len(prompts), "num_inference_steps": steps or 28}
        return pipe(list(prompts), generator=generators, **settings, **levers).images

    made: dict[str, list[list[Image]]] = {"stock": [], "AlignedGen": []}
    for k, prompts in enumerate(_SETS, start=1):
        print(f"AlignedGen {k}/{len(_SETS)}: {', '.join(prompts)}", flush=True)
        made["stock"].append(draw(prompts, k, share_end=0.0))
        made["AlignedGen"].append(draw(prompts, k, share_blocks="all"))
    pairs = list(zip(made["stock"], made["AlignedGen"], strict=True))
    sheet = contact_sheet(
        [row for pair in pairs for row in pair], row_labels=["stock", "AlignedGen"] * len(pairs), cell=128
    )

    pictures = [p for p in mini.pictures("unseen_concept") if (p.concept, p.style) in _PICTURES]
    looks = []
    for k, picture in enumerate(pictures, start=1):
        print(f"AlignedGen, picture {k}/{len(pictures)}: {picture.caption}", flush=True)
        style = {"style_image": picture.image, "style_prompt": picture.caption, "share_blocks": "all"}
        looks.append([picture.image, *draw(_SETS[0], k, **style)])
    shown = contact_sheet(looks, row_labels=[p.caption for p in pictures], col_labels=["picture", *_SETS[0]], cell=128)

    measured = {name: _measure(images) for name, images in made.items()}
    found = paired(*(measured[name][:, 0].tolist() for name in ("AlignedGen", "stock")))
    table = Table(
        ["made by", "texture", "style features", "same style", "palette", "is the subject"],
        [[name, *values.mean(0).tolist()] for name, values in measured.items()],
        caption=f"Means over {len(_SETS)} sets. Over the pairs of a set: cosine of the Gram matrices of the style "
        "judge's first layers, and of its features, share that it gives one style, overlap of the colour histograms, "
        "white left out. The last column: share of images "
        "in which the concept judge sees what the prompt names.",
        verdict=verdict("likeness of texture", "AlignedGen", "stock", found, f"{len(_SETS)} sets")
        + f" Over 24 sets a benchmark found {quoted('alignedgen')}.",
    )
    print_table(table)
    return [
        Section(
            "AlignedGen: a set in one style",
            "None of these prompts names a style, so the stock pipeline draws each image in any of the five that the "
            "model knows. With AlignedGen the first image of a row is the same, and the others take over its style: "
            "they also attend to its tokens, which seem to lie to their right, in all layers of this small model. "
            "Three sets are few, so that the sentence below the table also tells what 24 came to.",
            figures=[
                Figure(
                    "alignedgen-sets",
                    sheet,
                    alt="Three sets of four drawings, by stock and by AlignedGen.",
                    caption="Three sets, each drawn by stock diffusers and by AlignedGen with the same noise.",
                ),
                Figure(
                    "alignedgen-pictures",
                    shown,
                    alt="Each drawing beside four images in its style.",
                    caption="The style of a picture: it comes from the drawing on the left, which the model has never "
                    "seen.",
                ),
            ],
            tables=[table],
        )
    ]


def _measure(sets: list[list[Image]]) -> torch.Tensor:
    """A row per set: likeness within the sets, and the share of images that are what their prompt names."""
    concept, style = Judge("concept"), Judge("style")
    rows = []
    for prompts, images in zip(_SETS, sets, strict=True):
        names = concept.name(images)
        right = [prompt.split(" ", 1)[1] == name for prompt, name in zip(prompts, names, strict=True)]
        grams = style.texture(images)
        texture = fmean((a @ b).item() for a, b in combinations(grams, 2))
        rows.append([texture, *likeness(images, style).values(), sum(right) / len(right)])
    return torch.tensor(rows)
