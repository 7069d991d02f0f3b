# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What RIVAL puts into one stock denoising loop: self-attention processors, wrappers of UNet and `scheduler.step`."""

import functools
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import Attention

from alignext.functional.rival import adain, attention_mode, cross_image_attention, epsilon_to_v, v_to_epsilon
from alignext.pipelines.rival.inversion import RIVALInversion
from alignext.wrapping import wrapped


class RIVALAttnProcessor:
    """Self-attention that stores the reference's keys and values, or reads them; otherwise calls `processor`."""

    def __init__(self, alignment: "Alignment", processor):
        self.alignment = alignment
        self.processor = processor
        self.reference: list[torch.Tensor] = []

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

        query = self._heads(attn, attn.to_q(hidden_states), attn.norm_q)
        own: list[torch.Tensor] = []
        if mode != "replace":
            own = [
                self._heads(attn, attn.to_k(hidden_states), attn.norm_k),
                self._heads(attn, attn.to_v(hidden_states)),
            ]
        if mode == "write":
            self.reference = own
            out = torch.nn.functional.scaled_dot_product_attention(query, own[0], own[1])
        else:
            key, value = own or (None, None)
            # A reference pass of R rows serves every branch of guidance when the reference prompt is the null prompt.
            references = self.alignment.branches * self.alignment.inversion.num_references
            copies = references // self.reference[0].shape[0]
            key_R, value_R = (x.repeat(copies, 1, 1, 1) if copies > 1 else x for x in self.reference)
            weight = self.alignment.settings.reference_weight
            out = cross_image_attention(query, key, value, key_R, value_R, reference_weight=weight)

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


@dataclass(frozen=True)
class Settings:
    """The knobs of one call; see [`RIVALMixin.__call__`]."""

    t_align: float
    t_early: float
    t_inject: float
    adain_strength: float = 1.0
    reference_weight: float = 1.0


class Alignment:
    """
    The state of one call. While [`~Alignment.installed`], every UNet call of the stock loop is preceded by a pass over
    the reference's latents of that very timestep, and every `scheduler.step` by the noise alignment.

    Args:
        inversion ([`RIVALInversion`]): The reference's chain, R pictures.
        settings ([`Settings`]): Thresholds and strengths.
        images_per_reference (`int`): M; the loop's batch is R * M rows, reference-major (per guidance branch).
        added_cond_kwargs (`dict[str, tuple[Tensor, Tensor]]`): Further UNet conditions (unconditional, conditional).
        repaint (`torch.Tensor` of shape `(R * M, 1, h, w)`, bool, *optional*): Inpainting: where not to keep.
    """

    def __init__(self, inversion: RIVALInversion, settings: Settings, images_per_reference: int, **conditions):
        self.inversion = inversion
        self.settings = settings
        self.images_per_reference = images_per_reference
        self.added_cond_kwargs = conditions.pop("added_cond_kwargs", {})
        self.repaint = conditions.pop("repaint", None)
        self.chain_index = {int(t): k for k, t in enumerate(inversion.timesteps, start=1)}
        self.mode = "plain"
        self.branches = 1
        self.reference_noise: torch.Tensor | None = None
        self.in_reference_pass = False
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
            with wrapped(unet, lambda forward: functools.partial(self._around_unet, unet, forward)):
                yield
        finally:
            scheduler.__dict__.pop("step", None)
            for layer, processor in zip(layers, kept, strict=True):
                layer.set_processor(processor)

    def _around_unet(self, unet, forward, *args, **kwargs):
        self._before_unet(unet, args, kwargs)
        return forward(*args, **kwargs)

    def _before_unet(self, unet, args, kwargs) -> None:
        if self.in_reference_pass:
            return
        sample, t = args[0], int(args[1])
        config, settings = self.inversion.scheduler, self.settings
        offset = config["steps_offset"] if config["timestep_spacing"] == "leading" else 0
        # The branches are read off the batch, since a callback may switch guidance off half-way.
        self.branches = sample.shape[0] // (self.inversion.num_references * self.images_per_reference)
        mode = attention_mode(t - offset, settings.t_align, settings.t_inject)
        align = t > settings.t_early and settings.adain_strength > 0
        self.mode = mode
        if mode == "plain" and not align:
            return
        self.mode, self.in_reference_pass = "plain" if mode == "plain" else "write", True
        try:
            noise = self._reference_pass(unet, sample, args[1], kwargs.get("cross_attention_kwargs"))
        finally:
            self.mode, self.in_reference_pass = mode, False
        self.reference_noise = noise[-self.inversion.num_references :] if align else None

    def _reference_pass(self, unet, sample: torch.Tensor, t: torch.Tensor, cross_attention_kwargs) -> torch.Tensor:
        """Predict the reference's noise from its own latents `z_t`, without ControlNet residuals."""
        inversion = self.inversion
        # The unconditional rows matter only to the unconditional branch's attention, and only if they differ.
        both = self.mode == "write" and self.branches == 2 and not inversion.is_null
        select = (lambda pair: torch.cat(pair).to(sample)) if both else (lambda pair: pair[1].to(sample))
        latents = inversion.latents[self.chain_index[int(t)]].to(sample)
        added = {name: select(pair) for name, pair in self.added_cond_kwargs.items()}
        return unet(
            torch.cat([latents] * 2) if both else latents,
            t,
            encoder_hidden_states=select((inversion.negative_prompt_embeds, inversion.prompt_embeds)),
            added_cond_kwargs=added or None,
            cross_attention_kwargs=cross_attention_kwargs,
            return_dict=False,
        )[0]

    def _step(self, scheduler, step, model_output, timestep, sample, *args, **kwargs):
        k = self.chain_index[int(timestep)]
        if self.reference_noise is not None:
            noise = self._per_image(self.reference_noise)
            model_output = self._aligned(scheduler, model_output, timestep, sample, noise, self.inversion.latents[k])
        output = step(model_output, timestep, sample, *args, **kwargs)
        self.reference_noise = None
        for processor in self.processors:
            processor.reference = []
        if self.repaint is not None:
            kept = self._per_image(self.inversion.latents[k - 1].to(output[0]))
            output = (torch.where(self.repaint, output[0], kept), *output[1:])
        return output

    def _aligned(self, scheduler, model_output, timestep, sample, reference_noise, latents) -> torch.Tensor:
        strength = self.settings.adain_strength
        alpha_bar = scheduler.alphas_cumprod[int(timestep)].to(sample.device)
        # At zero terminal SNR epsilon cannot be recovered from v, which there is the (negative) picture itself.
        if scheduler.config.prediction_type == "epsilon" or alpha_bar < 1e-4:
            return adain(model_output, reference_noise, strength=strength)
        x_G, x_R = sample.float(), self._per_image(latents.to(sample.device))
        e_G = v_to_epsilon(model_output.float(), x_G, alpha_bar)
        e_R = v_to_epsilon(reference_noise.float(), x_R, alpha_bar)
        return epsilon_to_v(adain(e_G, e_R, strength=strength), x_G, alpha_bar).to(model_output.dtype)

    def _per_image(self, x: torch.Tensor) -> torch.Tensor:
        """(R, ...) -> (R * M, ...), reference-major."""
        return x.repeat_interleave(self.images_per_reference, dim=0)
