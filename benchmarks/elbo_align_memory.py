# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What the maps of ELBO-T2IAlign take in memory at the size of SD 1.5 and SDXL, counted on the meta device.

    python benchmarks/elbo_align_memory.py    # seconds

Ten rows, float16, two classes of two tokens. Counts the tensors of operations, also those that fused attention never
writes down; the difference to the plain pass is what looking adds. Writes `results/elbo-align-memory.json`.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel

from alignext.diffusion.attention import attention_seen
from alignext.pipelines.elbo_align.maps import AttentionSums, late_layers
from common import PeakBytes, about, parser, table_of, write
from shapes import SD15, SDXL


MIB, ROWS = 2**20, 10


def one(name: str, shape: dict[str, Any], side: int) -> dict[str, Any]:
    """Peaks of a plain pass and of one that looks, what is kept, and what every self map together would be."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**shape).half().eval()
        x, t = torch.empty(ROWS, 4, side, side, dtype=torch.float16), torch.empty(ROWS)
        text = torch.empty(ROWS, 77, shape["cross_attention_dim"], dtype=torch.float16)
        added = {"text_embeds": torch.empty(ROWS, 1280, dtype=torch.float16), "time_ids": torch.empty(ROWS, 6).half()}
    more = {"added_cond_kwargs": added} if name == "SDXL" else {}
    sizes: list[int] = []
    sums = AttentionSums([[1, 2], [4, 5]], (side, side), None, 77, late=late_layers(unet, None))

    def look(call: Any) -> None:
        if call.text is None:
            sizes.append(call.query.shape[2] ** 2 * 4)
        sums(call)

    with torch.no_grad(), PeakBytes() as plain:
        unet(x, t, text, **more)
    with torch.no_grad(), PeakBytes() as looking, attention_seen(unet, look):
        unet(x, t, text, **more)
    kept = [total for total, _ in sums._self.values()] + list(sums.cross.values())
    return {
        "model": name,
        "plain pass, MiB": round(plain.peak / MIB),
        "looking, MiB": round(looking.peak / MIB),
        "kept afterwards, MiB": round(sum(k.numel() * k.element_size() for k in kept) / MIB),
        "every self map, MiB": round(sum(sizes) / MIB),
        "self-attention layers": len(sizes),
    }


def main() -> None:
    """Count and write."""
    parser(__doc__).parse_args()
    rows = [one("SD 1.5", SD15, 64), one("SDXL", SDXL, 128)]
    write("elbo-align-memory", "ELBO-T2IAlign, memory", about("meta", "diffusers"), {"rows": rows}, table_of(rows))


if __name__ == "__main__":
    main()
