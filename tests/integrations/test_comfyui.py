# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The nodes of ComfyUI, without ComfyUI: imported as it does, their inputs as declared, each run."""

import importlib.util
import inspect
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline

from tests.pipelines.tiny import flux_components, sd_components


FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
SOCKETS = {"STRING", "INT", "FLOAT", "BOOLEAN", "IMAGE", "MASK", "ALIGNEXT_PIPELINE"}


@pytest.fixture(scope="module")
def package():
    """As ComfyUI loads `custom_nodes`: the folder's `__init__.py`, under a name made of its path."""
    name = "custom_nodes_alignext"
    spec = importlib.util.spec_from_file_location(
        name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    for known in [key for key in sys.modules if key.startswith(name)]:
        del sys.modules[known]


@pytest.fixture(scope="module")
def nodes(package):
    return package.NODE_CLASS_MAPPINGS


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(side: int = 16) -> torch.Tensor:
    return torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(0))


def defaults(node: type, **given: object) -> dict[str, object]:
    """What ComfyUI would hand over: the defaults, the first of each list, and what is given."""
    found = {}
    for name, declared in node.INPUT_TYPES()["required"].items():
        kind, options = declared[0], declared[1] if len(declared) > 1 else {}
        found[name] = kind[0] if isinstance(kind, list) else options.get("default")
    return found | given


def test_every_node_has_a_name_and_declares_what_its_function_takes(package, nodes):
    assert nodes.keys() == package.NODE_DISPLAY_NAME_MAPPINGS.keys() and len(nodes) == 4
    for node in nodes.values():
        declared = node.INPUT_TYPES()
        assert declared.keys() <= {"required", "optional"}
        for name, (kind, *options) in [item for group in declared.values() for item in group.items()]:
            assert kind in SOCKETS if isinstance(kind, str) else kind
            assert (
                not options
                or "default" not in options[0]
                or kind not in ("INT", "FLOAT")
                or (options[0]["min"] <= options[0]["default"] <= options[0]["max"])
            ), name
        parameters = list(inspect.signature(getattr(node, node.FUNCTION)).parameters.values())[1:]
        assert {p.name for p in parameters} == {name for group in declared.values() for name in group}
        optional = {p.name for p in parameters if p.default is not p.empty}
        assert optional == set(declared.get("optional", {}))
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) and node.CATEGORY == "alignext"
        assert set(node.RETURN_TYPES) <= SOCKETS


def test_loading_gives_the_pipeline_of_the_method(nodes, tmp_path):
    load = nodes["AlignextLoadPipeline"]()
    StableDiffusionPipeline(**sd_components()).save_pretrained(tmp_path)
    common = {"model": str(tmp_path), "dtype": "float32", "device": "cpu"}
    assert type(load.run(method="RIVAL", **common)[0]).__name__ == "RIVALPipeline"
    assert type(load.run(method="Latent search", **common)[0]) is StableDiffusionPipeline
    with pytest.raises(ValueError, match=r"`model` is a StableDiffusionPipeline; AlignedGen takes FluxPipeline, "):
        load.run(method="AlignedGen", **common)


def test_the_embedded_model_is_loaded_where_none_is_named(nodes):
    node = nodes["AlignextLoadPipeline"]
    (pipe,) = node().run(**defaults(node, dtype="float32", device="cpu"))
    assert type(pipe).__name__ == "RIVALPipeline"


def is_pictures(images: torch.Tensor, count: int) -> None:
    assert images.shape[0] == count and images.shape[-1] == 3 and images.dtype == torch.float32
    assert 0 <= images.min() and images.max() <= 1


def test_rival(nodes, package):
    node = nodes["AlignextRIVAL"]
    pipe = quiet(
        sys.modules[package.__name__ + ".nodes"].as_pipeline_of("RIVAL", StableDiffusionPipeline(**sd_components()))
    )
    given = defaults(node, pipeline=pipe, reference=picture(), prompt="a fox", steps=4)
    (images,) = node().run(**given)
    is_pictures(images, 2)
    reference = picture()[0].movedim(-1, 0)
    generator = torch.Generator().manual_seed(0)
    same = {"num_inference_steps": 4, "num_images_per_prompt": 2, "generator": generator, "output_type": "pt"}
    expected = pipe("a fox", reference_image=reference, **same).images
    assert torch.equal(images, expected.movedim(1, -1))
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:12, 4:12] = 1
    is_pictures(node().run(**given | {"task": "inpainting", "mask": mask})[0], 2)


def test_alignedgen(nodes, package):
    node = nodes["AlignextAlignedGen"]
    pipe = quiet(
        sys.modules[package.__name__ + ".nodes"].as_pipeline_of("AlignedGen", FluxPipeline(**flux_components()))
    )
    given = defaults(node, pipeline=pipe, prompts="a fox\n\n an owl \n", width=16, height=16, steps=2)
    (images,) = node().run(**given)
    is_pictures(images, 2)
    (styled,) = node().run(**given, style=picture(), style_prompt="rings")
    is_pictures(styled, 2)
    assert not torch.equal(styled, images)
    with pytest.raises(ValueError, match="`prompts` must hold one text per line"):
        node().run(**given | {"prompts": " \n"})


def test_latent_search(nodes):
    node = nodes["AlignextLatentSearch"]
    pipe = quiet(StableDiffusionPipeline(**sd_components()))
    given = defaults(node, pipeline=pipe, prompt="a fox", beams=2, lookahead=1, count=2, steps=20)
    images, rewards = node().run(**given | {"reward": "brightness"})
    is_pictures(images, 2)
    values = [float(line) for line in rewards.splitlines()]
    assert len(values) == 2 and values[0] >= values[1]
