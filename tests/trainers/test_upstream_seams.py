# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What the trainers rely on in those they extend, beyond names and parameters: those stand in `tests/seams.py`."""

import copy
import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, DynamicCache, TrainerState
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
)
from trl.trainer.utils import add_fused_lm_head

from alignext.decoding.rows import cache_name
from alignext.heads.scoring import logit_transform

from .. import seams
from .contract import LM, Row, count_vowels, preference, prompts, unpaired


KTO = Row(KTOTrainer, KTOConfig, unpaired, {"loss_type": "apo_zero_unpaired"})
DPO = Row(DPOTrainer, DPOConfig, preference)
REWARD = Row(RewardTrainer, RewardConfig, preference)
RLOO = Row(
    RLOOTrainer,
    RLOOConfig,
    prompts,
    {"num_generations": 2, "max_completion_length": 8},
    {"reward_funcs": count_vowels},
)

pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning"),
]


@pytest.mark.parametrize("row", [KTO, DPO, RLOO, REWARD], ids=str)
def test_attributes_are_set_by_the_constructor(row: Row, tmp_path: Path) -> None:
    trainer = row.start(tmp_path)
    names = seams.ATTRIBUTES[f"trl.{row.trainer.__name__}"].split()
    assert not [name for name in names if not hasattr(trainer, name)]
    assert set(trainer._metrics) == {"train", "eval"}


def test_one_kto_loss_does_without_kl(tmp_path: Path) -> None:
    # BCO runs KTO's constructor under this name of a loss: no KL columns, any order, batches of one
    trainer = KTO.start(tmp_path, per_device_train_batch_size=1, train_sampling_strategy="random")
    assert not trainer.calculate_KL
    # the text columns survive preparation, so that weights can be computed from them
    assert {"prompt", "completion", "label", "prompt_ids", "completion_ids"} == set(trainer.train_dataset.column_names)


def test_batch_of_kto_has_the_keys_the_loss_reads(tmp_path: Path) -> None:
    batch = next(iter(KTO.start(tmp_path).get_train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "completion_mask", "label"}
    assert batch["label"].dtype == torch.bool


def test_batch_of_dpo_is_chosen_then_rejected(tmp_path: Path) -> None:
    batch = next(iter(DPO.start(tmp_path).get_train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "completion_mask"}
    prompts_of_both = [
        ids[~mask.bool()] for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    for chosen, rejected in zip(prompts_of_both[:4], prompts_of_both[4:], strict=True):
        length = min(len(chosen), len(rejected))  # what is longer is padding
        assert torch.equal(chosen[:length], rejected[:length])


def test_scored_completions_of_rloo_have_the_keys_we_add_to(tmp_path: Path) -> None:
    trainer = RLOO.start(tmp_path)
    trainer.model.train()
    scored = trainer._generate_and_score_completions([{"prompt": "One day"}] * 4)
    assert {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "old_logps", "advantages"} <= set(scored)
    assert scored["old_logps"].shape == scored["advantages"].shape == (4,)
    assert len(trainer._logs["advantages"]) == 4


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_rloo_scores_samples_with_the_policy_and_then_with_the_reference(tmp_path: Path, lora: bool) -> None:
    # f-DPG reads both from the calls
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]) if lora else None
    trainer, seen = RLOO.start(tmp_path, peft_config=adapter), []
    score = trainer._get_per_token_logps_and_entropies

    def noted(model: torch.nn.Module, *args: object, **kwargs: object) -> tuple:
        disabled = lora and model.base_model.model.model.layers[0].self_attn.q_proj.disable_adapters
        seen.append("reference" if model is trainer.ref_model or disabled else "policy")
        return score(model, *args, **kwargs)

    trainer._get_per_token_logps_and_entropies = noted
    trainer.model.train()
    trainer._generate_and_score_completions([{"prompt": "One day"}] * 4)
    assert seen == ["policy", "reference"]


def test_fused_head_of_a_copy_calls_the_original(tmp_path: Path) -> None:
    # hence f-DPG drops the patched forward of a copy before it adds a head of its own
    model = RLOO.start(tmp_path).model
    twin = copy.deepcopy(model)
    vars(twin).pop("forward")
    with torch.no_grad():
        twin.get_input_embeddings().weight.zero_()
        ids = torch.tensor([[1, 300, 400]])
        assert not torch.equal(twin(ids).logits, model(ids).logits)


def test_rloo_loads_no_reference_without_beta(tmp_path: Path) -> None:
    assert RLOO.start(tmp_path, beta=0.0).ref_model is None


def test_fused_head_gives_log_probabilities_of_the_labels() -> None:
    model = AutoModelForCausalLM.from_pretrained(LM)
    ids = torch.tensor([[1, 300, 400, 500], [1, 600, 700, 800]])
    labels = torch.tensor([[-100, -100, 400, 500], [-100, 600, 700, 800]])
    with torch.no_grad():
        expected = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits"))
        output = model(ids, labels=labels, fused_lm_head=True)
    expected[labels[:, 1:] == -100] = 0.0
    assert torch.allclose(output.log_probs, expected, atol=1e-5)
    assert output.entropy.shape == output.mean_logits.shape == output.log_probs.shape


def test_fused_head_reads_the_transforms_that_low_rank_heads_read() -> None:
    read = set(re.findall(r'text_config, "(\w+)"', inspect.getsource(add_fused_lm_head)))
    experts = {"output_router_logits", "router_aux_loss_coef"}
    ours = set(re.findall(r'"(\w+)"', inspect.getsource(logit_transform))) - {"hyperclovax"}
    assert read - experts == ours


def test_trainer_state_keeps_the_state_of_callbacks() -> None:
    assert "stateful_callbacks" in {field.name for field in dataclasses.fields(TrainerState)}


def test_cache_is_cropped_by_a_negative_count() -> None:
    model = AutoModelForCausalLM.from_pretrained(LM)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor([[1, 300, 400, 500]]), **{str(cache_name(model)): cache})
    assert cache.is_croppable
    cache.crop(-1)
    assert cache.get_seq_length() == 3
    cache.batch_repeat_interleave(3)
    cache.batch_select_indices(torch.tensor([2]))
    assert cache.layers[0].keys.shape[0] == 1
