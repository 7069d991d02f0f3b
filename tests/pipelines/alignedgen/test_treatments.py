# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What users do to their pipelines, for those that have no row in the contract suite."""

import pytest

from alignext import AlignedGenFlux2KleinPipeline, AlignedGenFlux2Pipeline
from tests.pipelines import contract
from tests.pipelines.alignedgen import test_flux2, test_kontext, test_qwen


PIPELINES = {
    "kontext": (test_kontext.pipeline, test_kontext.call),
    "flux2": (lambda: test_flux2.pipeline(AlignedGenFlux2Pipeline), test_flux2.call),
    "flux2-klein": (
        lambda: test_flux2.pipeline(AlignedGenFlux2KleinPipeline),
        lambda: test_flux2.call(guidance_scale=1.0),  # without text encoder
    ),
    "qwen": (test_qwen.pipeline, test_qwen.call),
}


@pytest.fixture(params=PIPELINES)
def drawn(request):
    build, call = PIPELINES[request.param]
    pipe = build()
    return pipe, lambda: pipe(**call()).images


@pytest.mark.slow
def test_offloaded_pipeline_gives_the_same_result(drawn):
    contract.check_offload(*drawn, "transformer")


@pytest.mark.slow
def test_lora_is_used(drawn, tmp_path):
    contract.check_lora(*drawn, "transformer", tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("way", contract.COMPILED)
def test_compiled_pipeline_gives_the_same_result(drawn, way):
    contract.check_compiled(*drawn, "transformer", way)
