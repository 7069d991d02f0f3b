# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Concept DAS: what is learnt, what is saved, and what is refused."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from alignext import SteeringVector
from alignext.functional.cdas import token_losses
from alignext.functional.steering import interchange, jensen_shannon, project
from alignext.mini.recipe.words import make_t5_tokenizer
from alignext.steering.layers import decoder_layers, states_of
from alignext.trainers.cdas import CDASConfig, CDASTrainer, make_quads
from alignext.trainers.cdas.module import InterchangeModel

from ...steering.test_vector import tiny
from ..contract import MINI_LM, Steps
from ..steering import quads, tiny_lm


def batch(seed: int = 0, prompts: tuple[int, int] = (4, 6), answer: int = 5) -> dict[str, torch.Tensor]:
    """Items of a base and a source prompt with the same answer, the second item's answer shorter."""
    g = torch.Generator().manual_seed(seed)
    base, source = (torch.randint(5, 64, (2, n), generator=g) for n in prompts)
    answers = torch.randint(5, 64, (2, answer), generator=g)
    found = {"answers": answers.clone()}
    found["answers"][1, -2:] = -100
    for name, prompt in (("base", base), ("source", source)):
        found[f"{name}_ids"] = torch.cat([prompt, answers], 1)
        found[f"{name}_mask"] = torch.ones_like(found[f"{name}_ids"])
        found[f"{name}_mask"][1, -2:] = 0
        found[f"{name}_starts"] = torch.tensor([prompt.shape[1]] * 2)
    return found


def test_the_loss_is_the_divergence_of_the_two_prompts():
    """Against hidden states changed by hand, row by row, without padding."""
    lm, items = tiny().double(), batch()
    module = InterchangeModel(lm, 1, 1, "jsd", seed=0).double()
    found = module(**items)
    v = module.vector().detach()
    for row, count in ((0, 5), (1, 3)):
        source = items["source_ids"][row : row + 1, : 6 + count]
        base = items["base_ids"][row : row + 1, : 4 + count]
        with torch.no_grad():
            out = lm(source, output_hidden_states=True)
            s = out.hidden_states[2][:, 5]  # the last token of the prompt

            def change(module, args, output, s=s):
                return torch.cat([output[:, :1], interchange(output[:, 1:], s, v)], 1)

            handle = decoder_layers(lm)[1].register_forward_hook(change)
            logits = lm(base).logits[0, 3:-1]
            handle.remove()
        wanted = jensen_shannon(logits, out.logits[0, 5:-1]).mean()
        torch.testing.assert_close(found[row], wanted, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_that_of_the_unit_vector_through_both_coordinates():
    lm, items = tiny().double(), batch()
    module = InterchangeModel(lm, 1, 1, "jsd", seed=0).double()
    module(**items).mean().backward()
    grad, v = module.vector.v.grad.clone(), module.vector.v.detach().clone()
    assert grad @ v == pytest.approx(0, abs=1e-12)  # the length is not part of the loss
    eps, direction = 1e-3, torch.randn(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    losses = []
    for sign in (1, -1):
        module.vector.v.data = v + sign * eps * direction
        losses.append(float(module(**items).mean().detach()))
    assert (losses[0] - losses[1]) / (2 * eps) == pytest.approx(
        float(grad @ direction), rel=5e-3
    )  # norms are taken in float32
    assert all(p.grad is None for p in lm.parameters())


@pytest.mark.parametrize("objective", ["jsd", "kl", "reverse_kl", "ce"])
def test_objectives(objective: str):
    g = torch.Generator().manual_seed(0)
    p, q = (torch.randn(4, 9, generator=g, dtype=torch.float64) for _ in range(2))
    tokens = torch.tensor([0, 3, 8, 2])
    found = token_losses(p, q, tokens, objective)
    a, b = p.softmax(-1), q.softmax(-1)
    m = (a + b) / 2
    wanted = {
        "jsd": ((a * (a / m).log()).sum(-1) + (b * (b / m).log()).sum(-1)) / 2,
        "kl": (b * (b / a).log()).sum(-1),
        "reverse_kl": (a * (a / b).log()).sum(-1),
        "ce": -a[range(4), tokens].log(),
    }[objective]
    torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match="`objective` must be one of jsd"):
        token_losses(p, q, tokens, "mse")


def test_the_divergence_and_its_gradient_are_finite_on_peaked_logits():
    p = torch.tensor([[300.0, -300.0, 0.0]], requires_grad=True)
    q = torch.tensor([[-300.0, 300.0, 0.0]])
    loss = token_losses(p, q, torch.tensor([0])).sum()
    loss.backward()
    assert loss.item() == pytest.approx(0.6931, abs=1e-4) and p.grad.isfinite().all()


@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2))])
def test_a_planted_direction_is_found_from_any_start(seed: int):
    """Targets are the model's own distributions with the coordinate along a known direction exchanged."""
    lm = tiny()
    planted = torch.nn.functional.normalize(torch.randn(16, generator=torch.Generator().manual_seed(9)), dim=0)
    module = InterchangeModel(lm, 1, 0, "jsd", seed=seed)
    assert abs(module.vector.v @ planted) < 0.7
    ids = torch.randint(5, 64, (32, 8), generator=torch.Generator().manual_seed(3))
    source = ids.roll(1, 0)
    layer = decoder_layers(lm)[1]
    with torch.no_grad():
        seen: list[torch.Tensor] = []
        handle = layer.register_forward_hook(lambda m, a, output: seen.append(states_of(output)))
        lm(source)
        handle.remove()
        s = 20 * seen[0][:, -1]  # far enough apart for the coordinate to matter
        handle = layer.register_forward_hook(lambda m, a, output: interchange(output, s, planted))
        target = lm(ids).logits
        handle.remove()
    optimizer = torch.optim.AdamW(module.vector.parameters(), lr=0.04, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 150)
    for _ in range(150):
        handle = layer.register_forward_hook(lambda m, a, output: module._interchange(output, s))
        loss = token_losses(lm(ids).logits.flatten(0, 1), target.flatten(0, 1), ids.flatten()).mean()
        handle.remove()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        module.vector.normalize()
    assert abs(module.vector.v @ planted) > 0.99
    assert float(loss.detach()) < 1e-3


def start(folder: Path, dataset: Dataset | None = None, model: object = None, **settings) -> CDASTrainer:
    defaults = {"layer": "2", "max_steps": 3, "report_to": "none", "use_cpu": True, "save_strategy": "no"}
    args = CDASConfig(str(folder), disable_tqdm=True, **defaults | settings)
    tokenizer = AutoTokenizer.from_pretrained(MINI_LM)
    return CDASTrainer(model or tiny_lm(), args, quads() if dataset is None else dataset, processing_class=tokenizer)


def test_only_the_vector_is_saved_and_its_strengths_are_those_of_the_data(tmp_path: Path):
    trainer = start(tmp_path, logging_steps=1)
    trainer.train()
    trainer.save_model()
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "steering.safetensors", "training_args.bin"}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 40_000
    sv = SteeringVector.load(tmp_path / "steering.safetensors")
    assert (sv.layer, sv.method, sv.exclude_first) == (2, "clamp", 1)
    model, tokenizer = tiny_lm(), AutoTokenizer.from_pretrained(MINI_LM)
    means = {}
    for side in ("neutral", "concept"):
        ends = []
        for prompt in quads()[f"{side}_prompt"]:
            ids = tokenizer(prompt)["input_ids"]
            ids = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
            with torch.no_grad():
                ends.append(model(torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0, -1].double())
        means[side] = float((torch.stack(ends) @ sv.direction).mean())
    assert means["concept"] > means["neutral"]  # whatever sign was learnt
    assert sv.mu_positive == pytest.approx(means["concept"], abs=1e-4)
    assert sv.mu_negative == pytest.approx(means["neutral"], abs=1e-4)
    first = trainer.state.log_history[0]
    assert 0 < first["plain_loss"] < 0.6931
    for alpha, factor in (
        (1.0, sv.mu_positive),
        (-1.0, sv.mu_negative),
        (2.0, 1.5 * sv.mu_positive - sv.mu_negative / 2),
    ):
        with sv.apply(model, alpha=alpha):
            states = model(torch.tensor([[5, 9, 13, 8]]), output_hidden_states=True).hidden_states[3]
        rho = project(states, sv.direction)[0, 1:]
        torch.testing.assert_close(rho, torch.full((3,), float(factor)), rtol=1e-4, atol=1e-4)
    plain = model(torch.tensor([[5, 9, 13, 8]]), output_hidden_states=True).hidden_states[3]
    assert torch.equal(states[0, 0], plain[0, 0])  # the first token is left alone


def test_an_uneven_stop_is_resumed_to_the_same_bits(tmp_path: Path):
    """The sign of what is shared may differ from the sign in training; the checkpoint keeps the latter."""
    settings = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "seed": 1}
    whole = start(tmp_path / "whole", **settings)
    whole.train()
    resumed, steps = start(tmp_path / "resumed", **settings), Steps()
    resumed.add_callback(steps)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert steps.taken == [4, 5]
    assert torch.equal(resumed.interchange.vector.v, whole.interchange.vector.v)
    with pytest.raises(ValueError, match=r"has no parameter\.safetensors"):
        resumed._load_from_checkpoint(str(tmp_path))


@pytest.mark.effect
@pytest.mark.slow
def test_steered_answers_move_towards_the_concept_prompts_own_and_back(tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(MINI_LM)
    trainer = start(tmp_path, model=model, layer="3", max_steps=30, logging_steps=30)
    trainer.train()
    rows = trainer.train_dataset
    assert trainer._mean_loss(rows, intervene=True) < 0.8 * trainer._mean_loss(rows, intervene=False)


def test_conversations(tmp_path: Path):
    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = quads().map(
        lambda row: {
            name: turn("user" if "prompt" in name else "assistant", value.strip()) for name, value in row.items()
        }
    )
    trainer = start(tmp_path, rows, max_steps=1)
    trainer.train()
    assert trainer.steering_vector.layer == 2


def test_make_quads_lets_the_model_answer():
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MINI_LM), AutoTokenizer.from_pretrained(MINI_LM)
    prompts = ["Tom had a toy. It was", "Lily saw a dog."]
    settings = {"max_new_tokens": 6, "progress": False}
    rows = make_quads(model, tokenizer, prompts, lambda text: f"Sad. {text}", **settings)
    assert rows["neutral_prompt"] == prompts and rows["concept_prompt"][0] == "Sad. Tom had a toy. It was"
    assert all(rows["neutral_completion"]) and all(rows["concept_completion"])
    torch.rand(3)
    assert make_quads(model, tokenizer, prompts, lambda text: f"Sad. {text}", **settings).to_list() == rows.to_list()
    greedy = make_quads(model, tokenizer, prompts[:1], lambda text: f"Sad. {text}", temperature=0, **settings)
    ids = tokenizer(prompts[0], return_tensors="pt")["input_ids"]
    ids = ids[:, :-1] if ids[0, -1] == tokenizer.eos_token_id else ids
    wanted = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=1, do_sample=False
    )
    assert prompts[0] + greedy["neutral_completion"][0] == tokenizer.decode(wanted[0], skip_special_tokens=True)
    with pytest.raises(ValueError, match="same neutral and concept prompt"):
        make_quads(model, tokenizer, prompts, lambda text: text, **settings)
    with pytest.raises(ValueError, match="`prompts` must have at least one"):
        make_quads(model, tokenizer, [], lambda text: text)


def test_answers_of_sentencepiece_keep_the_space_before_their_first_word():
    words = ["tom had a toy it was red", "sad"]
    tokenizer = make_t5_tokenizer(words)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, **sizes))
    model.generation_config.suppress_tokens = [
        i for piece, i in tokenizer.get_vocab().items() if piece[0] != "▁" or piece == "▁"
    ]
    rows = make_quads(
        model, tokenizer, ["tom had a"], lambda text: f"sad {text}", max_new_tokens=3, temperature=0, progress=False
    )
    for kind in ("neutral", "concept"):
        prompt, answer = rows[f"{kind}_prompt"][0], rows[f"{kind}_completion"][0]
        ids = tokenizer(prompt, return_tensors="pt").input_ids[:, :-1]
        written = model.generate(ids, max_new_tokens=3, min_new_tokens=1, do_sample=False)[0].tolist()
        assert answer.startswith(" ")
        assert tokenizer(prompt + answer, add_special_tokens=False).input_ids == written


def changed(**cells) -> Dataset:
    return Dataset.from_list([row | cells if i == 1 else row for i, row in enumerate(quads().to_list())])


BAD = {
    "empty": (lambda: {"dataset": changed(concept_completion="")}, ValueError, "Row 1 .* empty `concept_completion`"),
    "same": (
        lambda: {"dataset": changed(concept_prompt="x", neutral_prompt="x")},
        ValueError,
        "Row 1 .* same neutral and concept prompt",
    ),
    "layer": (lambda: {"layer": "9"}, ValueError, "`layers` must be within 0 and 3"),
    "depth": (lambda: {"layer": "200%"}, ValueError, "`layers` must be an index, or a depth"),
    "stream": (
        lambda: {"dataset": IterableDataset.from_generator(lambda: iter(quads().to_list()))},
        NotImplementedError,
        "is a stream",
    ),
}


@pytest.mark.parametrize(("settings", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(settings, error, message: str, tmp_path: Path):
    with pytest.raises(error, match=message):
        start(tmp_path, **settings())


def test_arguments_that_would_never_be_called(tmp_path: Path):
    with pytest.raises(ValueError, match=r"`compute_metrics` must be None, received .*CDASTrainer has its own loss"):
        CDASTrainer(tiny_lm(), CDASConfig(str(tmp_path), use_cpu=True), quads(), compute_metrics=lambda found: {})


def test_bad_settings(tmp_path: Path):
    for wrong, message in (
        ({"objective": "mse"}, "`objective` must be one of"),
        ({"directions": "up"}, "`directions` must be one of"),
        ({"exclude_first": -1}, "`exclude_first` must be 0 or more"),
        ({"max_completion_length": 0}, "`max_completion_length` must be 1 or more"),
        ({"activation_checkpointing": True}, "`activation_checkpointing` must be off"),
    ):
        with pytest.raises(ValueError, match=message):
            CDASConfig(str(tmp_path), **wrong)


def test_prompts_that_change_nothing(tmp_path: Path):
    """A concept that the model does not react to is said before training."""
    trainer = start(tmp_path)
    trainer.train_dataset = trainer.train_dataset.map(
        lambda row: {"concept_prompt_ids": row["neutral_prompt_ids"], "concept_answer_ids": row["neutral_answer_ids"]}
    )
    with pytest.raises(ValueError, match="the loss without intervention is 0"):
        trainer.train()
