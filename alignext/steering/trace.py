# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Which tokens of a text are steered, and how far: as numbers, and as a page with coloured words."""

import math
import os
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import torch

from alignext.files import replacing
from alignext.functional.steering import project
from alignext.steering.layers import decoder_layers, states_seen
from alignext.steering.texts import encode_prompt
from alignext.steering.vector import SteeringVector


class Trace(NamedTuple):
    """
    A text along a direction.

    Attributes:
        tokens (`list[str]`): The text, token by token.
        rho (`list[float]`): Projection of each token's state, before it is steered.
        steps (`list[float]`): How far each is moved; 0 where steering leaves it as it is.
    """

    tokens: list[str]
    rho: list[float]
    steps: list[float]


@torch.no_grad()
def trace_steering(
    model: Any,
    tokenizer: Any,
    vector: SteeringVector,
    text: str | Sequence[int],
    method: str | None = None,
    alpha: float = 1.0,
    *,
    exclude_first: int | None = None,
) -> Trace:
    """
    The projections along a text, and what steering does at each. The layers below do not know of the steering, so that
    the states it meets are those of the plain model.

    Args:
        model (`PreTrainedModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        vector ([`SteeringVector`]): The direction.
        text (`str` or `Sequence[int]`): The text, or its tokens as `generate` returns them.
        method (`str`, *optional*), alpha (`float`, *optional*, defaults to 1.0), exclude_first (`int`, *optional*):
            See [`SteeringVector.attach`].

    Raises:
        ValueError: If the text has no token, or the vector does not fit.
    """
    vector.attach(model, method, alpha, exclude_first=exclude_first).remove()  # refuses what it refuses
    ids = encode_prompt(tokenizer, text) if isinstance(text, str) else [int(i) for i in text]
    if not ids:
        raise ValueError(f"`text` must have a token, received {text!r}.")
    with states_seen([decoder_layers(model)[vector.layer]]) as seen:
        model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    rho = project(seen[0][0], vector.direction.to(seen[0].device, torch.float32))
    steps = vector.step(rho, vector.method if method is None else method, alpha)
    steps[: vector.exclude_first if exclude_first is None else exclude_first] = 0.0
    return Trace([tokenizer.decode([i]) for i in ids], rho.tolist(), steps.tolist())


def trace_html(trace: Trace, middle: float, scale: float) -> str:
    """
    A text as HTML: blue tokens lie on the positive side of `middle`, orange ones on the negative, the more the
    stronger; those that are steered are underlined. Their numbers show under the pointer.

    Args:
        trace ([`Trace`]): Of [`trace_steering`].
        middle (`float`): The projection without colour, such as the boundary.
        scale (`float`): Distance from it with full colour.
    """
    words = []
    for token, rho, step in zip(*trace, strict=True):
        share = max(-1.0, min(1.0, (rho - middle) / scale)) if scale else 0.0
        color = "11,98,196" if share > 0 else "194,80,10"
        line = "border-bottom:2px solid currentColor;" if step else ""
        moved = f", moved by {step:+.2f}" if step else ", left as it is"
        word = escape(token).replace("\n", "<br>")
        style = f"background:rgba({color},{0.6 * abs(share):.2f});{line}"
        words.append(f'<span style="{style}" title="{rho:.2f}{moved}">{word}</span>')
    return f'<p class="trace" style="white-space:pre-wrap;line-height:2">{"".join(words)}</p>'


def save_traces(
    path: str | os.PathLike, traces: Sequence[Trace], vector: SteeringVector, title: str = "Which tokens were steered"
) -> None:
    """
    Write a page that shows texts coloured by [`trace_html`], about the boundary of the vector.

    Args:
        path (`str` or `os.PathLike`): The HTML file.
        traces (`Sequence[Trace]`): Of [`trace_steering`].
        vector ([`SteeringVector`]): Of the texts.
        title (`str`, *optional*): The heading.
    """
    middle, scale = color_scale(traces, vector)
    body = "\n".join(trace_html(trace, middle, scale) for trace in traces)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>:root{{color-scheme:light dark}}body{{font:1rem/1.5 sans-serif;"
        "max-width:48rem;margin:2rem auto;padding:0 1rem}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n<p>Blue: towards the trait, orange: away from it, beyond {scale:.2f} from "
        f"{middle:.2f} in full colour. Underlined: moved by steering. Numbers show under the pointer.</p>\n{body}\n"
        "</body></html>\n"
    )
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8")


def color_scale(traces: Sequence[Trace], vector: SteeringVector) -> tuple[float, float]:
    """The boundary of a vector, and the distance from it that nine tenths of the tokens keep within."""
    middle = vector.boundary or 0.0
    distances = sorted(abs(rho - middle) for trace in traces for rho in trace.rho if math.isfinite(rho))
    return middle, distances[int(0.9 * (len(distances) - 1))] if distances else 1.0
