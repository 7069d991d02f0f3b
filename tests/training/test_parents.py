# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What the parents' losses read, where ours are written anew beside them: something new must not pass in silence.

When a test here fails after an upgrade, see what the parent does with the new key or setting, and do it or refuse it.
"""

import inspect
import re

import pytest
from trl import DPOTrainer, KTOTrainer, RewardTrainer


KTO_KEYS = "attention_mask completion_mask input_ids label ref_KL_logps ref_logps"
DPO_KEYS = "attention_mask completion_mask input_ids ref_chosen_logps ref_rejected_logps"
# Keys of batches that the loss reads; those that it keeps from the model; attributes of the trainer.
READ = {
    KTOTrainer._compute_loss: (
        KTO_KEYS,
        "KL_attention_mask KL_completion_mask KL_input_ids KL_mm_token_type_ids KL_token_type_ids completion_mask "
        "label ref_KL_logps ref_logps",
        "_compute_kl_logps _metrics _total_train_tokens _tp_size accelerator args aux_loss_enabled beta calculate_KL "
        "desirable_weight loss_type model precompute_ref_logps ref_model router_aux_loss_coef undesirable_weight",
    ),
    DPOTrainer._compute_loss: (
        DPO_KEYS,
        "completion_mask ref_chosen_logps ref_rejected_logps",
        "_metrics _total_train_tokens _tp_size accelerator args aux_loss_enabled beta f_alpha_divergence_coef "
        "f_divergence_type label_smoothing ld_alpha loss_types loss_weights model precompute_ref_logps ref_model "
        "router_aux_loss_coef use_weighting",
    ),
    RewardTrainer.compute_loss: (
        "attention_mask margin use_cache",
        "",
        "_metrics _total_train_tokens _tp_size accelerator args model",
    ),
}


@pytest.mark.parametrize("loss", READ, ids=lambda loss: loss.__qualname__)
def test_the_loss_of_the_parent_reads_what_it_did(loss: object) -> None:
    source = inspect.getsource(loss)
    keys, kept, attributes = (set(names.split()) for names in READ[loss])
    assert set(re.findall(r'(?:batch|inputs)\["(\w+)"\]', source)) == keys
    not_for_the_model = re.search(r"_non_model_keys = \{(.*?)\}", source, re.DOTALL)
    assert set(re.findall(r'"(\w+)"', not_for_the_model[1] if not_for_the_model else "")) == kept
    assert set(re.findall(r"self\.(\w+)", source)) == attributes
