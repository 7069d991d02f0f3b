# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The methods as blocks of Modular Diffusers: what upstream asks of blocks, the images of the classes."""

import copy
import inspect
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FluxAutoBlocks, FluxKontextAutoBlocks
from diffusers.modular_pipelines import (
    EchoBlocks,
    LoopSequentialPipelineBlocks,
    MiniMaxH3Blocks,
    ModularPipelineBlocks,
    PipelineState,
    WanAnimate2Blocks,
    WanBlocks,
)

import alignext
from alignext import AlignedGenBlocks, LatentSearchBlocks, RIVALBlocks, SearchConfig
from tests.diffusion.families import picture
from tests.pipelines import presets


pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")


def brightness(samples: torch.Tensor, prompts: list[str] | None) -> torch.Tensor:
    return samples.flatten(1).mean(1)


SEARCH = {"reward_fn": brightness, "search_config": SearchConfig(num_beams=2, lookahead_steps=2)}
# Blocks, family, our class of the same family, what the method is told, guidance of both forms, whether their
# results are equal to the bit: in FLUX.1 the modular loop hands over one timestep for all rows, and guiders call the
# model once for each branch of guidance.
ROWS = {
    "alignedgen-flux": (AlignedGenBlocks, "flux", "AlignedGenPipeline", {"style_lambda": 1.3}, None, False),
    "alignedgen-flux2": (AlignedGenBlocks, "flux2", "AlignedGenFlux2Pipeline", {"share_end": 0.8}, None, True),
    "alignedgen-qwen": (
        AlignedGenBlocks, "qwen-image", "AlignedGenQwenImagePipeline", {"share_blocks": "all"}, 1.0, True,
    ),
    "search-flux": (LatentSearchBlocks, "flux", "FluxSearchPipeline", SEARCH, None, False),
    "search-wan": (LatentSearchBlocks, "wan-2.1", "WanSearchPipeline", SEARCH, None, True),
    "search-sdxl": (LatentSearchBlocks, "sdxl", "StableDiffusionXLSearchPipeline", SEARCH, 5.0, False),
    "rival-sdxl": (RIVALBlocks, "sdxl", "RIVALXLPipeline", {"reference_image": picture()}, 1.0, True),
    "rival-sdxl-guided": (
        RIVALBlocks, "sdxl", "RIVALXLPipeline", {"reference_image": picture(), "reference_prompt": "it"}, 5.0, False,
    ),
}  # fmt: skip
rows = pytest.mark.parametrize("row", ROWS)
one_each = pytest.mark.parametrize("row", ["alignedgen-flux", "search-wan", "rival-sdxl-guided"])


@pytest.fixture(autouse=True)
def no_ftfy(monkeypatch):
    # Wan cleans the prompt with a library that it imports only where there is one.
    monkeypatch.setattr("diffusers.modular_pipelines.wan.encoders.prompt_clean", str.strip)


def build(row: str) -> tuple[Any, dict[str, Any]]:
    """The pipeline of our blocks, and its inputs."""
    cls, family, _, own, guidance, _ = ROWS[row]
    pipe = presets.pipeline(cls(presets.preset(family)), presets.components(family), guidance)
    return pipe, presets.call(family, 1 if cls is RIVALBlocks else 2) | own


def samples(state: Any) -> torch.Tensor:
    return state.get("videos") if state.get("images") is None else state.get("images")


@rows
def test_the_images_are_those_of_the_class(row):
    _, family, name, _, guidance, exact = ROWS[row]
    pipe, call = build(row)
    cls = getattr(alignext, name)
    parts = presets.components(family)
    stock = cls(**{k: v for k, v in parts.items() if k in inspect.signature(cls.__init__).parameters})
    stock.set_progress_bar_config(disable=True)
    same = {"guidance_scale": guidance} if guidance is not None and family == "sdxl" else {}
    expected = stock(**call | same | {"generator": torch.Generator().manual_seed(0)})
    state = pipe(**call)
    torch.testing.assert_close(
        samples(state), expected[0], **({"rtol": 0, "atol": 0} if exact else {"rtol": 0, "atol": 1e-5})
    )
    if "rewards" in state.values:
        torch.testing.assert_close(state.rewards, expected.rewards, rtol=0, atol=1e-5)
        assert (state.nfe, state.reward_evals) == (expected.nfe, expected.reward_evals)
        assert [entry["node"] for entry in state.history] == [entry["node"] for entry in expected.history]


@one_each
def test_inputs_outputs_and_components_are_declared(row):
    cls, family, name, own, *_ = ROWS[row]
    stock = presets.preset(family)
    blocks = cls(stock)
    assert set(stock.input_names) | set(own) <= set(blocks.input_names)
    assert len(set(blocks.input_names)) == len(blocks.input_names)
    taken = inspect.signature(getattr(alignext, name).__call__).parameters
    ours = [param for param in blocks.inputs if param.name and param.name not in stock.input_names]
    assert ours and all(param.default == taken[param.name].default for param in ours)
    assert set(stock.output_names) <= set(blocks.output_names)
    assert blocks.component_names == stock.component_names and blocks.model_name == stock.model_name
    assert all(name in blocks.doc for name in own)


@one_each
def test_only_what_is_declared_is_written_and_nothing_is_left(row):
    pipe, call = build(row)
    blocks = pipe._blocks
    model = pipe.unet if "sdxl" in row else pipe.transformer
    before, processors = dict(vars(model)), [m.processor for m in model.modules() if hasattr(m, "processor")]
    scheduler, step = pipe.scheduler, pipe.scheduler.step
    own = dict(vars(pipe))
    loops = {id(b): dict(vars(b)) for b in flat(blocks) if isinstance(b, LoopSequentialPipelineBlocks)}
    given = {param.name: call.get(param.name, param.default) for param in blocks.inputs if param.name}
    kinds = {param.name: param.kwargs_type for param in blocks.inputs if param.name}
    state = PipelineState()
    for name, value in given.items():
        state.set(name, value, kinds[name])
    kept = {name: copy.copy(value) for name, value in given.items()}
    blocks(pipe, state)
    assert set(state.values) <= set(given) | set(blocks.intermediate_output_names)
    assert set(blocks.own_outputs) <= set(state.values)
    for name in set(given) - set(blocks.intermediate_output_names):
        assert state.values[name] is given[name]
        if isinstance(kept[name], list):
            assert kept[name] == given[name]
    # Nothing of ours on the model, the scheduler, the loop, or the pipeline.
    assert vars(model).keys() == before.keys() and "forward" not in before
    assert processors == [m.processor for m in model.modules() if hasattr(m, "processor")]
    assert pipe.scheduler is scheduler and scheduler.step == step
    assert dict(vars(pipe)) == own
    assert all(vars(b) == loops[id(b)] for b in flat(blocks) if id(b) in loops)


def flat(blocks: Any) -> list[Any]:
    return [x for block in blocks.sub_blocks.values() for x in (block, *flat(block))]


@pytest.mark.parametrize("row", ["alignedgen-flux", "search-flux", "rival-sdxl"])
def test_an_error_in_the_loop_leaves_nothing(row):
    pipe, call = build(row)
    names = [name for name, part in presets.components(ROWS[row][1]).items() if part is not None]
    stock = presets.pipeline(presets.preset(ROWS[row][1]), {name: getattr(pipe, name) for name in names})
    plain = {name: value for name, value in call.items() if name not in ROWS[row][3]}
    first = stock(**plain | {"generator": torch.Generator().manual_seed(1)}, output="images")
    step, count = pipe.scheduler.step, []
    with pytest.MonkeyPatch.context() as patch:
        name = "forward"
        model = pipe.unet if "sdxl" in row else pipe.transformer
        forward = model.forward

        def failing(*args, **kwargs):
            count.append(1)
            if len(count) > 3:
                raise RuntimeError("out of luck")
            return forward(*args, **kwargs)

        patch.setattr(model, name, failing, raising=True)
        with pytest.raises(RuntimeError, match="out of luck"):
            pipe(**call)
    assert pipe.scheduler.step == step
    assert torch.equal(stock(**plain | {"generator": torch.Generator().manual_seed(1)}, output="images"), first)


@pytest.mark.parametrize(
    ("row", "neutral"),
    [("alignedgen-flux", {"share_end": 0.0}), ("search-flux", {}), ("rival-sdxl", {})],
)
def test_the_neutral_setting_is_the_stock_preset(row, neutral):
    pipe, call = build(row)
    plain = {name: value for name, value in call.items() if name not in ROWS[row][3]}
    family, guidance = ROWS[row][1], ROWS[row][4]
    stock = presets.pipeline(presets.preset(family), presets.components(family), guidance)
    expected = stock(**plain | {"generator": torch.Generator().manual_seed(0)}, output="images")
    assert torch.equal(pipe(**plain, **neutral, output="images"), expected)


@pytest.mark.parametrize("row", ["alignedgen-flux", "search-flux", "rival-sdxl"])
def test_saved_blocks_are_loaded_by_stock_diffusers(row, tmp_path):
    cls, family, *_ = ROWS[row]
    blocks = cls(presets.preset(family))
    blocks.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        ModularPipelineBlocks.from_pretrained(str(tmp_path))
    loaded = ModularPipelineBlocks.from_pretrained(str(tmp_path), trust_remote_code=True)
    assert isinstance(loaded, cls) and type(loaded) is not cls
    assert loaded.input_names == blocks.input_names
    assert {path.name for path in tmp_path.iterdir()} == {"block.py", "modular_config.json", "README.md"}
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "block.py").read_text() == (tmp_path / "block.py").read_text()
    if family == "flux":
        pipe, call = build(row)
        again = presets.pipeline(loaded, presets.components(family))
        first = again(**call | {"generator": torch.Generator().manual_seed(0)}, output="images")
        assert torch.equal(first, pipe(**call, output="images"))


def test_only_a_preset_can_be_saved(tmp_path):
    with pytest.raises(ValueError, match=r"can be saved around a preset of diffusers as it is, such as"):
        AlignedGenBlocks(presets.preset("flux2")).save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())


def test_two_folders_in_one_process_are_two_blocks(tmp_path):
    AlignedGenBlocks(FluxAutoBlocks()).save_pretrained(tmp_path / "a")
    LatentSearchBlocks(WanBlocks()).save_pretrained(tmp_path / "b")
    a, b, c = (ModularPipelineBlocks.from_pretrained(str(tmp_path / x), trust_remote_code=True) for x in "aba")
    assert [type(x.around) for x in (a, b, c)] == [FluxAutoBlocks, WanBlocks, FluxAutoBlocks]
    assert isinstance(b, LatentSearchBlocks) and isinstance(c, AlignedGenBlocks)


def test_a_workflow_keeps_the_method():
    blocks = AlignedGenBlocks(FluxAutoBlocks()).get_workflow("text2image")
    assert isinstance(blocks, AlignedGenBlocks) and "style_lambda" in blocks.input_names
    assert "image" not in blocks.input_names
    kontext = AlignedGenBlocks(FluxKontextAutoBlocks())
    assert kontext.get_workflow(kontext.available_workflows[0]).model_name == "flux-kontext"
    call = presets.call("flux")
    pipe = presets.pipeline(blocks, presets.components("flux"))
    whole = presets.pipeline(AlignedGenBlocks(FluxAutoBlocks()), presets.components("flux"))
    expected = whole(**call | {"generator": torch.Generator().manual_seed(0)}, output="images")
    assert torch.equal(pipe(**call, output="images"), expected)


def test_styles_go_in_and_out():
    pipe, call = build("alignedgen-flux")
    state = pipe(**call, record_style=True)
    first, again = state.images[:1], pipe(**call | {"prompt": "a dog"}, style_reference=state.style_reference)
    assert state.style_reference.trajectory.shape[0] == 4 and again.style_reference is state.style_reference
    plain = pipe(**call | {"prompt": "a dog"}, output="images")
    assert not torch.equal(again.images, plain) and first.shape == plain.shape
    drawn = pipe(**call, style_image=picture(), style_prompt="rings", shared_noise=True, output="images")
    assert drawn.isfinite().all() and not torch.equal(drawn, state.images)


@pytest.mark.parametrize("family", ["anima", pytest.param("flux3", marks=presets.needs_flux3)])
def test_families_without_a_stock_class_are_searched(family):
    pipe = presets.pipeline(LatentSearchBlocks(presets.preset(family)), presets.components(family))
    calls = []
    pipe.transformer.register_forward_pre_hook(lambda *args: calls.append(1))
    call = presets.call(family, 1) | {"prompt": "a fox"}
    state = pipe(**call, **SEARCH, num_images_per_prompt=2)
    assert samples(state).shape == (2, 3, 16, 16) and state.rewards.shape == (1, 2)
    torch.testing.assert_close(brightness(samples(state), None), state.rewards[0])  # of what is returned, best first
    assert state.rewards[0, 0] >= state.rewards[0, 1]
    # Guidance stays on to the end: two calls of the model for each evaluation.
    plan = 1 + 3 * 2
    assert len(calls) == 2 * plan and len(state.history) == 3 and state.nfe == 2 + 3 * 4 * 2
    best = pipe(
        **call | {"generator": torch.Generator().manual_seed(0)},
        reward_fn=brightness,
        search_config=SearchConfig(num_beams=4, strategy="best_of_n"),
    )
    one = presets.pipeline(presets.preset(family), presets.components(family))
    n = call | {"generator": torch.Generator().manual_seed(0)}
    many = one(**n, num_images_per_prompt=8, output="images")
    torch.testing.assert_close(best.rewards[0, 0], brightness(many, None).max(), rtol=0, atol=1e-6)


@presets.needs_flux3
def test_alignedgen_refuses_flux3():
    with pytest.raises(NotImplementedError, match=r"AlignedGenBlocks is not defined for blocks of the model 'flux3'"):
        AlignedGenBlocks(diffusers.Flux3AutoBlocks())


def test_what_does_not_fit_is_refused():
    with pytest.raises(NotImplementedError, match=r"goes around those of stable-diffusion-xl\."):
        RIVALBlocks(FluxAutoBlocks())
    for refused in (EchoBlocks, MiniMaxH3Blocks, WanAnimate2Blocks):
        searched = LatentSearchBlocks(refused()).init_pipeline()
        with pytest.raises(NotImplementedError, match=r"goes around blocks with one loop over `timesteps` of pict"):
            searched(prompt="a fox", reward_fn=brightness)
    pipe, call = build("search-flux")
    with pytest.raises(ValueError, match=r"`search_config` was given without `reward_fn`"):
        pipe(**call | {"reward_fn": None})
    with pytest.raises(NotImplementedError, match="`strength` starts from a picture"):
        pipe(**call, image=picture())
