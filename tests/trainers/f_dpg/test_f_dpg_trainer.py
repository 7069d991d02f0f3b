# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What `FDPGTrainer` does beyond the contract of all trainers."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import RLOOConfig, RLOOTrainer

from alignext.functional.f_dpg import f_prime
from alignext.trainers.f_dpg import FDPGConfig, FDPGTrainer
from alignext.trainers.f_dpg.state import FDPGState, context_key

from ..contract import LM, MINI_LM, Row, count_vowels, curve, prompts, weights


FDPG = Row(
    FDPGTrainer,
    FDPGConfig,
    prompts,
    {"num_generations": 4, "max_completion_length": 10, "beta": 2.0},
    {"reward_funcs": count_vowels},
    samples=True,
    ours=True,
)
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])
ONE = Dataset.from_list([{"prompt": "One day"}])

pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning"),
]


def row_of(*functions: object, **settings: object) -> Row:
    return Row(FDPGTrainer, FDPGConfig, prompts, FDPG.settings | settings, {"reward_funcs": list(functions)})


def binary(completions: list, **kwargs: object) -> list[float]:
    """A constraint that about half of the short stories meet."""
    return [float(sum(letter in "aeiou" for letter in text) % 2) for text in completions]


def short(completions: list, **kwargs: object) -> list[float]:
    return [float(len(text) < 40) for text in completions]


def logged(trainer: FDPGTrainer, name: str) -> list[float]:
    return [log[name] for log in trainer.state.log_history if name in log]


def disturb(model: torch.nn.Module, size: float = 0.05) -> None:
    """Move the weights, the same way for the same model."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(size * (weight.std() + 0.02) * torch.randn(weight.shape, generator=generator))


def scored(trainer: RLOOTrainer, rows: list[dict] | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    """One generation batch."""
    trainer.model.train()
    torch.manual_seed(seed)
    return trainer._generate_and_score_completions(rows or [{"prompt": "One day"}] * 4)


# The parent


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_reverse_kl_is_rloo_with_advantages_divided_by_beta(tmp_path: Path, peft_config: LoraConfig | None) -> None:
    beta, outcomes = 0.5, []
    for trainer_class, config, settings in (
        (RLOOTrainer, RLOOConfig, {"disable_dropout": True}),
        (FDPGTrainer, FDPGConfig, {"divergence": "reverse_kl"}),
    ):
        row = Row(trainer_class, config, prompts, FDPG.settings | settings | {"beta": beta}, FDPG.arguments)
        trainer = row.start(tmp_path, peft_config=peft_config)
        disturb(trainer.model)  # else the KL term is 0
        out = scored(trainer, [{"prompt": "One day"}] * 4 + [{"prompt": "Tom ran"}] * 4)
        trainer._compute_loss(trainer.model, out).backward()
        gradients = torch.cat([w.grad.flatten() for w in trainer.model.parameters() if w.grad is not None])
        outcomes.append((out, gradients))
    (theirs, their_gradients), (ours, our_gradients) = outcomes
    assert torch.equal(ours["completion_ids"], theirs["completion_ids"])
    assert theirs["advantages"].abs().min() > 1e-3
    # They come from differences of log-probabilities, which the parent keeps in float32.
    rounding = torch.finfo(torch.float32).eps * theirs["old_logps"].abs().max().item()
    assert torch.allclose(beta * ours["advantages"], theirs["advantages"], rtol=1e-6, atol=rounding)
    difference = beta * our_gradients - their_gradients
    assert difference.norm() < 1e-5 * their_gradients.norm()


def test_as_many_forward_passes_as_rloo_with_a_kl_term(tmp_path: Path) -> None:
    calls = {}
    for name, row in (
        ("rloo", Row(RLOOTrainer, RLOOConfig, prompts, FDPG.settings, FDPG.arguments)),
        ("f-dpg", FDPG),
    ):
        trainer = row.start(tmp_path, max_steps=2)
        calls[name] = {"policy": 0, "reference": 0}
        for which, model in (("policy", trainer.model), ("reference", trainer.ref_model)):
            model.get_decoder().register_forward_pre_hook(
                lambda *_, n=name, w=which: calls[n].update({w: calls[n][w] + 1})
            )
        trainer.train()
    assert calls["f-dpg"] == calls["rloo"]


def test_takes_positional_arguments_as_the_parent_and_its_own_config_only(tmp_path: Path) -> None:
    settings = {"use_cpu": True, "bf16": False}
    args = FDPGConfig(str(tmp_path), **settings)
    trainer = FDPGTrainer(str(LM), count_vowels, args, prompts(), prompts().select(range(4)))
    assert len(trainer.eval_dataset) == 4
    assert trainer.args.beta == trainer.beta == 0.1
    with pytest.raises(ValueError, match="RLOOConfig"):
        FDPGTrainer(str(LM), count_vowels, RLOOConfig(str(tmp_path), **settings), prompts())


# The initial model


@pytest.mark.parametrize("kind", ["path", "instance", "lora", "peft"])
def test_at_the_start_policy_and_initial_model_agree_bit_for_bit(tmp_path: Path, kind: str) -> None:
    model, peft_config = str(LM), LORA if kind == "lora" else None
    if kind == "instance":  # is not what lies under the name in its config
        model = AutoModelForCausalLM.from_pretrained(LM, attention_dropout=0.1)
        disturb(model)
    if kind == "peft":  # a trained adapter
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(LM), LORA)
        disturb(model)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight.data, std=0.02)
    trainer = FDPG.start(tmp_path, model=model, peft_config=peft_config)
    out = scored(trainer)
    assert torch.equal(out["old_logps"], out["ref_logps"])
    stock = AutoModelForCausalLM.from_pretrained(LM)
    if kind in ("instance", "peft"):
        ids = torch.cat([out["prompt_ids"], out["completion_ids"]], 1)
        mask = torch.cat([out["prompt_mask"], out["completion_mask"]], 1)
        with torch.no_grad():
            logps = stock(ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
        logps = logps.gather(-1, ids[:, 1:, None])[..., 0][:, -out["completion_ids"].shape[1] :]
        assert ((logps * out["completion_mask"]).sum(1) - out["ref_logps"]).abs().min() > 0.1


def test_nothing_to_gain_is_no_gradient(tmp_path: Path) -> None:
    def constant(completions: list, **kwargs: object) -> list[float]:
        return [3.0] * len(completions)

    for divergence in ("forward_kl", "reverse_kl", "js", "tv", "chi2_reverse"):
        trainer = row_of(constant, divergence=divergence).start(tmp_path, max_steps=1)
        trainer.train()
        assert curve(trainer)[0][1:] == pytest.approx((0, 0), abs=1e-10)


# Samples


def test_eos_counts_once_and_padding_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(LM)
    tokenizer.pad_token = tokenizer.eos_token  # the padding is the token that ends a story
    trainer = Row(FDPGTrainer, FDPGConfig, prompts, FDPG.settings, {**FDPG.arguments, "processing_class": tokenizer})
    trainer = trainer.start(tmp_path)
    eos = tokenizer.eos_token_id
    drawn = [[300, eos], [300, 301, 302, 303], [400, 401, eos], [310, 311, 312, 313]]
    monkeypatch.setattr(trainer, "_generate_single_turn", lambda *_: drawn)
    out = scored(trainer)
    model = AutoModelForCausalLM.from_pretrained(LM)
    prompt = tokenizer("One day").input_ids
    for found, completion in zip(out["old_logps"], drawn, strict=True):
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
        assert found.item() == pytest.approx(logps[len(prompt) - 1 :].sum().item(), abs=1e-4)


def test_a_certain_token_adds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = FDPG.start(tmp_path)
    out, losses = scored(trainer), []
    per_token = -torch.rand(4, out["completion_ids"].shape[1])
    for repeated in (False, True):
        values = torch.cat([per_token, torch.zeros(4, 3)], 1) if repeated else per_token
        inputs = dict(out)
        if repeated:
            for name in ("completion_ids", "completion_mask"):
                inputs[name] = torch.cat([out[name], torch.ones(4, 3, dtype=out[name].dtype)], 1)
        scores = (values, torch.zeros_like(values), None)
        monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *_, s=scores, **__: s)
        losses.append(trainer._compute_loss(trainer.model, inputs).item())
    assert losses[0] == losses[1] != 0


def test_samples_that_are_used_again_are_weighted(tmp_path: Path) -> None:
    trainer = FDPG.start(tmp_path, max_steps=4, num_iterations=2, learning_rate=1e-5)
    trainer.train()
    off = [abs(ratio - 1) for ratio in logged(trainer, "importance_ratio/max")]
    assert max(off[0], off[2]) < 1e-4 < 1e-3 < min(off[1], off[3])


def test_loss_of_reused_samples_looks_at_the_policy_as_it_is(tmp_path: Path) -> None:
    trainer = FDPG.start(tmp_path, divergence="forward_kl")
    out = scored(trainer)
    disturb(trainer.model, 0.02)
    trainer._compute_loss(trainer.model, out).backward()
    found = trainer.model.get_input_embeddings().weight.grad.clone()
    trainer.model.zero_grad()
    per_token = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([out["prompt_ids"], out["completion_ids"]], 1),
        torch.cat([out["prompt_mask"], out["completion_mask"]], 1),
        out["completion_ids"].shape[1],
    )[0]
    log_pi = (per_token * out["completion_mask"]).sum(1)
    log_t = log_pi.detach().double() - out["ref_logps"] - out["log_score"] + out["log_z"]
    advantages = -f_prime("forward_kl", log_t) - out["baseline"]
    ratio = (log_pi.detach() - out["old_logps"]).exp()
    (-(ratio * advantages.float() * log_pi).mean()).backward()
    expected = trainer.model.get_input_embeddings().weight.grad
    # Against the size of the whole gradient: kernels of another processor sum in another order.
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert (ratio - 1).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["full", "lora", "adaptive"])
def test_samples_are_the_model_s_own_whatever_its_generation_config_says(tmp_path: Path, kind: str) -> None:
    drawn = []
    for bent in (False, True):
        model = AutoModelForCausalLM.from_pretrained(LM)
        if bent:
            model.generation_config.update(min_p=0.99, suppress_tokens=list(range(300, 2000)), num_beams=2)
        kept = model.generation_config
        trainer = FDPG.start(
            tmp_path,
            model=model,
            peft_config=LORA if kind == "lora" else None,
            proposal="adaptive" if kind == "adaptive" else "online",
        )
        drawn.append(scored(trainer)["completion_ids"])
        assert model.generation_config is kept
    assert torch.equal(drawn[0], drawn[1])


# Targets


def test_scores_of_the_targets(tmp_path: Path) -> None:
    nan = math.nan
    two = torch.tensor([[1.0, 2.0], [nan, 4.0], [nan, nan], [0.0, 1.0]], dtype=torch.float64)
    functions = (count_vowels, short)
    trainer = row_of(*functions, beta=0.5, reward_weights=[1.0, 10.0]).start(tmp_path)
    assert trainer.log_scores(two).tolist() == pytest.approx([42, 80, nan, 20], nan_ok=True)
    trainer = row_of(*functions, beta=0.5, reward_clip_range=(0.0, 2.5)).start(tmp_path)
    assert trainer.log_scores(two).tolist() == pytest.approx([5, 5, nan, 2], nan_ok=True)
    trainer = row_of(*functions, target="binary").start(tmp_path)
    held = torch.tensor([[1.0, 1.0], [nan, 1.0], [nan, nan], [0.0, 1.0]], dtype=torch.float64)
    assert trainer.log_scores(held).tolist() == pytest.approx([0, 0, nan, -math.inf], nan_ok=True)
    trainer = row_of(*functions, target="binary", binary_floor=0.1, divergence="reverse_kl").start(tmp_path)
    assert trainer.log_scores(held)[3].item() == pytest.approx(math.log(0.1))
    trainer = row_of(*functions, target="distributional", target_moments=[None, 0.5]).start(tmp_path)
    trainer.target_state.coefficients = [3.0]
    assert trainer.log_scores(two).tolist() == pytest.approx([6, nan, nan, -math.inf], nan_ok=True)


@pytest.mark.slow
def test_lambda_is_fitted_once_and_leaves_no_trace(tmp_path: Path) -> None:
    settings = {"target": "distributional", "target_moments": [0.8, None], "moment_samples": 64}
    trainer = row_of(short, binary, **settings).start(
        tmp_path, model=str(MINI_LM), max_steps=2, num_generations=8, per_device_train_batch_size=8
    )
    calls = []
    fit = trainer._sample_for_moments
    trainer._sample_for_moments = lambda: calls.append(0) or fit()
    trainer.train()
    assert calls == [0]
    (value,) = trainer.target_state.coefficients
    assert logged(trainer, "lambda/short") == [value, value]
    # the samples that fitted it are not counted
    assert trainer.state.num_input_tokens_seen < 2 * 8 * 40
    assert all(count == 8 for _, count in trainer.target_state.z.values())


def test_lambda_of_a_single_prompt_is_the_closed_form(tmp_path: Path) -> None:
    seen = []

    def seen_short(completions: list, **kwargs: object) -> list[float]:
        seen.extend(short(completions))
        return seen[-len(completions) :]

    row = row_of(seen_short, target="distributional", target_moments=[0.8], moment_samples=32, num_generations=16)
    trainer = row.start(tmp_path, per_device_train_batch_size=16, dataset=ONE, max_completion_length=9)
    trainer._ensure_target()
    share = sum(seen) / len(seen)
    assert len(seen) == 32 and 0 < share < 1
    assert trainer.target_state.coefficients == pytest.approx([math.log(4) - math.log(share / (1 - share))])


def test_moments_at_the_edge_are_reported(tmp_path: Path, warnings_of: list[str]) -> None:
    # in the samples the two features exclude each other, and one of them has to hold for almost all
    def first(completions: list, **kwargs: object) -> list[float]:
        return [float(i % 4 == 0) for i in range(len(completions))]

    def second(completions: list, **kwargs: object) -> list[float]:
        return [float(i % 4 == 1) for i in range(len(completions))]

    settings = {"target": "distributional", "target_moments": [0.5, 0.499999], "moment_samples": 32}
    trainer = row_of(first, second, num_generations=8, **settings).start(
        tmp_path, dataset=ONE, per_device_train_batch_size=8
    )
    trainer._ensure_target()
    assert any("almost out of reach together" in text for text in warnings_of)


def test_a_parent_that_scores_in_another_way_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = FDPG.start(tmp_path)
    trainer.beta = 0.0  # with which RLOO does not look at the initial model
    with pytest.raises(RuntimeError, match="scored 1 times, in another way"):
        scored(trainer)
    assert trainer._watched is None


def test_several_functions_async_and_none(tmp_path: Path) -> None:
    async def later(completions: list, mood: list[str], **kwargs: object) -> list[float | None]:
        return [None if i == 0 else float(len(text)) / 10 for i, text in enumerate(completions)]

    def other(completions: list, mood: list[str], log_metric: object, **kwargs: object) -> list[float | None]:
        log_metric("moods", float(len(set(mood))))
        return [None if i == 0 else 1.0 for i in range(len(completions))]

    data = Dataset.from_list([{"prompt": "One day", "mood": "good"}] * 2)
    trainer = row_of(later, other, reward_weights=[1.0, 0.5]).start(tmp_path, dataset=data)
    out = scored(trainer, [data[0]] * 4)
    assert out["advantages"][0] == 0 and (out["advantages"][1:] != 0).all()
    assert out["log_score"].isnan().tolist() == [True, False, False, False]
    ((_, count),) = trainer.target_state.z.values()
    assert count == 3
    trainer.train()
    assert logged(trainer, "moods") == [1.0] * 3
    assert all(math.isfinite(loss) for _, loss, _ in curve(trainer))


@pytest.mark.parametrize("target", ["exponential", "binary"])
def test_a_batch_of_none_teaches_nothing_and_training_goes_on(tmp_path: Path, target: str) -> None:
    met = iter([[None] * 4, [1.0, 0.0, None, 1.0], [None] * 4])
    trainer = row_of(lambda completions, **_: next(met), target=target).start(tmp_path, dataset=ONE)
    trainer.train()
    losses = curve(trainer)
    assert [step for step, *_ in losses] == [1, 2, 3] and all(math.isfinite(loss) for _, loss, _ in losses)
    assert losses[0][1:] == losses[2][1:] == (0, 0) != losses[1][1:]
    assert logged(trainer, "in_support_fraction") == [1.0 if target == "exponential" else pytest.approx(2 / 3)]
    ((_, count),) = trainer.target_state.z.values()
    assert count == 3


def test_moments_need_samples_with_all_rewards(tmp_path: Path) -> None:
    def empty(completions: list, **kwargs: object) -> list[None]:
        return [None] * len(completions)

    trainer = row_of(short, empty, target="distributional", target_moments=[0.5, 0.5], moment_samples=8).start(
        tmp_path
    )
    with pytest.raises(ValueError, match=r"None of 8 samples.*'empty' gave None"):
        trainer._ensure_target()


def test_mistakes_of_reward_functions_name_function_and_row(tmp_path: Path, reported: list[str]) -> None:
    def third(completions: list, **kwargs: object) -> list[float]:
        if completions[-1] in made[2:3]:
            raise KeyError("missing")
        return [math.nan] + [1.0] * (len(completions) - 1)

    made: list[str] = []
    drawn: list[list[str]] = []
    trainer = row_of(third).start(tmp_path)
    watched = trainer._calculate_rewards
    trainer._calculate_rewards = lambda *args: drawn.append(args[2]) or watched(*args)
    out = scored(trainer)
    assert len(reported) == 1 and "'third' returned NaN for row 0 (prompt 'One day'" in reported[0]
    assert out["advantages"][0] == 0
    made.extend(drawn[0])
    made[3] = made[2]  # the whole batch fails as the third row does
    with pytest.raises(
        ValueError, match=r"'third' \(test_f_dpg_trainer.py, line \d+\) raised KeyError: 'missing', for row 2"
    ):
        trainer._calculate_rewards([{"prompt": "One day"}] * 4, ["One day"] * 4, made, [[1]] * 4)


@pytest.mark.parametrize(
    ("rows", "streamed"),
    [
        (2, False),
        (3, True),
        *(pytest.param(*c, marks=pytest.mark.slow) for c in ((1, False), (3, False), (1, True), (2, True))),
    ],
)
def test_fewer_prompts_than_a_batch_are_repeated(tmp_path: Path, rows: int, streamed: bool) -> None:
    seen: list[str] = []

    def counting(prompts: list, completions: list, **kwargs: object) -> list[float]:
        seen.extend(prompts)
        return [float(len(text)) for text in completions]

    names = ["One day", "Tom ran", "Lily sat"][:rows]
    data = Dataset.from_list([{"prompt": name} for name in names])
    trainer = row_of(counting, num_generations=2).start(
        tmp_path, dataset=data.to_iterable_dataset() if streamed else data, per_device_train_batch_size=8, max_steps=3
    )
    trainer.train()
    assert trainer.state.global_step == 3 and len(seen) == 24
    if rows < 3 or not streamed:  # three whole batches of four prompts have each of three prompts four times
        assert {name: seen.count(name) for name in names} == dict.fromkeys(names, 24 // rows)
    # the samples of a prompt are one group, wherever they stand
    assert sorted(count for _, count in trainer.target_state.z.values()) == [24 // rows] * rows


@pytest.mark.parametrize("target", ["exponential", "binary", "distributional"])
def test_infinite_rewards_are_named(tmp_path: Path, target: str) -> None:
    def limitless(completions: list, **kwargs: object) -> list[float]:
        return [math.inf if i == 1 else float(i) for i in range(len(completions))]

    settings = {"target_moments": [0.5], "moment_samples": 8} if target == "distributional" else {}
    trainer = row_of(limitless, target=target, **settings).start(tmp_path)
    with pytest.raises(ValueError, match=r"limitless.* inf"):
        scored(trainer)
    trainer.target_state.coefficients = [1.0]
    with pytest.raises(ValueError, match="'limitless' returned inf"):
        scored(trainer)
    if target == "exponential":  # where -inf excludes a sample, and is no mistake
        with pytest.raises(ValueError, match="'limitless' returned inf"):
            trainer.log_scores(torch.tensor([[-math.inf], [1.0], [math.inf]]))


@pytest.mark.parametrize("value", [-1.0, 0.5, 2.0, 7.0])
@pytest.mark.parametrize("target", ["binary", "distributional"])
def test_constraints_are_0_or_1(tmp_path: Path, value: float, target: str) -> None:
    def wrong(completions: list, **kwargs: object) -> list[float]:
        return [1.0, value] * (len(completions) // 2)

    settings = {"target_moments": [0.5, None], "moment_samples": 8} if target == "distributional" else {}
    trainer = row_of(*([short] if settings else []), wrong, target=target, **settings).start(tmp_path)
    with pytest.raises(ValueError, match=rf"'wrong' returned {value} for row 1, but .* 0 or 1"):
        scored(trainer)


def test_a_divergence_of_ones_own(tmp_path: Path) -> None:
    class Logistic(FDPGTrainer):
        def f_prime(self, log_t: torch.Tensor) -> torch.Tensor:
            return log_t.sigmoid()

    trainer = FDPG.start(tmp_path, trainer=Logistic)
    out = scored(trainer)
    log_t = (out["old_logps"].double() - out["ref_logps"] - out["log_score"]) + out["log_z"]
    assert torch.allclose(out["advantages"], (-log_t.sigmoid() - out["baseline"]).float(), atol=1e-6)


# Partition function


def test_the_table_holds_all_weights_of_a_context(tmp_path: Path) -> None:
    trainer = FDPG.start(tmp_path)
    rows = [{"prompt": "One day"}] * 4 + [{"prompt": "Tom ran"}] * 4 + [{"prompt": "One day"}] * 4
    outs = [scored(trainer, rows, seed) for seed in (0, 1)]
    assert set(trainer.target_state.z) == {context_key({"prompt": "One day"}), context_key({"prompt": "Tom ran"})}
    of_day = torch.cat([out["log_score"][[0, 1, 2, 3, 8, 9, 10, 11]] for out in outs])
    log_sum, count = trainer.target_state.history(context_key({"prompt": "One day"}))
    assert count == 16
    assert log_sum == pytest.approx(of_day.logsumexp(0).item(), rel=1e-6)
    # the last sample is scored with all 15 others
    assert outs[1]["log_z"][11].item() == pytest.approx((of_day[:15].logsumexp(0) - math.log(15)).item(), rel=1e-6)


def test_scopes_and_estimators(tmp_path: Path) -> None:
    rows = [{"prompt": "One day"}] * 4 + [{"prompt": "Tom ran"}] * 4
    trainer = FDPG.start(tmp_path, z_scope="global")
    scored(trainer, rows)
    assert [count for _, count in trainer.target_state.z.values()] == [8]
    trainer = FDPG.start(tmp_path, z_estimator="group")
    first, second = scored(trainer, rows), scored(trainer, rows)
    assert not trainer.target_state.z
    assert torch.equal(first["log_z"], second["log_z"])
    trainer = FDPG.start(tmp_path, z_estimator="fixed", z_value=2.0)
    assert scored(trainer)["log_z"].unique().item() == pytest.approx(math.log(2))
    data = Dataset.from_list([{"prompt": "One day", "log_z": 1.25}])
    trainer = FDPG.start(tmp_path, z_estimator="fixed", dataset=data)
    assert scored(trainer, [data[0]] * 4)["log_z"].unique().item() == 1.25


def test_contexts_are_told_apart() -> None:
    red, blue = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    rows = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a", "level": 1}, {"prompt": "a", "level": 2}]
    rows += [{"prompt": "a", "image": red}, {"prompt": "a", "image": blue}]
    rows += [{"prompt": [{"role": "user", "content": "a"}]}, {"prompt": "a", "x": np.arange(3)}]
    assert len({context_key(row) for row in rows}) == len(rows)
    again = {"image": Image.new("RGB", (4, 4), "red"), "prompt": "a"}
    assert context_key(again) == context_key(rows[4])


@pytest.mark.parametrize("baseline", ["window", "constant", "none"])
def test_other_baselines(tmp_path: Path, baseline: str) -> None:
    trainer = FDPG.start(tmp_path, baseline=baseline, divergence="forward_kl", baseline_window=6)
    first, second = scored(trainer, seed=0), scored(trainer, seed=1)
    if baseline == "window":
        pseudo = first["advantages"] + first["baseline"]
        assert (first["baseline"] == 0).all()
        assert torch.allclose(second["baseline"], pseudo.mean().expand(4).double(), rtol=1e-5)
        assert len(trainer.target_state.window) == 6
    else:
        assert second["baseline"].unique().item() == (1.0 if baseline == "constant" else 0.0)


def test_the_window_holds_pseudo_rewards_of_scored_samples_only(tmp_path: Path) -> None:
    met = iter([[0.0] * 4, [1.0, 0.0, None, 1.0]])  # at first nothing is known of Z, so nothing is scored
    row = row_of(lambda completions, **_: next(met), target="binary", baseline="window")
    trainer = row.start(tmp_path)
    scored(trainer)
    assert trainer.target_state.window == []
    out = scored(trainer)
    assert len(trainer.target_state.window) == 3 and (out["baseline"] == 0).all()


@pytest.mark.parametrize(
    ("settings", "bounded"),
    [
        ({"divergence": "forward_kl", "pseudo_reward_clip": 0.5}, lambda r, _: r.abs().max() <= 0.5),
        ({"divergence": "forward_kl", "log_t_clip": 0.1}, lambda r, _: r.max() <= math.exp(0.1) + 1e-6),
        ({"divergence": "reverse_kl", "normalize_generator": True}, lambda r, log_t: torch.allclose(r, -log_t)),
    ],
    ids=lambda value: None if callable(value) else "-".join(value),
)
def test_clips_and_shifts_reach_advantage_and_loss(tmp_path: Path, settings: dict, bounded: Callable) -> None:
    trainer = FDPG.start(tmp_path, baseline="none", **settings)
    out = scored(trainer)
    log_t = out["old_logps"] - out["ref_logps"] - out["log_score"] + out["log_z"]
    assert log_t.abs().max() > 0.6  # so that the clips bind
    assert bounded(out["advantages"].double(), log_t)
    log_pi = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (
        (log_pi + out["old_logps"])[:, None] * torch.eye(1, out["completion_ids"].size(1)),
        torch.zeros(out["completion_ids"].shape),
        None,
    )
    out["completion_mask"] = torch.ones_like(out["completion_mask"])
    trainer._compute_loss(trainer.model, out).backward()
    pulled = -4 * log_pi.grad
    assert torch.allclose(pulled, out["advantages"].double(), rtol=1e-5)


def test_ratio_to_the_proposal_is_clipped_in_the_loss(tmp_path: Path) -> None:
    losses = []
    for clip in (None, 2.0):
        trainer = FDPG.start(tmp_path, importance_ratio_clip=clip)
        out = scored(trainer)
        out["old_logps"] = out["old_logps"] - math.log(6)
        losses.append(trainer._compute_loss(trainer.model, out).item())
    assert losses[0] == pytest.approx(3 * losses[1], rel=1e-4) != 0


# Evaluation


def test_evaluation_reads_the_table_and_leaves_all_as_it_was(tmp_path: Path) -> None:
    trainer = FDPG.start(
        tmp_path, baseline="window", num_generations_eval=1, log_diversity=True, dataset=ONE, num_generations=4
    )
    before = trainer.evaluate(ONE)  # nothing is known of Z yet
    assert "eval_divergence/tv" not in before
    trainer.train()
    state = json.dumps(vars(trainer.target_state))
    metrics = trainer.evaluate(ONE)
    assert json.dumps(vars(trainer.target_state)) == state
    assert math.isfinite(metrics["eval_divergence/kl_policy_base"])


# Metrics


def test_metrics_of_a_batch(tmp_path: Path) -> None:
    row = row_of(binary, target="binary", num_generations=16, log_diversity=True, divergence="js")
    trainer = row.start(tmp_path, per_device_train_batch_size=16, dataset=ONE)
    trainer.train()
    first = trainer.state.log_history[0]
    share = first["features/binary/policy"]
    assert 0 < share < 1
    assert first["z/mean"] == pytest.approx(share)
    assert first["in_support_fraction"] == pytest.approx(share)
    assert first["features/binary/target"] == pytest.approx(1)
    # the target is the initial model where the constraint holds: KL(p, a) = -log Z
    assert first["divergence/kl_target_base"] == pytest.approx(-math.log(share))
    assert first["divergence/kl_target_policy"] == pytest.approx(-math.log(share))
    assert first["divergence/tv"] == pytest.approx(1 - share)
    assert first["divergence/kl_policy_base"] == 0
    assert first["z/ess"] == pytest.approx(16 * share)
    assert first["boost_minus_downweight"] == 16 * share - 16 * (1 - share)
    assert first["log_t/max"] == pytest.approx(math.log(share))
    assert first["z/zero_fraction"] == 0
    for name in ("advantage/std", "pseudo_reward/mean", "pseudo_reward/max", "importance_ratio/max", "entropy"):
        assert math.isfinite(first[name])
    assert 0 < first["diversity/self_bleu_5"] < 1 and 0.5 < first["diversity/distinct_1"] <= 1
    assert len(trainer._logs["advantages"]) == 16


@pytest.fixture
def warnings_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    for module in ("trainer", "targets"):
        warning = f"alignext.trainers.f_dpg.{module}.logger.warning"
        monkeypatch.setattr(warning, lambda text, *args: found.append(text))
    return found


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr("alignext.rewards.texts.logger.warning", found.append)
    return found


def test_a_constraint_that_is_never_met_is_reported_once(tmp_path: Path, warnings_of: list[str]) -> None:
    trainer = row_of(lambda completions, **_: [0.0] * len(completions), target="binary").start(tmp_path)
    trainer.target_state.unmet = [1.0] * 48
    outs = [scored(trainer) for _ in range(4)]
    assert (outs[-1]["advantages"] == 0).all()
    assert trainer._metrics["train"]["z/zero_fraction"] == [1.0] * 4
    assert len([text for text in warnings_of if "met the constraint" in text]) == 1
    trainer._compute_loss(trainer.model, outs[-1]).backward()
    assert all(weight.grad is None or (weight.grad == 0).all() for weight in trainer.model.parameters())


def test_poor_weights_are_reported(tmp_path: Path, warnings_of: list[str]) -> None:
    lengths = row_of(lambda completions, **_: [float(i) for i in range(len(completions))], beta=0.001)
    scored(lengths.start(tmp_path))
    assert any("effective sample size" in text for text in warnings_of)
    assert any("above 100" in text for text in warnings_of)
    trainer = row_of(lambda completions, **_: [1.0] * len(completions), target="binary").start(tmp_path)
    trainer.target_state.weights = [200.0, 300.0, 460.0]
    scored(trainer)
    assert any("three standard errors" in text for text in warnings_of)


# Proposal


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_adaptive_proposal_samples_and_follows(tmp_path: Path, peft_config: LoraConfig | None) -> None:
    trainer = FDPG.start(
        tmp_path, peft_config=peft_config, proposal="adaptive", proposal_update_interval=2, dataset=ONE
    )
    before = weights(trainer.model)
    disturb(trainer.model)
    out = scored(trainer)
    # drawn and scored by the copy, which is the initial model
    assert torch.equal(out["old_logps"], out["ref_logps"])
    trainer._compute_loss(trainer.model, out)
    assert trainer._metrics["train"]["importance_ratio/max"][-1] != pytest.approx(1, abs=1e-3)
    assert len(trainer.target_state.behind) == 1
    trainer.state.global_step = 2
    for behind, followed in ((1.0, False), (-1.0, True)):
        trainer.target_state.behind, trainer.target_state.checked = [behind], 0
        out = scored(trainer)
        assert torch.equal(out["old_logps"], out["ref_logps"]) != followed
        assert trainer._metrics["train"]["proposal_updated"][-1] == float(followed)
    trainer._compute_loss(trainer.model, out)
    assert trainer._metrics["train"]["importance_ratio/max"][-1] == pytest.approx(1, abs=1e-4)
    if peft_config is not None:
        assert trainer.model.active_adapter == "default"
        trainable = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
        assert trainable == {name for name in before if ".default." in name}


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_a_resumed_run_has_the_state_of_the_whole_one(tmp_path: Path, peft_config: LoraConfig | None) -> None:
    row = row_of(
        short,
        target="distributional",
        target_moments=[0.8],
        moment_samples=16,
        baseline="window",
        proposal="adaptive",
        proposal_update_interval=1,
        max_completion_length=9,
        num_generations=8,
    )
    settings = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "peft_config": peft_config,
        "dataset": ONE,
        "per_device_train_batch_size": 8,
    }
    whole = row.start(tmp_path, **settings)
    whole.train()
    saved = FDPGState.load(tmp_path / "checkpoint-2")
    assert saved.coefficients == whole.target_state.coefficients
    assert len(saved.window) == 16 and [count for _, count in saved.z.values()] == [16]
    resumed = row.start(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert vars(resumed.target_state) == vars(whole.target_state)
    assert curve(resumed) == curve(whole)
    left, right = weights(whole.model), weights(resumed.model)
    assert not [name for name in left if not torch.equal(left[name], right[name])]
    assert len(logged(whole, "proposal_updated")) == 3  # compared after every step but the last


def test_samples_that_are_drawn_anew_count_once(tmp_path: Path) -> None:
    row = row_of(short, baseline="window", max_completion_length=9, num_generations=8)
    settings = {"save_strategy": "steps", "save_steps": 1, "dataset": ONE, "per_device_train_batch_size": 8}
    settings |= {"num_iterations": 2, "max_steps": 4}
    whole = row.start(tmp_path, **settings)
    whole.train()
    saved = [FDPGState.load(tmp_path / f"checkpoint-{step}") for step in (1, 2, 3, 4)]
    assert [[count for _, count in state.z.values()] for state in saved] == [[], [8], [8], [16]]
    assert [len(state.window) for state in saved] == [0, 8, 8, 16]
    for step, count in ((1, 16), (2, 16), (3, 16)):  # of 3, 2 and 1 updates that are left, with samples for 2
        resumed = row.start(tmp_path / "resumed", **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert [number for _, number in resumed.target_state.z.values()] == [count]
        same = curve(resumed) == curve(whole)
        assert same == (step == 2)


def test_a_checkpoint_of_another_trainer_starts_afresh(tmp_path: Path) -> None:
    assert vars(FDPGState.load(tmp_path)) == vars(FDPGState())


def test_the_defaults_can_evaluate(tmp_path: Path) -> None:
    config = FDPGConfig(str(tmp_path), eval_strategy="steps", eval_steps=1, use_cpu=True, bf16=False)
    assert config.per_device_eval_batch_size % config.num_generations == 0


# After training


def test_quasi_rejection_sampling(tmp_path: Path) -> None:
    trainer = row_of(binary, target="binary", num_generations=8).start(
        tmp_path, dataset=ONE, per_device_train_batch_size=8, per_device_eval_batch_size=8
    )
    state, training = json.dumps(vars(trainer.target_state)), trainer.model.training
    every = list(trainer.quasi_rejection_sample("One day", 1.0, num_samples=6, max_draws=64))
    assert len(every) == 6
    assert binary([sample["completion"] for sample in every]) == [1.0] * 6
    assert all(sample["log_weight"] == 0 for sample in every)
    assert every[-1]["draws"] > 6  # what does not meet the constraint is never accepted
    assert len(list(trainer.quasi_rejection_sample({"prompt": "One day"}, 1e6, max_draws=16))) == 0
    assert json.dumps(vars(trainer.target_state)) == state and trainer.model.training == training
    assert not trainer._metrics["eval"]
    with pytest.raises(ValueError, match="beta"):
        next(trainer.quasi_rejection_sample("One day", 0.0))


# Bad input


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"divergence": "kl"}, "forward_kl, reverse_kl"),
        ({"divergence": "alpha"}, "alpha"),
        ({"divergence": "alpha", "alpha": 1.0}, "reverse_kl"),
        ({"alpha": 0.5}, "'alpha' there"),
        ({"target": "gdc"}, "exponential, binary"),
        ({"beta": 0.0}, "`beta` is 0.0"),
        ({"beta": -1.0}, "`beta` is -1.0"),
        ({"beta": math.nan}, "`beta` is nan"),
        ({"target": "binary", "divergence": "reverse_kl"}, "'js', 'tv' or 'forward_kl'"),
        ({"target": "binary", "divergence": "alpha", "alpha": 2.0}, "binary_floor"),
        ({"target": "binary", "reward_weights": [1.0]}, "reward_weights"),
        ({"target": "distributional"}, "target_moments"),
        ({"target_moments": [0.5]}, "target_moments"),
        ({"target": "distributional", "target_moments": [None]}, "target='binary'"),
        (
            {"target": "distributional", "target_moments": [0.5, None], "divergence": "jeffreys"},
            "jeffreys.*infinite",
        ),
        ({"binary_floor": 0.1}, "binary_floor"),
        ({"target": "binary", "binary_floor": 1.5}, "binary_floor"),
        ({"z_value": 0.0, "z_estimator": "fixed"}, "`z_value` is 0.0"),
        ({"z_value": 1.0}, "z_estimator"),
        ({"z_estimator": "median"}, "running, group, fixed"),
        ({"baseline": "mean"}, "leave_one_out"),
        ({"proposal": "offline"}, "adaptive"),
        ({"proposal": "adaptive", "use_vllm": True}, "use_vllm"),
        ({"pseudo_reward_clip": -1.0}, "pseudo_reward_clip"),
        ({"moment_samples": 0}, "moment_samples"),
        ({"top_p": 0.9}, "top_p=0.9.*allow_biased_sampling"),
        ({"temperature": 0.7}, "temperature"),
        ({"top_k": 50}, "top_k"),
        ({"min_p": 0.1}, "min_p"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"generation_kwargs": {"num_beams": 2}}, "generation_kwargs"),
        ({"normalize_advantages": True}, "normalize_advantages"),
        ({"mask_truncated_completions": True}, "mask_truncated_completions"),
        ({"sync_ref_model": True}, "sync_ref_model"),
        ({"disable_dropout": False}, "disable_dropout"),
        (
            {"train_sampling_strategy": "group_by_length"},
            "`train_sampling_strategy` must be 'random', received 'group",
        ),
        ({"num_generations": 1}, "at least 2"),
    ],
    ids=str,
)
def test_bad_settings_are_named(settings: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FDPGConfig("unused", use_cpu=True, bf16=False, **settings)


def test_few_samples_of_a_prompt_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    monkeypatch.setattr("alignext.trainers.f_dpg.config.logger.warning", lambda text, *args: found.append(text % args))
    for number in (8, 4):
        FDPGConfig("unused", use_cpu=True, bf16=False, num_generations=number)
    assert len(found) == 1 and "`num_generations` is 4" in found[0]


def test_nan_in_moments_is_none_and_biased_sampling_can_be_allowed() -> None:
    config = FDPGConfig(
        "unused",
        use_cpu=True,
        bf16=False,
        target="distributional",
        target_moments=[math.nan, 0.5],
        top_p=0.9,
        allow_biased_sampling=True,
    )
    assert config.target_moments == [None, 0.5]


def test_bad_constructor_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 `target_moments` and 2 reward functions"):
        row_of(short, binary, target="distributional", target_moments=[0.5]).start(tmp_path)
    with pytest.raises(ValueError, match="column `log_z`"):
        FDPG.start(tmp_path, z_estimator="fixed")
    with pytest.raises(ValueError, match="`log_z` of numbers"):
        data = Dataset.from_list([{"prompt": "a", "log_z": None}])
        trainer = FDPG.start(tmp_path, z_estimator="fixed", dataset=data)
        scored(trainer, [data[0]] * 4)
    folder = tmp_path / "t5"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match="T5Config is an encoder-decoder"):
        FDPG.start(tmp_path, model=str(folder))
    with pytest.raises(ValueError, match="short is constant"):
        trainer = row_of(
            lambda completions, **_: [1.0] * len(completions),
            target="distributional",
            target_moments=[0.5],
            moment_samples=8,
        ).start(tmp_path)
        trainer.reward_func_names = ["short"]
        trainer._ensure_target()
