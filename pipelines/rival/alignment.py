# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The hooks of RIVAL in one stock denoising loop: self-attention processors, wrappers of UNet and `scheduler.step`."""

import functools
import operator
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from alignext.functional.predictions import clean_and_noise, prediction_of_noise
from alignext.functional.rival import adain, cross_image_attention
from alignext.pipelines.rival.inversion import RIVALInversion
from alignext.pipelines.rival.presets import Levers
from alignext.wrapping import wrapped


class RIVALAttnProcessor:
    """
    Self-attention in which images read the reference; outside of the thresholds, the stock `processor`.

    The reference's rows stand behind those of the images. If they have a call of their own, which comes first, their
    keys and values are kept until the step.
    """

    def __init__(self, alignment: "Alignment", processor):
        self.alignment = alignment
        self.processor = processor
        self.reference: tuple[torch.Tensor, ...] = ()

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **kwargs):
        mode = self.alignment.mode
        if mode == "plain" or encoder_hidden_states is not None:
            if temb is not None:  # not every processor takes it
                kwargs["temb"] = temb
            return self.processor(
                attn,
                hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                attention_mask=attention_mask,
                **kwargs,
            )
        if attention_mask is not None:
            raise NotImplementedError("RIVAL does not support an `attention_mask` in self-attention.")

        residual = hidden_states
        shape = hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)

        # n rows of images, m of the reference. A compiler shall see that m is a constant and n + m all rows: slices,
        # whose ends may be anything, make expressions for it that double with every layer.
        m = operator.index(self.alignment.reference_rows)
        n = len(hidden_states) - m
        query = self._heads(attn, attn.to_q(hidden_states), attn.norm_q)
        # Images that read nothing but the reference need no keys and values of their own.
        source = hidden_states if mode == "concat" else hidden_states.narrow(0, n, m)
        if len(source):
            key = self._heads(attn, attn.to_k(source), attn.norm_k)
            value = self._heads(attn, attn.to_v(source))
        own = (key.narrow(0, 0, n), value.narrow(0, 0, n)) if mode == "concat" else (None, None)
        reference = tuple(x.narrow(0, len(x) - m, m) for x in (key, value)) if m else self.reference
        parts = []
        if n:
            parts.append(self.alignment.read(query.narrow(0, 0, n), *own, *reference))
        else:  # the reference alone: its images come in another call
            self.reference = reference
        if m:
            attention = torch.nn.functional.scaled_dot_product_attention
            parts.append(attention(query.narrow(0, n, m), reference[0], reference[1]))
        out = torch.cat(parts) if len(parts) > 1 else parts[0]

        out = out.transpose(1, 2).flatten(2).to(query.dtype)
        out = attn.to_out[1](attn.to_out[0](out))
        if len(shape) == 4:
            out = out.transpose(-1, -2).reshape(shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor

    @staticmethod
    def _heads(attn: Attention, x: torch.Tensor, norm: torch.nn.Module | None = None) -> torch.Tensor:
        x = x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (rows, heads, n, d)
        return norm(x) if norm is not None else x


class Alignment:
    """
    The state of one call. While [`~Alignment.installed`], every UNet call of the stock loop has the reference's rows
    of that very timestep behind its own, and every `scheduler.step` is preceded by the noise alignment.

    Args:
        inversion ([`RIVALInversion`]): The reference's chain, R pictures.
        levers ([`Levers`]): Thresholds and strengths.
        images_per_reference (`int`): M; the loop's batch is R * M rows, reference-major (per guidance branch).
        added_cond_kwargs (`dict[str, tuple[Tensor, Tensor]]`): Further UNet conditions (unconditional, conditional).
        repaint (`torch.Tensor` of shape `(R * M, 1, h, w)`, bool, *optional*): Inpainting: where not to keep.
        guider (`BaseGuidance`, *optional*): Of a modular loop, which calls the UNet once per branch of guidance.
    """

    def __init__(
        self,
        inversion: RIVALInversion,
        levers: Levers,
        images_per_reference: int,
        added_cond_kwargs: dict[str, tuple[torch.Tensor, torch.Tensor]],
        repaint: torch.Tensor | None = None,
        guider: Any = None,
    ):
        self.inversion, self.levers, self.images_per_reference = inversion, levers, images_per_reference
        self.added_cond_kwargs, self.repaint, self.guider = added_cond_kwargs, repaint, guider
        self.chain_index = {int(t): k for k, t in enumerate(inversion.timesteps, start=1)}
        self.mode = "plain"
        self.branches = 1
        self.reference_rows = 0  # of the UNet call that runs; they come behind those of the images
        self.reference_noise: torch.Tensor | None = None
        self.processors: list[RIVALAttnProcessor] = []

    @contextmanager
    def installed(self, unet: torch.nn.Module, scheduler) -> Generator[None]:
        """Put all three on `unet` and `scheduler`; whatever happens inside, take every one of them off."""
        layers = [
            module
            for name, module in unet.named_modules()
            if isinstance(module, Attention) and name.rpartition(".")[2] == "attn1"
        ]
        kept = [layer.processor for layer in layers]
        self.processors = [RIVALAttnProcessor(self, processor) for processor in kept]
        step = scheduler.step
        try:
            for layer, processor in zip(layers, self.processors, strict=True):
                layer.set_processor(processor)
            # `wraps` because the loop inspects the signature of `scheduler.step` for `eta` and `generator`.
            scheduler.step = functools.wraps(step)(functools.partial(self._step, scheduler, step))
            with wrapped(unet, lambda forward: functools.partial(self._around_unet, forward)):
                yield
        finally:
            scheduler.__dict__.pop("step", None)
            for layer, processor in zip(layers, kept, strict=True):
                layer.set_processor(processor)

    def read(self, query, key, value, reference_key, reference_value) -> torch.Tensor:
        """Attention of the images' rows, which read the reference's rows of their own branch of guidance."""
        # With the null prompt one row per reference serves every branch of guidance, and a single one all rows.
        copies = operator.index(self.branches) * self.inversion.num_references // len(reference_key)
        if copies > 1 and len(reference_key) > 1:
            reference_key, reference_value = (x.repeat(copies, 1, 1, 1) for x in (reference_key, reference_value))
        weight = self.levers.reference_weight
        return cross_image_attention(query, key, value, reference_key, reference_value, reference_weight=weight)

    def _around_unet(self, forward, sample: torch.Tensor, timestep: torch.Tensor, **kwargs):
        """The loop's UNet call, in which the reference's rows take part, or before which they run."""
        t, scheduler = int(timestep), self.inversion.scheduler
        offset = scheduler["steps_offset"] if scheduler["timestep_spacing"] == "leading" else 0
        self.mode, align = self.levers.mode(t - offset), self.levers.aligns(t)
        # The branches are read off the batch, since a callback may switch guidance off half-way.
        self.branches = len(sample) // (self.inversion.num_references * self.images_per_reference)
        self.reference_rows = 0
        if self.mode == "plain" and not align:
            return forward(sample, timestep, **kwargs)
        reference = self._reference_call(sample, t, kwargs)
        joint = _joined({"sample": sample, **kwargs}, reference)
        self.reference_rows = len(reference["sample"])
        if joint is not None:
            noise = forward(joint.pop("sample"), timestep, **joint)[0]
            noise, noise_R = noise[: len(sample)], noise[len(sample) :]
            output = (noise,) if kwargs.get("return_dict") is False else UNet2DConditionOutput(sample=noise)
        else:
            noise_R = forward(reference.pop("sample"), timestep, **reference)[0]
            self.reference_rows = 0
            output = forward(sample, timestep, **kwargs)
        if align and self.reference_noise is None and self._is_conditional:
            self.reference_noise = noise_R[-self.inversion.num_references :]
        return output

    @property
    def _is_conditional(self) -> bool:
        """Whether the UNet call that runs has the rows of the prompt, or those of all branches."""
        return self.guider is None or self.guider.is_conditional

    def _reference_call(self, sample: torch.Tensor, t: int, kwargs: dict) -> dict[str, Any]:
        """The arguments of a UNet call for the reference's latents `z_t`, without ControlNet residuals."""
        inversion = self.inversion
        # The unconditional rows matter only to the unconditional branch's attention, and only if they differ.
        both = self.mode != "plain" and self.branches == 2 and not inversion.is_null
        one = int(self._is_conditional)
        select = (lambda pair: torch.cat(pair).to(sample)) if both else (lambda pair: pair[one].to(sample))
        latents = inversion.latents[self.chain_index[t]].to(sample)
        return {
            "sample": torch.cat([latents] * 2) if both else latents,
            "encoder_hidden_states": select((inversion.negative_prompt_embeds, inversion.prompt_embeds)),
            "added_cond_kwargs": {name: select(pair) for name, pair in self.added_cond_kwargs.items()} or None,
            "cross_attention_kwargs": kwargs.get("cross_attention_kwargs"),
            "return_dict": False,
        }

    def _step(self, scheduler, step, model_output, timestep, sample, *args, **kwargs):
        k = self.chain_index[int(timestep)]
        if self.reference_noise is not None:
            noise = self._per_image(self.reference_noise)
            model_output = self._aligned(scheduler, model_output, timestep, sample, noise, self.inversion.latents[k])
        output = step(model_output, timestep, sample, *args, **kwargs)
        self.reference_noise = None
        for processor in self.processors:
            processor.reference = ()
        if self.repaint is not None:
            kept = self._per_image(self.inversion.latents[k - 1].to(output[0]))
            output = (torch.where(self.repaint, output[0], kept), *output[1:])
        return output

    def _aligned(self, scheduler, model_output, timestep, sample, reference_noise, latents) -> torch.Tensor:
        strength = self.levers.adain_strength
        alpha_bar = scheduler.alphas_cumprod[int(timestep)].to(sample.device)
        # At zero terminal SNR epsilon cannot be recovered from v, which there is the (negative) picture itself.
        kind = scheduler.config.prediction_type
        if kind == "epsilon" or alpha_bar < 1e-4:
            return adain(model_output, reference_noise, strength=strength)
        x_G, x_R = sample.float(), self._per_image(latents.to(sample.device))
        level = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        e_G = clean_and_noise(model_output.float(), x_G, *level, kind)[1]
        e_R = clean_and_noise(reference_noise.float(), x_R, *level, kind)[1]
        return prediction_of_noise(adain(e_G, e_R, strength=strength), x_G, *level, kind).to(model_output.dtype)

    def _per_image(self, x: torch.Tensor) -> torch.Tensor:
        """(R, ...) -> (R * M, ...), reference-major."""
        return x.repeat_interleave(self.images_per_reference, dim=0)


_RESIDUALS = ("down_block_additional_residuals", "mid_block_additional_residual")
_PER_ROW = ("sample", "encoder_hidden_states", "added_cond_kwargs")


def _joined(call: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any] | None:
    """One UNet call for both, the reference's rows last; None where sizes differ, or rows cannot be told."""
    rows = len(reference["sample"])
    joint = {name: _stacked(call.get(name), reference[name]) for name in _PER_ROW}
    if any(value is NotImplemented for value in joint.values()):
        return None
    for name, value in call.items():
        if name in _PER_ROW:
            continue
        if name in _RESIDUALS:  # of ControlNet, which does not see the reference
            value = _padded(value, rows)
        elif isinstance(value, torch.Tensor) or (
            isinstance(value, dict) and any(map(torch.is_tensor, value.values()))
        ):
            return None
        joint[name] = value
    return joint | {"return_dict": False}


def _stacked(a: Any, b: Any) -> Any:
    """Rows of `b` behind those of `a`, in dictionaries as well; NotImplemented if they do not go together."""
    if a is None and b is None:
        return None
    if isinstance(a, dict):  # modular loops name conditions that they do not have
        a = {name: value for name, value in a.items() if value is not None}
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        stacked = {name: _stacked(a[name], b[name]) for name in a}
        return NotImplemented if any(x is NotImplemented for x in stacked.values()) else stacked
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape[1:] == b.shape[1:]:
        return torch.cat([a, b.to(a)])
    return NotImplemented


def _padded(residuals: Any, rows: int) -> Any:
    """Residuals with so many rows of zeros behind them."""
    if isinstance(residuals, torch.Tensor):
        return torch.cat([residuals, residuals.new_zeros(rows, *residuals.shape[1:])])
    return None if residuals is None else type(residuals)(_padded(x, rows) for x in residuals)
