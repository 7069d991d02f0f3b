# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""QAlign inside the stock `generate`: its law, its neutral setting, its cache, and what it refuses."""

import copy
import math
import zlib
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    T5Config,
    T5ForConditionalGeneration,
    TextIteratorStreamer,
    pipeline,
)

from alignext import mini
from alignext.decoding.qalign import QAlign

from . import toy
from .models import TINY


PROMPTS = ["One day, Lily went to the park.", "Tom was sad.", "There was a big dog in the small town. It was brown."]
# PEFT reads `is_gradient_checkpointing`, which transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


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
    return [zlib.crc32(text.encode()) / 2**32 for text in completions]


def constant(completions: list, **kwargs: object) -> list[float]:
    return [0.0] * len(completions)


def written(model, batch, qalign, seed: int = 0, **settings):
    torch.manual_seed(seed)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": 8} | settings
    return model.generate(**inputs, custom_generate=qalign, **settings)


# Its law


def counts(found: list[tuple[int, ...]]) -> torch.Tensor:
    places = {state: i for i, state in enumerate(toy.states())}
    return torch.bincount(torch.tensor([places[state] for state in found]), minlength=len(places)) / len(found)


@pytest.mark.slow
def test_distance_to_the_target_falls_to_the_noise_of_draws():
    """All completions of a real model are counted, chain by chain."""
    beta, chains = 0.7, 800
    rewards = torch.tensor([toy.reward(state) for state in toy.states()], dtype=torch.float64)
    target = (toy.log_probs() + rewards / beta).softmax(0)
    qalign = QAlign(toy.scored, toy.Tokenizer(), beta=beta, num_steps=40, num_chains=chains, index_sharing="none")
    torch.manual_seed(0)
    out = toy.model().generate(
        torch.tensor([toy.PROMPT]), custom_generate=qalign, do_sample=True, top_k=0, max_new_tokens=toy.LENGTH
    )
    gaps = [
        float((counts([tuple(chain[step].ids) for chain in out.chains]) - target).abs().sum() / 2)
        for step in (0, 8, 40)
    ]
    noise = float((counts([toy.states()[i] for i in target.multinomial(chains, True)]) - target).abs().sum() / 2)
    assert gaps[0] > 0.25 and gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1.35 * noise, (gaps, noise)


# The neutral setting


def test_no_steps_are_the_stock_method(tiny, batch):
    for settings in ({}, {"num_return_sequences": 2, "temperature": 0.8}, {"repetition_penalty": 1.3, "top_p": 0.9}):
        expected = written(tiny, batch, None, **settings)
        out = written(tiny, batch, QAlign(constant, SimpleTokenizer(), num_steps=0), **settings)
        assert torch.equal(out.sequences, expected)
        assert [len(chain) for chain in out.chains] == [1] * len(expected) and out.acceptance_rate.isnan().all()


class SimpleTokenizer:
    def decode(self, ids, **kwargs):
        return " ".join(map(str, ids))


def test_adapters_and_pipelines(tiny, tokenizer, batch):
    model = get_peft_model(copy.deepcopy(tiny), LoraConfig(task_type="CAUSAL_LM", r=2)).eval()
    expected = written(tiny, batch, None)
    assert torch.equal(written(model, batch, QAlign(constant, tokenizer, num_steps=0)).sequences, expected)
    assert written(model, batch, QAlign(arbitrary, tokenizer, beta=0.1, num_steps=2)).sequences.shape[0] == 3
    pipe = pipeline("text-generation", model=tiny, tokenizer=tokenizer)
    qalign = QAlign(arbitrary, tokenizer, beta=0.1, num_steps=2)
    told = pipe(PROMPTS[0], custom_generate=qalign, do_sample=True, max_new_tokens=8)
    assert told[0]["generated_text"].startswith(PROMPTS[0])


# The chain


def test_states_are_recorded_with_repeats(tiny, tokenizer, batch):
    seen = []
    qalign = QAlign(
        arbitrary, tokenizer, beta=0.05, num_steps=8, num_chains=2, on_step=lambda step, states: seen.append(step)
    )
    ends = set(range(0, 4096, 8))
    out = written(tiny, batch, qalign, eos_token_id=sorted(ends))
    assert seen == list(range(8))
    assert [len(chain) for chain in out.chains] == [9] * 6
    ended = set()
    for row, chain in enumerate(out.chains):
        for before, state in pairwise(chain):
            assert len(state.ids) <= 8 and not ends & set(state.ids[:-1])
            ended.add(state.ids[-1] in ends)
            if state.accepted:
                assert state.ids[: state.index] == before.ids[: state.index]
            else:
                assert (state.ids, state.text, state.reward) == (before.ids, before.text, before.reward)
            assert state.reward == arbitrary([state.text])[0]
            assert 0 <= state.index < len(before.ids)
        first = out.sequences[row // 2]
        if row % 2 == 0:  # the last state of the first chain
            length = batch["input_ids"].shape[1]
            assert first[length : length + len(chain[-1].ids)].tolist() == chain[-1].ids
    assert ended == {True, False}
    moved = [[state.accepted for state in chain[1:]] for chain in out.chains]
    assert 0 < sum(map(sum, moved)) < 48
    rates = torch.tensor(moved).float().view(3, -1).mean(1)
    assert torch.allclose(out.acceptance_rate, rates)
    assert out.split_rhat.shape == out.effective_sample_size.shape == (3,)
    assert out.reward_calls <= 9 * 6 and len(out.proposed_tokens) == 6
    assert out.decode_steps < sum(out.proposed_tokens)


def test_small_beta_rejects_every_decrease(tiny, tokenizer, batch):
    out = written(tiny, batch, QAlign(arbitrary, tokenizer, beta=1e-9, num_steps=6))
    for chain in out.chains:
        rewards = [state.reward for state in chain]
        assert rewards == sorted(rewards)


def test_a_constant_added_to_rewards_changes_nothing(tiny, tokenizer, batch):
    def shifted(completions, **kwargs):
        return [reward + 8.0 for reward in arbitrary(completions)]

    plain, moved = (written(tiny, batch, QAlign(f, tokenizer, num_steps=5)) for f in (arbitrary, shifted))
    assert torch.equal(plain.sequences, moved.sequences)
    assert [s.ids for chain in plain.chains for s in chain] == [s.ids for chain in moved.chains for s in chain]


class Seen(LogitsProcessor):
    """Notes ids and scores, behind all other processors of the user."""

    def __init__(self) -> None:
        self.calls = []

    def __call__(self, input_ids, scores):
        self.calls += [(ids.tolist(), row.clone()) for ids, row in zip(input_ids, scores, strict=True)]
        return scores


@pytest.mark.parametrize("name", list(TINY))
def test_proposals_come_from_the_law_of_the_first_draw(name, tokenizer, batch):
    """Scores of every proposed token are those that the model has for the ids alone, and processors see those ids."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(TINY[name]).eval()
    # Eager attention rounds masks of float64 to infinities.
    model = model if name == "gemma2" else model.double()
    if name == "mamba2":  # its states feel padding, in the stock method, too
        batch = {key: batch[key][2:, -8:] for key in ("input_ids", "attention_mask")}
    rows, seen = len(batch["input_ids"]), Seen()
    qalign = QAlign(arbitrary, tokenizer, beta=0.1, num_steps=3)
    written(model, batch, qalign, logits_processor=LogitsProcessorList([seen]), max_new_tokens=6)
    width = batch["input_ids"].shape[1]
    for ids, scores in seen.calls[rows * 6 :: 3]:
        row = batch["input_ids"].tolist().index(ids[:width])
        real = [token for token, kept in zip(ids, batch["attention_mask"][row], strict=False) if kept] + ids[width:]
        with torch.no_grad():
            expected = model(torch.tensor([real])).logits[0, -1].float()
        assert torch.allclose(scores, expected, atol=1e-4)
    assert len(seen.calls) > rows * 6


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_cached_chains_are_those_without_cache(name, tokenizer, batch):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(TINY[name]).double().eval()
    found = [
        written(model, batch, QAlign(arbitrary, tokenizer, beta=0.1, num_steps=6), use_cache=use_cache)
        for use_cache in (True, False)
    ]
    ids, others = ([state.ids for chain in out.chains for state in chain] for out in found)
    assert ids == others and len({tuple(state) for state in ids}) > 6


def test_a_prompt_of_one_token_and_short_completions(tiny, tokenizer):
    one = {"input_ids": torch.tensor([[1]]), "attention_mask": torch.tensor([[1]])}
    out = written(tiny, one, QAlign(arbitrary, tokenizer, beta=0.1, num_steps=4), max_new_tokens=1)
    assert all(state.index == 0 and len(state.ids) == 1 for state in out.chains[0])
    assert len(written(tiny, one, QAlign(arbitrary, tokenizer, num_steps=4)).chains[0]) == 5


def test_the_prompt_is_read_once(tiny, tokenizer, batch):
    read = []
    hook = tiny.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        written(tiny, batch, QAlign(arbitrary, tokenizer, num_steps=5))
    finally:
        hook.remove()
    width = batch["input_ids"].shape[1]
    assert read[0] == (3, width)
    assert max(tokens for _, tokens in read[1:]) <= 12  # the kept tokens and one of the prompt


def test_rows_share_the_place_where_proposals_begin(tiny, tokenizer, batch):
    def places(sharing):
        qalign = QAlign(constant, tokenizer, num_steps=4, num_chains=2, index_sharing=sharing)
        out = written(tiny, batch, qalign, min_new_tokens=8)
        return [[chain[step].index for chain in out.chains] for step in range(1, 5)]

    assert all(len(set(step)) == 1 for step in places("all"))
    assert all(step[:2] * 3 == step for step in places("across_prompts"))
    assert any(step[0] != step[1] for step in places("across_prompts"))
    assert any(step[:2] * 3 != step for step in places("none"))


def test_processors_that_count_tokens_hold_for_proposals(tiny, tokenizer, batch):
    qalign = QAlign(arbitrary, tokenizer, beta=0.1, num_steps=6)
    out = written(tiny, batch, qalign, min_new_tokens=6, eos_token_id=list(range(0, 4096, 2)))
    assert all(6 <= len(state.ids) <= 8 for chain in out.chains for state in chain)
    assert {len(state.ids) for chain in out.chains for state in chain} != {8}


def test_stop_strings_end_states(storyteller, tokenizer, batch):
    qalign = QAlign(arbitrary, tokenizer, beta=0.1, num_steps=5, stop_strings=["."])
    out = written(storyteller, batch, qalign, max_new_tokens=40)
    states = [state for chain in out.chains for state in chain]
    assert all("." not in tokenizer.decode(state.ids[:-1]) for state in states)
    assert sum("." in state.text for state in states) > len(states) // 2


def test_a_generator_draws_everything(tiny, tokenizer, batch):
    before = torch.get_rng_state()
    qalign = [QAlign(arbitrary, tokenizer, num_steps=3, generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    inputs = {**batch, "do_sample": True, "max_new_tokens": 6}
    found = [tiny.generate(**inputs, custom_generate=one).sequences for one in qalign]
    assert torch.equal(*found) and torch.equal(torch.get_rng_state(), before)


# What is selected


def test_selections(tiny, tokenizer, batch):
    def first(text):
        return text.split()[0] if text.split() else None

    width, found = batch["input_ids"].shape[1], {}
    for select in ("last", "all", "max_reward", "mbr", "majority"):
        qalign = QAlign(arbitrary, tokenizer, beta=0.2, num_steps=4, burn_in=1, select=select, extract=first)
        found[select] = written(tiny, batch, qalign)
    chains = found["all"].chains
    assert all(out.chains == chains for out in found.values())
    kept = [state.ids for chain in chains for state in chain[1:]]
    rows = found["all"].sequences
    assert len(rows) == 12 == len(found["all"].rewards)
    assert [row[width : width + len(ids)].tolist() for row, ids in zip(rows, kept, strict=True)] == kept
    assert rows[:4, :width].eq(batch["input_ids"][0]).all() and rows[8:, :width].eq(batch["input_ids"][2]).all()
    best = [max(state.reward for state in chain[2:]) for chain in chains]
    assert found["max_reward"].rewards.tolist() == best
    assert found["last"].rewards.tolist() == [chain[-1].reward for chain in chains]
    for select in ("mbr", "majority"):
        for value, chain in zip(found[select].rewards.tolist(), chains, strict=True):
            assert value in [state.reward for state in chain[1:]]


def test_best_of_n_and_soft_best_of_n(tiny, tokenizer, batch):
    settings = {"sampler": "independent", "num_steps": 4}
    best = written(tiny, batch, QAlign(arbitrary, tokenizer, select="max_reward", **settings))
    assert all(state.index == 0 and state.accepted for chain in best.chains for state in chain)
    assert best.rewards.tolist() == [max(state.reward for state in chain) for chain in best.chains]
    cold = written(tiny, batch, QAlign(arbitrary, tokenizer, select="soft", beta=1e-6, **settings))
    assert torch.equal(cold.sequences, best.sequences)
    warm = [
        written(tiny, batch, QAlign(arbitrary, tokenizer, select="soft", beta=1e6, **settings), seed)
        for seed in range(2)
    ]
    assert any(not torch.equal(out.rewards, best.rewards) for out in warm)


def test_rewards_get_prompts_and_columns(tiny, tokenizer, batch):
    seen = []

    def reward(prompts, completions, completion_ids, answer):
        seen.append((prompts, completions, answer))
        return [float(len(ids)) for ids in completion_ids]

    turns = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    answers = {"answer": [1, 2, 3]}
    qalign = QAlign(reward, tokenizer, num_steps=1)
    written(tiny, batch, qalign, prompts=turns, columns=answers, num_return_sequences=2)
    prompts, completions, answer = seen[0]
    assert prompts == [turn for turn in turns for _ in range(2)] and answer == [1, 1, 2, 2, 3, 3]
    assert completions[0][0]["role"] == "assistant"
    with pytest.raises(ValueError, match=r"`prompts` must have one entry for each of 3 rows, received 2"):
        written(tiny, batch, qalign, prompts=turns[:2], columns=answers)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0}, "`beta` must be positive and finite, received 0"),
        ({"beta": math.inf}, "received inf"),
        ({"num_steps": -1}, "`num_steps` must be an integer of at least 0"),
        ({"num_chains": 0}, "`num_chains` must be an integer of at least 1"),
        ({"burn_in": 65}, "`burn_in` must leave a state of 65, received 65"),
        ({"select": "best"}, "`select` must be one of last"),
        ({"select": "majority"}, "`extract` must be given"),
        ({"select": "soft"}, "`sampler='independent'`"),
        ({"sampler": "gibbs"}, "`sampler` must be one of metropolis"),
        ({"index_sharing": "some"}, "`index_sharing` must be one of across_prompts"),
        ({"reward_clip": (1, -1)}, "`reward_clip` must be"),
        ({"reward_funcs": 3}, "`reward_funcs` must be functions"),
        ({"processing_class": "tok"}, "`processing_class` must be the tokenizer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        QAlign(**{"reward_funcs": constant, "processing_class": SimpleTokenizer()} | arguments)


def test_wrong_rewards_are_named(tiny, tokenizer, batch):
    for value, message in (
        ([math.inf] * 3, "must return finite numbers, received inf for prompt 0, completion"),
        ([0.0, math.nan, 0.0], "NaN for row 1"),
        ([0.0, None, 0.0], "received None for row 1"),
        ([0.0], "given 3 texts"),
    ):
        qalign = QAlign(lambda completions, value=value, **kwargs: value, tokenizer, num_steps=1)
        with pytest.raises(ValueError, match=message):
            written(tiny, batch, qalign)


def test_what_generate_is_asked_for_and_cannot_have(tiny, tokenizer, batch):
    qalign = QAlign(constant, tokenizer, num_steps=1)
    for settings, error, message in (
        ({"do_sample": False}, ValueError, "`do_sample` must be True"),
        ({"num_beams": 2}, NotImplementedError, "`num_beams`, received 2"),
        ({"prompt_lookup_num_tokens": 2}, NotImplementedError, "prompt_lookup_num_tokens"),
        ({"max_time": 1.0}, ValueError, "`max_time`"),
        ({"assistant_model": tiny}, NotImplementedError, "`assistant_model`"),
        ({"synced_gpus": True}, NotImplementedError, "`synced_gpus`"),
        ({"stop_strings": ["."], "tokenizer": tokenizer}, ValueError, "stop strings"),
    ):
        with pytest.raises(error, match=message):
            written(tiny, batch, qalign, **settings)
    one = {key: batch[key][1:2] for key in ("input_ids", "attention_mask")}
    with pytest.raises(NotImplementedError, match="`streamer`"):
        written(tiny, one, qalign, streamer=TextIteratorStreamer(tokenizer))
    embeds = tiny.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(NotImplementedError, match="input ids alone, received inputs_embeds"):
        tiny.generate(inputs_embeds=embeds, custom_generate=qalign, do_sample=True, max_new_tokens=4)
    t5 = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(NotImplementedError, match="encoder-decoders"):
        T5ForConditionalGeneration(t5).generate(
            torch.tensor([[3]]), custom_generate=qalign, do_sample=True, max_new_tokens=4
        )
    virtual = get_peft_model(
        AutoModelForCausalLM.from_config(TINY["llama"]),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    )
    with pytest.raises(NotImplementedError, match="prompt-learning"):
        written(virtual, batch, qalign)
