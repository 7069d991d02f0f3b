# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Transfer Q* inside the stock `generate`: its neutral settings, its values, its cache, and what it refuses."""

import copy
import math
import zlib

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    T5Config,
    T5ForConditionalGeneration,
    TextIteratorStreamer,
)

from alignext import mini
from alignext.decoding.transfer_q import TransferQ
from alignext.functional.transfer_q import candidate_values

from . import toy
from .models import TINY


PROMPTS = ["One day, Lily went to the park.", "Tom was sad.", "There was a big dog in the small town. It was brown."]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(mini.path("lm"), padding_side="left")


@pytest.fixture(scope="module")
def storyteller():
    return AutoModelForCausalLM.from_pretrained(mini.path("lm")).eval()


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(TINY["llama"]).eval()


@pytest.fixture(scope="module")
def batch(tokenizer):
    return tokenizer(PROMPTS, return_tensors="pt", padding=True)


def arbitrary(completions: list, **kwargs: object) -> list[float]:
    return [zlib.crc32(text.encode()) / 2**31 for text in completions]


def constant(completions: list, **kwargs: object) -> list[float]:
    return [3.0] * len(completions)


def written(model, batch, transfer_q, seed: int = 0, **settings):
    torch.manual_seed(seed)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    settings = {"do_sample": False, "max_new_tokens": 8} | settings
    return model.generate(**inputs, custom_generate=transfer_q, **settings)


# The neutral settings


@pytest.mark.parametrize("name", list(TINY))
def test_neutral_settings_are_greedy_search(name, tokenizer, batch):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(TINY[name]).eval()
    expected = written(model, batch, None)
    for settings in ({"alpha": math.inf}, {"k": 1, "commit_tokens": 3}):
        found = written(model, batch, TransferQ(arbitrary, tokenizer, **settings))
        assert torch.equal(found.sequences, expected)
        assert found.rollout_tokens == found.reward_calls == 0


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2}])
def test_all_candidates_without_values_are_sampling(tiny, tokenizer, batch, settings):
    settings = {"do_sample": True, "top_k": 0} | settings
    off = TransferQ(arbitrary, tokenizer, k=4096, alpha=math.inf)
    found = written(tiny, batch, off, **settings)
    assert torch.equal(found.sequences, written(tiny, batch, None, **settings))


@pytest.mark.parametrize("value", ["mean", "soft", "max"])
def test_a_constant_reward_is_greedy_search(tiny, tokenizer, batch, value):
    still = TransferQ(constant, tokenizer, k=3, value=value, num_rollouts=2, rollout_tokens=3)
    found = written(tiny, batch, still)
    assert torch.equal(found.sequences, written(tiny, batch, None))
    assert found.reward_calls > 20 and found.rollout_tokens > 20


# What it does


def plain_loop(model, ids, transfer_q, tokens):
    """One prompt, everything read anew, and greedy rollouts by the stock `generate`."""
    prompt, k, n = ids.shape[1], transfer_q.k, transfer_q.rollout_tokens
    for _ in range(tokens):
        with torch.no_grad():
            top, found = model(ids).logits[0, -1].float().topk(k)
        rewards = []
        for token in found:
            forked = torch.cat([ids, token.view(1, 1)], 1)
            room = min(n, prompt + tokens - forked.shape[1])
            if token != 1 and room > 0:
                forked = model.generate(forked, attention_mask=torch.ones_like(forked), max_new_tokens=room)
            text = transfer_q.processing_class.decode(forked[0], skip_special_tokens=True)
            start = transfer_q.processing_class.decode(ids[0, :prompt], skip_special_tokens=True)
            rewards.append(arbitrary([text[len(start) :]])[0])
        best = (top.double() + torch.tensor(rewards) / transfer_q.alpha).argmax()
        ids = torch.cat([ids, found[best].view(1, 1)], 1)
        if found[best] == 1:
            break
    return ids[0, prompt:].tolist()


@pytest.mark.parametrize("name", list(TINY))
def test_tokens_are_those_of_the_plain_loop(name, tokenizer, batch):
    """With caches that fork in place, and with those that cannot be cut; batched, and padded on the left."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(TINY[name]).eval()
    # Eager attention rounds masks of float64 to infinities.
    model = model if name == "gemma2" else model.double()
    if name == "mamba2":  # its states feel padding, in the stock method, too
        batch = {key: batch[key][2:, -8:] for key in ("input_ids", "attention_mask")}
    transfer_q = TransferQ(arbitrary, tokenizer, k=3, alpha=0.05, rollout_tokens=3)
    together = written(model, batch, transfer_q, max_new_tokens=5)
    for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        expected = plain_loop(model, ids[mask.bool()][None], transfer_q, 5)
        found = together.sequences[row, batch["input_ids"].shape[1] :].tolist()
        assert found[: len(expected)] == expected
    assert not torch.equal(together.sequences, written(model, batch, None, max_new_tokens=5))


def test_several_prompts_are_single_runs(tiny, tokenizer, batch):
    transfer_q = TransferQ(arbitrary, tokenizer, k=4, alpha=0.2, rollout_tokens=4, commit_tokens=2)
    together = written(tiny, batch, transfer_q)
    for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        one = {"input_ids": ids[mask.bool()][None], "attention_mask": mask[mask.bool()][None]}
        alone = written(tiny, one, transfer_q)
        width = one["input_ids"].shape[1]
        assert torch.equal(alone.sequences[0, width:], together.sequences[row, batch["input_ids"].shape[1] :])
        for a, b in zip(alone.values, together.values, strict=True):
            assert torch.allclose(a[0], b[row], equal_nan=True)


@pytest.mark.parametrize("name", ["llama", "mistral"])
@pytest.mark.parametrize("m", [1, 3])
def test_rows_that_do_not_look_wait_for_no_other(name, m, tokenizer, batch):
    """A gate that some rows pass and others not: a row is what it is alone, token for token."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(TINY[name]).double().eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    transfer_q = TransferQ(arbitrary, tokenizer, k=4, alpha=0.1, rollout_tokens=4, commit_tokens=m, entropy_gate=2.3)
    together = written(model, batch, transfer_q, max_new_tokens=12)
    looked = torch.stack([values.isfinite().any(1) for values in together.values])
    assert (looked.any(1) & ~looked.all(1)).any()
    plain = written(model, batch, None, max_new_tokens=12)
    tokens, rolled = together.sequences[:, batch["input_ids"].shape[1] :], 0
    assert not torch.equal(together.sequences, plain)
    for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        one = {"input_ids": ids[mask.bool()][None], "attention_mask": mask[mask.bool()][None]}
        alone = written(model, one, transfer_q, max_new_tokens=12)
        new = alone.sequences[0, one["input_ids"].shape[1] :]
        assert torch.equal(new, tokens[row, : len(new)])
        rolled += alone.rollout_tokens
        own = torch.cat([values[0] for values in alone.values])
        found = torch.cat([values[row] for values in together.values])
        torch.testing.assert_close(found[found.isfinite()], own[own.isfinite()])
    assert together.rollout_tokens == rolled


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"commit_tokens": 3},
        {"commit_tokens": 4, "num_rollouts": 2},
        {"rollout_tokens": 0},
        {"value": "soft", "num_rollouts": 3},
        {"min_p": 0.2, "entropy_gate": 2.0},
    ],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_cached_is_uncached(tokenizer, batch, settings):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(TINY["llama"]).double().eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    transfer_q = TransferQ(arbitrary, tokenizer, **{"k": 3, "alpha": 0.1, "rollout_tokens": 3} | settings)
    for do_sample in (False, True):
        found, again = (written(model, batch, transfer_q, use_cache=c, do_sample=do_sample) for c in (True, False))
        assert torch.equal(found.sequences, again.sequences)
        for a, b in zip(found.values, again.values, strict=True):
            assert torch.allclose(a, b, equal_nan=True)


def test_reward_rises_as_alpha_falls(storyteller, tokenizer, batch):
    def length(completions, **kwargs):
        return [0.02 * len(text) for text in completions]

    sums = []
    for alpha in (math.inf, 0.05, 0.005):
        out = written(storyteller, batch, TransferQ(length, tokenizer, k=6, alpha=alpha, rollout_tokens=4))
        texts = tokenizer.batch_decode(out.sequences, skip_special_tokens=True)
        sums.append(sum(length(texts)))
    assert sums[0] < sums[1] < sums[2]


@pytest.mark.slow
def test_soft_values_by_many_rollouts_are_the_tilt_of_a_toy():
    alpha, n = 0.9, 3000
    transfer_q = TransferQ(
        toy.scored,
        toy.Tokenizer(),
        k=toy.VOCABULARY,
        alpha=alpha,
        value="soft",
        num_rollouts=n,
        rollout_tokens=toy.LENGTH,
    )
    out = toy.model().generate(
        torch.tensor([toy.PROMPT]), custom_generate=transfer_q, do_sample=True, top_k=0, max_new_tokens=toy.LENGTH
    )
    rewards = torch.tensor([toy.reward(state) for state in toy.states()], dtype=torch.float64)
    target = (toy.log_probs() + rewards / alpha).softmax(0)
    first = torch.stack([target[[s[0] == token for s in toy.states()]].sum() for token in range(toy.VOCABULARY)])
    scores = toy.next_log_probs(())[out.candidates[0][0]] + out.values[0][0] / alpha
    law = torch.zeros(toy.VOCABULARY, dtype=torch.float64).scatter(0, out.candidates[0][0], scores.softmax(0))
    assert (law - first).abs().max() < 0.03
    # without values the law is far from it
    assert (toy.next_log_probs(()).exp() - first).abs().max() > 0.1


def test_an_ended_candidate_has_no_rollout_and_pads_no_text():
    seen = []

    def noted(completion_ids, completions, **kwargs):
        seen.extend(zip(map(tuple, completion_ids), completions, strict=True))
        return toy.scored(completion_ids)

    transfer_q = TransferQ(noted, toy.Tokenizer(), k=5, alpha=0.5, rollout_tokens=4)
    out = toy.model().generate(
        torch.tensor([toy.PROMPT, toy.PROMPT[::-1]]), custom_generate=transfer_q, do_sample=False, max_new_tokens=4
    )
    assert ((0,), "") in seen  # the end of sequence as a candidate, scored as it is
    assert all(0 not in ids[:-1] and len(ids) <= 4 for ids, _ in seen)
    assert all(text == "".join(map(str, ids)).rstrip("0") for ids, text in seen)
    assert len(seen) == out.reward_calls


def test_indirect_transfer_is_that_of_both_rewards(tiny, tokenizer, batch):
    def other(completions, **kwargs):
        return [float(text.count("e")) for text in completions]

    found = {}
    for name, shift in (("plain", 0.0), ("shifted", -4.0)):
        target, baseline = (
            lambda completions, f=f, c=shift, **kwargs: [r + c for r in f(completions)] for f in (arbitrary, other)
        )
        found[name] = written(
            tiny, batch,
            TransferQ(
                target, tokenizer, k=3, num_rollouts=3, rollout_tokens=3, alpha=0.3, baseline_reward_funcs=baseline
            ),
        )  # fmt: skip
    assert torch.equal(found["plain"].sequences, found["shifted"].sequences)
    for a, b in zip(found["plain"].values, found["shifted"].values, strict=True):
        assert torch.allclose(a - 4, b, equal_nan=True)
    direct = TransferQ(arbitrary, tokenizer, k=3, num_rollouts=3, rollout_tokens=3, alpha=0.3)
    direct = written(tiny, batch, direct)
    assert not torch.allclose(direct.values[0], found["plain"].values[0])
    q = candidate_values(torch.tensor([[1.0, 2.0]]), baseline_rewards=torch.tensor([[0.0, 0.0]]))
    assert float(q) == pytest.approx((math.e + 2 * math.e**2) / (math.e + math.e**2))


def test_what_is_looked_at(storyteller, tiny, tokenizer, batch):
    some = TransferQ(arbitrary, tokenizer, k=5, min_p=0.3, rollout_tokens=2)
    out = written(storyteller, batch, some, max_new_tokens=3)
    assert all(shape == (3, 5) for shape in (t.shape for t in (*out.candidates, *out.values)))
    assert any((step == -1).any() for step in out.candidates)
    gated = written(tiny, batch, TransferQ(arbitrary, tokenizer, k=5, entropy_gate=100.0, rollout_tokens=2))
    assert gated.reward_calls == 0 and torch.equal(gated.sequences, written(tiny, batch, None))


def test_fewer_forward_passes_with_committed_tokens(tiny, tokenizer, batch):
    settings = {"k": 3, "rollout_tokens": 3, "alpha": 0.5}
    one, four = (written(tiny, batch, TransferQ(arbitrary, tokenizer, commit_tokens=m, **settings)) for m in (1, 4))
    # the prompt; rollouts of 3 tokens whose last is not read, but for the texts' end
    assert one.passes == 1 + 5 * 3 + 2 + 1 + 0 and four.passes == 1 + 3 + 1 + 3


def test_randomness_of_rollouts_is_their_own(tiny, tokenizer, batch):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    soft = TransferQ(arbitrary, tokenizer, k=3, value="soft", num_rollouts=2, rollout_tokens=2, seed=5)
    inputs = {**batch, "max_new_tokens": 4}
    first = tiny.generate(**inputs, custom_generate=soft)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(tiny.generate(**inputs, custom_generate=soft).sequences, first.sequences)


def test_another_model_rolls_out(tiny, tokenizer, batch):
    same = copy.deepcopy(tiny)
    torch.manual_seed(1)
    other = AutoModelForCausalLM.from_config(tiny.config).eval()
    settings = {"k": 3, "rollout_tokens": 3, "alpha": 0.2}
    for m in (1, 3):
        own, twin, foreign = (
            written(tiny, batch, TransferQ(arbitrary, tokenizer, commit_tokens=m, rollout_model=r, **settings))
            for r in (None, same, other)
        )
        assert torch.equal(own.sequences, twin.sequences)
        assert not torch.equal(own.values[0], foreign.values[0])


def test_streamer_and_stop_strings(storyteller, tokenizer):
    one = tokenizer(PROMPTS[0], return_tensors="pt")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=5)
    stopped = TransferQ(arbitrary, tokenizer, k=2, rollout_tokens=2, alpha=0.5, stop_strings=["."], streamer=streamer)
    out = written(storyteller, one, stopped, max_new_tokens=40)
    text = tokenizer.decode(out.sequences[0, one["input_ids"].shape[1] :])
    assert "".join(streamer).strip() == text.strip()
    assert text.count(".") == 1 and text.rstrip().endswith(".")


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 0}, r"`alpha` must be positive, received 0. `float\('inf'\)` turns"),
        ({"alpha": math.nan}, "`alpha` must be positive"),
        ({"k": 0}, "`k` must be an integer of at least 1, received 0"),
        ({"rollout_tokens": -1}, "`rollout_tokens` must be an integer of at least 0, received -1"),
        ({"num_rollouts": 0}, "`num_rollouts` must be an integer of at least 1"),
        ({"commit_tokens": 22}, r"`commit_tokens` must be at most `rollout_tokens` \+ 1 = 21, received 22"),
        ({"min_p": 2}, r"`min_p` must be in \[0, 1\]"),
        ({"value": "best"}, "`value` must be one of mean, soft, max"),
        ({"baseline_reward_funcs": constant}, "`num_rollouts` of at least 2, .* received 'mean' with 1"),
        ({"baseline_reward_funcs": constant, "value": "max"}, "received 'max'"),
        ({"baseline_reward_funcs": constant, "value": "soft", "beta": 2.0}, "`beta` must be `alpha`"),
        ({"beta": 0}, "`beta` must be positive"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TransferQ(**{"reward_funcs": constant, "processing_class": toy.Tokenizer()} | arguments)


def test_what_generate_is_asked_for_and_cannot_have(tiny, tokenizer, batch):
    small = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    for arguments, settings, error, message in (
        ({}, {"num_beams": 2}, NotImplementedError, "`num_beams`, received 2"),
        ({}, {"assistant_model": tiny}, NotImplementedError, "`assistant_model`"),
        ({"k": 5000}, {}, ValueError, "`k` must be at most 4096"),
        ({"rollout_model": small}, {}, ValueError, "received 64 for 4096 tokens"),
        ({"streamer": TextIteratorStreamer(tokenizer)}, {}, ValueError, "more than one prompt, received 3"),
        (
            {"reward_funcs": lambda completions, **kwargs: [math.inf] * len(completions)},
            {},
            ValueError,
            "must return finite numbers, received inf for prompt 0",
        ),
    ):
        transfer_q = TransferQ(**{"reward_funcs": constant, "processing_class": tokenizer} | arguments)
        with pytest.raises(error, match=message):
            written(tiny, batch, transfer_q, **settings)
    one = {key: batch[key][1:2] for key in ("input_ids", "attention_mask")}
    with pytest.raises(NotImplementedError, match="pass it to TransferQ"):
        written(tiny, one, TransferQ(constant, tokenizer), streamer=TextIteratorStreamer(tokenizer))
    t5 = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(NotImplementedError, match="encoder-decoders"):
        T5ForConditionalGeneration(t5).generate(
            torch.tensor([[3]]), custom_generate=TransferQ(constant, tokenizer), max_new_tokens=4
        )
