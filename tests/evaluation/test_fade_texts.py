# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""FADE of language models: identities, what checkpoints bring with them, adapters, and refusals."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from alignext import mini
from alignext.evaluation import FADECallback, fade_score
from alignext.evaluation.fade import Fade


# PEFT reads `is_gradient_checkpointing`, which transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PROMPTS = ["Once upon a time, there was a dog.", "Lily"]
FEW = {"num_samples": 6, "max_new_tokens": 6, "progress": False}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(mini.path("lm"))


def tiny(seed: int = 0, **config: Any) -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=4096, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=64, initializer_range=0.5, bos_token_id=1, eos_token_id=1, **config,
            )
        )  # fmt: skip


P, Q = tiny(0), tiny(1)


def test_a_copy_is_at_distance_zero_also_beside_padding(tokenizer):
    found = fade_score(copy.deepcopy(P), P, PROMPTS, tokenizer, **FEW)
    assert found.total == (0.0, 0.0, [0.0, 0.0]) and found.per_token == 0


def test_exchanging_the_models_exchanges_the_directions(tokenizer):
    one, other = (fade_score(*pair, PROMPTS, tokenizer, **FEW) for pair in ((P, Q), (Q, P)))
    assert one.forward == other.reverse and one.reverse == other.forward and one.forward != one.reverse
    assert one.num_tokens == other.num_tokens[::-1]
    assert one.total.mean == pytest.approx(one.forward.mean + one.reverse.mean)
    assert one.per_token == pytest.approx(
        12 * (one.forward.mean / one.num_tokens[0] + one.reverse.mean / one.num_tokens[1])
    )


def test_the_estimators_agree_and_the_first_is_sharper(tokenizer):
    many = FEW | {"num_samples": 96, "batch_size": 192, "max_new_tokens": 4}
    near = copy.deepcopy(P)
    with torch.no_grad():
        for a, b in zip(near.parameters(), Q.parameters(), strict=True):
            a.lerp_(b, 0.15)
    exact, drawn = (
        fade_score(near, P, PROMPTS, tokenizer, estimator=e, **many).forward for e in ("rao_blackwell", "mc")
    )
    assert abs(exact.mean - drawn.mean) < 3 * math.hypot(exact.stderr, drawn.stderr)
    assert exact.stderr < drawn.stderr / 1.5


def test_texts_end_with_the_first_end_and_that_counts(tokenizer):
    """The end of a text is its padding, too: what stands after the first is not counted."""
    ending = tiny(0)
    with torch.no_grad():
        ending.lm_head.weight[1] = 0  # the logit of the end-of-text token is 0 ...
        ending.lm_head.weight[2:] *= 0.0
        ending.lm_head.weight[0] *= 0.0  # ... and so are all others: every token is as likely
    fade = Fade(P, PROMPTS, tokenizer, **FEW | {"max_new_tokens": 40, "num_samples": 48, "batch_size": 96})
    ending.generation_config.eos_token_id = list(range(1024))  # a quarter of all tokens
    samples = fade.how.draw(fade.how.law(ending))
    lengths = torch.tensor([len(text) for text in samples]).double()
    assert abs(lengths.mean() - 4) < 4 * (12 / len(lengths)) ** 0.5  # geometric with mean 4, variance 12
    assert all(text[-1] < 1024 and min(text[:-1], default=4096) >= 1024 for text in samples if len(text) < 40)


def test_settings_of_the_checkpoint_do_not_warp_the_samples(tokenizer):
    plain = fade_score(Q, P, PROMPTS, tokenizer, **FEW)
    warped = copy.deepcopy(Q)
    settings = GenerationConfig(
        do_sample=True, top_k=2, temperature=0.3, repetition_penalty=3.0, min_p=0.5, eos_token_id=1
    )
    warped.generation_config = settings
    assert fade_score(warped, P, PROMPTS, tokenizer, **FEW).total == plain.total
    assert warped.generation_config is settings


def test_nothing_stays_on_models_after_an_error(tokenizer, monkeypatch):
    model = copy.deepcopy(Q).train()
    model.model.layers[0].eval()
    modes = [m.training for m in model.modules()]
    config, state = model.generation_config, torch.random.get_rng_state()
    monkeypatch.setattr(LlamaForCausalLM, "_sample", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fade_score(model, P, PROMPTS, tokenizer, **FEW)
    with pytest.raises(ZeroDivisionError):
        fade_score(P, model, PROMPTS, tokenizer, **FEW)
    assert [m.training for m in model.modules()] == modes and model.generation_config is config
    assert torch.equal(torch.random.get_rng_state(), state)


def adapted() -> Any:
    model = get_peft_model(copy.deepcopy(P), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False))
    return model


def test_the_reference_may_be_the_base_or_another_adapter(tokenizer):
    model = adapted()
    flags = [p.requires_grad for p in model.parameters()]
    base = fade_score(model, "base", PROMPTS, tokenizer, **FEW)
    assert base.total == fade_score(model, P, PROMPTS, tokenizer, **FEW).total and base.total.mean > 0
    other = fade_score(model, "other", PROMPTS, tokenizer, **FEW)
    assert other.total.mean > 0 and other.total != base.total
    assert model.active_adapter == "default" and [p.requires_grad for p in model.parameters()] == flags


def test_several_active_adapters_are_all_scored_and_stay(tokenizer):
    model = adapted()
    model.base_model.set_adapter(["default", "other"])
    merged = copy.deepcopy(model).merge_and_unload(adapter_names=["default", "other"])
    base = fade_score(model, "base", PROMPTS, tokenizer, **FEW)
    assert model.active_adapters == ["default", "other"]
    wanted = fade_score(merged, P, PROMPTS, tokenizer, **FEW).total
    assert base.total.mean == pytest.approx(wanted.mean, rel=1e-3)
    other = fade_score(model, "other", PROMPTS, tokenizer, **FEW)
    model.base_model.set_adapter("other")
    alone = copy.deepcopy(model).merge_and_unload(adapter_names=["other"])
    assert other.total.mean == pytest.approx(fade_score(merged, alone, PROMPTS, tokenizer, **FEW).total.mean, rel=1e-3)


def test_rows_of_a_batch_do_not_see_each_other(tokenizer):
    """The same texts in batches of another size: the padding differs, the scores do not."""
    fade = Fade(P, PROMPTS, tokenizer, **FEW)
    p, q = fade.how.law(P), fade.how.law(Q)
    samples = fade.how.draw(p)
    whole = fade.how.terms(p, samples, q)
    fade.how.batch_size = 1
    torch.testing.assert_close(fade.how.terms(p, samples, q), whole, rtol=1e-5, atol=1e-6)


def test_another_way_of_sampling_is_another_quantity(tokenizer):
    with pytest.warns(UserWarning, match="no divergence"):
        found = fade_score(Q, P, PROMPTS, tokenizer, top_k=5, **FEW)
    assert found.settings["top_k"] == 5 and "top_k 5" in str(found)
    assert found.total != fade_score(Q, P, PROMPTS, tokenizer, **FEW).total


def test_what_a_model_excludes_is_infinite_and_named(tokenizer):
    closed = copy.deepcopy(Q)
    closed.lm_head = torch.nn.Linear(16, 4096, bias=True)
    closed.lm_head.bias.data[:2048] = -math.inf
    found = fade_score(closed, P, PROMPTS, tokenizer, **FEW)
    assert found.forward.mean == math.inf and found.reverse.mean < math.inf
    assert found.infinite[0][0] == "forward" and len(found.infinite) == 12 and "Infinite" in str(found)


def test_the_table_has_a_row_per_baseline_and_asks_for_a_yardstick(tokenizer):
    alone = fade_score(Q, P, PROMPTS, tokenizer, **FEW)
    found = fade_score(Q, P, PROMPTS, tokenizer, baselines={"seed 2": tiny(2)}, **FEW)
    assert found.total == alone.total and found.baselines["seed 2"].total.mean > 0
    assert "No yardstick" in str(alone) and "No yardstick" not in str(found) and "seed 2" in str(found)
    assert found.baselines["seed 2"].total == fade_score(tiny(2), P, PROMPTS, tokenizer, **FEW).total


def encoder_decoder() -> Any:
    config = T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"model": P}, ValueError, "is `reference`"),
        ({"model": LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
          num_hidden_layers=1, num_attention_heads=1))}, ValueError, "8 tokens in its vocabulary"),
        ({"model": encoder_decoder()}, ValueError, "encoder-decoder"),
        ({"reference": "base"}, ValueError, "`reference` must be a model, 'base'"),
        ({"prompts": []}, ValueError, "at least one prompt"),
        ({"prompts": [{"prompt": "Tom"}]}, ValueError, r"row with the columns \['prompt'\]"),
        ({"model": "a/model"}, ValueError, "`model` must be a model that is loaded, received the name 'a/model'"),
        ({"reference": Path("folder")}, ValueError, "`reference` must be a model that is loaded"),
        ({"baselines": [P]}, ValueError, "`baselines` must be a dictionary from names"),
        ({"processing_class": None}, ValueError, "`processing_class` must be the tokenizer"),
        ({"max_new_tokens": 80}, ValueError, "context of LlamaForCausalLM is 64"),
        ({"temperature": 0}, ValueError, "`temperature` must be above 0"),
        ({"estimator": "gap"}, ValueError, "`estimator` must be one of rao_blackwell, mc"),
        ({"num_samples": 0}, ValueError, "must be an integer of at least 1"),
        ({"num_timesteps": 5}, TypeError, "`num_timesteps` is no setting for texts"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_written(tokenizer, monkeypatch, change, kind, message):
    monkeypatch.setattr(LlamaForCausalLM, "generate", lambda *args, **kwargs: pytest.fail("wrote a text"))
    given = {"model": Q, "reference": P, "prompts": PROMPTS, "processing_class": tokenizer, **FEW} | change
    with pytest.raises(kind, match=message):
        fade_score(**given)


def test_nan_is_an_error_and_one_sample_a_warning(tokenizer):
    broken = copy.deepcopy(Q)
    broken.lm_head.weight.data[0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        fade_score(broken, P, PROMPTS, tokenizer, **FEW)
    with pytest.warns(UserWarning, match="no standard error"):
        assert math.isnan(fade_score(Q, P, PROMPTS, tokenizer, **FEW | {"num_samples": 1}).total.stderr)


def train(tokenizer: Any, folder: Any, watched: bool) -> tuple[list[dict], torch.Tensor]:
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(P), LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1))
    ids = tokenizer(PROMPTS[0])["input_ids"]
    trainer = Trainer(
        model,
        TrainingArguments(
            folder, max_steps=4, learning_rate=0.1, per_device_train_batch_size=1, report_to="none", use_cpu=True,
            logging_steps=1, disable_tqdm=True, save_strategy="no",
        ),
        train_dataset=[{"input_ids": ids, "labels": ids}] * 8,
        processing_class=tokenizer,
    )  # fmt: skip
    if watched:
        trainer.add_callback(FADECallback(trainer, "base", PROMPTS, every=2, **FEW))
    trainer.train()
    weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    return trainer.state.log_history, weights


def test_a_training_is_watched_and_does_not_notice(tokenizer, tmp_path):
    history, weights = train(tokenizer, tmp_path / "a", watched=True)
    logged = [(row["step"], row["fade/forward"], row["fade/reverse"]) for row in history if "fade/forward" in row]
    assert [step for step, *_ in logged] == [2, 4]
    assert 0 < logged[0][1] < logged[1][1] and 0 < logged[0][2] < logged[1][2]
    plain, same = train(tokenizer, tmp_path / "b", watched=False)
    assert torch.equal(same, weights)
    # The trainer's own log of a step is there, too.
    losses, of_plain = ([(row["step"], row["loss"]) for row in rows if "loss" in row] for rows in (history, plain))
    assert losses == of_plain and len(losses) == 4
    with pytest.raises(ValueError, match="`every` must be an integer of at least 1"):
        FADECallback(None, "base", PROMPTS, every=0)  # type: ignore[arg-type]
