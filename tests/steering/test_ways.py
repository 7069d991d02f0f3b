# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Steering beside other ways of running a model: compiled, offloaded, quantized, assisted, from the Hub."""

import copy
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from transformers import AutoModelForCausalLM, AutoTokenizer, CompileConfig

from alignext import SteeringVector, mini
from alignext.functional.steering import clamp_factor, project
from alignext.steering import save_traces, steering_off, text_score, trace_html, trace_steering
from alignext.steering.layers import decoder_layers, states_of

from .test_vector import IDS, logits, steering_hooks, tiny, vector


GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["wrapped", "in place"])
def test_compiled_models_notice_what_comes_and_goes(way: str):
    """Compiled before the vector came: by torch's default, its code would never look at a hook again."""
    torch._dynamo.reset()
    torch._dynamo.config.skip_nnmodule_hook_guards = True  # what torch starts with
    model, sv = tiny(), vector()
    before = logits(model)
    with sv.apply(model, "swfc", 2.0):
        wanted = logits(model)
    torch._dynamo.config.skip_nnmodule_hook_guards = True
    compiled = torch.compile(model, backend="eager")
    if way == "in place":
        model.compile(backend="eager")
        compiled = model
    torch.testing.assert_close(logits(compiled), before, rtol=0, atol=1e-6)
    for _ in range(2):
        with sv.apply(model, "swfc", 2.0):
            torch.testing.assert_close(logits(compiled), wanted, rtol=0, atol=1e-5)
            with steering_off():
                torch.testing.assert_close(logits(compiled), before, rtol=0, atol=1e-6)
        torch.testing.assert_close(logits(compiled), before, rtol=0, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.slow
def test_generation_that_compiles_itself():
    """On a GPU `generate` compiles the model by itself where the cache is static, and keeps the code."""
    model, sv, ids = tiny(), vector(), IDS[:1]
    config = CompileConfig(backend="eager")
    config._compile_all_devices = True
    settings = GREEDY | {"attention_mask": torch.ones_like(ids)}
    static = settings | {"cache_implementation": "static", "compile_config": config}
    plain = model.generate(ids, **settings)
    with sv.apply(model, "swfc", 3.0):
        wanted = model.generate(ids, **settings)
    assert not torch.equal(plain, wanted)
    assert torch.equal(model.generate(ids, **static), plain)
    with sv.apply(model, "swfc", 3.0):
        assert torch.equal(model.generate(ids, **static), wanted)
    assert torch.equal(model.generate(ids, **static), plain)
    torch._dynamo.reset()


@pytest.mark.parametrize("how", ["one by one", "disk"])
def test_offloaded_and_dispatched_models(how: str, tmp_path: Path):
    """Weights that come only for their layer's call, as with `device_map`."""
    model, sv = tiny(), vector()
    before = logits(model)
    with sv.apply(model, "stmp", 2.0):
        wanted = logits(model)
    model = tiny()
    if how == "disk":
        places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
        places |= {"model.layers.2": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
        model = dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    else:
        cpu_offload(model, "cpu")
    assert torch.equal(logits(model), before)
    with sv.apply(model, "stmp", 2.0):
        assert torch.equal(logits(model), wanted)
    assert torch.equal(logits(model), before)


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel:UserWarning")
def test_quantized_weights():
    """Weights in eight bits; the state is set in the precision that the layer gives."""
    model = torch.ao.quantization.quantize_dynamic(tiny(), {torch.nn.Linear}, dtype=torch.qint8)
    before = logits(model)
    with vector(mu_positive=None, mu_negative=None).apply(model, "clamp", 3.0):
        seen = []
        watch = decoder_layers(model)[1].register_forward_hook(lambda m, a, output: seen.append(states_of(output)))
        after = logits(model)
        watch.remove()
    torch.testing.assert_close(project(seen[0], vector().direction), torch.full((2, 7), 3.0), rtol=0, atol=1e-5)
    assert (after - before).abs().max() > 1e-4
    assert torch.equal(logits(model), before)


def test_an_assistant_changes_no_token():
    model, sv = tiny(), vector()
    settings = GREEDY | {"attention_mask": torch.ones_like(IDS[:1])}
    with sv.apply(model, "stmp", 2.0):
        plain = model.generate(IDS[:1], **settings)
        assert torch.equal(model.generate(IDS[:1], assistant_model=tiny("Qwen2"), **settings), plain)


def test_a_model_in_mixed_precision():
    model, sv = tiny(), vector(mu_positive=None, mu_negative=None)
    seen = []
    with torch.autocast("cpu", torch.bfloat16), sv.apply(model, "clamp", 2.0):
        watch = decoder_layers(model)[1].register_forward_hook(lambda m, a, output: seen.append(states_of(output)))
        logits(model)
        watch.remove()
    rho = seen[0].double() @ sv.direction
    tolerance = 1e-5 if seen[0].dtype == torch.float32 else 2e-2
    torch.testing.assert_close(rho, torch.full((2, 7), 2.0, dtype=torch.float64), rtol=0, atol=tolerance)


def test_a_vector_has_its_own_way():
    model = tiny()
    sv = vector(method="clamp", exclude_first=1)
    states = []
    for arguments in ({}, {"method": "clamp", "exclude_first": 1}, {"exclude_first": 0}):
        with sv.apply(model, alpha=2.0, **arguments):
            states.append(model(input_ids=IDS, output_hidden_states=True).hidden_states[2])
    assert torch.equal(states[0], states[1])
    rho = project(states[2], sv.direction)
    torch.testing.assert_close(rho, torch.full((2, 7), 0.25 + 2 * 0.75), rtol=0, atol=1e-5)
    assert not torch.allclose(states[0][:, 0], states[2][:, 0])
    with pytest.raises(ValueError, match="`method` must be one of swfc, sttp, stmp, clamp, received 'push'"):
        vector(method="push")
    with pytest.raises(ValueError, match="`exclude_first` must be an integer of at least 0, received -2"):
        vector(exclude_first=-2)


def test_strengths_of_clamping_are_about_the_midpoint():
    """About zero, a stronger suppression would add the concept where both factors are positive: 1.2 x 4 > 4."""
    assert clamp_factor(1.0, 5.0, 4.0) == 5.0
    assert clamp_factor(-1.0, 5.0, 4.0) == 4.0
    assert clamp_factor(-2.0, 5.0, 4.0) == 3.5
    assert clamp_factor(0.0, 5.0, 4.0) == 4.5
    assert clamp_factor(2.0, 5.0, None) == 10.0 and clamp_factor(2.0, None, None) == 2.0


def test_steering_is_switched_off_and_on():
    model, sv = tiny(), vector()
    before = logits(model)
    with sv.apply(model, "swfc", 2.0):
        steered = logits(model)
        with pytest.raises(RuntimeError), steering_off():
            assert torch.equal(logits(model), before)
            raise RuntimeError
        assert torch.equal(logits(model), steered)


# As `custom_generate`


def test_a_folder_generates_as_the_vector_does(tmp_path: Path):
    model, sv = tiny(), vector()
    settings = GREEDY | {"attention_mask": torch.ones_like(IDS)}
    plain = model.generate(IDS, **settings)
    sv.save_custom_generate(tmp_path / "happy", "swfc", 3.0)
    ours = settings | {"custom_generate": str(tmp_path / "happy"), "trust_remote_code": True}
    for more, arguments in (
        ({}, ("swfc", 3.0)),
        ({"alpha": 8.0}, ("swfc", 8.0)),
        ({"method": "sttp", "alpha": 2.0}, ("sttp", 2.0)),
    ):
        with sv.apply(model, *arguments):
            wanted = model.generate(IDS, **settings)
        assert torch.equal(model.generate(IDS, **ours, **more), wanted)
    with sv.apply(model, "swfc", 30.0, position="response", prompt_lengths=[7, 7]):
        wanted = model.generate(IDS, **settings)
    assert torch.equal(model.generate(IDS, **ours, alpha=30.0, position="response"), wanted)
    assert torch.equal(model.generate(IDS, **settings), plain) and not steering_hooks(model)


def test_a_repository_holds_the_script_too():
    assert set(vector()._more_files()) == {"custom_generate/generate.py", "custom_generate/requirements.txt"}
    assert vector(boundary=None)._more_files() == {}  # its own method could not run


# Which tokens


@pytest.fixture(scope="module")
def lm() -> tuple:
    return AutoModelForCausalLM.from_pretrained(mini.path("lm")), AutoTokenizer.from_pretrained(mini.path("lm"))


def test_the_trace_is_what_steering_does(lm: tuple, tmp_path: Path):
    model, tokenizer = lm
    sv = SteeringVector(torch.randn(288, generator=torch.Generator().manual_seed(0)), 3, boundary=0.0)
    text = "Tom was happy. <b>"
    trace = trace_steering(model, tokenizer, sv, text, "stmp", 1.0)
    ids = torch.tensor([tokenizer(text)["input_ids"][: len(trace.tokens)]])
    with torch.no_grad():
        plain = model(ids, output_hidden_states=True).hidden_states[4][0]
        with sv.apply(model, "stmp", 1.0):
            steered = model(ids, output_hidden_states=True).hidden_states[4][0]
    torch.testing.assert_close(torch.tensor(trace.rho), project(plain, sv.direction), rtol=1e-4, atol=1e-4)
    moved = (steered != plain).any(1)
    assert moved.tolist() == [step != 0 for step in trace.steps]
    assert 0 < moved.sum() < len(moved)
    page = trace_html(trace, 0.0, 1.0)
    assert page.count("<span") == len(trace.tokens) and page.count("border-bottom") == int(moved.sum())
    assert "<b>" not in page
    save_traces(tmp_path / "page.html", [trace], sv)
    assert page.count("title=") == (tmp_path / "page.html").read_text().count("title=")
    assert trace_steering(model, tokenizer, sv, ids[0].tolist(), "stmp", exclude_first=len(moved)).steps == [
        0.0
    ] * len(moved)
    with pytest.raises(ValueError, match="`text` must have a token"):
        trace_steering(model, tokenizer, sv, [])


def test_the_score_of_texts_is_taken_without_steering(lm: tuple):
    model, tokenizer = lm
    sv = SteeringVector(
        torch.randn(288, generator=torch.Generator().manual_seed(0)), 3, mu_positive=1.0, mu_negative=0.0
    )
    heard = []

    def trait(texts: list[str]) -> list[float]:
        heard.append(texts)
        return [float(len(text)) for text in texts]

    score = text_score(tokenizer, ["Tom was", "One day, a little dog"], trait, max_new_tokens=6)
    first, again = score(model), score(model)
    assert first == again and heard[0] == heard[1]
    with sv.apply(model, "swfc", 40.0):
        steered = score(model)
    assert steered[1] < first[1]  # what the plain model finds unlikely
    assert 0 < steered[1] < first[1] <= 1
    # Chat models end with any of several tokens; here with half of all.
    ended = copy.deepcopy(model)
    ended.generation_config.eos_token_id = ends = [*range(0, 4096, 2)]
    out = []
    ended.generate = lambda *args, f=ended.generate, **kwargs: out.append(f(*args, **kwargs)) or out[-1]
    coherence = text_score(tokenizer, ["Tom was"], trait, max_new_tokens=6)(ended)[1]
    told = out[0][0, len(tokenizer("Tom was")["input_ids"]) :].tolist()
    own = told[: next((i for i, token in enumerate(told) if token in ends), len(told))]
    assert 0 < len(own) < 5 and heard[-1] == [tokenizer.decode(own, skip_special_tokens=True)]
    start = out[0][:, : -len(told)]
    with torch.no_grad():
        log_p = model(torch.cat([start, torch.tensor([own])], 1)).logits.log_softmax(-1)[0, start.shape[1] - 1 : -1]
    assert coherence == pytest.approx(float(log_p[range(len(own)), own].mean().exp()), rel=1e-4)
    with pytest.raises(ValueError, match="`trait` must give a number for each of 2 texts, received 1"):
        text_score(tokenizer, ["a", "b"], lambda texts: [1.0], max_new_tokens=1)(model)
