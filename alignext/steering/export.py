# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""A steering vector as an ordinary PEFT adapter: no hook, and every tool that loads adapters loads it."""

from typing import TYPE_CHECKING, Any

import torch

from alignext.steering.layers import decoder_layers, states_seen
from alignext.wrapping import evaluating


if TYPE_CHECKING:
    from peft import PeftModel

    from alignext.steering.vector import SteeringVector


# Where MLPs of decoder layers end, from the layer.
_ENDS = ("mlp.down_proj", "mlp.dense_4h_to_h", "mlp.fc2", "fc2")


@torch.no_grad()
def to_peft(vector: "SteeringVector", model: Any, alpha: float = 1.0, adapter_name: str = "default") -> "PeftModel":
    """
    SwFC as the bias of the layer's last projection, which PEFT's BEFT holds: `alpha Delta v` added to what the MLP
    adds to the residual stream. The function is the same where a block adds its MLP's output unchanged.

    Args:
        vector ([`SteeringVector`]): With `mu_positive` and `mu_negative`.
        model (`PreTrainedModel`): The adapter is put into it. Unwrap it with `unload()`.
        alpha (`float`, *optional*, defaults to 1.0): Strength of SwFC.
        adapter_name (`str`, *optional*, defaults to `"default"`): Of the adapter.

    Returns:
        `PeftModel`: `save_pretrained`, `push_to_hub` and `disable_adapter` are PEFT's. PEFT cannot merge it where the
        projection has no bias, and says so.

    Raises:
        ImportError: If PEFT is older than 0.20.
        ValueError: If the block has no such projection, or the adapter does not do what the vector does, as where a
            norm follows the MLP (Gemma 2 and 3, OLMo 2, GLM 4). The model is then left as it was.
    """
    import peft

    if not hasattr(peft, "BeftConfig"):
        raise ImportError(
            f"`to_peft` makes a BEFT adapter, which PEFT has since 0.20, and {peft.__version__} is installed. Update "
            "PEFT, or use `apply`."
        )
    vector.check("swfc", alpha)
    ids = _random_ids(model)
    with vector.apply(model, "swfc", alpha):
        wanted = _states(model, vector.layer, ids)
    plain = _states(model, vector.layer, ids)
    layer = decoder_layers(model)[vector.layer]
    names = {id(module): name for name, module in model.named_modules()}
    known = dict(layer.named_modules())
    end = next((end for end in _ENDS if isinstance(known.get(end), torch.nn.Linear)), None)
    if end is None:
        raise ValueError(
            f"{type(layer).__name__} has none of {', '.join(_ENDS)} as a linear layer to put the bias into. Use "
            "`apply`, which works on every model."
        )
    settings = peft.BeftConfig(target_modules=[names[id(known[end])]])
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wrapped = peft.get_peft_model(model, settings, adapter_name=adapter_name)
    (bias,) = (p for name, p in wrapped.named_parameters() if "beft_bias" in name and f".{adapter_name}" in name)
    step = float(vector.step(torch.zeros(()), "swfc", alpha))  # the same for every state
    bias.copy_((step * vector.direction).to(bias).view_as(bias))
    # Relative to what steering changes; half precision rounds the two sums at different places.
    error = (_states(model, vector.layer, ids) - wanted).norm() / (wanted - plain).norm().clamp(min=1e-12)
    if error > (1e-4 if bias.dtype == torch.float32 else 5e-2):
        wrapped.unload()
        for parameter, flag in flags:  # PEFT has frozen them
            parameter.requires_grad_(flag)
        raise ValueError(
            f"A bias in `{end}` of {type(layer).__name__} differs from steering by {float(error):.2g} of its effect: "
            "the block changes its MLP's output before it is added. Use `apply`, which works on every model."
        )
    return wrapped


def _random_ids(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    count = model.config.get_text_config(decoder=True).vocab_size
    return torch.randint(count, (2, 8), generator=generator).to(model.device)


def _states(model: Any, layer: int, ids: torch.Tensor) -> torch.Tensor:
    """Output of a layer, in float32, without dropout."""
    with evaluating(model), states_seen([decoder_layers(model)[layer]]) as seen:
        model(input_ids=ids, use_cache=False)
    return seen[0].float()
