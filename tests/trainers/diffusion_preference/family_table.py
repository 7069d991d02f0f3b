# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The tables of `docs/diffusion_preference.md`: what trains, and what was read off each family's stock call.

    python -m tests.trainers.diffusion_preference.family_table

Cells are what `test_families.py` tests for each family; nothing is written by hand but the names.
"""

import inspect
from pathlib import Path
from typing import Any

import pytest

from alignext.diffusion.conditions import Conditions
from alignext.diffusion.recording import stock_class
from alignext.diffusion.rows import ONE_AT_A_TIME

from ...diffusion import families
from ...pipelines.latent_search import test_families as searched
from ...pipelines.latent_search import tiny_models
from .test_families import NAMES, NO_LORA, REFUSED, SIZES, size_of


PAGE = Path(__file__).parents[3] / "docs" / "diffusion_preference.md"
ASIDE = {"wan-2.2": ", two experts", "flux2-editing": ", with a picture"}
BEGIN, END = "<!-- families: generated -->", "<!-- end of families -->"


def template_of(name: str, pipe: Any) -> Any:
    size = size_of(name)
    call = {k: v for k, v in families.call(name, 1).items() if k not in ("generator", *SIZES)}
    sample = {k: v[0] if "prompt" in k and k != "prompt_template" else v for k, v in call.items()}
    conditions = Conditions(pipe, size, steps=(1000,))
    conditions([sample])
    return conditions.template(size)


def seen(name: str, pipe: Any) -> str:
    """What was read off the stock call, in one line."""
    template = template_of(name, pipe)
    call, layout = template.call, template.layout
    found = ["packed" if layout.index is not None else "latents as the VAE has them"]
    found += ["each frame alone in the VAE"] if layout.frames_alone else []
    found += ["a scaling of its own"] if layout.scale is not None else []
    found += [f"told `{call.timestep.form.replace('n', f'{call.timestep.constant:g}')}`"]
    found += ["negated"] if call.prediction.sign < 0 else []
    found += ["a list of rows"] if call.latents.listed is not None else []
    found += ["latents of the picture follow"] if call.latents.rest is not None else []
    found += ["shift by size"] if "mu" in template.schedules[None] else []
    found += ["one row at a time"] if ONE_AT_A_TIME in template.patterns.values() else []
    return ", ".join(found)


def edits(name: str) -> bool:
    return "image" in families.call(name, 1)


def searches(name: str) -> str:
    return "refused" if name in searched.REFUSED else "yes"


def rows() -> list[list[str]]:
    out = []
    known = list(tiny_models.BUILDERS)  # from the oldest to today's
    for name in [*known, *(name for name in families.FAMILIES if name not in known)]:
        pipe = families.build(name)
        cls = f"`{stock_class(pipe).__name__}`{ASIDE.get(name, '')}"
        if name in REFUSED:
            out.append(
                [
                    cls,
                    *["-"] * 7,
                    searches(name),
                    "refused at the door: its call " + REFUSED[name].replace("does not only", "does more than"),
                ]
            )
            continue
        two = getattr(pipe, "transformer_2", None) is not None
        knows = "image" in inspect.signature(stock_class(pipe).__call__).parameters
        out.append(
            [
                cls,
                "full" if name in NO_LORA else "LoRA, full",
                "yes",
                "no" if two else "yes",
                "yes",
                "yes" if edits(name) else ("optional" if knows else ""),
                "yes" if size_of(name).frames else "",
                "yes",
                searches(name),
                seen(name, pipe),
            ]
        )
    return out


def table() -> str:
    """The whole, as it stands on the page."""
    head = ["pipeline", "trains", "Diffusion-DPO, -KTO", "Inversion-DPO, SmPO", "kept latents, prompts", "edits"]
    head += ["video", "FSDP2", "search", "read off its stock call"]
    lines = [head, ["---"] * len(head), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    with pytest.MonkeyPatch.context() as patch:
        families.small_pictures(patch)
        text, made = PAGE.read_text(encoding="utf-8"), table()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}", encoding="utf-8")
    assert set(NAMES) | set(REFUSED) == set(families.FAMILIES)


if __name__ == "__main__":
    main()
