# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Guided decoding against `generate`, against itself without the carried cache, and on rewards that can be checked."""

import math
import zlib
from collections.abc import Iterator

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LogitsProcessor,
    LogitsProcessorList,
    T5Config,
    T5ForConditionalGeneration,
)

from alignext import mini
from alignext.decoding import steps as guided_steps
from alignext.decoding.guided import guided_generate
from alignext.heads.auto import AutoModelForCausalLMWithObjectiveHeads
from alignext.rewards.process import ProcessReward

from .models import IDS, TINY, WIDTH


PROMPTS = ["One day, Lily went to the park.", "Tom was sad.", "There was a big dog in the small town. It was brown."]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(mini.path("lm"))


@pytest.fixture(scope="module")
def story_model():
    return AutoModelForCausalLM.from_pretrained(mini.path("lm")).eval()


# Keys and values, and a recurrent state; the others are kinds of the first.
KINDS = [name if name in ("llama", "mamba2") else pytest.param(name, marks=pytest.mark.slow) for name in TINY]


@pytest.fixture(scope="module", params=KINDS)
def tiny_model(request):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(TINY[request.param]).eval()


def constant(completions: list, **kwargs: object) -> list[float]:
    return [0.0] * len(completions)


def arbitrary(completions: list, **kwargs: object) -> list[float]:
    """Seldom ties and prefers no place in the list."""
    return [zlib.crc32(text.encode()) / 2**32 for text in completions]


def short(completions: list, **kwargs: object) -> list[float]:
    return [-float(len(text)) for text in completions]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Forced(LogitsProcessor):
    """Makes rows of at least `length` tokens go on with `token`."""

    def __init__(self, length: int, token: int) -> None:
        self.length, self.token = length, token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] >= self.length:
            scores = torch.full_like(scores, -math.inf)
            scores[:, self.token] = 0.0
        return scores


def forced(length: int, token: int) -> LogitsProcessorList:
    return LogitsProcessorList([Forced(length, token)])


# The neutral setting


@pytest.mark.parametrize("do_sample", [True, False], ids=["sampling", "greedy"])
def test_one_candidate_is_what_generate_gives(tiny_model, tokenizer, do_sample):
    batch = tokenizer(PROMPTS[0], return_tensors="pt")
    torch.manual_seed(7)
    sampling = {"do_sample": True, "top_k": 50} if do_sample else {"do_sample": False}
    expected = tiny_model.generate(**batch, max_new_tokens=60, **sampling)[0, batch.input_ids.shape[1] :].tolist()
    output = guided_generate(
        tiny_model, tokenizer, PROMPTS[0], constant, num_candidates=1, max_step_tokens=9, max_new_tokens=60,
        do_sample=do_sample, generator=seeded(7),
    )  # fmt: skip
    assert output.token_ids == [expected]
    assert len(output.steps[0]) >= 6


def test_one_candidate_is_what_generate_tells(story_model, tokenizer):
    batch = tokenizer(PROMPTS[0], return_tensors="pt")
    torch.manual_seed(1)
    expected = story_model.generate(**batch, do_sample=True, temperature=0.8, top_p=0.9, top_k=0, max_new_tokens=50)
    output = guided_generate(
        story_model, tokenizer, PROMPTS[0], constant, num_candidates=1, max_new_tokens=50, temperature=0.8, top_p=0.9,
        top_k=0, generator=seeded(1),
    )  # fmt: skip
    assert output.token_ids == [expected[0, batch.input_ids.shape[1] :].tolist()]
    assert tokenizer.decode(expected[0], skip_special_tokens=True) == PROMPTS[0] + "".join(
        step.text for step in output.steps[0]
    )


def test_without_generator_the_global_one_draws(story_model, tokenizer):
    torch.manual_seed(5)
    first = guided_generate(story_model, tokenizer, "Tom", constant, num_candidates=2, max_new_tokens=20)
    state = torch.get_rng_state()
    second = guided_generate(
        story_model, tokenizer, "Tom", constant, num_candidates=2, max_new_tokens=20, generator=seeded(5)
    )
    assert first.token_ids == second.token_ids
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_goes_on_where_it_was(story_model, tokenizer):
    generator = seeded(5)
    texts = [
        guided_generate(
            story_model, tokenizer, "Tom", constant, num_candidates=2, max_new_tokens=20, generator=generator
        ).texts[0]
        for _ in range(2)
    ]
    assert texts[0] != texts[1]


def test_a_constant_reward_keeps_the_first_candidate(story_model, tokenizer):
    output = guided_generate(
        story_model, tokenizer, PROMPTS, constant, num_candidates=3, max_new_tokens=40, generator=seeded()
    )
    steps = [step for text in output.steps for step in text]
    assert len(steps) > 6
    assert all(step.chosen == 0 and step.text == step.candidates[0] for step in steps)


# The carried cache


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "many"])
def test_carried_cache_changes_no_token(tiny_model, tokenizer, monkeypatch, prompts):
    outputs = []
    for carried in (True, False):
        if not carried:
            monkeypatch.setattr(guided_steps.StepSampler, "carry", lambda *args: None)
        outputs.append(
            guided_generate(
                tiny_model, tokenizer, prompts, arbitrary, num_candidates=3, max_step_tokens=7, max_new_tokens=40,
                generator=seeded(),
            )
        )  # fmt: skip
    assert outputs[0].token_ids == outputs[1].token_ids
    assert len({step.chosen for text in outputs[0].steps for step in text}) > 1


@pytest.mark.slow
def test_scores_of_the_model_with_carried_cache_are_those_without(story_model, tokenizer):
    """The logits behind every chosen token, recomputed from the ids alone."""
    output = guided_generate(
        story_model, tokenizer, PROMPTS, arbitrary, num_candidates=3, max_new_tokens=50, top_k=1, generator=seeded()
    )  # with `top_k=1` each token must be the most probable one
    for prompt, new in zip(PROMPTS, output.token_ids, strict=True):
        ids = tokenizer(prompt).input_ids
        with torch.no_grad():
            logits = story_model(torch.tensor([ids + new])).logits[0]
        assert logits[len(ids) - 1 : -1].argmax(-1).tolist() == new


@pytest.fixture
def encoded(story_model) -> Iterator[list[tuple[int, int]]]:
    """Rows and tokens of every forward pass."""
    seen = []
    hook = story_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield seen
    hook.remove()


def test_no_token_is_read_twice(story_model, tokenizer, encoded):
    output = guided_generate(
        story_model, tokenizer, PROMPTS, constant, num_candidates=3, max_new_tokens=40, generator=seeded()
    )
    longest = max(len(tokenizer(prompt).input_ids) for prompt in PROMPTS)
    assert encoded[0] == (len(PROMPTS), longest - 1)  # once per prompt, not per candidate
    assert {tokens for _, tokens in encoded[1:]} == {1}
    assert max(rows for rows, _ in encoded) == 3 * len(PROMPTS)
    assert len(output.steps[0]) > 1


def test_many_prompts_are_told_as_one_by_one(tiny_model, tokenizer):
    settings = {"num_candidates": 1, "do_sample": False, "max_step_tokens": 6, "max_new_tokens": 30}
    together = guided_generate(tiny_model, tokenizer, PROMPTS, arbitrary, **settings)
    for i, prompt in enumerate(PROMPTS):
        alone = guided_generate(tiny_model, tokenizer, prompt, arbitrary, **settings)
        assert alone.token_ids == [together.token_ids[i]]


def test_a_prompt_of_a_single_token_beside_a_long_one(story_model, tokenizer):
    output = guided_generate(
        story_model, tokenizer, ["", PROMPTS[0]], constant, num_candidates=2, do_sample=False, max_new_tokens=12
    )
    for prompt, new in zip(("", PROMPTS[0]), output.token_ids, strict=True):
        batch = tokenizer(prompt, return_tensors="pt")
        expected = story_model.generate(**batch, do_sample=False, max_new_tokens=12)
        assert new == expected[0, batch.input_ids.shape[1] :].tolist()


# Texts, tokens and why they end


def test_text_is_the_decoded_tokens(story_model, tokenizer):
    output = guided_generate(
        story_model, tokenizer, PROMPTS, arbitrary, num_candidates=2, max_new_tokens=60, generator=seeded()
    )
    for prompt, text, ids, steps in zip(PROMPTS, output.texts, output.token_ids, output.steps, strict=True):
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        whole = tokenizer.decode(tokenizer(prompt).input_ids + ids, skip_special_tokens=True)
        assert whole == prompt + "".join(step.text for step in steps)
        assert sum(step.num_tokens for step in steps) == len(ids)
        assert all(step.candidates[step.chosen] == step.text for step in steps)


def test_best_of_the_candidates_is_kept(story_model, tokenizer):
    seen = []

    def noted(prompts, completions, steps):
        scores = arbitrary(completions)
        seen.append((prompts, completions, steps, scores))
        return scores

    output = guided_generate(
        story_model, tokenizer, PROMPTS[:2], noted, num_candidates=4, max_new_tokens=30, generator=seeded()
    )
    assert all("".join(parts) == text for _, texts, steps, _ in seen for text, parts in zip(texts, steps, strict=True))
    assert seen[0][0] == [PROMPTS[0]] * 4 + [PROMPTS[1]] * 4  # one call for all candidates of all prompts
    for text in output.steps:
        for step in text:
            assert step.scores[step.chosen] == max(step.scores)
            assert len(step.scores) == len(step.candidates) == 4
    so_far = output.steps[0][0].text
    assert [t for t in seen[1][1] if t.startswith(so_far)][:4] == [so_far + c for c in output.steps[0][1].candidates]


def test_end_of_sequence_ends(story_model, tokenizer):
    batch = tokenizer(PROMPTS[0], return_tensors="pt")
    length = batch.input_ids.shape[1] + 5
    output = guided_generate(
        story_model, tokenizer, PROMPTS[0], constant, num_candidates=2, logits_processor=forced(length, 1),
        generator=seeded(),
    )  # fmt: skip
    assert output.stop_reasons == ["eos"]
    assert len(output.token_ids[0]) == 6 and output.token_ids[0][-1] == 1
    assert len(output.steps[0]) == 1
    assert output.texts[0] == tokenizer.decode(output.token_ids[0][:-1])


def test_ending_competes_with_the_text_so_far(story_model, tokenizer):
    start = len(tokenizer(PROMPTS[0]).input_ids)

    class EvenRowsEnd(LogitsProcessor):
        def __call__(self, input_ids, scores):
            if input_ids.shape[1] == start + 10:  # the second step begins
                scores[1::2] = -math.inf
                scores[1::2, 1] = 0.0
            return scores

    seen = []

    def shorter(prompts, completions, steps):
        seen.append((completions, steps))
        return short(completions)

    output = guided_generate(
        story_model, tokenizer, PROMPTS[0], shorter, num_candidates=2, boundary=lambda text: False, max_step_tokens=10,
        logits_processor=LogitsProcessorList([EvenRowsEnd()]), generator=seeded(),
    )  # fmt: skip
    assert output.stop_reasons == ["eos"]
    first, last = output.steps[0]
    assert (last.text, last.chosen, last.num_tokens) == ("", 1, 1)
    assert seen[1][0][1] == first.text and seen[1][1][1] == [first.text]
    assert last.scores[1] == first.scores[first.chosen]


@pytest.mark.parametrize(
    ("limits", "reason", "lengths"),
    [
        ({"max_new_tokens": 20, "max_step_tokens": 8}, "max_new_tokens", [8, 8, 4]),
        ({"max_steps": 2, "max_step_tokens": 8}, "max_steps", [8, 8]),
        ({"max_step_tokens": 8, "stop_strings": [" "]}, "stop_string", [8]),
        # one string, not its characters
        ({"max_step_tokens": 8, "max_new_tokens": 16, "stop_strings": "The end."}, "max_new_tokens", [8, 8]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_limits(story_model, tokenizer, limits, reason, lengths):
    output = guided_generate(
        story_model, tokenizer, PROMPTS[0], constant, num_candidates=2, boundary=lambda text: False,
        generator=seeded(), **limits,
    )  # fmt: skip
    assert output.stop_reasons == [reason]
    assert [step.num_tokens for step in output.steps[0]] == lengths


@pytest.mark.slow
def test_sentences_have_eight_tokens_at_least(story_model, tokenizer):
    output = guided_generate(
        story_model, tokenizer, PROMPTS, constant, num_candidates=3, max_new_tokens=60, generator=seeded()
    )
    inner = [step for text in output.steps for step in text[:-1]]
    assert inner and all(8 <= step.num_tokens and step.text.rstrip()[-1] in '.!?"' for step in inner)


def test_a_step_may_end_within_a_character(story_model, tokenizer):
    """Its bytes come with two steps: rewards see it when it is whole, and never a replacement for it."""
    told = " so \u4e2d\U0001f642\u00e9 it was \u4e2d"
    ids, start = tokenizer(told[1:], add_special_tokens=False).input_ids, len(tokenizer(PROMPTS[0]).input_ids)

    class Told(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores = torch.full_like(scores, -math.inf)
            scores[:, ids[input_ids.shape[1] - start]] = 0.0
            return scores

    seen = []

    def noted(completions, **kwargs):
        seen.extend(completions)
        return [0.0] * len(completions)

    for size in (1, 2, 3):
        seen.clear()
        output = guided_generate(
            story_model, tokenizer, PROMPTS[0], noted, num_candidates=2, boundary=lambda text: False,
            is_valid=lambda text: "\ufffd" not in text, max_step_tokens=size, max_new_tokens=len(ids) - 1,
            logits_processor=LogitsProcessorList([Told()]), generator=seeded(),
        )  # fmt: skip
        assert output.token_ids == [ids[:-1]]
        assert all(told.startswith(text) for text in seen) and len(seen) == 2 * -(-len(ids[:-1]) // size)
        # The bytes of the last one do not all come.
        assert "".join(step.text for step in output.steps[0]) == told[:-1]


def test_any_of_several_ends_is_one(story_model, tokenizer):
    start = len(tokenizer(PROMPTS[0]).input_ids)
    for settings in (
        {"generation_config": GenerationConfig(eos_token_id=[1, 77])},
        {"eos_token_id": [1, 77]},
    ):
        output = guided_generate(
            story_model, tokenizer, PROMPTS[0], constant, num_candidates=2, logits_processor=forced(start + 5, 77),
            max_new_tokens=20, generator=seeded(), **settings,
        )  # fmt: skip
        assert output.stop_reasons == ["eos"] and len(output.token_ids[0]) == 6


def test_the_shortest_length_is_that_of_a_text(tiny_model, tokenizer):
    """Not that of each of its steps, and not behind the padding of its batch."""
    settings = {"min_new_tokens": 6, "sequence_bias": [[[1], 40.0]], "do_sample": False, "max_new_tokens": 12}
    for size in (2, 4, 9):
        output = guided_generate(
            tiny_model, tokenizer, PROMPTS, constant, num_candidates=1, max_step_tokens=size, **settings
        )
        for prompt, new in zip(PROMPTS, output.token_ids, strict=True):
            batch = tokenizer(prompt, return_tensors="pt")
            assert new == tiny_model.generate(**batch, **settings)[0, batch.input_ids.shape[1] :].tolist()
            assert len(new) == 7


def test_replies_are_best_of_k(story_model, tokenizer):
    output = guided_generate(
        story_model, tokenizer, PROMPTS[:2], short, boundary="reply", num_candidates=3, max_step_tokens=20,
        generator=seeded(),
    )  # fmt: skip
    assert output.stop_reasons == ["max_steps"] * 2
    assert [len(steps) for steps in output.steps] == [1, 1]
    assert all(step.scores[step.chosen] == -min(map(len, step.candidates)) for (step,) in output.steps)


def test_a_paragraph_keeps_the_whole_last_token(story_model, tokenizer):
    """A token that goes on behind the blank line stays whole: text and cache say the same."""
    ids = tokenizer("\n\n", add_special_tokens=False).input_ids
    start = len(tokenizer(PROMPTS[0]).input_ids)

    class BlankLine(LogitsProcessor):
        def __call__(self, input_ids, scores):
            step = (input_ids.shape[1] - start) % 8
            if step >= 8 - len(ids):
                scores = torch.full_like(scores, -math.inf)
                scores[:, ids[step - 8 + len(ids)]] = 0.0
            return scores

    output = guided_generate(
        story_model, tokenizer, PROMPTS[0], arbitrary, num_candidates=2, boundary="paragraph", max_steps=3,
        logits_processor=LogitsProcessorList([BlankLine()]), generator=seeded(),
    )  # fmt: skip
    assert [step.num_tokens for step in output.steps[0]] == [8, 8, 8]
    assert all(step.text.endswith("\n\n") for step in output.steps[0])


# Candidates that are not valid


def test_invalid_candidates_are_sampled_again(story_model, tokenizer, encoded):
    asked = []

    def every_third(step):
        asked.append(step)
        return len(asked) % 3 == 0

    output = guided_generate(
        story_model, tokenizer, "Tom", arbitrary, num_candidates=3, max_steps=1, is_valid=every_third,
        generator=seeded(),
    )  # fmt: skip
    (step,) = output.steps[0]
    assert len(asked) == 9  # 3 K attempts, of which 3 were good
    assert step.candidates == asked[2::3]
    assert max(rows for rows, _ in encoded) == 3


def test_fewer_valid_candidates_than_wanted_will_do(story_model, tokenizer):
    asked = []

    def only_the_fourth(step):
        asked.append(step)
        return len(asked) == 4

    output = guided_generate(
        story_model, tokenizer, "Tom", arbitrary, num_candidates=3, max_steps=1, is_valid=only_the_fourth,
        generator=seeded(),
    )  # fmt: skip
    assert len(asked) == 9
    assert output.steps[0][0].candidates == [asked[3]]


def test_without_valid_candidate_the_text_ends_as_it_is(story_model, tokenizer):
    whole = guided_generate(story_model, tokenizer, "Tom", constant, num_candidates=2, max_steps=2, generator=seeded())
    asked = []

    def the_first_two(step):
        asked.append(step)
        return len(asked) <= 2

    output = guided_generate(
        story_model, tokenizer, "Tom", constant, num_candidates=2, is_valid=the_first_two, generator=seeded()
    )
    assert len(asked) == 2 + 6
    assert output.stop_reasons == ["no_valid_candidate"]
    assert output.steps[0] == whole.steps[0][:1]
    assert output.token_ids[0] == whole.token_ids[0][: whole.steps[0][0].num_tokens]
    output = guided_generate(
        story_model, tokenizer, "Tom", constant, num_candidates=2, is_valid=lambda step: False, generator=seeded()
    )
    assert (output.texts, output.token_ids, output.steps) == ([""], [[]], [[]])
    assert output.stop_reasons == ["no_valid_candidate"]


@pytest.mark.parametrize(
    ("step", "valid"),
    [("Step 1: add.", True), ("Step 0: add.", False), ("\n Step 0", False), (" \n", False),
     ("the assistant", True), ("assistant: assistant:", False)],
)  # fmt: skip
def test_steps_of_a_solution(step, valid):
    assert guided_steps._solution_step(step) == valid


# Rewards


def test_several_rewards_are_weighted(story_model, tokenizer):
    def both(completions, **kwargs):
        return torch.tensor([short(completions), arbitrary(completions)]).T

    outputs = [
        guided_generate(
            story_model, tokenizer, PROMPTS[:2], reward, num_candidates=3, max_new_tokens=30, reward_weights=weights,
            generator=seeded(),
        )
        for reward, weights in ((both, [0.0, 2.0]), ([short, arbitrary], torch.tensor([0.0, 2.0])), (arbitrary, None))
    ]  # fmt: skip
    assert outputs[0].token_ids == outputs[1].token_ids == outputs[2].token_ids
    for weighted, plain in zip(outputs[0].steps[0], outputs[2].steps[0], strict=True):
        assert weighted.scores == pytest.approx([2 * score for score in plain.scores], rel=1e-6)
    # without weights, the sum
    output = guided_generate(
        story_model, tokenizer, "Tom", [short, short], num_candidates=2, max_steps=1, generator=seeded()
    )
    assert output.steps[0][0].scores == [-2.0 * len(text) for text in output.steps[0][0].candidates]


def test_a_token_classifier_is_a_process_reward(story_model, tokenizer, tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(**WIDTH, **IDS, intermediate_size=64, num_labels=2)
    AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForTokenClassification.from_pretrained(tmp_path)
    output = guided_generate(story_model, tokenizer, "Tom", model, num_candidates=3, max_steps=2, generator=seeded())
    first, second = output.steps[0]
    reward = ProcessReward(model, tokenizer)
    expected = [reward.scores(["Tom"], [[first.text, text]])[0][-1].item() for text in second.candidates]
    assert second.scores == pytest.approx(expected, abs=1e-6)
    assert all(0 < score < 1 for score in second.scores)


def test_a_sequence_classifier_scores_the_text_so_far(story_model, tokenizer, tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(**WIDTH, **IDS, intermediate_size=64, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    output = guided_generate(story_model, tokenizer, "Tom", model, num_candidates=3, max_steps=2, generator=seeded())
    first, second = output.steps[0]
    for text, score in zip(second.candidates, second.scores, strict=True):
        with torch.no_grad():
            expected = model(**tokenizer("Tom" + first.text + text, return_tensors="pt")).logits.item()
        assert score == pytest.approx(expected, abs=1e-6)


def test_conversations(story_model, tokenizer):
    seen = []

    def noted(prompts, completions, steps):
        seen.append((prompts, completions, steps))
        return [0.0] * len(prompts)

    conversation = [{"role": "user", "content": "Tell me of Tom."}]
    output = guided_generate(
        story_model, tokenizer, conversation, noted, num_candidates=2, max_steps=2, generator=seeded()
    )
    prompts, completions, steps = seen[1]
    assert prompts == [conversation, conversation]
    assert completions[0] == [{"role": "assistant", "content": "".join(steps[0])}]
    assert steps[0][0] == output.steps[0][0].text
    several = guided_generate(
        story_model, tokenizer, [conversation, "Tom"], constant, num_candidates=2, max_steps=1, generator=seeded()
    )
    assert len(several.texts) == 2


# Models


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # read by peft
def test_adapters(story_model, tokenizer):
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(mini.path("lm")),
        LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]),
    ).eval()
    outputs = [
        guided_generate(model, tokenizer, PROMPTS, arbitrary, num_candidates=2, max_new_tokens=20, generator=seeded())
        for model in (story_model, adapted)  # a fresh adapter changes nothing
    ]
    assert outputs[0].token_ids == outputs[1].token_ids
    prefix = get_peft_model(adapted.unload(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="prompt-learning"):
        guided_generate(prefix, tokenizer, PROMPTS, arbitrary)


@pytest.fixture(scope="module")
def several_heads():
    torch.manual_seed(0)
    model = AutoModelForCausalLMWithObjectiveHeads.from_config(TINY["llama"], ["long", "kind"]).eval()
    with torch.no_grad():
        for weight in model.objective_heads.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return model


@pytest.mark.parametrize("weights", [None, {"kind": 1.0}, [0.2, 0.8], "base"], ids=str)
def test_objective_weights_mix_the_heads(several_heads, tokenizer, weights, monkeypatch):
    batch = tokenizer(PROMPTS[0], return_tensors="pt")
    expected = several_heads.generate(**batch, objective_weights=weights, do_sample=False, max_new_tokens=20)
    folds, fold = [], several_heads.objective_heads.folded
    monkeypatch.setattr(several_heads.objective_heads, "folded", lambda *args: folds.append(args) or fold(*args))
    output = guided_generate(
        several_heads, tokenizer, PROMPTS[0], constant, num_candidates=2, do_sample=False, max_step_tokens=6,
        max_new_tokens=20, objective_weights=weights,
    )  # fmt: skip
    assert output.token_ids == [expected[0, batch.input_ids.shape[1] :].tolist()]
    assert len(output.steps[0]) == 4 and len(folds) == (weights != "base")  # once, not once per step


def test_a_mixture_chosen_outside_stays(several_heads, tokenizer):
    settings = {"num_candidates": 2, "do_sample": False, "max_step_tokens": 6, "max_new_tokens": 20}
    given, default = (
        guided_generate(several_heads, tokenizer, PROMPTS[0], constant, objective_weights=weights, **settings)
        for weights in ({"kind": 1.0}, None)
    )
    with several_heads.mixed_heads({"kind": 1.0}):
        outside = guided_generate(several_heads, tokenizer, PROMPTS[0], constant, **settings)
    assert outside.token_ids == given.token_ids != default.token_ids


def test_objective_weights_follow_their_prompts(several_heads, tokenizer):
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    settings = {"num_candidates": 2, "do_sample": False, "max_step_tokens": 6, "max_new_tokens": 20}
    together = guided_generate(several_heads, tokenizer, PROMPTS, constant, objective_weights=weights, **settings)
    for prompt, row, ids in zip(PROMPTS, weights, together.token_ids, strict=True):
        alone = guided_generate(several_heads, tokenizer, prompt, constant, objective_weights=row, **settings)
        assert alone.token_ids == [ids]
    with pytest.raises(ValueError, match="2 rows for 3 prompts"):
        guided_generate(several_heads, tokenizer, PROMPTS, constant, objective_weights=weights[:2])


def test_heads_are_put_back_after_an_error(several_heads, tokenizer):
    def broken(**kwargs):
        raise RuntimeError("broken")

    with pytest.raises(ValueError, match=r"'broken' .*raised RuntimeError: broken"):
        guided_generate(several_heads, tokenizer, "Tom", broken, objective_weights=[1.0, 0.0])
    assert "forward" not in vars(several_heads.lm_head) and not several_heads._mixing


def test_a_model_without_heads_takes_no_objective_weights(story_model, tokenizer):
    with pytest.raises(ValueError, match="objective_weights"):
        guided_generate(story_model, tokenizer, "Tom", constant, objective_weights=[1.0, 0.0])


def test_what_the_model_would_do_by_itself_does_not_matter(tokenizer):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(TINY["llama"]).eval()
    settings = {"num_candidates": 2, "do_sample": False, "max_step_tokens": 6, "max_new_tokens": 12}
    plain = guided_generate(model, tokenizer, PROMPTS, constant, **settings)
    model.generation_config.update(
        num_beams=3, num_return_sequences=2, cache_implementation="static", do_sample=True, temperature=0.5
    )
    assert guided_generate(model, tokenizer, PROMPTS, constant, **settings).token_ids == plain.token_ids


def test_nothing_stays_behind(story_model, tokenizer):
    before = story_model.generation_config.to_dict(), torch.get_rng_state()

    def broken(**kwargs):
        raise RuntimeError("broken")

    with pytest.raises(ValueError, match=r"'broken' .*raised RuntimeError: broken"):
        guided_generate(story_model, tokenizer, "Tom", broken, generator=seeded())
    assert story_model.generation_config.to_dict() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


# Bad input


def unsure(completions: list, **kwargs: object) -> list[float]:
    return [math.nan] * len(completions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_candidates": 0}, "`num_candidates` must be an integer of at least 1, received 0"),
        (
            {"num_candidates": 4, "max_attempts": 3},
            "`max_attempts` must be an integer of at least `num_candidates`, 4, received 3",
        ),
        ({"boundary": "word"}, "`boundary` is 'word'"),
        ({"max_steps": 0}, "`max_steps` must be an integer of at least 1, received 0"),
        ({"max_step_tokens": 0}, "`max_step_tokens` must be an integer of at least 1, received 0"),
        ({"max_new_tokens": -1}, "`max_new_tokens` must be an integer of at least 1, received -1"),
        ({"num_beams": 2}, "sets num_beams itself"),
        ({"prompts": []}, "at least one prompt"),
        ({"reward_fn": 3}, "`reward_fn` is a int"),
        ({"reward_fn": []}, "`reward_fn` must have a reward, received an empty list"),
        ({"reward_fn": torch.nn.Linear(1, 1)}, "`reward_fn` is a Linear"),
        ({"reward_fn": lambda **kwargs: [1.0]}, r"returned the shape \(1,\)"),
        ({"reward_fn": [constant, unsure]}, r"The reward function 'unsure' returned NaN for row 0 \(prompt 'Tom'"),
        ({"reward_weights": [1.0, 2.0]}, r"`reward_weights` must have .* received the shape \(2,\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_named(story_model, tokenizer, arguments, message):
    given = {"prompts": "Tom", "reward_fn": constant, "max_steps": 1} | arguments
    with pytest.raises(ValueError, match=message):
        guided_generate(story_model, tokenizer, given.pop("prompts"), given.pop("reward_fn"), **given)


def test_encoder_decoders_are_refused(tokenizer):
    model = T5ForConditionalGeneration(T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="encoder-decoder"):
        guided_generate(model, tokenizer, "Tom", constant)
