# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Models with one head per objective: they start as the base model, heads keep apart, mixing is folding."""

import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PreTrainedModel,
    T5Config,
)

from alignext.decoding.rows import cache_name
from alignext.functional.mah_dpo import mix_logits
from alignext.heads.auto import AutoModelForCausalLMWithObjectiveHeads as AutoHeads
from alignext.heads.auto import objective_heads_class


OBJECTIVES = ["honest", "helpful", "short"]
SIZE = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "tied": LlamaConfig(**SIZE, tie_word_embeddings=True),
    "untied": LlamaConfig(**SIZE, tie_word_embeddings=False),
    "soft cap": Gemma2Config(**SIZE, head_dim=8, final_logit_softcapping=3.0, sliding_window=32),
    "logits scaling": GraniteConfig(**SIZE, logits_scaling=4.0),
    "logit scale": CohereConfig(**SIZE, logit_scale=0.25),
    "bias": PhiConfig(**SIZE),
}
IDS = torch.tensor([[1, 5, 9, 30, 17, 4], [1, 8, 8, 50, 2, 33], [1, 60, 3, 12, 12, 7], [1, 5, 9, 30, 17, 4]])
pytestmark = [
    # peft reads `is_gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
every_head_type = pytest.mark.parametrize("head_type", ["full", "low_rank"])
tied_or_not = pytest.mark.parametrize("name", ["tied", "untied"])


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """Folders of stock models by name, each made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name.replace(" ", "-"))
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(CONFIGS[name])
            if name == "bias":
                torch.nn.init.normal_(model.get_output_embeddings().bias)
            model.save_pretrained(made[name])
        return made[name]

    return folder


def trained(path: Path, head_type: str = "full", **kwargs) -> PreTrainedModel:
    """A model whose heads differ, as after training."""
    model = AutoHeads.from_pretrained(path, OBJECTIVES, head_type=head_type, head_rank=4, head_alpha=8.0, **kwargs)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.objective_heads.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator).to(weight)
    return model


def told(model: PreTrainedModel, ids: torch.Tensor = IDS, **kwargs) -> torch.Tensor:
    settings = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "attention_mask": torch.ones_like(ids)}
    return model.generate(ids, **settings | kwargs)


def logits(model: PreTrainedModel, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, **kwargs).logits


# The start


@every_head_type
@pytest.mark.parametrize("name", CONFIGS)
def test_fresh_heads_are_the_base_model(checkpoint, name: str, head_type: str) -> None:
    base = AutoModelForCausalLM.from_pretrained(checkpoint(name))
    state = torch.get_rng_state()
    model = AutoHeads.from_pretrained(checkpoint(name), OBJECTIVES, head_type=head_type, head_rank=4)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's random numbers move
    assert model.fresh_heads and isinstance(model, type(base)) and model.objectives == OBJECTIVES
    assert torch.equal(logits(model, objective_weights="base"), logits(base))
    assert torch.equal(model.get_input_embeddings().weight, base.get_input_embeddings().weight)
    for weights in (None, {"helpful": 1}, [0.2, 0.3, 0.5], torch.rand(4, 3)):
        torch.testing.assert_close(logits(model, objective_weights=weights), logits(base), atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(model, objective_weights=[0, 1, 0]), logits(base))  # one head is not even rounded


def test_noise_is_the_authors(checkpoint) -> None:
    model = AutoHeads.from_pretrained(checkpoint("tied"), OBJECTIVES, head_init_std=1e-3)
    for k in range(3):
        torch.manual_seed(42 + 100 * k)
        expected = model.lm_head.weight + 1e-3 * torch.randn_like(model.lm_head.weight)
        assert torch.equal(getattr(model.objective_heads, f"weight_{k}"), expected)
    base = AutoModelForCausalLM.from_pretrained(checkpoint("tied"))
    assert torch.equal(logits(model, objective_weights="base"), logits(base))  # the reference sees none of it


def test_low_rank_factors_come_from_a_seed_of_their_own(checkpoint) -> None:
    a = trained(checkpoint("untied"), "low_rank").state_dict()
    torch.manual_seed(9)
    b = trained(checkpoint("untied"), "low_rank").state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    other = AutoHeads.from_pretrained(checkpoint("untied"), OBJECTIVES, head_type="low_rank", head_init_seed=1)
    fresh = AutoHeads.from_pretrained(checkpoint("untied"), OBJECTIVES, head_type="low_rank")
    assert not torch.equal(other.objective_heads.A_0, fresh.objective_heads.A_0)


def test_base_head_is_frozen_unless_it_is_the_embeddings(checkpoint) -> None:
    assert AutoHeads.from_pretrained(checkpoint("tied"), OBJECTIVES).lm_head.weight.requires_grad
    assert not AutoHeads.from_pretrained(checkpoint("untied"), OBJECTIVES).lm_head.weight.requires_grad


@every_head_type
def test_heads_never_touch_the_embeddings(checkpoint, head_type: str) -> None:
    model = trained(checkpoint("tied"), head_type)
    embedded = model.get_input_embeddings()(IDS).detach()  # so that they get a gradient as an output head only
    model(inputs_embeds=embedded, labels=IDS, objective_ids=torch.tensor([0, 1, 2, 0])).log_probs.sum().backward()
    assert model.get_input_embeddings().weight.grad is None


# Routing


@every_head_type
@pytest.mark.parametrize("name", CONFIGS)
def test_routed_log_probs_are_those_that_generation_uses(checkpoint, name: str, head_type: str) -> None:
    model = trained(checkpoint(name), head_type)
    objective_ids = torch.tensor([2, 0, 2, 1])
    labels = IDS.clone()
    labels[:, :2] = -100
    out = model(IDS, labels=labels, objective_ids=objective_ids)
    for row, k in enumerate(objective_ids.tolist()):
        one_hot = torch.nn.functional.one_hot(torch.tensor(k), 3)
        logp = logits(model, objective_weights=one_hot)[row].log_softmax(-1)
        expected = logp[:-1].gather(-1, IDS[row, 1:, None])[:, 0] * (labels[row, 1:] != -100)
        torch.testing.assert_close(out.log_probs[row], expected, atol=2e-5, rtol=1e-5)
    one = told(model, IDS[:1], objective_weights=[0, 0, 1], output_logits=True, return_dict_in_generate=True)
    scored = model(one.sequences, labels=one.sequences, objective_ids=torch.tensor([2])).log_probs[
        0, IDS.shape[1] - 1 :
    ]
    greedy = torch.cat(one.logits).log_softmax(-1).gather(-1, one.sequences[0, IDS.shape[1] :, None])[:, 0]
    torch.testing.assert_close(scored, greedy, atol=1e-4, rtol=1e-4)


@every_head_type
def test_statistics_beside_the_log_probs(checkpoint, head_type: str) -> None:
    model = trained(checkpoint("soft cap"), head_type)
    ids = torch.tensor([2, 0, 2, 1])
    out = model(IDS, labels=IDS, objective_ids=ids)
    z = logits(model, objective_ids=ids)[:, :-1]
    logp = z.log_softmax(-1)
    torch.testing.assert_close(out.entropy, -(logp.exp() * logp).sum(-1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.mean_logits, z.mean(-1), atol=1e-4, rtol=1e-4)
    assert torch.equal(out.is_top1, z.argmax(-1) == IDS[:, 1:])
    torch.testing.assert_close(out.loss, -out.log_probs.mean())


@every_head_type
def test_a_pair_trains_its_own_head_and_the_backbone(checkpoint, head_type: str) -> None:
    model = trained(checkpoint("untied"), head_type)
    model(IDS, labels=IDS, objective_ids=torch.ones(4, dtype=torch.long)).log_probs.sum().backward()
    for name, weight in model.named_parameters():
        if name == "lm_head.weight":
            assert weight.grad is None
        elif name.startswith("objective_heads") and not name.endswith("_1"):
            assert torch.equal(weight.grad, torch.zeros_like(weight))  # in the graph all the same
        else:
            assert weight.grad.abs().sum() > 0, name


def test_order_of_rows_does_not_matter_but_whose_they_are_does(checkpoint) -> None:
    model = trained(checkpoint("tied"))
    ids, order = torch.tensor([2, 0, 2, 1]), torch.tensor([3, 1, 0, 2])
    with torch.no_grad():
        out = model(IDS, labels=IDS, objective_ids=ids).log_probs
        torch.testing.assert_close(
            model(IDS[order], labels=IDS[order], objective_ids=ids[order]).log_probs, out[order]
        )
        swapped = model(IDS, labels=IDS, objective_ids=ids.flip(0)).log_probs
    assert not torch.allclose(swapped[0], out[0], atol=1e-3)


def test_without_objectives_the_base_head_is_scored(checkpoint) -> None:
    model, base = trained(checkpoint("soft cap")), AutoModelForCausalLM.from_pretrained(checkpoint("soft cap"))
    out = model(IDS, labels=IDS, fused_lm_head=True).log_probs
    expected = logits(base)[:, :-1].log_softmax(-1).gather(-1, IDS[:, 1:, None])[..., 0]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@every_head_type
def test_all_labels_masked_is_a_zero_with_a_gradient(checkpoint, head_type: str) -> None:
    model = trained(checkpoint("untied"), head_type)
    out = model(IDS, labels=torch.full_like(IDS, -100), objective_ids=torch.tensor([0, 1, 2, 0]))
    assert torch.equal(out.log_probs, torch.zeros(4, 5))
    out.log_probs.sum().backward()


@every_head_type
def test_half_precision_backbone_has_heads_in_single(checkpoint, head_type: str, tmp_path: Path) -> None:
    model = trained(checkpoint("untied"), head_type, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert {weight.dtype for weight in model.objective_heads.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path)
    again = AutoHeads.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in again.objective_heads.parameters()} == {torch.float32}
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    # sums over a sequence are not rounded to bfloat16
    ids = torch.tensor([2, 0, 2, 1])
    out = model(IDS, labels=IDS, objective_ids=ids).log_probs
    assert out.dtype == torch.float32
    logp = logits(model, objective_ids=ids)[:, :-1].float().log_softmax(-1).gather(-1, IDS[:, 1:, None])[..., 0]
    torch.testing.assert_close(out, logp, atol=2e-2, rtol=1e-2)
    half = trained(checkpoint("untied"), head_type, dtype=torch.bfloat16, head_dtype="bfloat16")
    assert {weight.dtype for weight in half.objective_heads.parameters()} == {torch.bfloat16}


# Mixing


@every_head_type
@pytest.mark.parametrize("name", CONFIGS)
def test_mixing_is_of_raw_logits(checkpoint, name: str, head_type: str) -> None:
    model = trained(checkpoint(name), head_type)
    with torch.no_grad():
        hidden = model.base_model(IDS).last_hidden_state
        each = model.objective_logits(hidden)
    weights = torch.tensor([0.2, 0.5, 0.3])
    scale = {"logits scaling": 0.25, "logit scale": 0.25}.get(name, 1.0)
    expected = scale * mix_logits(each, weights)
    if name == "soft cap":
        expected = 3 * torch.tanh(expected / 3)
    torch.testing.assert_close(logits(model, objective_weights=weights), expected, atol=1e-4, rtol=1e-4)
    by_row = torch.stack([weights, torch.tensor([0.0, 1.0, 0.0]), weights.flip(0), torch.ones(3) / 3])
    mixed = logits(model, objective_weights=by_row)
    for row in range(4):
        torch.testing.assert_close(mixed[row], logits(model, objective_weights=by_row[row])[row], atol=1e-4, rtol=1e-4)


@every_head_type
@tied_or_not
def test_merged_model_tells_what_the_mixture_tells(checkpoint, tmp_path: Path, name: str, head_type: str) -> None:
    model = trained(checkpoint(name), head_type)
    weights = {"honest": 0.7, "short": 0.3}
    merged = model.merge_heads(weights)
    assert type(merged) is type(AutoModelForCausalLM.from_pretrained(checkpoint(name)))
    merged.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not hasattr(opened.config, "objective_heads")
    expected = told(model, objective_weights=weights)
    assert torch.equal(told(merged), expected)
    assert torch.equal(told(opened), expected)
    assert not torch.equal(told(model, objective_weights="base"), expected)
    torch.testing.assert_close(logits(merged), logits(model, objective_weights=[7, 0, 3]), atol=1e-5, rtol=1e-5)


@every_head_type
def test_every_prompt_has_its_own_weights(checkpoint, head_type: str) -> None:
    model = trained(checkpoint("untied"), head_type)
    weights = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1], [0.2, 0.3, 0.5]])
    for settings in ({}, {"num_beams": 2}, {"num_beams": 2, "num_return_sequences": 2}):
        together = told(model, objective_weights=weights, **settings)
        alone = torch.cat([told(model, IDS[i : i + 1], objective_weights=weights[i], **settings) for i in range(4)])
        assert torch.equal(together, alone)
    few = torch.tensor([[1.0, 0, 0], [0, 0, 1]])[torch.tensor([0, 1, 0, 1])]  # fewer mixtures than heads
    alone = torch.cat([told(model, IDS[i : i + 1], objective_weights=few[i]) for i in range(4)])
    assert torch.equal(told(model, objective_weights=few), alone)


def test_default_weights(checkpoint, tmp_path: Path) -> None:
    model = trained(checkpoint("untied"), default_weights={"short": 1.0})
    assert torch.equal(told(model), told(model, objective_weights={"short": 3}))
    assert torch.equal(told(trained(checkpoint("untied"))), told(model, objective_weights=[1, 1, 1]))
    model.save_pretrained(tmp_path)
    assert torch.equal(told(AutoHeads.from_pretrained(tmp_path)), told(model))


def test_sums_and_signs_are_free_without_normalization(checkpoint) -> None:
    model = trained(checkpoint("untied"))
    with torch.no_grad():
        each = model.objective_logits(model.base_model(IDS).last_hidden_state)
    with model.mixed_heads([1.5, -0.5, 0.0], normalize_weights=False):
        torch.testing.assert_close(logits(model), 1.5 * each[0] - 0.5 * each[1], atol=1e-4, rtol=1e-4)
    low = trained(checkpoint("untied"), "low_rank")
    with torch.no_grad():
        each = low.objective_logits(low.base_model(IDS).last_hidden_state)
    for weights in ([2.0, 1.0, 0.0], [[2.0, 1.0, 0.0]] * 4):
        with low.mixed_heads(torch.tensor(weights), normalize_weights=False):
            torch.testing.assert_close(logits(low), 2 * each[0] + each[1], atol=1e-4, rtol=1e-4)


def test_cache_is_carried(checkpoint) -> None:
    model = trained(checkpoint("untied"))
    with torch.no_grad(), model.mixed_heads([0.5, 0.5, 0]):
        first = model(IDS[:, :4], use_cache=True)
        name = str(cache_name(model))
        rest = model(IDS[:, 4:], **{name: first[name]}).logits
        torch.testing.assert_close(rest, model(IDS).logits[:, 4:], atol=1e-5, rtol=1e-5)


def test_nothing_stays_after_a_call_or_an_exception(checkpoint) -> None:
    model = trained(checkpoint("untied"))
    base = logits(model, objective_weights="base")

    def fail(*args: object) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        told(model, objective_weights=[1, 0, 0], logits_processor=[fail])
    assert "forward" not in vars(model.lm_head) and not model._mixing
    with model.mixed_heads([1, 0, 0]):
        inside = logits(model)
        assert torch.equal(logits(model, objective_weights="base"), base)  # a call's own weights win
        assert torch.equal(logits(model), inside)
        assert torch.equal(told(model), told(model, objective_weights=[1, 0, 0]))
    assert "forward" not in vars(model.lm_head) and not model._mixing
    assert torch.equal(logits(model, objective_weights="base"), base)


def test_wrapped_output_head_is_given_back(checkpoint) -> None:
    model = trained(checkpoint("untied"))
    hooked = model.lm_head.forward = lambda hidden: torch.nn.functional.linear(hidden, model.lm_head.weight)
    told(model, objective_weights=[1, 0, 0])
    assert vars(model.lm_head)["forward"] is hooked


# Saving


@every_head_type
@tied_or_not
def test_round_trip(checkpoint, tmp_path: Path, name: str, head_type: str) -> None:
    model = trained(checkpoint(name), head_type)
    model.save_pretrained(tmp_path)
    again = AutoHeads.from_pretrained(tmp_path)  # names and kind of the heads come with it
    assert type(again) is type(model) and not again.fresh_heads and again.objectives == OBJECTIVES
    assert torch.equal(told(again, objective_weights=[0.1, 0.2, 0.7]), told(model, objective_weights=[0.1, 0.2, 0.7]))
    AutoHeads.from_pretrained(tmp_path, OBJECTIVES)
    # the stock class finds the base model
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(stock), logits(AutoModelForCausalLM.from_pretrained(checkpoint(name))))
    copied = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(copied), logits(model))


def test_classes_are_made_once_and_found_by_name() -> None:
    import alignext.heads.auto as module

    cls = objective_heads_class(LlamaForCausalLM)
    assert objective_heads_class(LlamaForCausalLM) is cls is module.MultiObjectiveLlamaForCausalLM
    assert module.MultiObjectiveMistralForCausalLM.__bases__[1].__name__ == "MistralForCausalLM"
    with pytest.raises(AttributeError):
        _ = module.MultiObjectiveNothing


def test_zero_overlap_is_an_error(checkpoint, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(checkpoint("untied")).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({f"policy.{k}": v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="No weight of"):
        AutoHeads.from_pretrained(tmp_path, OBJECTIVES)


def test_some_heads_only_is_an_error(checkpoint, tmp_path: Path) -> None:
    trained(checkpoint("untied")).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["objective_heads.weight_1"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="weight_1"):
        AutoHeads.from_pretrained(tmp_path)


@every_head_type
@tied_or_not
def test_resized_vocabulary(checkpoint, name: str, head_type: str) -> None:
    model = trained(checkpoint(name), head_type)
    before = logits(model, objective_weights=[0, 1, 0])
    model.resize_token_embeddings(70)
    after = logits(model, objective_weights=[0, 1, 0])
    torch.testing.assert_close(after[..., :61], before, atol=1e-5, rtol=1e-5)
    assert after.shape[-1] == 70
    base = logits(model, objective_weights="base")
    torch.testing.assert_close(after[..., 61:], base[..., 61:], atol=1e-5, rtol=1e-5)
    assert model(IDS, labels=IDS, objective_ids=torch.tensor([0, 1, 2, 0])).log_probs.isfinite().all()
    model.resize_token_embeddings(61)
    torch.testing.assert_close(logits(model, objective_weights=[0, 1, 0]), before, atol=1e-5, rtol=1e-5)


# An adapter on the head leaves the embeddings alone, tied or not.
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@tied_or_not
def test_mixture_of_low_rank_heads_is_an_adapter(checkpoint, tmp_path: Path, name: str) -> None:
    model = trained(checkpoint(name), "low_rank")
    model.save_mixture_adapter(tmp_path, {"honest": 3, "short": 1})
    stock = AutoModelForCausalLM.from_pretrained(checkpoint(name))
    adapted = PeftModel.from_pretrained(stock, tmp_path)
    torch.testing.assert_close(logits(adapted), logits(model, objective_weights=[0.75, 0, 0.25]), atol=1e-4, rtol=1e-4)
    assert sum(t.numel() for t in load_file(tmp_path / "adapter_model.safetensors").values()) == 3 * 4 * (61 + 16)
    with pytest.raises(ValueError, match="merge_heads"):
        trained(checkpoint(name)).save_mixture_adapter(tmp_path)


@every_head_type
def test_adapter_with_heads(checkpoint, tmp_path: Path, head_type: str) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", modules_to_save=["objective_heads"])
    model = AutoHeads.from_pretrained(checkpoint("untied"), OBJECTIVES, head_type=head_type, head_rank=4)
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
    settings = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "objective_weights": [1, 0, 1]}
    expected = adapted.generate(input_ids=IDS, **settings)
    with adapted.disable_adapter():
        base = AutoModelForCausalLM.from_pretrained(checkpoint("untied"))
        assert torch.equal(logits(adapted, objective_weights=[1, 0, 0]), logits(base))  # heads go with the adapter
    adapted.save_pretrained(tmp_path)
    adapted.get_base_model().config.save_pretrained(tmp_path)  # as the trainer does
    again = AutoHeads.from_pretrained(tmp_path)
    assert torch.equal(again.generate(input_ids=IDS, **settings), expected)
    with pytest.raises(ValueError, match=r"has adapters\. Merge them .* `model = model\.merge_and_unload\(\)`"):
        again.merge_heads([1, 0, 1])  # its layers would start from random numbers
    merged = again.merge_and_unload()
    assert torch.equal(merged.generate(IDS, **settings), expected)
    assert torch.equal(told(merged.merge_heads([1, 0, 1])), expected)


def test_layers_in_wrappers_are_not_merged(checkpoint) -> None:
    """Whatever the wrapper: the stock class would draw their weights anew."""
    model = trained(checkpoint("untied"))
    model.model.layers[0].mlp = torch.nn.Sequential(model.model.layers[0].mlp)
    with pytest.raises(
        ValueError, match=r"not those of LlamaForCausalLM: missing are \['model\.layers\.0\.mlp\.down_proj"
    ):
        model.merge_heads([1, 0, 1])


# Wrong input


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "no objective heads"),
        ({"objectives": []}, "at least one objective"),
        ({"objectives": ["a", "a"]}, "each once"),
        ({"objectives": "honest"}, "at least one objective"),
        ({"objectives": ["a"], "head_type": "wide"}, "'wide'"),
        (
            {"objectives": ["a"], "head_type": "low_rank", "head_rank": 0},
            "`head_rank` must be an integer of at least 1, received 0",
        ),
        ({"objectives": ["a"], "head_dtype": "int8"}, "'int8'"),
        ({"objectives": ["a"], "config": T5Config()}, "encoder-decoder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_settings_are_named(checkpoint, settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AutoHeads.from_pretrained(checkpoint("tied"), **settings)


def test_checkpoint_keeps_its_objectives(checkpoint, tmp_path: Path) -> None:
    trained(checkpoint("tied")).save_pretrained(tmp_path)
    for other in (OBJECTIVES[::-1], ["honest"]):
        with pytest.raises(ValueError, match="saved with"):
            AutoHeads.from_pretrained(tmp_path, other)
    with pytest.raises(ValueError, match="saved with full"):
        AutoHeads.from_pretrained(tmp_path, head_type="low_rank")
    with pytest.raises(ValueError, match="`head_dtype` is bfloat16, but the checkpoint was saved with float32"):
        AutoHeads.from_pretrained(tmp_path, head_dtype="bfloat16")
    assert AutoHeads.from_pretrained(tmp_path, OBJECTIVES, head_dtype=torch.float32).objectives == OBJECTIVES


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ({"kind": 1.0}, r"\['kind'\]"),
        ([1.0, 0.0], r"shape \(2,\), expected \(3,\)"),
        ("equal", "'equal'"),
        ([0.0, 0.0, 0.0], "not be 0"),
        ([2.0, -1.0, 0.0], "normalize_weights=False"),
        (torch.rand(3, 3), "3 rows and the batch 4"),
        (torch.rand(2, 2, 3), r"shape \(2, 2, 3\)"),
    ],
    ids=["name", "length", "word", "zero", "negative", "rows", "dimensions"],
)
def test_wrong_weights_are_named(checkpoint, weights: object, named: str) -> None:
    model = trained(checkpoint("tied"))
    with pytest.raises(ValueError, match=named):
        told(model, objective_weights=weights)
    assert "forward" not in vars(model.lm_head)


def test_one_model_has_one_mixture(checkpoint) -> None:
    with pytest.raises(ValueError, match="one weight per objective"):
        trained(checkpoint("tied")).merge_heads(torch.rand(4, 3))


def test_from_config() -> None:
    model = AutoHeads.from_config(CONFIGS["tied"], ["a", "b"], head_type="low_rank", head_rank=2)
    assert model.fresh_heads and torch.equal(logits(model), logits(model, objective_weights="base"))
    assert not hasattr(CONFIGS["tied"], "objective_heads")
    with pytest.raises(OSError, match="from_pretrained"):
        AutoHeads()


def test_numbers_that_fit_nobody_are_refused() -> None:
    model = AutoHeads.from_config(CONFIGS["untied"], OBJECTIVES).eval()
    for call in (model, partial(model.generate, max_new_tokens=1)):
        with pytest.raises(ValueError, match="2 rows and the batch 4"):
            call(IDS, objective_weights=torch.eye(3)[:2])
    for wrong in ([0, 1, 2, 5], [0, 1]):
        with pytest.raises(ValueError, match="`objective_ids` is"):
            model(IDS, labels=IDS, objective_ids=torch.tensor(wrong))
    for weights, message in (({"d": 1.0}, "names"), ([1.0], "shape"), ([0.0, 0.0, 0.0], "weights")):
        with pytest.raises(ValueError, match=message):
            AutoHeads.from_config(CONFIGS["untied"], OBJECTIVES, default_weights=weights)
