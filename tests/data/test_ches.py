# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""CHES over datasets: against per-example formulas, DPO's own batches, and what goes wrong with padding and shifts."""

import copy
import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from alignext.data import CHESCallback, add_ches_scores, filter_by_ches, score_dataloader
from alignext.data.ches import _score
from alignext.data.encode import encode_pair

from ..steering.test_vector import ARCHITECTURES, tiny
from ..trainers.contract import MINI_LM, preference
from ..trainers.steering import tiny_folder, tiny_lm


pytestmark = [
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning"),
]
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def lm() -> tuple:
    return tiny_lm(), AutoTokenizer.from_pretrained(MINI_LM)


@torch.no_grad()
def by_hand(model: torch.nn.Module, prompt: list[int], chosen: list[int], rejected: list[int]) -> tuple[float, float]:
    """Of one pair, a row at a time: the states that predict the answers' tokens."""
    sums = []
    for answer in (chosen, rejected):
        out = model(torch.tensor([prompt + answer]), output_hidden_states=True, use_cache=False)
        sums.append(out.hidden_states[-1][0, len(prompt) - 1 : -1].double().sum(0))
    (a, b), n, m = sums, len(chosen), len(rejected)
    return float(a @ (b - a)), float((a / n) @ (b / m - a / n))


def test_scores_are_those_of_single_pairs_in_any_batch(lm: tuple):
    model, tokenizer = lm
    data = preference()
    found = {
        size: add_ches_scores(model, data, processing_class=tokenizer, batch_size=size, **QUIET) for size in (1, 3, 8)
    }
    for i, row in enumerate(data):
        ids = encode_pair(row, tokenizer)
        ches, ln = by_hand(model, *(ids[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")))
        for scored in found.values():
            assert scored["ches"][i] == pytest.approx(ches, rel=1e-4)
            assert scored["ln_ches"][i] == pytest.approx(ln, rel=1e-4)
            assert scored["ches_note"][i] == "" and scored["chosen"][i] == row["chosen"]
    backwards = add_ches_scores(model, data.select(range(7, -1, -1)), processing_class=tokenizer, **QUIET)
    assert backwards["ln_ches"][::-1] == pytest.approx(list(found[8]["ln_ches"]), rel=1e-4)


def test_left_padded_rows_score_alike_and_the_reference_s_mistakes_do_not():
    """The shift by one and the mask are the whole alignment: without either, another number comes out."""
    from alignext.functional.ches import answer_sums, ches_scores

    g = torch.Generator().manual_seed(0)
    states = torch.randn(2, 6, 4, generator=g, dtype=torch.float64)
    mask = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]])  # two real rows, padded on the right
    sums, _ = answer_sums(states, mask)
    right = float(ches_scores(sums[:1], sums[1:]))
    left = torch.cat([torch.zeros(1, 2, 4).double(), states[:1, :4]], 1), torch.tensor([[0, 0, 0, 0, 1, 1]])
    moved, _ = answer_sums(torch.cat([left[0], states[1:]]), torch.cat([left[1], mask[1:]]))
    assert float(ches_scores(moved[:1], moved[1:])) == pytest.approx(right, rel=1e-12)
    with_last = (states * mask[..., None]).sum(1)  # the state of the last token, not of the one before the first
    assert abs(float(ches_scores(with_last[:1], with_last[1:])) - right) > 0.01
    unpadded = states[:, 1:-1].sum(1)  # the prompt masked, the last column dropped: right without padding alone
    assert abs(float(ches_scores(unpadded[:1], unpadded[1:])) - right) > 0.01


def test_a_model_in_half_precision_is_summed_in_full(lm: tuple):
    model, tokenizer = lm
    whole = add_ches_scores(model, preference(), processing_class=tokenizer, **QUIET)["ln_ches"]
    half = add_ches_scores(tiny_lm().bfloat16(), preference(), processing_class=tokenizer, **QUIET)["ln_ches"]
    assert list(half) == pytest.approx(list(whole), rel=0.1)
    assert len(set(half)) == len(half)  # in bfloat16 sums, small differences are gone


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name: str):
    """The output layer's input is what is summed: its logits are the model's, up to a cap or a scale."""
    model = tiny(name)
    pair = {"chosen": ([5, 9, 13, 8, 4], [0, 0, 1, 1, 1]), "rejected": ([5, 9, 30, 22], [0, 0, 1, 1])}
    (found,) = (_score(model, [pair], kernel=True)[name] for name in ("ches",))
    ches, _ = by_hand(model, [5, 9], [13, 8, 4], [30, 22])
    assert found[0] == pytest.approx(ches, rel=1e-4, abs=1e-6)
    plain = _score(model, [pair], kernel=False)
    assert plain["ches"][0] == pytest.approx(ches, rel=1e-4, abs=1e-6)


def test_an_adapter_counts(lm: tuple):
    _, tokenizer = lm
    adapted = get_peft_model(tiny_lm(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    plain, with_it = (
        add_ches_scores(model, preference(), processing_class=tokenizer, **QUIET)["ches"]
        for model in (tiny_lm(), adapted)
    )
    assert list(plain) != pytest.approx(list(with_it), rel=1e-3)


def test_the_kernel_is_the_gradient_of_the_output_layer(lm: tuple):
    """`K(+, -) / K(+, +) - 1` against gradients by the output layer's weight."""
    model, tokenizer = lm
    row = preference().select([0])
    found = add_ches_scores(model, row, processing_class=tokenizer, kernel=True, **QUIET)["ches_kernel"][0]
    ids, grads = encode_pair(row[0], tokenizer), []
    for side in ("chosen_ids", "rejected_ids"):
        whole = torch.tensor([ids["prompt_ids"] + ids[side]])
        logps = model(whole).logits[0, :-1].log_softmax(-1)
        at = torch.arange(len(ids["prompt_ids"]) - 1, whole.shape[1] - 1)
        loss = logps[at, whole[0, at + 1]].sum()
        grads.append(torch.autograd.grad(loss, model.lm_head.weight)[0].flatten().double())
    assert found == pytest.approx(float(grads[0] @ grads[1] / (grads[0] @ grads[0]) - 1), rel=1e-3)


def trainer_of(folder: Path, data: Dataset, model: object = None, **settings) -> DPOTrainer:
    args = DPOConfig(
        str(folder), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, save_strategy="no", **settings
    )
    return DPOTrainer(
        model or tiny_folder().name,
        args=args,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(MINI_LM),
    )


@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize("max_length", [None, 20])
def test_a_trainer_s_own_rows_score_alike(conversational: bool, max_length: int | None, lm: tuple, tmp_path: Path):
    model, tokenizer = lm
    data = preference(conversational)
    trainer = trainer_of(tmp_path, data, max_length=max_length)
    for row, prepared in zip(data, trainer.train_dataset, strict=True):
        assert encode_pair(row, tokenizer) == {
            name: prepared[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        }
    scored = score_dataloader(trainer, **QUIET)
    alone = add_ches_scores(model, data, processing_class=tokenizer, max_length=max_length, **QUIET)
    assert list(scored["ln_ches"]) == pytest.approx(list(alone["ln_ches"]), rel=1e-4)
    # By hand from a batch of its collator, chosen rows first.
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    with torch.no_grad():
        h = model.base_model(batch["input_ids"], batch["attention_mask"]).last_hidden_state[:, :-1].double()
    w = batch["completion_mask"][:, 1:].double()
    c, r = (torch.einsum("btd,bt->bd", h, w) / w.sum(1, keepdim=True)).chunk(2)
    assert list(scored["ln_ches"]) == pytest.approx((c * (r - c)).sum(1).tolist(), rel=1e-4)


def test_rows_that_cannot_be_scored_stay_and_say_why(lm: tuple):
    model, tokenizer = lm
    rows = preference().to_list()
    rows[2]["prompt"] = "word " * 40
    rows[4]["chosen"] = None
    scored = add_ches_scores(
        model, Dataset.from_list(rows), processing_class=tokenizer, max_length=30, batch_size=3, **QUIET
    )
    assert len(scored) == 8 and [math.isnan(x) for x in scored["ln_ches"]] == [i in (2, 4) for i in range(8)]
    assert scored["ches_note"][2] == "the chosen answer has no token before `max_length`"
    assert scored["ches_note"][4] == "a cell is null"
    alone = add_ches_scores(model, preference().select([7]), processing_class=tokenizer, **QUIET)["ches"][0]
    assert scored["ches"][7] == pytest.approx(alone, rel=1e-4)  # what is missing moves nothing
    assert len(filter_by_ches(scored, keep=1.0)) == 6


def test_a_stream_is_scored_while_it_is_read(lm: tuple):
    model, tokenizer = lm
    stream = IterableDataset.from_generator(lambda: iter(preference().to_list()))
    scored = list(add_ches_scores(model, stream, processing_class=tokenizer, **QUIET))
    alone = add_ches_scores(model, preference(), processing_class=tokenizer, **QUIET)
    assert [row["ln_ches"] for row in scored] == pytest.approx(list(alone["ln_ches"]), rel=1e-5)
    with pytest.raises(ValueError, match="received a stream"):
        filter_by_ches(stream, keep=0.5)


def test_an_interrupted_run_goes_on(lm: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Blocks that are done are not run again, unless model or settings are others; a torn line is passed over."""
    monkeypatch.setattr("alignext.data.core.BLOCK", 2)
    model, tokenizer = lm
    whole = add_ches_scores(model, preference(), processing_class=tokenizer, **QUIET)["ches"]
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return _score(*args, **kwargs)

    monkeypatch.setattr("alignext.data.ches._score", counted)
    settings = {"processing_class": tokenizer, "cache": tmp_path, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        add_ches_scores(model, preference(), **settings)
    (file,) = tmp_path.iterdir()
    assert [len(json.loads(line)["notes"]) for line in file.read_text().splitlines() if line] == [2, 2]
    file.write_text(file.read_text() + '\n{"rows": "1234", "val')
    found = add_ches_scores(model, preference(), **settings)
    assert list(found["ches"]) == list(whole) and len(calls) == 3 + 2
    add_ches_scores(model, preference(), **settings)
    assert len(calls) == 5
    other = tiny_lm()
    other.lm_head.weight.data[0] += 1
    add_ches_scores(other, preference(), **settings)
    assert len(calls) == 5 + 4
    add_ches_scores(model, preference(), max_length=500, **settings)
    assert len(calls) == 5 + 4  # the same tokens
    add_ches_scores(model, preference(), max_length=10, **settings)
    assert len(calls) > 5 + 4


def test_kept_scores_are_of_the_same_template_and_adapters(lm: tuple, tmp_path: Path):
    model, tokenizer = tiny_lm(), copy.deepcopy(lm[1])
    asked, right, wrong = (
        [{"role": "user", "content": "Hi."}],
        *([{"role": "assistant", "content": text}] for text in ("Hello there.", "No.")),
    )
    data = Dataset.from_list([{"prompt": asked, "chosen": right, "rejected": wrong}])
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    settings = {"processing_class": tokenizer, "progress": False}

    def found() -> float:
        kept = add_ches_scores(model, data, cache=tmp_path, **settings)["ches"][0]
        assert kept == add_ches_scores(model, data, **settings)["ches"][0]
        return kept

    seen = [found()]
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} and {% endfor %}"
    seen.append(found())
    with model.disable_adapter():
        seen.append(found())
    assert len(set(seen)) == 3


def test_processes_share_the_rows_and_gather_them_in_order(lm: tuple, monkeypatch: pytest.MonkeyPatch):
    """Two processes, one after the other: each scores every second block, and the last one sees both halves."""
    monkeypatch.setattr("alignext.data.core.BLOCK", 2)
    model, tokenizer = lm
    whole = add_ches_scores(model, preference(), processing_class=tokenizer, **QUIET)
    halves: list[dict] = []

    def gather(own: list[dict]) -> list[dict]:
        halves.extend(own)
        if len(halves) == 1:
            raise EOFError  # the other one is not there yet
        return halves

    monkeypatch.setattr("alignext.data.core.gather_object", gather)
    for rank in (0, 1):
        state = SimpleNamespace(process_index=rank, num_processes=2, is_main_process=rank == 0)
        monkeypatch.setattr("alignext.data.core.PartialState", lambda cpu=False, state=state: state)
        with nullcontext() if rank else pytest.raises(EOFError):
            found = add_ches_scores(model, preference(), processing_class=tokenizer, **QUIET)
    assert [list(half) for half in halves] == [[0, 4], [2, 6]]
    assert list(found["ln_ches"]) == list(whole["ln_ches"])


# Filters


def scored(values: list[float | None], **columns) -> Dataset:
    return Dataset.from_dict({"ln_ches": values, "row": list(range(len(values))), **columns})


def test_filters_keep_the_lowest_in_their_order():
    data = scored([0.5, -2.0, math.nan, 3.0, -1.0, None])
    assert filter_by_ches(data, keep=0.5)["row"][:] == [1, 4]
    assert filter_by_ches(data, drop_top=0.25)["row"][:] == [0, 1, 4]
    assert filter_by_ches(data, max_score=-1.0)["row"][:] == [1, 4]
    assert filter_by_ches(data, keep=0.001)["row"][:] == [1]
    assert filter_by_ches(scored([1.0, 1.0, 1.0, 0.0]), keep=0.5)["row"][:] == [0, 3]  # of equal ones, the first
    groups = scored([1.0, 2.0, 3.0, 4.0], by=["a", "b", "a", "b"])
    assert filter_by_ches(groups, keep=0.5, by="by")["row"][:] == [0, 1]


BAD_FILTERS = {
    "none": ({}, "One of `keep`, `drop_top` and `max_score`"),
    "two": ({"keep": 0.5, "max_score": 1.0}, r"received \['keep', 'max_score'\]"),
    "keep": ({"keep": 1.5}, r"`keep` must be in \(0, 1\], received 1.5"),
    "drop": ({"drop_top": 1.0}, r"`drop_top` must be in \(0, 1\)"),
    "empty": ({"max_score": -9.0}, "No row is left of 2"),
    "column": ({"keep": 0.5, "column": "kernel"}, "no column 'kernel'"),
    "by": ({"keep": 0.5, "by": "kind"}, "`by` must be a column"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_FILTERS.values(), ids=BAD_FILTERS)
def test_bad_filters(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        filter_by_ches(scored([1.0, 2.0]), **arguments)


def test_bad_data(lm: tuple):
    model, tokenizer = lm
    settings = {"processing_class": tokenizer, "progress": False}
    single = Dataset.from_list([{"prompt": "a", "completion": "b", "label": True}])
    with pytest.raises(ValueError, match=r"expected 'chosen', 'rejected'.* Single answers with a label"):
        add_ches_scores(model, single, **settings)
    with pytest.raises(ValueError, match=r"`dataset` must be one dataset, .* Choose a split"):
        add_ches_scores(model, DatasetDict(train=preference()), **settings)
    with pytest.raises(ValueError, match=r"`dataset` must be a `Dataset` .* received a list"):
        add_ches_scores(model, preference().to_list(), **settings)
    with pytest.raises(ValueError, match=r"`model` must be a model that is loaded, received the name"):
        add_ches_scores(MINI_LM, preference(), **settings)
    with pytest.raises(NotImplementedError, match="a column 'images'"):
        add_ches_scores(model, preference().add_column("images", [[]] * 8), **settings)
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1"):
        add_ches_scores(model, preference(), batch_size=0, **settings)
    with pytest.raises(ValueError, match="`max_length` must be 2 or more"):
        add_ches_scores(model, preference(), max_length=1, **settings)
    with pytest.raises(ValueError, match="has a column 'ches' already"):
        add_ches_scores(model, preference().add_column("ches", [0.0] * 8), **settings)


def test_the_callback_logs_the_change_of_each_quantile(lm: tuple, tmp_path: Path):
    model, tokenizer = lm
    data = add_ches_scores(model, preference(), processing_class=tokenizer, **QUIET)
    settings = {"max_steps": 2, "learning_rate": 1e-2, "logging_steps": 1, "per_device_train_batch_size": 4}
    trainer = trainer_of(tmp_path, data, **settings, activation_checkpointing=False)
    watch = CHESCallback(trainer, quantiles=2, rows=4)
    assert [len(group) for group in watch.groups] == [2, 2]
    scores = data["ln_ches"]
    assert max(scores[i] for i in watch.groups[0]) <= min(scores[i] for i in watch.groups[1])
    trainer.add_callback(watch)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "ches/chosen_change_2" in row]
    assert [row["step"] for row in logged] == [1, 2]
    assert any(row["ches/chosen_change_1"] for row in logged)
    with pytest.raises(ValueError, match="`quantiles` must be between 1 and"):
        CHESCallback(trainer, quantiles=9)
