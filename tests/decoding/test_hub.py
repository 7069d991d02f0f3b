# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Decoding methods saved for plain transformers, and guided decoding inside `generate`."""

import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    TextIteratorStreamer,
)

from alignext import GuidedDecoding, QAlign, SVDecodeLogitsProcessor, TransferQ, guided_generate, mini

from .models import TINY


PROMPTS = ["One day, Lily went to the park.", "Tom was sad."]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(mini.path("lm"), padding_side="left")


@pytest.fixture(scope="module")
def batch(tokenizer):
    found = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    return {name: found[name] for name in ("input_ids", "attention_mask")}


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    """With a folder of its own, which has the tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(TINY["llama"]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def reward(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(1)
    config = LlamaConfig(**TINY["llama"].to_dict() | {"num_labels": 1, "initializer_range": 0.3})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def written(model, batch, custom, **settings):
    torch.manual_seed(0)
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": 6} | settings
    return model.generate(**batch, custom_generate=custom, **settings)


METHODS = {
    "qalign": (QAlign, {"beta": 0.3, "num_steps": 3, "stop_strings": ["x"]}),
    "transfer-q": (TransferQ, {"k": 3, "alpha": 0.3, "rollout_tokens": 2, "value": "soft", "num_rollouts": 2}),
    "guided": (GuidedDecoding, {"num_candidates": 2, "max_step_tokens": 3}),
}


@pytest.mark.parametrize("name", list(METHODS))
def test_saved_methods_run_as_they_are(name, model, tokenizer, batch, reward, tmp_path):
    cls, settings = METHODS[name]
    ours = cls(reward, tokenizer, **settings)
    ours.save_custom_generate(tmp_path)
    out = written(model, batch, str(tmp_path), trust_remote_code=True)
    assert torch.equal(out.sequences, written(model, batch, ours).sequences)
    assert (tmp_path / "custom_generate" / "requirements.txt").read_text() == "alignext\n"
    # arguments of the call come before what was saved, and the tokenizer may be given
    changed = written(
        model, batch, str(tmp_path), trust_remote_code=True, tokenizer=tokenizer, stop_strings=[" "], max_new_tokens=9
    )
    assert torch.equal(
        changed.sequences,
        written(
            model, batch, cls(reward, tokenizer, **settings | {"stop_strings": [" "]}), max_new_tokens=9
        ).sequences,
    )


def test_a_streamer_reaches_a_saved_method(model, tokenizer, batch, reward, tmp_path):
    TransferQ(reward, tokenizer, k=2, rollout_tokens=1).save_custom_generate(tmp_path)
    one = {name: value[:1] for name, value in batch.items()}
    streamer = TextIteratorStreamer(tokenizer, timeout=5)
    out = written(model, one, str(tmp_path), trust_remote_code=True, streamer=streamer, do_sample=False)
    assert "".join(streamer).strip() == tokenizer.decode(out.sequences[0]).strip()


def test_svdecode_is_saved_with_its_strength(model, batch, tmp_path):
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(model.name_or_path), LoraConfig(task_type="CAUSAL_LM"))
    torch.manual_seed(2)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    tuned.eval()
    how = {"alpha": 0.0, "direction": "logit_difference"}
    steered = SVDecodeLogitsProcessor(tuned, 4.0, prompt_attention_mask=batch["attention_mask"], **how)
    steered.save_custom_generate(tmp_path)
    expected = tuned.generate(**batch, logits_processor=[steered], do_sample=False, max_new_tokens=6)
    found = written(tuned, batch, str(tmp_path), trust_remote_code=True, do_sample=False)
    assert torch.equal(found, expected)
    assert not torch.equal(found, written(tuned, batch, None, do_sample=False))
    other = SVDecodeLogitsProcessor(tuned, 4.0, base=model, **how)
    other.save_custom_generate(tmp_path / "other")
    assert model.name_or_path in (tmp_path / "other" / "custom_generate" / "generate.py").read_text()
    assert torch.equal(
        written(tuned, batch, str(tmp_path / "other"), trust_remote_code=True, do_sample=False), expected
    )


def test_functions_cannot_be_saved(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"`reward_funcs` must be a name that can be loaded, .* received a function"):
        QAlign(lambda completions, **kwargs: [0.0], tokenizer).save_custom_generate(tmp_path)
    assert not (tmp_path / "custom_generate").exists()


FRESH = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model_folder, custom, adapter, prompt = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(model_folder)
if adapter:
    model.load_adapter(adapter)
batch = AutoTokenizer.from_pretrained(model_folder)(prompt, return_tensors="pt")
torch.manual_seed(0)
out = model.generate(
    input_ids=batch.input_ids, attention_mask=batch.attention_mask, custom_generate=custom,
    trust_remote_code=True, do_sample=True, top_k=0, max_new_tokens=6,
)
print(getattr(out, "sequences", out).tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*METHODS, "svdecode"])
def test_a_fresh_process_needs_transformers_alone(name, model, tokenizer, reward, tmp_path):
    """Stock calls only: no line of the program names this library."""
    one = tokenizer(PROMPTS[:1], return_tensors="pt")
    one = {key: one[key] for key in ("input_ids", "attention_mask")}
    adapter = ""
    if name == "svdecode":
        adapter = str(tmp_path / "adapter")
        tuned = get_peft_model(
            AutoModelForCausalLM.from_pretrained(model.name_or_path), LoraConfig(init_lora_weights=False)
        )
        tuned.save_pretrained(adapter)
        ours = SVDecodeLogitsProcessor(tuned.eval(), 4.0, alpha=0.0, direction="logit_difference")
        torch.manual_seed(0)
        settings = {"do_sample": True, "top_k": 0, "max_new_tokens": 6}
        expected = tuned.generate(**one, logits_processor=[ours], **settings)
    else:
        cls, settings = METHODS[name]
        ours = cls(reward, tokenizer, **settings)
        expected = written(model, one, cls(reward, tokenizer, **settings)).sequences
    ours.save_custom_generate(tmp_path / "saved")
    file = tmp_path / "script.py"
    file.write_text(FRESH)
    arguments = [model.name_or_path, str(tmp_path / "saved"), adapter, PROMPTS[0]]
    answer = subprocess.run(
        [sys.executable, str(file), *arguments], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == str(expected.tolist())


# Guided decoding as an object


def arbitrary(completions: list, **kwargs: object) -> list[float]:
    return [zlib.crc32(text.encode()) / 2**32 for text in completions]


def test_guided_decoding_inside_generate_is_guided_generate(model, tokenizer, batch):
    settings = {"num_candidates": 3, "max_step_tokens": 3}
    expected = guided_generate(
        model, tokenizer, PROMPTS, arbitrary, max_new_tokens=8, temperature=0.8, top_k=0,
        generator=torch.Generator().manual_seed(3), **settings,
    )  # fmt: skip
    ours = GuidedDecoding(arbitrary, tokenizer, generator=torch.Generator().manual_seed(3), **settings)
    out = written(model, batch, ours, temperature=0.8, max_new_tokens=8)
    width = batch["input_ids"].shape[1]
    for row, ids in zip(out.sequences, expected.token_ids, strict=True):
        assert row[width : width + len(ids)].tolist() == ids
    assert [[step.chosen for step in text] for text in out.steps] == [
        [step.chosen for step in text] for text in expected.steps
    ]
    assert out.stop_reasons == expected.stop_reasons


def test_one_candidate_inside_generate_is_the_stock_method(model, tokenizer, batch):
    one = {name: value[:1] for name, value in batch.items()}
    for settings in ({}, {"do_sample": False}, {"top_p": 0.8, "min_p": 0.01}):
        ours = GuidedDecoding(arbitrary, tokenizer, num_candidates=1)
        assert torch.equal(written(model, one, ours, **settings).sequences, written(model, one, None, **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"min_new_tokens": 6, "sequence_bias": [[[1], 40.0]]},  # every text would end at once
        {"min_length": 18, "sequence_bias": [[[1], 40.0]]},
        {"forced_eos_token_id": 1},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_processors_of_guided_decoding_see_what_the_stock_method_shows_them(model, tokenizer, batch, settings):
    """Also where rows are padded otherwise than the prompts, as one is whose batch has been wider."""
    ours = GuidedDecoding(arbitrary, tokenizer, num_candidates=1, max_step_tokens=2, boundary=lambda text: False)
    settings = settings | {"do_sample": False, "max_new_tokens": 12}
    for rows in (batch, {name: value[1:] for name, value in batch.items()}):
        expected = written(model, rows, None, **settings)
        assert not torch.equal(expected, written(model, rows, None, do_sample=False, max_new_tokens=12))
        assert torch.equal(written(model, rows, ours, **settings).sequences, expected)


def test_the_shortest_text_of_a_batch_is_that_of_its_prompts(model, tokenizer, batch):
    settings = {"min_new_tokens": 6, "sequence_bias": [[[1], 40.0]], "max_new_tokens": 12}
    ours = GuidedDecoding(arbitrary, tokenizer, num_candidates=3, max_step_tokens=2, boundary=lambda text: False)
    for rows in (batch, {name: value[1:] for name, value in batch.items()}):
        out = written(model, rows, ours, **settings)
        assert {sum(step.num_tokens for step in text) for text in out.steps} == {7}
        assert set(out.stop_reasons) == {"eos"}


def test_guided_decoding_refuses_what_the_others_do(model, tokenizer, batch):
    for settings, error, message in (
        ({"do_sample": False}, ValueError, "`do_sample` must be True for GuidedDecoding"),
        ({"num_beams": 2}, NotImplementedError, "`num_beams`"),
        ({"columns": {"a": [1, 2]}}, NotImplementedError, "`columns`"),
    ):
        with pytest.raises(error, match=message):
            written(model, batch, GuidedDecoding(arbitrary, tokenizer), **settings)
    with pytest.raises(ValueError, match="`num_candidates` must be an integer of at least 1, received 0"):
        GuidedDecoding(arbitrary, tokenizer, num_candidates=0)
    with pytest.raises(ValueError, match="`reward_funcs` must have a reward, received an empty list"):
        GuidedDecoding([], tokenizer)


def test_shards_are_refused(model, tokenizer, batch, monkeypatch):
    from alignext.decoding import rows

    several = SimpleNamespace(is_initialized=lambda: True, get_world_size=lambda: 2)
    monkeypatch.setattr(rows.torch, "distributed", several)
    monkeypatch.setattr(rows, "is_deepspeed_zero3_enabled", lambda: True)
    for cls in (QAlign, TransferQ, GuidedDecoding):
        ours = cls(arbitrary, tokenizer)
        arguments = {"logits_processor": [], "stopping_criteria": [], "generation_config": model.generation_config}
        with pytest.raises(NotImplementedError, match=f"{cls.__name__} does not support FSDP and ZeRO-3"):
            ours(model, batch["input_ids"], **arguments)
    with pytest.raises(NotImplementedError, match="SVDecodeLogitsProcessor does not support FSDP"):
        SVDecodeLogitsProcessor(model, 1.0, base=model)
    with pytest.raises(NotImplementedError, match="guided_generate does not support FSDP"):
        guided_generate(model, tokenizer, PROMPTS, arbitrary)
