# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""A vector as an adapter, and tables of settings."""

from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel

from alignext.steering import sweep_steering
from alignext.steering.layers import decoder_layers

from .test_vector import logits, tiny, vector


pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # read by peft
    pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias term:UserWarning"),  # it cannot merge
]

needs_beft = pytest.mark.skipif(not hasattr(peft, "BeftConfig"), reason="PEFT has it since 0.20")


@needs_beft
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Mistral", "Phi3", "GPTNeoX"])
def test_the_adapter_is_the_hook(name: str, tmp_path: Path):
    model, sv = tiny(name), vector()
    before = logits(model)
    with sv.apply(model, "swfc", 1.5):
        wanted = logits(model)
    adapted = sv.to_peft(model, 1.5)
    torch.testing.assert_close(logits(adapted), wanted, rtol=0, atol=1e-5)
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny(name), tmp_path)
    torch.testing.assert_close(logits(again), wanted, rtol=0, atol=1e-5)
    assert torch.equal(logits(adapted.unload()), before)


@needs_beft
@pytest.mark.parametrize("name", ["Gemma2", "Gemma3Text", "Olmo2", "Glm4"])
def test_blocks_with_a_norm_behind_the_mlp_are_refused(name: str):
    model = tiny(name)
    for module in model.modules():  # a new norm is the identity up to scale, and a trained one is not
        if type(module).__name__.endswith("RMSNorm"):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    before, modules = logits(model), [type(module) for module in model.modules()]
    model.lm_head.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="changes its MLP's output before it is added"):
        vector().to_peft(model, 1.5)
    assert torch.equal(logits(model), before)
    assert [type(module) for module in model.modules()] == modules
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


@needs_beft
def test_dropout_is_no_reason_to_refuse():
    model, sv = tiny("Phi3"), vector()
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    with sv.apply(model, "swfc", 1.5):
        wanted = logits(model)
    adapted = sv.to_peft(model.train(), 1.5)
    assert all(part.training for part in model.modules())
    torch.testing.assert_close(logits(adapted.eval()), wanted, rtol=0, atol=1e-5)


@needs_beft
def test_a_block_without_a_linear_end():
    with pytest.raises(ValueError, match=r"MambaBlock has none of mlp\.down_proj"):
        vector().to_peft(tiny("Mamba"))


def test_an_older_peft_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(peft, "BeftConfig", raising=False)
    with pytest.raises(ImportError, match=r"PEFT has since 0\.20, and .* is installed"):
        vector().to_peft(tiny(), 1.5)


def test_a_table_of_settings():
    """The scorer sees the model steered; the choice is the largest trait that keeps its coherence."""
    model = tiny()
    before = logits(model)

    def score(model: torch.nn.Module) -> tuple[float, float]:
        change = float((logits(model) - before).norm())
        return change, 1.0 - 0.1 * change

    rows, chosen = sweep_steering(
        model, [vector(0), vector(1)], score, methods=["swfc", "clamp"], alphas=[0.0, 0.02, 50.0], progress=False
    )
    assert len(rows) == 13 and rows[0] == (-1, "none", 0.0, 0.0, 1.0)
    assert rows[1].trait == 0 and rows[1].method == "swfc" and rows[1].layer == 0
    assert 0 < chosen.trait <= 1 and chosen.coherence >= 0.9
    assert chosen.trait == max(row.trait for row in rows if row.coherence >= 0.9)
    assert (
        sweep_steering(model, vector(), lambda m: (-float((logits(m) - before).norm()), 1.0), progress=False)[1]
        == rows[0]
    )
    assert not any(layer._forward_hooks for layer in decoder_layers(model))


def test_tables_that_cannot_be_made():
    with pytest.raises(ValueError, match="at least one entry"):
        sweep_steering(tiny(), [], lambda model: (0.0, 0.0))
    with pytest.raises(ValueError, match="`keep_coherence` must be in"):
        sweep_steering(tiny(), vector(), lambda model: (0.0, 0.0), keep_coherence=90)
    with pytest.raises(ValueError, match="needs `boundary`"):
        sweep_steering(tiny(), vector(boundary=None), lambda model: pytest.fail("ran"))
