# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The pipelines under contract, a row each, and what `test_contract.py` needs to run and watch them.

A new pipeline joins by adding a row.
"""

import copy
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FluxPipeline,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import (
    PipelineCallback,
    SDCFGCutoffCallback,
    SDXLCFGCutoffCallback,
    SDXLControlnetCFGCutoffCallback,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch._dynamo.testing import CompileCounter

from alignext import (
    AlignedGenPipeline,
    FluxSearchPipeline,
    RIVALControlNetPipeline,
    RIVALPipeline,
    RIVALXLControlNetPipeline,
    RIVALXLPipeline,
    SearchConfig,
    StableDiffusionSearchPipeline,
)

from . import tiny


@dataclass(frozen=True, eq=False)  # hashed by identity: it holds dicts
class Row:
    """
    Args:
        name (`str`): Name of the row in test reports.
        ours, stock (`type`): Our class, and the diffusers class it stands in for.
        components (`Callable[[], dict]`): Fresh tiny components, the same weights each time.
        active (`Callable[[dict], dict]`): Our arguments with which the method does something, given the stock ones.
        neutral (`Callable[[dict], dict]`): Our arguments with which the result is the stock one, bit for bit.
        prepared (`Callable[[DiffusionPipeline, int], dict]`): For so many steps, arguments in the place of those of
            `active` that need a text encoder, made while the pipeline has one.
        inputs (`Callable[[], dict]`): What both calls need beside a prompt, such as ControlNet's picture.
        embeds (`tuple[str, ...]`): Call arguments that `encode_prompt` computes, in the order it returns them.
        denoiser (`str`): Component the loop runs.
        attention (`str`): One of its attention layers that the method changes.
        attention_kwargs (`str`): Call argument that scales a LoRA.
        schedulers (`tuple[Callable, ...]`): Make other schedulers of the row's own one.
        latents (`Callable[[DiffusionPipeline, Tensor], Tensor]`, *optional*): Latents of `vae.decode` as the loop has
            them; `None` if the row does not say.
        unpacked (`Callable[[DiffusionPipeline, Tensor], Tensor]`): Of the loop's latents, what `vae.decode` takes.
        cutoff (`type`, *optional*): diffusers' callback that switches guidance off half-way, if it has one that works.
        exempt (`dict[str, str]`): How the names of tests begin that cannot hold for the method, and why.
        several (`str`): Call argument that asks for several images, or videos, of a prompt.
        slow (`bool`): Whether its tests are: another row of its method stands for it among the fast ones, but in the
            clauses of `OF_EVERY_ROW`.
    """

    name: str
    ours: type[DiffusionPipeline]
    stock: type[DiffusionPipeline]
    components: Callable[[], dict]
    active: Callable[[dict], dict]
    neutral: Callable[[dict], dict]
    prepared: Callable[[DiffusionPipeline, int], dict] = lambda pipe, steps: {}
    inputs: Callable[[], dict] = dict
    embeds: tuple[str, ...] = ("prompt_embeds", "negative_prompt_embeds")
    denoiser: str = "unet"
    attention: str = "mid_block.attentions.0.transformer_blocks.0.attn1"
    attention_kwargs: str = "cross_attention_kwargs"
    schedulers: tuple[Callable, ...] = (
        lambda own: EulerDiscreteScheduler.from_config(own.config),
        lambda own: PNDMScheduler.from_config(own.config),
    )
    latents: Callable[[DiffusionPipeline, torch.Tensor], torch.Tensor] | None = lambda pipe, z: z
    unpacked: Callable[[DiffusionPipeline, torch.Tensor], torch.Tensor] = lambda pipe, latents: (
        latents / pipe.vae.config.scaling_factor
    )
    cutoff: type[PipelineCallback] | None = SDCFGCutoffCallback
    exempt: dict[str, str] = field(default_factory=dict)
    several: str = "num_images_per_prompt"
    slow: bool = False

    def build(self, ours: bool = True, components: dict | None = None) -> DiffusionPipeline:
        pipe = (self.ours if ours else self.stock)(**self.components() if components is None else components)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rival_active(call: dict) -> dict:
    # A reference prompt of its own lets several prompts share the picture.
    picture = torch.rand(3, tiny.SIZE, tiny.SIZE, generator=seeded(5))
    return {"reference_image": picture, "reference_prompt": "a drawing"}


def rival_neutral(call: dict) -> dict:
    init = {} if "latents" in call else {"init": "noise"}
    return rival_active(call) | {"t_inject": -1, "t_early": 1000, "t_align": -1} | init


def rival_prepared(pipe: DiffusionPipeline, steps: int) -> dict:
    reference = rival_active({})
    inversion = pipe.invert(reference["reference_image"], reference["reference_prompt"], num_inference_steps=steps)
    return dict.fromkeys(reference) | {"inversion": inversion}


def control_picture() -> dict:
    return {"image": torch.rand(1, 3, tiny.SIZE, tiny.SIZE, generator=seeded(6))}


def aligned_active(call: dict) -> dict:
    # A picture as the style, so that a single image is aligned, too.
    return {"style_image": torch.rand(3, tiny.SIZE, tiny.SIZE, generator=seeded(5)), "style_prompt": "a drawing"}


def aligned_neutral(call: dict) -> dict:
    return aligned_active(call) | {"share_end": 0.0}


def aligned_prepared(pipe: DiffusionPipeline, steps: int) -> dict:
    picture = aligned_active({})
    reference = pipe.encode_style(picture["style_image"], picture["style_prompt"], **flux_inputs())
    return dict.fromkeys(picture) | {"style_reference": reference}


def flux_inputs() -> dict:
    return {"height": tiny.SIZE, "width": tiny.SIZE, "max_sequence_length": 16}


def flux_packed(pipe: DiffusionPipeline, z: torch.Tensor) -> torch.Tensor:
    return pipe._pack_latents(z, *z.shape)


def flux_unpacked(pipe: DiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    z = pipe._unpack_latents(latents, tiny.SIZE, tiny.SIZE, pipe.vae_scale_factor)
    return z / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor


def flow_unipc(own) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def search_active(call: dict) -> dict:
    config = SearchConfig(num_beams=3, num_candidates=2, lookahead_steps=1)
    return {"reward_fn": lambda images, prompts: images.flatten(1).std(1), "search_config": config}


def search_neutral(call: dict) -> dict:
    return search_active(call) | {"search_config": SearchConfig(num_beams=1, num_candidates=1)}


XL_EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")

# What the rows of a method, or of an architecture, have in common.
RIVAL = {"active": rival_active, "neutral": rival_neutral, "prepared": rival_prepared}
SEARCH = {
    "active": search_active,
    "neutral": search_neutral,
    "exempt": {
        "test_components_are_untouched_after_an_exception[scheduler": "the search steps, not the pipeline's scheduler",
        "test_interrupt_ends_the_work[active": "the best so far comes back, as tests of the search show",
        "test_batch_equals_single_calls[active": "a generator is for a prompt, not for an image",
    },
}
FLUX = {
    "stock": FluxPipeline,
    "components": tiny.flux_components,
    "inputs": flux_inputs,
    "embeds": ("prompt_embeds", "pooled_prompt_embeds"),
    "denoiser": "transformer",
    "attention": "single_transformer_blocks.0.attn",
    "attention_kwargs": "joint_attention_kwargs",
    "schedulers": (flow_unipc,),
    "latents": flux_packed,
    "unpacked": flux_unpacked,
    "cutoff": None,
}

ROWS = [
    Row(
        "rival-sd",
        ours=RIVALPipeline,
        stock=StableDiffusionPipeline,
        components=tiny.sd_components,
        **RIVAL,
    ),
    Row(
        "rival-sdxl",
        ours=RIVALXLPipeline,
        stock=StableDiffusionXLPipeline,
        components=tiny.sdxl_components,
        **RIVAL,
        embeds=XL_EMBEDS,
        cutoff=SDXLCFGCutoffCallback,
        slow=True,
    ),
    Row(
        "rival-sd-controlnet",
        ours=RIVALControlNetPipeline,
        stock=StableDiffusionControlNetPipeline,
        components=lambda: tiny.with_controlnet(tiny.sd_components()),
        **RIVAL,
        inputs=control_picture,
        cutoff=None,  # it leaves ControlNet with both branches
        slow=True,
    ),
    Row(
        "rival-sdxl-controlnet",
        ours=RIVALXLControlNetPipeline,
        stock=StableDiffusionXLControlNetPipeline,
        components=lambda: tiny.with_controlnet(tiny.sdxl_components()),
        **RIVAL,
        inputs=control_picture,
        embeds=XL_EMBEDS,
        cutoff=SDXLControlnetCFGCutoffCallback,
        slow=True,
    ),
    Row(
        "alignedgen",
        ours=AlignedGenPipeline,
        **FLUX,
        active=aligned_active,
        neutral=aligned_neutral,
        prepared=aligned_prepared,
    ),
    Row(
        "search-sd",
        ours=StableDiffusionSearchPipeline,
        stock=StableDiffusionPipeline,
        components=tiny.sd_components,
        **SEARCH,
        schedulers=(lambda own: PNDMScheduler.from_config(own.config),),
        cutoff=None,  # it keeps the prompt of one row only
    ),
    Row(
        "search-flux",
        ours=FluxSearchPipeline,
        **FLUX,
        **SEARCH,
        slow=True,
    ),
]


# The clauses, as their tests are named, that stay fast for a slow row: one of each kind.
OF_EVERY_ROW = (
    "test_adds_to_the_stock_class",
    "test_signature_begins",
    "test_has_an_example",
    "test_neutral_setting_is_the_stock_result_bit_for_bit[plain",
    "test_components_are_untouched_after_a_call[None-active",
    "test_components_are_untouched_after_an_exception[later denoiser call-None",
    "test_saved_pipeline_gives_the_same_result_loaded_each_way[ours",
    "test_callback_is_called_at_every_step_and_reads_every_tensor[active",
    "test_batch_equals_single_calls[active",
    "test_treatment_changes_nothing[attention slicing",
)


def run(pipe: DiffusionPipeline, row: Row, mode: str = "active", **overrides):
    """Images of one call as a tensor (or what `output_type` asks for). `mode`: "stock", "neutral" or "active"."""
    arguments = {
        "prompt": "a red fox",
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        "generator": seeded(),
        "output_type": "pt",
        **row.inputs(),
        **overrides,
    }
    if mode == "stock":
        return row.stock.__call__(pipe, **arguments)[0]
    return pipe(**getattr(row, mode)(arguments) | arguments)[0]


@functools.cache
def images(row: Row, mode: str) -> torch.Tensor:
    """What the plain call gives on components that nobody has touched."""
    return run(row.build(), row, mode)


# What users do to any pipeline, and what must come of it; `draw()` is a call with our method on.
CLOSE = {"atol": 1e-4, "rtol": 1e-4}  # the same sums in another order


def offload(pipe: DiffusionPipeline) -> None:
    """What sequential offloading installs, with the CPU as the device to run on: weights are absent between calls."""
    for model in tiny.models(pipe.components).values():
        cpu_offload(model, execution_device=torch.device("cpu"))


def load_lora(pipe: DiffusionPipeline, folder: str | os.PathLike, denoiser: str) -> None:
    """A LoRA with random weights, from a file, as the adapter "toy"."""
    donor = copy.deepcopy(getattr(pipe, denoiser))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        donor.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    pipe.save_lora_weights(folder, **{f"{denoiser}_lora_layers": get_peft_model_state_dict(donor)})
    pipe.load_lora_weights(folder, adapter_name="toy")


# The denoiser as a whole, in place, and block by block.
COMPILED = {
    "model": lambda pipe, denoiser, **how: setattr(pipe, denoiser, torch.compile(getattr(pipe, denoiser), **how)),
    "in place": lambda pipe, denoiser, **how: getattr(pipe, denoiser).compile(**how),
    "blocks": lambda pipe, denoiser, **how: getattr(pipe, denoiser).compile_repeated_blocks(**how),
}


class Compiler(CompileCounter):
    """Runs the graphs it is given, and counts them. `longest` is the longest expression for a size in one of them."""

    longest = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        values = [node.meta.get("example_value") for node in graph.graph.nodes]
        sizes = [str(size) for value in values if isinstance(value, torch.Tensor) for size in value.shape]
        self.longest = max(self.longest, *map(len, sizes))
        return super().__call__(graph, inputs)


def check_compiled(pipe: DiffusionPipeline, draw: Callable[[], torch.Tensor], denoiser: str, way: str) -> None:
    """
    Compiled, it gives the same result. The graphs are whole ones, none is compiled again in the next call, and their
    sizes do not become more complicated from layer to layer, which takes a compiler minutes.
    """
    if way == "blocks" and not getattr(pipe, denoiser)._repeated_blocks:
        pytest.skip("diffusers does not say which blocks of it repeat")
    expected, counter = draw(), Compiler()
    COMPILED[way](pipe, denoiser, backend=counter, fullgraph=True)
    before = footprint(pipe)
    try:
        torch.testing.assert_close(draw(), expected, **CLOSE)
        graphs = counter.frame_count
        torch.testing.assert_close(draw(), expected, **CLOSE)
    finally:
        torch._dynamo.reset()
    assert changes(before, footprint(pipe)) == [] and 0 < graphs == counter.frame_count
    assert counter.longest < 100


def check_offload(pipe: DiffusionPipeline, draw: Callable[[], torch.Tensor], denoiser: str) -> None:
    """Offloaded, it gives the same result, and its weights are absent again after each call."""
    expected = draw()
    offload(pipe)
    for _ in range(2):
        assert next(getattr(pipe, denoiser).parameters()).is_meta
        assert torch.equal(draw(), expected)
    assert next(getattr(pipe, denoiser).parameters()).is_meta


def check_lora(pipe: DiffusionPipeline, draw: Callable[[], torch.Tensor], denoiser: str, folder: os.PathLike) -> None:
    """A LoRA changes the result, to that of weights with the LoRA in them; taken away, it leaves nothing."""
    without = draw()
    load_lora(pipe, folder, denoiser)
    adapted = draw()
    assert (adapted - without).abs().max() > 1e-3
    pipe.fuse_lora()
    torch.testing.assert_close(draw(), adapted, **CLOSE)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(draw(), without, **CLOSE)


HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def footprint(pipe: DiffusionPipeline) -> dict[str, object]:
    """
    Everything about the shared components that a call must leave as it was, by name: the components themselves, each
    module's processor, hooks, own attributes and mode, each weight's value, dtype and device, and whatever was put on
    the scheduler object in the place of a method.
    """
    found: dict[str, object] = dict(pipe.components)
    for key, value in vars(pipe.scheduler).items():
        if callable(value):
            found[f"scheduler.{key}"] = value
    for component, model in tiny.models(pipe.components).items():
        for path, module in model.named_modules():
            name = f"{component}.{path}"
            found[f"{name} processor"] = vars(module).get("processor")
            found[f"{name} forward"] = vars(module).get("forward")
            found[f"{name} attributes"] = sorted(vars(module))
            found[f"{name} training"] = module.training
            for kind in HOOKS:
                found |= {f"{name} {kind} {i}": hook for i, hook in enumerate(vars(module)[kind].values())}
        for path, weight in (*model.named_parameters(), *model.named_buffers()):
            found[f"{component}.{path}"] = weight.detach().clone()
            found[f"{component}.{path} kind"] = (weight.dtype, weight.device, weight.requires_grad, weight.stride())
    return found


def changes(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Names under which two footprints differ: objects by identity, weights and plain values by value."""

    def same(a: object, b: object) -> bool:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return a.device == b.device and torch.equal(a, b)
        return a is b or (isinstance(a, (bool, tuple, list)) and a == b)

    missing = object()
    return [key for key in before | after if not same(before.get(key, missing), after.get(key, missing))]
