# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Steering inside of models: what is left as it is, caches, padding, positions, and files."""

from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext import mini
from alignext.functional.steering import project
from alignext.steering import SteeringVector, fit_steering
from alignext.steering.layers import decoder_layers, parse_layers, states_of
from alignext.steering.texts import encode_answer, encode_prompt


WIDTH = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "pad_token_id": 2}
SMALL = WIDTH | {"intermediate_size": 32, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 1}
GPT = {"vocab_size": 64, "n_embd": 16, "n_layer": 3, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}
ARCHITECTURES = {
    "Llama": SMALL,
    "Mistral": SMALL,
    "Qwen2": SMALL,
    "Qwen3": SMALL | {"head_dim": 8},
    "Gemma2": SMALL | {"head_dim": 8},
    "Gemma3Text": SMALL | {"head_dim": 8},
    "Phi3": SMALL,
    "Olmo2": SMALL,
    "GPT2": GPT | {"pad_token_id": 2, "n_positions": 64},
    "GPTNeoX": WIDTH | {"intermediate_size": 32, "bos_token_id": 1, "eos_token_id": 1},
    "Bloom": {**GPT, "hidden_size": 16, "pad_token_id": 2},
    "Glm4": SMALL | {"head_dim": 8},
    "Mamba": {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 3, "state_size": 4, "pad_token_id": 2},
}
IDS = torch.tensor([[5, 9, 13, 8, 4, 30, 22], [7, 7, 21, 3, 40, 6, 50]])


def tiny(name: str = "Llama", dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**ARCHITECTURES[name])
        return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def vector(layer: int = 1, size: int = 16, **fields) -> SteeringVector:
    direction = torch.randn(size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    settings = {"boundary": 0.1, "mu_positive": 1.0, "mu_negative": -0.5, "sigma_positive": 0.2} | fields
    return SteeringVector(direction, layer, **settings)


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor = IDS, **kwargs) -> torch.Tensor:
    return model(input_ids=ids, **kwargs).logits


def steering_hooks(model: torch.nn.Module) -> list:
    """Hooks of ours on any layer; transformers keeps some of its own once hidden states were asked for."""
    hooks = [hook for layer in decoder_layers(model) for hook in layer._forward_hooks.values()]
    return [hook for hook in hooks if hook.__module__.startswith("alignext")]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name: str):
    """A neutral setting changes no bit, a real one the text, and nothing stays."""
    model, sv = tiny(name), vector()
    before = logits(model)
    with sv.apply(model, "swfc", 0.0):
        assert torch.equal(logits(model), before)
    with vector(boundary=-1e9).apply(model, "stmp", 2.0):  # a gate that never opens
        assert torch.equal(logits(model), before)
    for method in ("swfc", "sttp", "stmp", "clamp"):
        with sv.apply(model, method, 3.0):
            assert (logits(model) - before).abs().max() > 1e-4
    with vector(mu_positive=None, mu_negative=None).apply(
        model, "clamp", 3.0
    ):  # every state at the layer has the projection that the method promises
        seen = []
        watch = decoder_layers(model)[1].register_forward_hook(lambda m, a, output: seen.append(states_of(output)))
        logits(model)
        watch.remove()
    torch.testing.assert_close(project(seen[0], sv.direction), torch.full((2, 7), 3.0), rtol=0, atol=1e-5)
    assert torch.equal(logits(model), before)
    assert not steering_hooks(model)


@pytest.mark.parametrize("first", [True, False])
def test_hidden_states_are_the_steered_ones(first: bool):
    """Whether they are asked for before the steering or after: capturing installs hooks of its own, once."""
    model, sv = tiny(), vector()
    if first:
        model(input_ids=IDS, output_hidden_states=True)
    with sv.apply(model, "clamp", 2.0):
        states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    torch.testing.assert_close(project(states[2], sv.direction), torch.full((2, 7), 1.75), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["swfc", "stmp"])
@pytest.mark.parametrize(
    "how", [{}, {"cache_implementation": "static"}, {"prefill_chunk_size": 2}, {"use_cache": False}]
)
def test_generation_with_any_cache(method: str, how: dict):
    model, sv = tiny(), vector()
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    with sv.apply(model, method, 2.0):
        ids = model.generate(IDS[:1], attention_mask=torch.ones_like(IDS[:1]), **settings, **how)
        whole = logits(model, ids)
    assert torch.equal(whole[0, 6:-1].argmax(-1), ids[0, 7:])


def test_prompt_lookup_gives_the_same_tokens():
    model, sv = tiny(), vector()
    ids = torch.tensor([[5, 9, 13, 5, 9, 13, 5, 9]])
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "attention_mask": torch.ones_like(ids)}
    with sv.apply(model, "stmp", 2.0):
        plain = model.generate(ids, **settings)
        assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **settings), plain)


@pytest.mark.parametrize("settings", [{}, {"exclude_first": 1}, {"position": "response", "prompt_lengths": [2, 2]}])
def test_left_padded_rows_are_single_rows(settings: dict):
    model, sv = tiny(), vector()
    ids = torch.cat([torch.cat([torch.full((1, 3), 2), IDS[:1, :4]], 1), IDS[1:]])
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    positions = torch.stack([torch.tensor([0, 0, 0, 0, 1, 2, 3]), torch.arange(7)])
    with sv.apply(model, "swfc", 2.0, **settings):
        both = logits(model, ids, attention_mask=mask, position_ids=positions)
    if "prompt_lengths" in settings:
        settings = settings | {"prompt_lengths": [2]}
    with sv.apply(model, "swfc", 2.0, **settings):
        alone = logits(model, IDS[:1, :4])
    torch.testing.assert_close(both[:1, 3:], alone, rtol=1e-4, atol=1e-5)


def test_the_response_alone():
    model, sv = tiny(), vector()
    before = model(input_ids=IDS, output_hidden_states=True).hidden_states[2]
    with sv.apply(model, "clamp", 2.0, position="response", prompt_lengths=[4, 6]):
        after = model(input_ids=IDS, output_hidden_states=True).hidden_states[2]
    assert torch.equal(after[0, :4], before[0, :4]) and torch.equal(after[1, :6], before[1, :6])
    rho = project(after, sv.direction)
    torch.testing.assert_close(torch.cat([rho[0, 4:], rho[1, 6:]]), torch.full((4,), 1.75), rtol=0, atol=1e-5)


def test_the_response_alone_while_generating_with_beams():
    model, sv = tiny(), vector()
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "num_beams": 2}
    mask = torch.ones_like(IDS)
    plain = model.generate(IDS, attention_mask=mask, **settings)
    with sv.apply(model, "swfc", 30.0, position="response", prompt_lengths=[7, 7]):
        steered = model.generate(IDS, attention_mask=mask, **settings)
    assert torch.equal(steered[:, :8], plain[:, :8])  # the first new token comes from the prompt
    assert not torch.equal(steered, plain)


def test_layers_without_positions():
    model = tiny("Bloom")
    with vector().apply(model, "swfc", 1.0, exclude_first=1), pytest.raises(NotImplementedError, match="BloomBlock"):
        logits(model)


def test_a_cache_that_was_not_steered():
    model, sv = tiny(), vector()
    cache = model(input_ids=IDS[:, :4], use_cache=True).past_key_values
    with sv.apply(model, "swfc", 1.0), pytest.raises(ValueError, match="allow_cache=True"):
        model(input_ids=IDS[:, 4:], past_key_values=cache)
    assert not steering_hooks(model)
    cache = model(input_ids=IDS[:, :4], use_cache=True).past_key_values
    with sv.apply(model, "swfc", 1.0, allow_cache=True):
        assert logits(model, IDS[:, 4:], past_key_values=cache).isfinite().all()


def test_two_vectors_at_one_layer_add_up():
    model, one, other = tiny(), vector(), vector()
    other = SteeringVector(other.direction.flip(0), 1, mu_positive=1.0, mu_negative=0.0)
    with one.apply(model, "swfc", 1.0), other.apply(model, "swfc", 1.0):
        both = model(input_ids=IDS, output_hidden_states=True).hidden_states[2]
    plain = model(input_ids=IDS, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(both, plain + (1.5 * one.direction + other.direction).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # read by peft
def test_a_lora_beside_it_and_half_precision():
    model = get_peft_model(tiny(dtype=torch.bfloat16), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    before = logits(model)
    with vector().apply(model, "clamp", 2.0):
        assert not torch.equal(logits(model), before)
    assert torch.equal(logits(model), before)


def test_a_file_and_back(tmp_path: Path):
    sv = vector(model="someone/a-model")
    sv.save(tmp_path / "steering.safetensors")
    found = SteeringVector.load(tmp_path / "steering.safetensors")
    assert torch.equal(found.direction, sv.direction)
    assert [getattr(found, n) for n in ("layer", "boundary", "sigma_positive", "model")] == [
        1,
        0.1,
        0.2,
        "someone/a-model",
    ]
    assert torch.equal(SteeringVector.load(tmp_path).direction, sv.direction)  # the folder of a training
    sv.save(tmp_path / "new" / "deep" / "happy.safetensors")
    with pytest.raises(IsADirectoryError, match=r"`path` must be a file, received the folder .*steering.safetensors"):
        sv.save(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").rglob("*.*")] == ["happy.safetensors"]
    with pytest.raises(ValueError, match=r"no file that `SteeringVector.save` wrote"):
        (tmp_path / "other").write_bytes(b"text")
        SteeringVector.load(tmp_path / "other")


def test_layers_by_depth():
    assert parse_layers("25%-60%", 21) == list(range(5, 13))
    assert parse_layers(3, 6) == [3]
    assert parse_layers([0, 5], 6) == [0, 5]
    assert parse_layers("50%-50%", 6)
    assert parse_layers("3", 6) == [3]  # an index, as in a list of arguments, and no depth of three percent
    for wrong in (6, [-1], "half", [], 2.5, "200%", "60%-25%", "9", "2-4"):
        with pytest.raises(ValueError, match="`layers` must be"):
            parse_layers(wrong, 6)


BAD = {
    "method": ({}, {"method": "push"}, "`method` must be one of swfc, sttp, stmp, clamp, received 'push'"),
    "boundary": ({"boundary": None}, {"method": "stmp"}, "needs `boundary`"),
    "alpha": ({}, {"alpha": float("nan")}, "`alpha` must be finite"),
    "layer": ({"layer": 3}, {}, r"layer 3 .* has 3 layers"),
    "size": ({"size": 12}, {}, "hidden size 12"),
    "position": ({}, {"position": "last"}, "`position` must be"),
    "lengths": ({}, {"position": "response"}, "`prompt_lengths` must be given"),
    "first": ({}, {"exclude_first": -1}, "`exclude_first` must be an integer of at least 0"),
}


@pytest.mark.parametrize(("fields", "arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_before_the_model_runs(fields: dict, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        vector(**fields).attach(tiny(), **arguments)


@pytest.mark.parametrize("direction", [torch.zeros(4), torch.tensor([1.0, torch.nan]), torch.ones(2, 2)])
def test_directions_that_are_none(direction: torch.Tensor):
    with pytest.raises(ValueError, match="`direction` must be a finite vector"):
        SteeringVector(direction, 0)


def test_negative_spread_and_layer():
    with pytest.raises(ValueError, match="`sigma_positive` must be 0 or more, received -1"):
        SteeringVector(torch.ones(4), 0, sigma_positive=-1)
    with pytest.raises(ValueError, match="`layer` must be an integer of at least 0, received -1"):
        SteeringVector(torch.ones(4), -1)


# On the embedded language model.

HAPPY = [
    "She was so happy and smiled.",
    "It was a wonderful day full of joy.",
    "They laughed and hugged.",
    "He loved it.",
]
SAD = ["She was so sad and cried.", "It was a terrible day full of tears.", "They fought and left.", "He hated it."]
PROMPTS = ["Lily went to the park.", "Tom had a red ball.", "One day a dog ran away.", "Mia saw a cat."]


def pairs() -> list[dict[str, str]]:
    return [{"prompt": p, "positive": h, "negative": s} for p in PROMPTS for h, s in zip(HAPPY, SAD, strict=True)]


@pytest.fixture(scope="module")
def lm() -> tuple:
    return AutoModelForCausalLM.from_pretrained(mini.path("lm")), AutoTokenizer.from_pretrained(mini.path("lm"))


def test_a_fit_reads_the_answers_alone(lm: tuple):
    model, tokenizer = lm
    rows = pairs()
    found = fit_steering(model, tokenizer, rows, layers=2, progress=False)
    one = fit_steering(model, tokenizer, rows, layers=2, batch_size=1, progress=False)
    torch.testing.assert_close(found.direction, one.direction, rtol=0, atol=1e-5)
    prompt = tokenizer(rows[0]["prompt"])["input_ids"]
    prompt = prompt[:-1] if prompt[-1] == tokenizer.eos_token_id else prompt
    answer = tokenizer(rows[0]["positive"], add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        states = model(torch.tensor([prompt + answer]), output_hidden_states=True).hidden_states[3][0, len(prompt) :]
    by_hand = [float(states.double().mean(0) @ found.direction)]
    assert found.mu_negative < found.boundary < by_hand[0]
    assert not steering_hooks(model)
    several = fit_steering(model, tokenizer, rows, layers="25%-60%", progress=False)
    assert [sv.layer for sv in several] == parse_layers("25%-60%", len(decoder_layers(model)))


def test_the_last_layer_is_fitted_before_the_final_norm(lm: tuple):
    """`hidden_states[-1]` is behind the final norm: fitted on it, a vector would not belong where it steers."""
    model, tokenizer = lm
    last = len(decoder_layers(model)) - 1
    found = fit_steering(model, tokenizer, pairs(), layers=last, progress=False)
    rho = {"steered place": [], "hidden_states[-1]": []}
    for row in pairs():
        prompt = encode_prompt(tokenizer, row["prompt"])
        answer = encode_answer(tokenizer, row["prompt"], prompt, row["positive"])
        seen = []
        watch = decoder_layers(model)[last].register_forward_hook(lambda m, a, o: seen.append(states_of(o)))  # noqa: B023
        with torch.no_grad():
            normed = model(torch.tensor([prompt + answer]), output_hidden_states=True).hidden_states[-1]
        watch.remove()
        for name, states in (("steered place", seen[0]), ("hidden_states[-1]", normed)):
            rho[name].append(float(states[0, len(prompt) :].double().mean(0) @ found.direction))
    mean = {name: sum(values) / len(values) for name, values in rho.items()}
    assert abs(mean["steered place"] - found.mu_positive) < 1e-4
    assert abs(mean["hidden_states[-1]"] - found.mu_positive) > 0.1


def test_steering_makes_happy_words_likelier(lm: tuple):
    """Log-probability of unseen happy endings minus sad ones rises with the strength, at each method."""
    model, tokenizer = lm
    sv = fit_steering(model, tokenizer, pairs(), layers=3, progress=False)

    def preference() -> float:
        total = 0.0
        for text, sign in (("Ben was glad. What a great day!", 1), ("Ben was upset. What a bad day!", -1)):
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                total -= sign * float(model(ids, labels=ids).loss) * ids.shape[1]
        return total

    plain = preference()
    for method, alphas in {"swfc": (0.5, 1.0), "stmp": (0.5, 1.0), "sttp": (0.0, 2.0)}.items():
        scores = []
        for alpha in alphas:
            with sv.apply(model, method, alpha):
                scores.append(preference())
        assert plain < scores[0] < scores[1], method


def test_pairs_that_are_none(lm: tuple):
    model, tokenizer = lm
    with pytest.raises(ValueError, match="at least 4 rows, received 1"):
        fit_steering(model, tokenizer, pairs()[:1])
    rows = pairs()
    rows[2] = {"prompt": "Hi.", "positive": "Good."}
    with pytest.raises(ValueError, match="Row 2 of `pairs` must have `negative`"):
        fit_steering(model, tokenizer, rows)
    rows[2] = {"prompt": "Hi.", "positive": "Good.", "negative": ""}
    with pytest.raises(ValueError, match="`negative` of row 2 has no token"):
        fit_steering(model, tokenizer, rows)
