# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Variants of the pipelines under contract, a row each: other base models, as the methods' own tests build them."""

from collections.abc import Callable
from typing import Any

from diffusers import DiffusionPipeline

import alignext
from alignext.pipelines.latent_search.mixin import SearchMixin
from tests.diffusion import families

from .alignedgen import test_flux2, test_kontext, test_qwen
from .contract import SEARCH, Row
from .latent_search.test_families import FAST, GUIDANCE


GIVEN = ("num_inference_steps", "output_type", "generator", "share_blocks")  # by `run`, or ours
WITHOUT_TEXT_ENCODER = {
    "test_components_are_untouched_after_an_exception[text encoder": "it is given embeddings",
}


def variant(name: str, ours: type[DiffusionPipeline], make: Callable[[], DiffusionPipeline], **given: Any) -> Row:
    """The row of a class, on the components of a pipeline that `make` builds."""
    pipe = make()
    denoiser = "unet" if hasattr(pipe, "unet") else "transformer"
    modules = dict(getattr(pipe, denoiser).named_modules())
    return Row(
        name,
        ours=ours,
        stock=next(cls for cls in ours.__mro__ if cls.__module__.startswith("diffusers.")),
        components=lambda: make().components,
        denoiser=denoiser,
        attention=next(path.removesuffix(".to_q") for path in modules if path.endswith(".to_q")),
        latents=None,
        schedulers=(),
        cutoff=None,
        slow=True,
        **given,
    )


def aligned(name: str, ours: type[DiffusionPipeline], make: Callable, call: Callable[..., dict], **levers: Any) -> Row:
    def inputs() -> dict[str, Any]:
        return {"prompt": None} | {key: value for key, value in call().items() if key not in GIVEN}

    return variant(
        name,
        ours,
        make,
        inputs=inputs,
        active=lambda _: levers,
        neutral=lambda _: levers | {"share_end": 0.0},
        exempt=WITHOUT_TEXT_ENCODER if inputs()["prompt"] is None else {},
    )


def searched(name: str) -> Row:
    """A search of a stock class that alignext has none for: the mixin is put before it."""
    stock = type(families.build(name))
    ours = type(f"Search{stock.__name__}", (SearchMixin, stock), {"__module__": __name__})
    globals()[ours.__name__] = ours  # what is saved imports it from here

    def inputs() -> dict[str, Any]:
        call = {"prompt": None} | families.call(name, 1) | GUIDANCE[name](1)
        return {key: value for key, value in call.items() if key not in GIVEN}

    exempt = SEARCH["exempt"] | WITHOUT_TEXT_ENCODER
    if not hasattr(stock, "load_lora_weights"):
        exempt |= {"test_lora_is_used": "diffusers loads no LoRA into the class"}
    if not hasattr(stock, "_callback_tensor_inputs"):
        without = "the stock class has no callback at the end of steps"
        exempt |= {"test_callback_": without, "test_components_are_untouched_after_a_failing_callback": without}
    if name == "chroma":  # whose mask stock does not repeat
        one = "the stock class makes one image of given embeddings"
        exempt |= {"test_components_are_untouched_after_a_call[None-neutral": one}
        exempt |= {"test_offloaded_pipeline_gives_the_same_result[neutral": one}
    return variant(f"search-{name}", ours, lambda: families.build(name), inputs=inputs, **SEARCH | {"exempt": exempt})


VARIANTS = [
    *map(searched, FAST),
    aligned("alignedgen-kontext", alignext.AlignedGenKontextPipeline, test_kontext.pipeline, test_kontext.call),
    aligned(
        "alignedgen-flux2",
        alignext.AlignedGenFlux2Pipeline,
        lambda: test_flux2.pipeline(alignext.AlignedGenFlux2Pipeline),
        test_flux2.call,
    ),
    aligned(
        "alignedgen-flux2-klein",
        alignext.AlignedGenFlux2KleinPipeline,
        lambda: test_flux2.pipeline(alignext.AlignedGenFlux2KleinPipeline),
        lambda: test_flux2.call(guidance_scale=1.0),
    ),
    aligned(
        "alignedgen-qwen",
        alignext.AlignedGenQwenImagePipeline,
        test_qwen.pipeline,
        lambda: test_qwen.call(guidance_scale=None),
        share_blocks="all",
    ),
]
