# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Segmentation of drawings of different size on one canvas, with their masks known: does calibration help?

    python benchmarks/elbo_align.py    # about five minutes on one CPU core

A canvas has a large and a small drawing of one style that the models were not trained on, of two concepts that they
know. mini-Flux has seen canvases of two drawings in its training, mini-SD never. Thresholds
are chosen for each way on other canvases than those reported. The oracle takes, of nine pairs of temperatures, the one
whose labels are best on that very canvas: more than any calibration could do. Writes `results/elbo-align.json`.
"""

import random
from itertools import product
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from alignext import ELBOAlignPipeline, mini
from alignext.functional.elbo_align import calibrate, heat_maps, label_map, min_max, resized, temperatures
from alignext.pipelines.elbo_align.words import spans_of
from common import about, interval, now, parser, shown, table_of, write


W, H = 128, 64
SIZES = (64, 40)
GAMMAS = list(product((1.0, 2.0, 3.0), repeat=2))
THRESHOLDS = [k / 20 for k in range(2, 17)]


def mask_of(drawing: Image.Image) -> np.ndarray:
    """What lies inside the drawing: all that white does not reach from the border."""
    framed = Image.new("RGB", (drawing.width + 2, drawing.height + 2), "white")
    framed.paste(drawing.convert("RGB"), (1, 1))
    ImageDraw.floodfill(framed, (0, 0), (255, 0, 255), thresh=24)
    return (np.asarray(framed) != (255, 0, 255)).any(-1)[1:-1, 1:-1]


def canvas(pictures: list[Any], rng: random.Random) -> tuple[Image.Image, np.ndarray, list[str], str]:
    """A canvas, its labels (1 the first class, 2 the second), the concepts, either of them large, and their style."""
    first = rng.choice(pictures)
    second = rng.choice([p for p in pictures if p.concept != first.concept and p.style == first.style])
    sizes = list(SIZES)
    rng.shuffle(sizes)
    sheet, labels = Image.new("RGB", (W, H), "white"), np.zeros((H, W), dtype=int)
    for k, (picture, size, left) in enumerate(zip((first, second), sizes, rng.sample((0, 64), 2), strict=True)):
        drawing = picture.image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        at = (left + rng.randint(0, 64 - size), rng.randint(0, 64 - size))
        sheet.paste(drawing, at)
        part = labels[at[1] : at[1] + size, at[0] : at[0] + size]
        part[mask_of(drawing)] = k + 1
    return sheet, labels, [first.concept, second.concept], first.style


def with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def seen(
    align: ELBOAlignPipeline, sheet: Image.Image, names: list[str], style: str, call: dict[str, Any]
) -> dict[str, Any]:
    """What every way is made from: maps, what spreads them, losses."""
    g = torch.Generator().manual_seed(4307)
    x0 = align._latents(sheet, None, (H, W))
    how = {"height": H, "width": W, **call}
    prompt = f"{with_article(names[0])} and {with_article(names[1])}, {style} style"
    maps, sums = align._attention(x0, prompt, spans_of(prompt, names), range(20, 201, 20), None, g, 16, how)
    losses = align._losses(x0, [with_article(name) for name in names], range(1, 1000, 50), g, 40, how)
    return {"maps": maps, "self": sums.self_maps(), "losses": losses}


def heat(found: dict[str, Any], gamma: torch.Tensor) -> torch.Tensor:
    first, second, grid = found["self"]
    return min_max(resized(heat_maps(calibrate(resized(found["maps"], grid), gamma), first, second), (H, W)))


def ious(labels: np.ndarray, truth: np.ndarray) -> list[float]:
    """Intersection over union of the large and of the small thing."""
    own = [((labels == k) & (truth == k)).sum() / max(1, ((labels == k) | (truth == k)).sum()) for k in (1, 2)]
    sizes = [(truth == k).sum() for k in (1, 2)]
    return [own[int(np.argmax(sizes))], own[int(np.argmin(sizes))]]


def scores(found: dict[str, Any], truth: np.ndarray) -> dict[str, np.ndarray]:
    """Way -> IoU by threshold and size of the thing; the oracle's pair is the best at each threshold."""
    of = {
        "attention, not calibrated": [torch.ones(2)],
        "calibrated by the loss": [temperatures(found["losses"], 3.0)],
        "oracle temperatures": [torch.tensor(pair) for pair in GAMMAS],
    }
    result = {}
    for way, gammas in of.items():
        per_gamma = []
        for gamma in gammas:
            h = heat(found, gamma)
            per_gamma.append([ious(label_map(h, t).numpy(), truth) for t in THRESHOLDS])
        values = np.array(per_gamma)  # gammas, thresholds, 2
        best = values.mean(-1).argmax(0)
        result[way] = np.stack([values[best[i], i] for i in range(len(THRESHOLDS))])
    return result


def main() -> None:
    """Measure and write."""
    options = parser(__doc__)
    options.add_argument("--canvases", type=int, default=120, help="reported; a third as many choose the thresholds")
    args = options.parse_args()
    drawings = [p for p in mini.pictures("unseen_drawing") if p.style != "ink"]  # ink is white inside
    rows = []
    for name, call in (("flux", {"max_sequence_length": mini.FLUX_CALL["max_sequence_length"]}), ("sd", {})):
        align = ELBOAlignPipeline.from_pretrained(mini.path(name))
        align.set_progress_bar_config(disable=True)
        align.pipe.set_progress_bar_config(disable=True)
        start = now("cpu")
        parts: dict[str, list[dict[str, np.ndarray]]] = {"choose": [], "report": []}
        sharper = 0
        for part, count in (("choose", args.canvases // 3), ("report", args.canvases)):
            rng = random.Random(f"{part} {name}")
            for _ in range(count):
                sheet, truth, names, style = canvas(drawings, rng)
                found = seen(align, sheet, names, style, call)
                parts[part].append(scores(found, truth))
                small = 1 + int((truth == 2).sum() < (truth == 1).sum())
                sharper += part == "report" and int(found["losses"].argmax()) + 1 == small
        for way in parts["report"][0]:
            t = int(np.mean([s[way].mean(-1) for s in parts["choose"]], 0).argmax())
            values = np.stack([s[way][t] for s in parts["report"]])  # canvases, 2
            base = np.stack([s["attention, not calibrated"] for s in parts["report"]])
            t0 = int(np.mean([s["attention, not calibrated"].mean(-1) for s in parts["choose"]], 0).argmax())
            rows.append(
                {
                    "model": name,
                    "way": way,
                    "threshold": THRESHOLDS[t],
                    "mIoU": shown(interval(values.mean(1).tolist())),
                    "large": shown(interval(values[:, 0].tolist())),
                    "small": shown(interval(values[:, 1].tolist())),
                    "gain": shown(interval((values.mean(1) - base[:, t0].mean(1)).tolist())),
                }
            )
        print(
            f"{name}: the small thing has the higher loss on {sharper} of {args.canvases}; {now('cpu') - start:.0f} s"
        )
        rows[-1] |= {"small has the higher loss": f"{sharper} of {args.canvases}"}
    keys = list(dict.fromkeys(key for row in rows for key in row))
    rows = [{key: row.get(key, "") for key in keys} for row in rows]
    write(
        "elbo-align",
        "ELBO-T2IAlign",
        about("cpu", "diffusers", canvases=args.canvases),
        {"rows": rows},
        table_of(rows),
    )


if __name__ == "__main__":
    main()
