# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Steering vector decoding inside the stock `generate`."""

import copy

import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessorList, T5Config, T5ForConditionalGeneration

from alignext import mini
from alignext.decoding.calibration import calibrate_svdecode
from alignext.decoding.svdecode import SVDecodeLogitsProcessor
from alignext.functional.svdecode import steered_logits


CONFIG = LlamaConfig(
    vocab_size=61,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.4,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
IDS = torch.tensor([[0, 0, 1, 7, 9], [1, 5, 6, 8, 10]])
MASK = (IDS != 0).long()

# PEFT reads `is_gradient_checkpointing`, which transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def tuned():
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(CONFIG), LoraConfig(task_type="CAUSAL_LM", r=2)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    return model


def written(model, *processors, ids=IDS, mask=MASK, **settings):
    torch.manual_seed(1)
    settings = {"max_new_tokens": 8, "do_sample": False} | settings
    return model.generate(
        input_ids=ids, attention_mask=mask, logits_processor=LogitsProcessorList(processors), **settings
    )


class Stateless(SVDecodeLogitsProcessor):
    """Reads all tokens again at every step."""

    def _base_logits(self, ids):
        self._seen = None
        return super()._base_logits(ids)


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "top_k": 0}], ids=["greedy", "sampled"])
def test_strength_0_is_the_stock_method(tuned, settings):
    off = SVDecodeLogitsProcessor(tuned, 0.0, alpha=0.0, prompt_attention_mask=MASK)
    assert torch.equal(written(tuned, off, **settings), written(tuned, **settings))
    masked = SVDecodeLogitsProcessor(tuned, 0.0, alpha=0.1, prompt_attention_mask=MASK)
    assert torch.equal(written(tuned, masked, **settings), written(tuned, **settings, min_p=0.1 if settings else None))


def test_an_adapter_that_does_nothing_changes_nothing():
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(CONFIG), LoraConfig(task_type="CAUSAL_LM", r=2)).eval()
    steered = SVDecodeLogitsProcessor(model, 5.0, alpha=0.0, prompt_attention_mask=MASK)
    assert torch.equal(written(model, steered), written(model))


@pytest.mark.parametrize("direction", ["kl_gradient", "logit_difference"])
def test_tokens_are_those_of_steered_logits(tuned, direction):
    processor = SVDecodeLogitsProcessor(tuned, 1.5, direction=direction, prompt_attention_mask=MASK)
    found = written(tuned, processor)
    assert not torch.equal(found, written(tuned))
    ids, mask = IDS, MASK
    with torch.no_grad():
        for _ in range(8):
            position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids}
            z = tuned(**inputs).logits[:, -1]
            with tuned.disable_adapter():
                base = tuned(**inputs).logits[:, -1]
            token = steered_logits(z, base, 1.5, 0.1, direction).argmax(-1, keepdim=True)
            ids, mask = torch.cat([ids, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
    length = found.shape[1]
    until = (found[:, 5:] == 2).cumsum(-1).cumsum(-1) <= 1  # up to the first end of sequence
    assert torch.equal(found[:, 5:][until], ids[:, 5:length][until])
    assert tuned.active_adapter == "default" and not any(
        getattr(m, "disable_adapters", False) is True for m in tuned.modules()
    )


def test_rows_of_a_padded_batch_are_those_of_single_runs(tuned):
    together = written(tuned, SVDecodeLogitsProcessor(tuned, 1.5, prompt_attention_mask=MASK), min_new_tokens=8)
    alone = IDS[:1, 2:]
    single = written(
        tuned, SVDecodeLogitsProcessor(tuned, 1.5), ids=alone, mask=torch.ones_like(alone), min_new_tokens=8
    )
    assert torch.equal(together[:1, 5:], single[:, 3:])


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_beams": 2, "do_sample": True},
        {"do_sample": True, "num_return_sequences": 3},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_state_follows_beams_samples_and_lookups(tuned, settings):
    one = "prompt_lookup_num_tokens" in settings
    ids, mask = (IDS[1:], MASK[1:]) if one else (IDS, MASK)
    cached = SVDecodeLogitsProcessor(tuned, 1.0, alpha=0.01, prompt_attention_mask=mask)
    stateless = Stateless(tuned, 1.0, alpha=0.01, prompt_attention_mask=mask)
    expected = written(tuned, stateless, ids=ids, mask=mask, **settings)
    assert torch.equal(written(tuned, cached, ids=ids, mask=mask, **settings), expected)
    assert torch.equal(written(tuned, cached, ids=ids, mask=mask, **settings), expected)  # used again


def test_the_base_reads_every_token_once(tuned):
    fed = []
    processor = SVDecodeLogitsProcessor(tuned, 1.0, alpha=0.01, prompt_attention_mask=MASK)
    read = processor._base_logits

    def counted(ids):
        fed.append(ids.shape[1] - (0 if processor._seen is None else processor._seen.shape[1]))
        return read(ids)

    processor._base_logits = counted
    written(tuned, processor, min_new_tokens=6, max_new_tokens=6)
    assert processor._cache.get_seq_length() == sum(fed) <= 10 and fed[0] == 5


ADAPTERS = {
    "lora": LoraConfig(r=2),
    "dora": LoraConfig(r=2, use_dora=True),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": LoHaConfig(r=2, target_modules=["q_proj", "v_proj"]),
    "lokr": LoKrConfig(r=2, target_modules=["q_proj", "v_proj"]),
    "vera": VeraConfig(r=2, target_modules=["q_proj"]),
    "oft": OFTConfig(oft_block_size=4, target_modules=["q_proj"]),
    "prompt tuning": PromptTuningConfig(num_virtual_tokens=2),
    "p-tuning": PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=8),
    "prefix tuning": PrefixTuningConfig(num_virtual_tokens=2),
}


# PEFT drops the position ids that `generate` makes.
@pytest.mark.filterwarnings("ignore:Position ids are not supported for parameter efficient tuning:UserWarning")
@pytest.mark.parametrize("name", list(ADAPTERS))
def test_every_kind_of_adapter_has_the_plain_model_as_its_base(name):
    torch.manual_seed(0)
    plain = LlamaForCausalLM(CONFIG).eval()
    config = copy.deepcopy(ADAPTERS[name])
    config.task_type = "CAUSAL_LM"
    model = get_peft_model(copy.deepcopy(plain), config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.5)
    off = SVDecodeLogitsProcessor(model, 0.0, alpha=0.0, prompt_attention_mask=MASK)
    expected = written(model, ids=IDS, mask=MASK)
    assert torch.equal(written(model, off), expected)
    found = []
    steered = SVDecodeLogitsProcessor(model, 2.0, alpha=0.0, direction="logit_difference", prompt_attention_mask=MASK)
    read = steered._base_logits
    steered._base_logits = lambda ids: found.append((ids, read(ids))) or found[-1][1]
    other = written(model, steered)
    assert not torch.equal(other, written(plain))
    for ids, logits in found:
        mask = torch.cat([MASK, torch.ones(2, ids.shape[1] - 5, dtype=torch.long)], 1)
        with torch.no_grad():
            position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
            base = plain(input_ids=ids, attention_mask=mask, position_ids=position_ids).logits[:, -1]
        assert torch.allclose(logits, base, atol=1e-4)
    assert torch.equal(written(model), expected)  # the adapter is on again


def test_adapters_inside_a_plain_model_are_turned_off_and_on(tuned, tmp_path):
    tuned.save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    model.load_adapter(str(tmp_path))
    how = {"alpha": 0.01, "prompt_attention_mask": MASK}
    trained = {name: weight.requires_grad for name, weight in model.named_parameters()}
    assert torch.equal(
        written(model, SVDecodeLogitsProcessor(model, 1.5, **how)),
        written(tuned, SVDecodeLogitsProcessor(tuned, 1.5, **how)),
    )
    assert torch.equal(written(model), written(tuned))
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == trained


def test_another_model_can_be_the_base(tuned):
    torch.manual_seed(0)
    base = LlamaForCausalLM(CONFIG).eval()
    base.load_state_dict(tuned.merge_and_unload().state_dict())
    torch.manual_seed(5)
    other = LlamaForCausalLM(CONFIG).eval()
    same = SVDecodeLogitsProcessor(base, 3.0, base=base, alpha=0.0, prompt_attention_mask=MASK)
    assert torch.equal(written(base, same), written(base))
    steered = SVDecodeLogitsProcessor(base, 3.0, base=other, direction="logit_difference", prompt_attention_mask=MASK)
    assert not torch.equal(written(base, steered), written(base))


def test_calibration_finds_a_strength_that_helps(tuned):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(mini.path("lm"))
    model = AutoModelForCausalLM.from_pretrained(mini.path("lm"))
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2)).train()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    rows = [
        {"prompt": "One day", "completion": f" Tom saw a {thing}."} for thing in ("dog", "cat", "bird", "red ball")
    ]
    found = calibrate_svdecode(model, rows, tokenizer, grid=(1.0,), batch_size=3)
    assert set(found.nll) == {0.0, 1.0, found.strength}
    assert found.nll[found.strength] <= min(found.nll.values()) + 1e-12
    assert found.num_tokens + found.num_excluded == sum(
        len(tokenizer(row["prompt"] + row["completion"]).input_ids) - len(tokenizer("One day").input_ids) + 1
        for row in rows
    )
    assert model.training
    alone = calibrate_svdecode(model, rows, tokenizer, grid=(1.0,), batch_size=1)
    assert alone.strength == pytest.approx(found.strength, rel=1e-3)


def test_wrong_arguments_are_named(tuned):
    plain = LlamaForCausalLM(CONFIG)
    for settings, match in (
        ({"alpha": 1.5}, r"`alpha` must be in \[0, 1\]"),
        ({"strength": float("inf")}, "`strength` must be finite"),
        ({"direction": "up"}, "kl_gradient, logit_difference"),
        ({"model": plain}, "`base` must be given"),
        ({"base": "a/model"}, "`base` must be a model that is loaded, received the name 'a/model'"),
        (
            {"base": LlamaForCausalLM(LlamaConfig(**CONFIG.to_dict() | {"vocab_size": 64}))},
            "received 64 tokens for 61",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            SVDecodeLogitsProcessor(**{"model": tuned, "strength": 1.0} | settings)
    tuned.generation_config.repetition_penalty = 1.2
    with pytest.raises(ValueError, match=r"`repetition_penalty` .* received 1.2"):
        SVDecodeLogitsProcessor(tuned, 1.0)
    SVDecodeLogitsProcessor(tuned, 1.0, allow_penalties=True)
    tuned.generation_config.repetition_penalty = 1.0
    processor = SVDecodeLogitsProcessor(tuned, 1.0, prompt_attention_mask=MASK)
    with pytest.raises(ValueError, match="prompt_attention_mask"):
        written(tuned, processor, ids=IDS[:1], mask=MASK[:1])
    tuned.merge_adapter()
    with pytest.raises(ValueError, match="merged adapters"):
        SVDecodeLogitsProcessor(tuned, 1.0)
    tiny = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(NotImplementedError, match="encoder-decoder"):
        SVDecodeLogitsProcessor(T5ForConditionalGeneration(tiny), 1.0)
    for rows, match in (([], "must have rows"), ([{"text": "a"}], r"received \['text'\] in row 0")):
        with pytest.raises(ValueError, match=match):
            calibrate_svdecode(tuned, rows, None, base=plain)
