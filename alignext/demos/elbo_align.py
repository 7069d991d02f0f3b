# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""ELBO-T2IAlign: where mini-Flux sees two drawings on one canvas, and what a picture in the making attends to."""

from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from alignext import ELBOAlignPipeline, attention_maps, mini
from alignext.demos.gallery import Figure, Section, Table, print_table
from alignext.demos.verdicts import paired, verdict
from alignext.diffusion.sheets import contact_sheet, heat_overlay, label_overlay


_SIDE = 64
_SMALL = 44  # pixels of the smaller drawing


def demo(*, seed: int, steps: int | None) -> list[Section]:
    """
    Segment canvases of a large and a small drawing by their names.

    Args:
        seed (`int`): Of the noise, and of the picture that is made.
        steps (`int`, *optional*): Steps of the picture that is made; 25 if not given.
    """
    align = ELBOAlignPipeline.from_pretrained(mini.path("flux"))
    align.set_progress_bar_config(disable=True)
    align.pipe.set_progress_bar_config(disable=True)
    # Drawings that no model has seen, of concepts that they know, each beside the next of its style.
    found_of: dict[str, dict[str, Any]] = {}
    for p in mini.pictures("unseen_drawing"):
        if p.style != "ink":
            found_of.setdefault(p.style, {})[p.concept] = p
    pairs = [pair for of in found_of.values() for pair in zip([*of.values()][::2], [*of.values()][1::2], strict=False)]
    rows, sheet, right = [], [], {"calibrated": [], "not calibrated": []}
    for large, small in pairs[:5]:
        canvas = Image.new("RGB", (2 * _SIDE, _SIDE), "white")
        canvas.paste(large.image.convert("RGB"), (0, 0))
        canvas.paste(small.image.convert("RGB").resize((_SMALL, _SMALL)), (_SIDE + 12, 12))
        names = [large.concept, small.concept]
        found = {}
        for way, strength in (("calibrated", 3.0), ("not calibrated", 1.0)):
            output: Any = align(
                canvas,
                names,
                prompt=f"{_with_article(names[0])} and {_with_article(names[1])}, {large.style} style",
                class_prompts=[_with_article(name) for name in names],
                max_sequence_length=mini.FLUX_CALL["max_sequence_length"],
                elbo_strength=strength,
                height=_SIDE,
                width=2 * _SIDE,
                generator=torch.Generator().manual_seed(seed),
            )
            found[way] = output
            right[way].append(_on_its_side(output.label_map))
        best = found["calibrated"]
        heat = [heat_overlay(canvas, map_) for map_ in best.heatmaps]
        sheet.append([canvas, *heat, label_overlay(canvas, best.label_map, names)])
        gamma = best.temperatures.tolist()
        rows.append([" and ".join(names), *gamma, right["calibrated"][-1], right["not calibrated"][-1]])
    measures = Table(
        ["large and small drawing", "its temperature", "temperature of the small one", "calibrated", "not calibrated"],
        rows,
        caption="Share of the labelled pixels that lie on the side of their own drawing.",
        verdict=verdict(
            "pixels on their own side",
            "calibrated",
            "not calibrated",
            paired(*right.values()),
            f"{len(rows)} canvases",
        ),
    )
    print_table(measures)
    prompt = "a red fox, flat style"
    words = ["red fox", "flat"]
    draw = StableDiffusionPipeline.from_pretrained(mini.path("sd"))
    draw.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    made = attention_maps(draw, prompt, words, num_inference_steps=steps or 25, generator=generator)
    picture = made.images[0]
    maps = torch.nn.functional.interpolate(made.maps, size=picture.size[::-1], mode="bilinear")[0]
    seen = contact_sheet([[picture, *(heat_overlay(picture, m) for m in maps)]], col_labels=["picture", *words])
    return [
        Section(
            "ELBO-T2IAlign: what the model sees, and where",
            "A text-to-image model that was only ever trained to draw is asked where two things are. Its attention "
            "says where, its loss how well it sees each, and the one that it sees worse is sharpened. The embedded "
            "model looks at 4 x 8 places and was mostly told of the left one of two drawings: both words light that "
            "one up, and the small one is seldom found. What calibration changes is in the table.\n\nBelow, what a "
            "picture attended to while it was made, at 8 x 8 places. It is that of the stock call.",
            figures=[
                Figure(
                    "two-drawings",
                    contact_sheet(sheet, col_labels=["canvas", "the large one", "the small one", "labels"]),
                    "Canvases of two drawings, where each is seen, and labels.",
                    "Drawings that the model has not seen, in their order, none left out.",
                ),
                Figure("attention", seen, f"A picture of {prompt}, and where each word was looked at.", prompt),
            ],
            tables=[measures],
            commands=["alignext segment PICTURE --classes cat cup --model MODEL --out found  # on yours"],
        )
    ]


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _on_its_side(labels: torch.Tensor) -> float:
    """Of the labelled pixels, how many lie on the half of their drawing."""
    left, right = labels[:, :_SIDE], labels[:, _SIDE:]
    hits = (left == 1).sum() + (right == 2).sum()
    return (hits / (labels > 0).sum().clamp(min=1)).item()
