# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""GIST, LESS and plain cosines over datasets: gradients of rows, what is streamed, and what is refused."""

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig, Qwen2MoeConfig
from trl import SFTConfig, SFTTrainer

from alignext.data import add_gradient_scores, gradient_features, select_for_task
from alignext.data.encode import encode_example
from alignext.data.features import adam_moments
from alignext.data.gradients import RowGradients

from ..steering.test_vector import tiny
from ..trainers.contract import MINI_LM, STORIES
from ..trainers.steering import tiny_lm


pytestmark = [
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning"),
]
LORA = {"r": 2, "lora_dropout": 0.5, "target_modules": ["q_proj", "v_proj"]}


def adapted(zero_b: bool = False) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(tiny_lm(), LoraConfig(**LORA, init_lora_weights=zero_b))


def rows(count: int = 8) -> Dataset:
    return Dataset.from_list(
        [{"prompt": p, "completion": c, "kind": i % 2} for i, (p, c, _) in enumerate(STORIES)]
    ).select(range(count))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MINI_LM)


def scores(model, tokenizer, data: Dataset | None = None, target: Dataset | None = None, **settings) -> Dataset:
    return add_gradient_scores(
        model,
        rows() if data is None else data,
        rows(3) if target is None else target,
        processing_class=tokenizer,
        progress=False,
        **settings,
    )


def by_hand(model, tokenizer, row: dict) -> torch.Tensor:
    """The gradient of one row's mean loss by everything that is trained, flat."""
    ids = encode_example(row, tokenizer)
    model.eval()
    loss = model(torch.tensor([ids["input_ids"]]), labels=torch.tensor([ids["labels"]])).loss
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)]).double()


@pytest.mark.parametrize("case", ["lora", "linear", "everything"])
def test_gradients_of_a_batch_are_those_of_its_rows(case: str, tokenizer):
    """With hooks on linear layers, or row by row where other weights are trained."""
    model = adapted() if case == "lora" else tiny_lm()
    if case == "linear":
        model.requires_grad_(False)
        model.model.layers[1].mlp.requires_grad_(True)
    gradients = RowGradients(model.eval())
    assert gradients.linear == (case != "everything")
    encoded = [encode_example(row, tokenizer) for row in rows(4)]
    found = torch.cat(list(gradients.of(encoded)), 1)
    wanted = torch.stack([by_hand(model, tokenizer, row) for row in rows(4)])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))
    assert all(p.grad is None for p in model.parameters())  # no running sums
    assert not any(module._forward_hooks for module in model.modules())


TOKENS_IN_LINE = {
    "opt": OPTConfig(
        vocab_size=4096, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16
    ),
    "moe": Qwen2MoeConfig(
        vocab_size=4096, hidden_size=16, intermediate_size=24, moe_intermediate_size=24, num_hidden_layers=2,
        shared_expert_intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, num_experts=4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENS_IN_LINE)
def test_layers_that_read_all_tokens_in_one_line(name: str, tokenizer):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(TOKENS_IN_LINE[name]).eval().requires_grad_(False)
    for part, module in model.named_modules():
        if part.endswith(("fc1", "fc2", "shared_expert.up_proj", "shared_expert.down_proj", "q_proj")):
            module.requires_grad_(True)
    gradients = RowGradients(model)
    found = torch.cat(list(gradients.of([encode_example(row, tokenizer) for row in rows(4)])), 1)
    assert gradients.linear  # in one pass
    wanted = torch.stack([by_hand(model, tokenizer, row) for row in rows(4)])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


class SomeTokens(torch.nn.Module):
    """An expert: it reads the tokens that are sent to it."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sent = x[..., 0] > 0
        return torch.zeros_like(x).masked_scatter(sent[..., None], self.inner(x[sent]))


def test_layers_that_read_some_tokens(tokenizer):
    model = tiny_lm().eval().requires_grad_(False)
    model.model.layers[0].mlp = SomeTokens(model.model.layers[0].mlp.requires_grad_(True))
    gradients = RowGradients(model)
    found = torch.cat(list(gradients.of([encode_example(row, tokenizer) for row in rows(4)])), 1)
    assert not gradients.linear
    wanted = torch.stack([by_hand(model, tokenizer, row) for row in rows(4)])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


def test_scores_are_those_of_the_svd(tokenizer):
    model = adapted()
    found = scores(model, tokenizer, rank=2, group_by="kind", batch_size=3)
    g = torch.stack([by_hand(model, tokenizer, row) for row in rows()])
    right = torch.linalg.svd(g[:3], full_matrices=False).Vh[:2].T
    z, targets = g @ right, (g[:3] @ right)
    means = torch.stack([(targets[0] + targets[2]) / 2, targets[1]])
    wanted = torch.nn.functional.cosine_similarity(z[:, None], means[None], dim=-1).max(1).values
    torch.testing.assert_close(torch.tensor(found["gist"][:]).double(), wanted, rtol=1e-3, atol=1e-4)
    energy = z.norm(dim=1) / g.norm(dim=1)
    torch.testing.assert_close(torch.tensor(found["gist_energy"][:]).double(), energy, rtol=1e-3, atol=1e-4)
    full = scores(model, tokenizer, rank=2, group_by="kind", normalisation="full")
    wanted = (wanted * energy).tolist()
    assert list(full["gist"]) == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    cosine = scores(model, tokenizer, method="cosine")["cosine"]
    wanted = torch.nn.functional.cosine_similarity(g, g[:3].mean(0, keepdim=True)).tolist()
    assert list(cosine) == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_batches_padding_order_and_dropout_change_no_score(tokenizer):
    model = adapted().train()  # with dropout
    first = scores(model, tokenizer, batch_size=8)["gist"]
    assert model.training
    assert list(scores(model, tokenizer, batch_size=8)["gist"]) == list(first)
    one = scores(model, tokenizer, batch_size=1)["gist"]
    assert list(one) == pytest.approx(list(first), rel=1e-3, abs=1e-4)
    turned = scores(model, tokenizer, rows().select(range(7, -1, -1)))["gist"]
    assert list(turned)[::-1] == pytest.approx(list(first), rel=1e-3, abs=1e-4)


def test_rows_are_those_of_the_trainer_and_dropped_ones_misalign_nothing(tokenizer, tmp_path: Path):
    """TRL drops a row whose completion is cut away; here it stays, with a reason."""
    data = rows().to_list()
    data[2]["prompt"] = "word " * 40
    data = Dataset.from_list(data)
    args = SFTConfig(str(tmp_path), max_length=30, report_to="none", use_cpu=True, bf16=False, eos_token=None)
    trainer = SFTTrainer(
        tiny_lm(), args=args, train_dataset=data.add_column("at", range(8)), processing_class=tokenizer
    )
    prepared = trainer.train_dataset
    assert prepared["at"][:] == [0, 1, 3, 4, 5, 6, 7]
    for row in prepared:
        own = encode_example(data[row["at"]], tokenizer)
        assert own["input_ids"][:30] == row["input_ids"][:30]
        assert own["labels"][:30] == row["labels"][:30]
    found = scores(adapted(), tokenizer, data, max_length=30)
    assert [math.isnan(x) for x in found["gist"]] == [i == 2 for i in range(8)]
    assert found["gist_note"][2] == "no token of it is trained on before `max_length`"
    whole = scores(adapted(), tokenizer, max_length=30)
    assert found["gist"][7] == pytest.approx(whole["gist"][7], rel=1e-4)


@pytest.mark.parametrize("kind", ["messages", "text"])
def test_other_formats_are_the_trainer_s(kind: str, tokenizer, tmp_path: Path):
    told = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello there."}]
    data = Dataset.from_list([{"messages": told} if kind == "messages" else {"text": "Tom ran home."}])
    args = SFTConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False)
    prepared = SFTTrainer(tiny_lm(), args=args, train_dataset=data, processing_class=tokenizer).train_dataset[0]
    own = encode_example(data[0], tokenizer)
    assert own == {name: prepared.get(name, prepared["input_ids"]) for name in ("input_ids", "labels")}


def test_kept_scores_are_of_the_same_settings(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each setting that a score depends on, one after the other in one folder."""
    model, said = adapted(), []
    model.add_adapter("other", LoraConfig(**LORA, init_lora_weights=False))
    data = Dataset.from_list([{"text": p, "story": f"{p}{c}"} for p, c, _ in STORIES[:8]])
    settings = {"cache": tmp_path / "kept", "target": data.select(range(3)), "method": "cosine"}

    def fresh_is_kept(**more) -> None:
        found = scores(model, tokenizer, data, **settings | more)["cosine"]
        assert list(found) == list(scores(model, tokenizer, data, **settings | more | {"cache": None})["cosine"])
        assert list(found) not in said
        assert list(scores(model, tokenizer, data, **settings | more)["cosine"]) == list(found)
        said.append(list(found))

    fresh_is_kept()
    fresh_is_kept(text_field="story")
    fresh_is_kept(text_field="story", max_length=12)
    model.set_adapter("other")
    fresh_is_kept()
    model.set_adapter("default")
    parameters = [p for p in model.parameters() if p.requires_grad]
    parameters[0].requires_grad_(False)
    fresh_is_kept()
    parameters[0].requires_grad_(True)
    with model.disable_adapter():
        for p in parameters:
            p.requires_grad_(False)
        model.base_model.model.lm_head.weight.requires_grad_(True)
        off = scores(model, tokenizer, data, **settings)["cosine"]
    for p in parameters:
        p.requires_grad_(False)
    on = scores(model, tokenizer, data, **settings)["cosine"]  # of the same parameter, behind adapted layers
    assert list(on) != list(off)


def test_kept_scores_are_of_the_same_moments(tokenizer, tmp_path: Path):
    model = adapted()
    checkpoint = trained(tmp_path / "run", tokenizer, model)
    settings = {"method": "less", "optimizer_state": checkpoint, "cache": tmp_path / "kept"}
    first = list(scores(model, tokenizer, **settings)["less"])
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    for of in state["state"].values():
        of["exp_avg"] *= -3.0
    torch.save(state, checkpoint / "optimizer.pt")  # as a training that goes on writes it
    second = list(scores(model, tokenizer, **settings)["less"])
    assert second != first and second == list(scores(model, tokenizer, **settings | {"cache": None})["less"])


def test_a_new_adapter_is_warned_of(tokenizer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    said = []
    monkeypatch.setattr("alignext.data.gist.logger.warning", lambda text, *args: said.append(text % args))
    found = scores(adapted(zero_b=True), tokenizer)
    assert "All `lora_B` are zero" in said[0]
    assert "3 rows of `dataset` are rows of `target`" in said[1]  # and the leak is told
    assert all(map(math.isfinite, found["gist"]))
    said.clear()
    scores(adapted(), tokenizer, rows().select(range(3, 8)))
    assert not said


@pytest.mark.slow
def test_candidates_are_streamed(tokenizer, monkeypatch: pytest.MonkeyPatch):
    """What is alive at once does not grow with their number."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from common import PeakBytes

    model, peaks = adapted(), []
    for count in (16, 64):
        data = Dataset.from_list([rows()[i % 8] for i in range(count)])
        with PeakBytes() as memory:
            scores(model, tokenizer, data, batch_size=4)
        peaks.append(memory.peak)
    assert peaks[1] < 1.05 * peaks[0]


# LESS


def trained(folder: Path, tokenizer, model) -> Path:
    args = SFTConfig(
        str(folder),
        max_steps=2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_steps=2,
        disable_tqdm=True,
        learning_rate=1e-3,
        activation_checkpointing=False,
        optim="adamw_torch",
    )
    SFTTrainer(model, args=args, train_dataset=rows(), processing_class=tokenizer).train()
    return folder / "checkpoint-2"


def test_less_against_its_formula(tokenizer, tmp_path: Path):
    """Moments by the optimizer's order of parameters, and no projection where all numbers fit."""
    model = adapted()
    checkpoint = trained(tmp_path, tokenizer, model)
    found = scores(model, tokenizer, method="less", optimizer_state=checkpoint, group_by="kind")["less"]
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    m, v = (
        torch.cat([state[i][name].flatten() for i in range(len(state))]).double() for name in ("exp_avg", "exp_avg_sq")
    )
    g = torch.stack([by_hand(model, tokenizer, row) for row in rows()])
    step = (0.9 * m + 0.1 * g) / (0.999 * v + 0.001 * g**2 + 1e-8).sqrt()
    cosines = torch.nn.functional.cosine_similarity(step[:, None], g[None, :3], dim=-1)
    wanted = torch.maximum(cosines[:, [0, 2]].mean(1), cosines[:, 1])
    assert list(found) == pytest.approx(wanted.tolist(), rel=1e-2, abs=1e-3)
    small = scores(model, tokenizer, method="less", optimizer_state=checkpoint, projection_size=64)["less"]
    assert list(small) != pytest.approx(list(found), rel=1e-3)
    with pytest.raises(ValueError, match="is not Adam's for the trained parameters"):
        scores(tiny_lm(), tokenizer, method="less", optimizer_state=checkpoint)


def test_moments_of_a_full_model_are_in_the_order_of_its_groups(tokenizer, tmp_path: Path):
    """Norms do not decay and come last, whatever their place in the model."""
    model = tiny_lm()
    checkpoint = trained(tmp_path, tokenizer, model)
    gradients = RowGradients(model)
    moments, _ = adam_moments(checkpoint, gradients)
    assert [len(first) for first, _ in moments] == gradients.sizes
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    last = state["state"][state["param_groups"][1]["params"][-1]]["exp_avg"]
    assert torch.equal(moments[list(gradients.parameters).index("model.norm.weight")][0], last)


# Features and selection


def test_features_keep_inner_products(tokenizer):
    model = adapted()
    whole = gradient_features(model, rows(), processing_class=tokenizer, projection=0, batch_size=3)
    wanted = torch.stack([by_hand(model, tokenizer, row) for row in rows()])
    torch.testing.assert_close(whole.double(), wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))
    draws = torch.stack(
        [
            gradient_features(model, rows(2), processing_class=tokenizer, projection=64, seed=seed).double()
            for seed in range(6)
        ]
    )
    squares = draws.square().sum(2).mean(0)
    torch.testing.assert_close(squares, wanted[:2].square().sum(1), rtol=0.5, atol=0.0)
    data = rows().to_list()
    data[1]["completion"] = None
    found = gradient_features(model, Dataset.from_list(data), processing_class=tokenizer, projection=8)
    assert found.isnan().all(1).tolist() == [i == 1 for i in range(8)]


def test_selection():
    data = Dataset.from_dict(
        {
            "gist": [0.1, 0.9, math.nan, 0.9, 0.5, None],
            "gist_energy": [0.5, 0.1, math.nan, 0.4, 0.2, None],
            "row": range(6),
            "kind": list("aabbab"),
        }
    )
    assert select_for_task(data, keep=0.5)["row"][:] == [3, 1]  # of equal ones, that with more energy
    assert select_for_task(data, top=3)["row"][:] == [3, 1, 4]
    assert select_for_task(data, top=1, by="kind")["row"][:] == [3, 1]
    assert select_for_task(data.remove_columns("gist_energy"), top=2)["row"][:] == [1, 3]
    for wrong, message in (
        ({}, "One of `keep` and `top`"),
        ({"keep": 0.5, "top": 1}, "One of `keep` and `top`"),
        ({"keep": 0.0}, r"`keep` must be in \(0, 1\]"),
        ({"top": 0}, "`top` must be an integer of at least 1"),
        ({"top": 1, "column": "less"}, "no column 'less'"),
        ({"top": 1, "by": "source"}, "`by` must be a column"),
    ):
        with pytest.raises(ValueError, match=message):
            select_for_task(data, **wrong)


BAD = {
    "method": ({"method": "trak"}, ValueError, "`method` must be one of gist, less, cosine"),
    "normalisation": ({"normalisation": "half"}, ValueError, "`normalisation` must be"),
    "rank": ({"rank": 1}, ValueError, "where every cosine is 1 or -1"),
    "one target": ({"target": rows(1)}, ValueError, "`target` has 1 row"),
    "same target": (
        {"target": rows(1).select([0] * 5)},
        ValueError,
        "`target` has 5 rows with one and the same gradi",
    ),
    "empty target": ({"target": rows(0)}, ValueError, "`target` must have rows"),
    "state": ({"method": "less"}, ValueError, "`optimizer_state` must be given"),
    "no state": ({"method": "less", "optimizer_state": "nowhere"}, FileNotFoundError, "received nowhere"),
    "split": ({"target": DatasetDict(train=rows(4))}, ValueError, "`target` must be one dataset, .* Choose a split"),
    "list": ({"data": rows(4).to_list()}, ValueError, "`dataset` must be a `Dataset` .* received a list"),
    "group": ({"group_by": "task"}, ValueError, "`group_by` must be a column of `target`, received 'task'"),
    "pairs": ({"data": Dataset.from_list([{"chosen": "a", "rejected": "b"}])}, ValueError, "has preference pairs"),
    "columns": ({"data": Dataset.from_list([{"question": "a"}])}, ValueError, "do not have the right columns"),
    "packed": (
        {"data": Dataset.from_list([{"input_ids": [1], "seq_lengths": [1]}])},
        NotImplementedError,
        "is packed",
    ),
    "pictures": ({"data": Dataset.from_list([{"text": "a", "image": "b"}])}, NotImplementedError, "a column 'image'"),
}


@pytest.mark.parametrize(("settings", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(settings: dict, error: type, message: str, tokenizer):
    with pytest.raises(error, match=message):
        scores(adapted(), tokenizer, **settings)


def test_a_model_of_which_nothing_is_trained(tokenizer):
    with pytest.raises(ValueError, match="all are frozen"):
        scores(tiny("Llama").requires_grad_(False), tokenizer)


@pytest.mark.effect
@pytest.mark.slow
def test_rows_of_the_target_s_kind_are_found(tokenizer, tmp_path: Path):
    """Two kinds of answers behind the same prompts; the target knows three rows of one kind."""
    names = "Tom Lily Ben Mia Sam Anna Max Sue".split()
    pool = [
        {"prompt": f"One day, {name} went out.", "completion": text, "kind": kind}
        for name in names
        for kind, text in (
            (0, f' "Hello!" said {name}. "How are you?"'),
            (1, " It was a big red ball and it was good."),
        )
    ]
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(MINI_LM), LoraConfig(**LORA))
    trained(tmp_path, tokenizer, model)
    target = Dataset.from_list([row for row in pool if row["kind"] == 0][:3])
    data = Dataset.from_list(pool[6:])
    for method in ("gist", "cosine"):
        found = select_for_task(scores(model, tokenizer, data, target, method=method), method, top=4)
        assert found["kind"][:].count(0) >= 3, method  # chance is under two of four
