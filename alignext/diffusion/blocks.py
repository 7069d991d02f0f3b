# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The blocks of a modular pipeline inside a method that is written for pipelines with a call."""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict
from diffusers.modular_pipelines import (
    InputParam,
    LoopSequentialPipelineBlocks,
    OutputParam,
    PipelineState,
    SequentialPipelineBlocks,
)
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from alignext.diffusion.recording import DENOISERS
from alignext.hub_code import BlocksHubMixin


class MethodBlocks(BlocksHubMixin, SequentialPipelineBlocks):
    """
    All blocks of a stock preset, run by one of our methods: the preset's inputs and outputs and the method's own. The
    loop that runs is the preset's, with its guider.

    Args:
        blocks (`SequentialPipelineBlocks`, *optional*): A stock preset or one of its workflows, such as
            `FluxAutoBlocks()`. It is not changed. Saved classes know theirs.

    Class attributes to define, beside those of [`BlocksHubMixin`]: `pipelines` (`dict`), our pipeline class by the
    preset's `model_name`, "" for any other; `own` (`tuple`), the class whose call has the method's own arguments, and
    a dataclass with further ones or None; `own_outputs` (`dict`), name and meaning of what that call returns behind
    the pictures.
    """

    stock: ClassVar[type[SequentialPipelineBlocks] | None] = None
    pipelines: ClassVar[dict[str, type]]
    own: ClassVar[tuple[type, Any]]
    own_outputs: ClassVar[dict[str, str]] = {}
    around: SequentialPipelineBlocks | None = None
    _model: str | None = None

    def __init__(self, blocks: SequentialPipelineBlocks | None = None) -> None:
        super().__init__()
        if blocks is None and self.stock is not None:
            blocks = self.stock()
        if blocks is not None:
            self._class_for(blocks.model_name)
            self._model = blocks.model_name
            self.around = copy.deepcopy(blocks)
            self.sub_blocks, self._workflow_map = self.around.sub_blocks, self.around._workflow_map

    # What upstream asks blocks for.

    @property
    def model_name(self) -> str | None:
        return self._model

    @property
    def description(self) -> str:
        return f"{self._name} around: {'' if self.around is None else self.around.description}"

    def _get_inputs(self) -> list[InputParam]:
        stock = super()._get_inputs()
        known = {param.name for param in stock}
        return [*stock, *(param for param in self._own_inputs() if param.name not in known)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [*super().intermediate_outputs, *self._outputs()]

    @property
    def outputs(self) -> list[OutputParam]:
        return [*([] if self.around is None else self.around.outputs), *self._outputs()]

    def get_execution_blocks(self, **inputs: Any) -> "MethodBlocks":
        """The method around the blocks that would run."""
        found = type(self)(super().get_execution_blocks(**inputs))
        found._model = self._model  # the first block of a preset may be another model's
        return found

    @torch.no_grad()
    def __call__(self, pipeline: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        run = _Run(self, pipeline, state)
        pipe = run.as_pipeline(self._class_for(self.model_name))
        own = {param.name: state.get(param.name) for param in self._own_inputs()}
        _, *more = pipe(**run.given(pipe), **own, return_dict=False)
        found = run.finished() | {name: state.get(name) for name in self.own_outputs}
        found |= dict(zip(self.own_outputs, more, strict=False))
        for output in self.intermediate_outputs:
            if output.name in found:
                state.set(output.name, found[output.name], output.kwargs_type)
        return pipeline, state

    # The method.

    @classmethod
    def _class_for(cls, model_name: str | None) -> type:
        found = cls.pipelines.get(model_name or "", cls.pipelines.get(""))
        if found is None:
            raise NotImplementedError(
                f"{cls.__name__} is not defined for blocks of the model {model_name!r}. It goes around those of "
                f"{', '.join(sorted(cls.pipelines))}."
            )
        return found

    @classmethod
    def _own_inputs(cls) -> list[InputParam]:
        """The arguments of the method, as its pipelines have them."""
        owner, levers = cls.own
        described = f"See `{owner.__name__}.__call__`."
        ours = [p for p in inspect.signature(owner.__call__).parameters.values() if p.kind is p.KEYWORD_ONLY]
        found = [InputParam(p.name, default=p.default, description=described) for p in ours]
        for f in fields(levers) if levers is not None else ():
            default = None if f.default is MISSING else f.default
            found.append(InputParam(f.name, default=default, description=f"See `{levers.__name__}`."))
        return found

    @classmethod
    def _outputs(cls) -> list[OutputParam]:
        return [OutputParam(name, description=meaning) for name, meaning in cls.own_outputs.items()]


class _Run:
    """
    One call of the blocks, as often as a method runs it.

    Args:
        method ([`MethodBlocks`]): Its blocks run.
        modular (`ModularPipeline`): Has the components. It stays as it is.
        state (`PipelineState`): The inputs. It stays as it is.
    """

    def __init__(self, method: MethodBlocks, modular: Any, state: PipelineState) -> None:
        self.modular, self.state = modular, state
        # Without a picture to start from there is nothing that `strength`, which has a default, says.
        pictures = [name for name in ("image", "image_latents") if state.get(name) is not None]
        unused = {None} if pictures else {None, "strength"}
        self.inputs = [param for param in SequentialPipelineBlocks._get_inputs(method) if param.name not in unused]
        given = {name: value for name, value in state.values.items() if value is not None}
        flat = [*SequentialPipelineBlocks.get_execution_blocks(method, **given).sub_blocks.values()]
        loops = [i for i, block in enumerate(flat) if isinstance(block, LoopSequentialPipelineBlocks)]
        taken = {param.name for loop in loops for param in flat[loop].inputs}
        if len(loops) != 1 or "timesteps" not in taken or "audio_latents" in taken:
            raise NotImplementedError(
                f"{type(method).__name__} goes around blocks with one loop over `timesteps` of pictures or videos "
                f"alone, which those of the model {method.model_name!r} are not."
            )
        self.before, self.loop, self.after = flat[: loops[0]], flat[loops[0]], flat[loops[0] + 1 :]
        named = [output.name for block in reversed(self.after) for output in block.intermediate_outputs]
        self.output = next((name for name in ("images", "videos") if name in named), "latents")
        self.last: list[Any] = []
        self.handed: dict[str, Any] = {}

    def as_pipeline(self, cls: type) -> Any:
        """Our pipeline of the same components, whose stock call runs the blocks."""
        stock = next((c for c in cls.__mro__ if issubclass(c, DiffusionPipeline) and _is_stock(c)), None)
        between = type("Blocks", (_BlocksCall, stock) if stock else (_AnyBlocksCall, DiffusionPipeline), {})
        between.__call__ = _call_like(stock, self)
        # Without the mixin's own `config`, which tells diffusers' auto pipelines of a class that lasts.
        ours = type(cls.__name__, (cls, between), {"config": ConfigMixin.config})
        if stock is not None:
            pipe = ours(**self._parts(stock))
        else:
            pipe = ours()
            pipe._internal_dict = FrozenDict({})
            for name in ("scheduler", *DENOISERS):
                setattr(pipe, name, getattr(self.modular, name, None))
        pipe.run, pipe.guider = self, getattr(self.modular, "guider", None)
        pipe._progress_bar_config = getattr(self.loop, "_progress_bar_config", {})
        return pipe

    def _parts(self, stock: type) -> dict[str, Any]:
        """The components, and settings among them, that a stock class is made of."""
        found = {}
        for name, parameter in list(inspect.signature(stock.__init__).parameters.items())[1:]:
            own = name in self.modular.component_names
            value = getattr(self.modular, name) if own else self.modular.config.get(name)
            if value is not None or parameter.default is parameter.empty:
                found[name] = value
        return found

    def given(self, pipe: Any) -> dict[str, Any]:
        """The inputs that are given, as far as the pipeline's stock call takes them."""
        taken = inspect.signature(type(pipe).__call__).parameters
        for param in self.inputs:
            value = self.state.get(param.name)
            if param.name in taken and value is not None and value is not param.default:
                self.handed[param.name] = value
        return self.handed

    def finished(self) -> dict[str, Any]:
        """The state that the last run ended in."""
        components, state, decoded = self.last
        if not decoded:
            _each(self.after, components, state)
        return state.values


def _is_stock(cls: type) -> bool:
    return cls.__module__.startswith("diffusers.pipelines.") and cls is not DiffusionPipeline


def _each(blocks: Sequence[Any], components: Any, state: PipelineState) -> None:
    for block in blocks:
        block(components, state)


def _call_like(stock: type | None, run: _Run) -> Any:
    """A call with the arguments of the stock class, or with the inputs of the blocks."""
    if stock is not None:
        signature = inspect.signature(stock.__call__)
    else:
        kind = inspect.Parameter.KEYWORD_ONLY
        named = {param.name: param.default for param in run.inputs}
        shown = [
            inspect.Parameter(n, kind, default=default) for n, default in ({**named, "return_dict": True}).items()
        ]
        signature = inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *shown])

    def call(self: Any, *args: Any, **kwargs: Any) -> tuple[Any]:
        bound = signature.bind(self, *args, **kwargs)
        defaults = {name: parameter.default for name, parameter in signature.parameters.items()} | run.handed
        given = {name: value for name, value in bound.arguments.items() if value is not defaults[name]}
        return self._run_blocks(given)

    call.__signature__ = signature  # ty: ignore[missing-attribute]
    return call


class _BlocksCall:
    """Before a stock class: what runs in the place of its call."""

    run: _Run

    def _run_blocks(self: Any, changes: dict[str, Any]) -> tuple[Any]:
        run = self.run
        components, loop = copy.copy(run.modular), copy.copy(run.loop)
        components.scheduler, loop._progress_bar_config = self.scheduler, self._progress_bar_config
        taken = {param.name for param in run.inputs}
        values = run.state.values | {name: value for name, value in changes.items() if name in taken}
        state = PipelineState(values, {kind: [*names] for kind, names in run.state.kwargs_mapping.items()})
        prepared = self._before(components, state)
        state = PipelineState(dict(prepared.values), prepared.kwargs_mapping)
        state.set("latents", self.prepare_latents(state.get("latents")))
        if getattr(self.scheduler, "plan", None):  # guiders count steps: those that look ahead are steps here
            state.set("num_inference_steps", len(self.scheduler.timesteps))
        if len(state.get("timesteps")):  # some loops need a step
            loop(components, state)
        decodes = state.get("output_type") != "latent"
        if decodes:
            _each(run.after, components, state)
        run.last[:] = components, state, decodes
        return (state.get(run.output if decodes else "latents"),)

    def _before(self, components: Any, state: PipelineState) -> PipelineState:
        _each(self.run.before, components, state)
        return state

    def prepare_latents(self, drawn: torch.Tensor) -> torch.Tensor:
        """The latents that the loop starts from."""
        return drawn


class _AnyBlocksCall(_BlocksCall):
    """The same without a stock class. What comes before the loop has the name under which it is kept where it can."""

    def _run_blocks(self, changes: dict[str, Any]) -> tuple[Any]:
        return super()._run_blocks(_once(changes, {param.name for param in self.run.inputs}))

    def _before(self, components: Any, state: PipelineState) -> PipelineState:
        return self.encode_prompt(components, state)

    def encode_prompt(self, components: Any, state: PipelineState) -> PipelineState:
        """All blocks before the loop."""
        return super()._before(components, state)


def _once(changes: dict[str, Any], inputs: set[str]) -> dict[str, Any]:
    """One text for all rows as one text and a count: some models take no other, and it is encoded once."""
    counts = [name for name in ("num_images_per_prompt", "num_videos_per_prompt") if name in inputs]
    texts = {name: value for name, value in changes.items() if "prompt" in name and isinstance(value, (list, tuple))}
    embeddings = any(isinstance(value, torch.Tensor) and name != "latents" for name, value in changes.items())
    same = all(isinstance(value[0], str) and {*value} == {value[0]} for value in texts.values())
    if len(counts) != 1 or "prompt" not in texts or embeddings or not same:
        return changes
    return changes | {name: value[0] for name, value in texts.items()} | {counts[0]: len(texts["prompt"])}
