# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""FADE on the embedded models: how sharp each estimator is, and what sampling otherwise does to the number.

    python benchmarks/fade.py    # about three minutes on one CPU core

Writes `results/fade.json`, a Markdown table beside it. The second model is the first with noise on its weights.
"""

import copy
import warnings
from functools import partial
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext import fade_score, mini
from common import about, now, parser, table_of, write


PROMPTS = ["Once upon a time", "One day, Tom"]
PICTURES = ["a red fox, flat style", "a house, ink style"]
SAMPLINGS = {
    "pure": {},
    "temperature 0.6": {"temperature": 0.6},
    "top-k 50, top-p 0.95": {"top_k": 50, "top_p": 0.95},
}


def perturbed(module: torch.nn.Module, by: float, seed: int = 0) -> Any:
    """A copy with noise on every tensor, in units of its own standard deviation."""
    other, generator = copy.deepcopy(module), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            if p.numel() > 1:
                p.add_(by * p.std() * torch.randn(p.shape, generator=generator))
    return other


def row(name: str, run: Any) -> dict[str, Any]:
    start = now("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # settings that give no divergence are the subject here
        found = run()
    parts = {key: getattr(found, key) for key in ("forward", "reverse", "total")}
    cells = {key: f"{part.mean:.3g} ± {part.stderr:.2g}" for key, part in parts.items()}
    return {"what": name, **cells, "seconds": round(now("cpu") - start, 1)}


def main() -> None:
    """Measure and write."""
    parser(__doc__).parse_args()
    model = AutoModelForCausalLM.from_pretrained(mini.path("lm"), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(mini.path("lm"))
    other = perturbed(model, 0.03)
    texts = partial(
        fade_score, other, model, PROMPTS, tokenizer, num_samples=64, max_new_tokens=24, batch_size=64, progress=False
    )
    rows = [row(f"texts, {estimator}", partial(texts, estimator=estimator)) for estimator in ("rao_blackwell", "mc")]
    rows += [row(f"texts, {name}", partial(texts, **how)) for name, how in SAMPLINGS.items() if how]

    pipe = StableDiffusionPipeline.from_pretrained(mini.path("sd"), dtype=torch.float32)
    moved = copy.copy(pipe)
    moved.unet = perturbed(pipe.unet, 0.01)
    pictures = partial(
        fade_score, moved, pipe, PICTURES, num_samples=8, num_timesteps=24, num_inference_steps=25, progress=False
    )
    for estimator in ("gap", "elbo", "path"):
        rows.append(row(f"pictures, {estimator}", partial(pictures, estimator=estimator)))
    copied = copy.copy(pipe)
    copied.unet = copy.deepcopy(pipe.unet)
    own = partial(fade_score, copied, pipe, PICTURES[:1], num_samples=2, num_timesteps=4, num_inference_steps=4)
    rows.append(row("pictures, gap, a copy", partial(own, progress=False)))
    write("fade", "FADE", about("cpu", "diffusers", "transformers"), {"rows": rows}, table_of(rows))


if __name__ == "__main__":
    main()
