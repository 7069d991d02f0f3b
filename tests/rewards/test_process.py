# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Reward models as functions."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaConfig,
)

from alignext import mini
from alignext.rewards.process import ProcessReward, SequenceReward, ValueHead, as_reward, encode_steps


PROMPTS = ["One day, Lily went to the park.", "Tom was sad."]
STEPS = [["She saw a dog.", "It was big and brown.", "She ran home."], ["He missed his mom."]]


def tiny(auto, labels=1, **config):
    torch.manual_seed(0)
    return auto.from_config(
        LlamaConfig(
            vocab_size=4096, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, pad_token_id=2, num_labels=labels, **config,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(mini.path("lm"))


class TestProcessReward:
    def test_score_after_a_step_is_that_of_the_text_so_far(self, tokenizer):
        reward = ProcessReward(tiny(AutoModelForTokenClassification), tokenizer)
        whole = reward.scores(PROMPTS, STEPS)
        assert [len(scores) for scores in whole] == [3, 1]
        for prompt, steps, scores in zip(PROMPTS, STEPS, whole, strict=True):
            for t in range(1, len(steps) + 1):
                prefix = reward([prompt], steps=[steps[:t]])
                assert prefix.item() == pytest.approx(scores[t - 1].item(), abs=1e-6)
        assert len({round(score.item(), 6) for score in whole[0]}) == 3

    def test_reads_the_model_at_the_end_of_each_separator(self, tokenizer):
        model = tiny(AutoModelForTokenClassification).eval()
        ids, ends = encode_steps(tokenizer, PROMPTS[0], STEPS[0], "\n")
        text = PROMPTS[0] + "".join(f" {step} \n" for step in STEPS[0])
        assert tokenizer.decode(ids, skip_special_tokens=True).split() == text.split()
        assert [tokenizer.convert_ids_to_tokens(ids[end]) for end in ends] == ["<0x0A>"] * 3
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0, ends, 0]
        torch.testing.assert_close(ProcessReward(model, tokenizer).scores(PROMPTS[:1], STEPS[:1])[0], expected)

    @pytest.mark.parametrize(("labels", "loss_type"), [(1, "bce"), (1, "mse"), (2, None)])
    def test_what_a_score_is(self, tokenizer, labels, loss_type):
        model = tiny(AutoModelForTokenClassification, labels).eval()
        ids, ends = encode_steps(tokenizer, PROMPTS[0], STEPS[0], "\n")
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, ends]
        expected = {
            (1, "bce"): logits[:, 0].sigmoid(),
            (1, "mse"): logits[:, 0],
            (2, None): logits.softmax(-1)[:, -1],
        }[labels, loss_type]
        reward = ProcessReward(model, tokenizer, loss_type=loss_type)
        torch.testing.assert_close(reward.scores(PROMPTS[:1], STEPS[:1])[0], expected)

    def test_does_as_the_config_says(self, tokenizer):
        model = tiny(AutoModelForTokenClassification)
        model.config.process_reward = {"step_separator": " ###", "loss_type": "bce"}
        reward = ProcessReward(model, tokenizer)
        assert (reward.step_separator, reward.loss_type) == (" ###", "bce")
        assert all(0 < score < 1 for score in reward(PROMPTS, steps=STEPS))

    def test_small_batches_and_training_mode_do_not_matter(self, tokenizer):
        model = tiny(AutoModelForTokenClassification)  # its head drops out by default
        model.train()
        model.score.eval()
        together = ProcessReward(model, tokenizer)(PROMPTS, steps=STEPS)
        assert model.training and model.dropout.training and not model.score.training
        alone = ProcessReward(model, tokenizer, batch_size=1)(PROMPTS, steps=STEPS)
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)

    def test_cuts_plain_completions_at_the_separator(self, tokenizer):
        reward = ProcessReward(tiny(AutoModelForTokenClassification), tokenizer)
        completions = ["\n".join(steps) + "\n" for steps in STEPS]
        assert torch.equal(reward(PROMPTS, completions), reward(PROMPTS, steps=STEPS))
        messages = [[{"role": "assistant", "content": text}] for text in completions]
        assert torch.equal(reward(PROMPTS, messages), reward(PROMPTS, steps=STEPS))
        with pytest.raises(ValueError, match="`steps`"):
            reward(PROMPTS)

    def test_white_space_around_steps_and_empty_steps_do_not_matter(self, tokenizer):
        reward = ProcessReward(tiny(AutoModelForTokenClassification), tokenizer)
        loose = [[f" {step}\n\n" for step in steps] + [""] for steps in STEPS]
        assert torch.equal(reward(PROMPTS, steps=loose), reward(PROMPTS, steps=STEPS))

    def test_a_text_without_words_has_a_score(self, tokenizer):
        reward = ProcessReward(tiny(AutoModelForTokenClassification), tokenizer)
        assert reward(PROMPTS, steps=[[], [""]]).isfinite().all()

    def test_reads_conversations(self, tokenizer):
        conversation = [{"role": "user", "content": "Tell me of Tom."}]
        ids, _ = encode_steps(tokenizer, conversation, ["Tom ran."], "\n")
        rendered = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=True)["input_ids"]
        assert ids[: len(rendered)] == rendered

    @pytest.mark.parametrize(
        ("labels", "settings", "message"), [(3, {}, "3 labels"), (1, {"loss_type": "ce"}, "'ce'")]
    )
    def test_bad_input_is_named(self, tokenizer, labels, settings, message):
        with pytest.raises(ValueError, match=message):
            ProcessReward(tiny(AutoModelForTokenClassification, labels), tokenizer, **settings)


class TestSequenceReward:
    @pytest.mark.parametrize("labels", [1, 2])
    def test_is_the_value_or_the_probability_of_the_second_label(self, tokenizer, labels):
        model = tiny(AutoModelForSequenceClassification, labels).eval()
        completions = [" She saw a dog.", " He missed his mom and his dad."]
        scores = SequenceReward(model, tokenizer)(PROMPTS, completions)
        for prompt, completion, score in zip(PROMPTS, completions, scores, strict=True):
            with torch.no_grad():
                logits = model(**tokenizer(prompt + completion, return_tensors="pt")).logits[0]
            expected = logits[0] if labels == 1 else logits.softmax(-1)[1]
            assert score.item() == pytest.approx(expected.item(), abs=1e-6)

    def test_works_without_padding_token(self, tokenizer):
        model = tiny(AutoModelForSequenceClassification)
        padded = SequenceReward(model, tokenizer)(PROMPTS, ["", " He ran home."])
        model.config.pad_token_id = None
        torch.testing.assert_close(SequenceReward(model, tokenizer)(PROMPTS, ["", " He ran home."]), padded)

    def test_reads_conversations_as_the_assistants_message(self, tokenizer):
        model = tiny(AutoModelForSequenceClassification).eval()
        prompt, answer = [{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Hello."}]
        ids = tokenizer.apply_chat_template(prompt + answer, tokenize=True, return_dict=True)["input_ids"]
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits.item()
        assert SequenceReward(model, tokenizer)([prompt], [answer]).item() == pytest.approx(expected, abs=1e-6)

    def test_refuses_more_labels(self, tokenizer):
        with pytest.raises(ValueError, match="5 labels"):
            SequenceReward(tiny(AutoModelForSequenceClassification, 5), tokenizer)


class TestValueHead:
    def test_is_linear_relu_linear_on_hidden_states(self):
        head, hidden = ValueHead(8, torch.Generator().manual_seed(0)), torch.randn(2, 3, 8, dtype=torch.bfloat16)
        first, second = head[0], head[2]
        x = (hidden.float() @ first.weight.T + first.bias).clamp(min=0)
        torch.testing.assert_close(head(hidden), x @ second.weight.T + second.bias)

    def test_starts_small_and_seeded(self):
        heads = [ValueHead(256, torch.Generator().manual_seed(0)) for _ in range(2)]
        assert torch.equal(heads[0][0].weight, heads[1][0].weight)
        assert heads[0][0].weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not heads[0][0].bias.any() and not heads[0][2].bias.any()

    def test_takes_the_place_of_the_score_of_a_model(self, tokenizer):
        model = tiny(AutoModelForTokenClassification).eval()
        model.score = ValueHead(32)
        ids, ends = encode_steps(tokenizer, PROMPTS[0], STEPS[0], "\n")
        with torch.no_grad():
            hidden = model.model(torch.tensor([ids])).last_hidden_state[0, ends]
            expected = model.score(hidden)[:, 0]
        torch.testing.assert_close(ProcessReward(model, tokenizer).scores(PROMPTS[:1], STEPS[:1])[0], expected)


def test_only_reward_models_and_functions_are_rewards():
    with pytest.raises(ValueError, match="LlamaForCausalLM"):
        as_reward(tiny(AutoModelForCausalLM))
    with pytest.raises(ValueError, match="is a int"):
        as_reward(3)
    with pytest.raises(ValueError, match="LlamaForCausalLM rather than a reward model"):
        as_reward(mini.path("lm"))
    assert as_reward(len) is len


@pytest.mark.parametrize("auto", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
def test_a_folder_is_the_reward_in_it(tokenizer, tmp_path, auto):
    tiny(auto).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = as_reward(str(tmp_path))
    completions = ["He ran.", "He missed his mom."]
    expected = as_reward(auto.from_pretrained(tmp_path))(prompts=PROMPTS, completions=completions)
    torch.testing.assert_close(loaded(prompts=PROMPTS, completions=completions), expected)
