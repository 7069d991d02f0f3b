# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Stage 1 of D²-Align on mini-CLIP with and without its bounds: what is left of the margin between prompts.

    python benchmarks/d2_align.py        # half a minute

The pictures are the embedded drawings in the five known styles, with their captions. Bounds: the largest norm of the
direction, and the share of the margin that stays. Writes `results/d2-align-fit`.
"""

import torch

from alignext import mini
from alignext.functional.d2_align import fit_direction
from alignext.rewards import CLIPReward
from common import about, parser, table_of, write


CASES = {
    "the bare formula": {"max_norm": None, "keep_margin": None},
    "norm up to 0.3": {"max_norm": 0.3, "keep_margin": None},
    "0.8 of the margin": {"max_norm": None, "keep_margin": 0.8},
    "both (default)": {},
}


@torch.no_grad()
def embedded() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit vectors of drawings and of their distinct captions, and the caption of each."""
    clip, rows = CLIPReward(mini.path("clip")), [row for row in mini.pictures() if row.style != "fx"]
    pixels = [torch.frombuffer(bytearray(row.image.tobytes()), dtype=torch.uint8).view(64, 64, 3) for row in rows]
    captions = list(dict.fromkeys(row.caption for row in rows))
    index = torch.tensor([captions.index(row.caption) for row in rows])
    return clip.encode_image(torch.stack(pixels).permute(0, 3, 1, 2) / 255), clip.encode_text(captions), index


def main() -> None:
    parser(__doc__).parse_args()
    images, texts, index = embedded()
    rows = []
    for name, settings in CASES.items():
        for steps in (100, 300, 2000):
            found = fit_direction(images, texts, index, num_steps=steps, **settings)
            rows.append(
                {
                    "bounds": name,
                    "steps": f"{found.steps} of {steps}",
                    "norm": round(found.direction.norm().item(), 3),
                    "cosine": round(found.reward, 3),
                    "margin": round(found.margin, 3),
                    "margin kept": f"{found.margin / found.plain_margin:.0%}",
                }
            )
    plain = f"Without a direction the mean cosine is {found.plain_reward:.3f} and the margin {found.plain_margin:.3f}"
    text = f"{plain}, over {len(images)} drawings with {len(texts)} captions.\n\n{table_of(rows)}"
    write("d2-align-fit", "D²-Align: stage 1", about("cpu"), {"rows": rows}, text)


if __name__ == "__main__":
    main()
