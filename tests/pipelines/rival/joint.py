# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The yardstick: RIVAL as one loop written out from the paper, with the rows [R-uncond, G-uncond, R-cond, G-cond] in
one batch. It shares no code with the package but the UNet and diffusers' DDIM. And how the tests run ours.
"""

import math

import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import Attention

from alignext.pipelines.rival.alignment import Alignment
from tests.pipelines.tiny import SIZE


T = 10


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def latents_for(pipe, n=1, seed=3):
    side = SIZE // pipe.vae_scale_factor
    return torch.randn(n, 4, side, side, generator=generator(seed))


def run(pipe, prompt="a red fox", **kwargs):
    kwargs = {"num_inference_steps": T, "output_type": "latent", "guidance_scale": 5.0} | kwargs
    if "inversion" in kwargs:
        kwargs.pop("num_inference_steps")
    return pipe(prompt, **kwargs).images


def encode(pipe, prompt):
    """Prompt, null prompt, and for Stable Diffusion XL the pooled ones."""
    return pipe.encode_prompt(
        prompt=prompt, device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=True
    )


class Recorder:
    """Every run of the UNet while active: timestep, input rows, keyword arguments, and the mode of the alignment."""

    def __init__(self, pipe, monkeypatch):
        self.calls, self.modes = [], []
        forward = pipe.unet.forward

        def record(sample, t, **kwargs):
            self.calls.append((int(t), sample.clone(), kwargs))
            return forward(sample, t, **kwargs)

        monkeypatch.setattr(pipe.unet, "forward", record)
        original = Alignment._step

        def step(alignment, *args, **kwargs):
            self.modes.append((alignment.mode, alignment.reference_noise is not None))
            return original(alignment, *args, **kwargs)

        monkeypatch.setattr(Alignment, "_step", step)

    def rows(self):
        return [len(sample) for _, sample, _ in self.calls]


class JointAttention:
    """Self-attention over a joint batch of `branches` x [R, G_1 .. G_M] rows, written out."""

    def __init__(self, rows_per_branch, mix_branches=False):
        self.rows, self.mode, self.mix = rows_per_branch, "plain", mix_branches

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        q, k, v = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        out = torch.empty_like(q)
        for row in range(len(q)):
            reference = row - row % self.rows
            if self.mix:  # wrong on purpose: every row reads the conditional branch's reference
                reference = len(q) - self.rows
            keys, values = k[row], v[row]
            if row % self.rows:
                if self.mode == "replace":
                    keys, values = k[reference], v[reference]
                elif self.mode == "concat":
                    keys, values = torch.cat([k[reference], keys], 1), torch.cat([v[reference], values], 1)
            out[row] = (q[row] @ keys.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1) @ values
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def joint_batch(
    pipe,
    inversion,
    prompt,
    x_T,
    *,
    w=5.0,
    t_align=600,
    t_early=600,
    t_inject=1000,
    wrong=None,
    keep=None,
    control=None,
):
    """The whole method for one reference and M images, in the plainest way. `wrong` names a deliberate mistake."""
    unet, M, guided = pipe.unet, len(x_T), w > 1
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(inversion.num_inference_steps)
    text, null, *pooled = encode(pipe, prompt)

    def joint(ref_text, ref_null, text, null):
        conditional = torch.cat([ref_text, *[text] * M])
        return torch.cat([ref_null, *[null] * M, conditional]) if guided else conditional

    conditions = {}
    conditions["encoder_hidden_states"] = joint(inversion.prompt_embeds, inversion.negative_prompt_embeds, text, null)
    count = len(conditions["encoder_hidden_states"])
    if pooled:
        size = [0 if wrong == "no time ids" else side * pipe.vae_scale_factor for side in x_T.shape[-2:]]
        conditions["added_cond_kwargs"] = {
            "text_embeds": joint(inversion.pooled_prompt_embeds, inversion.negative_pooled_prompt_embeds, *pooled),
            "time_ids": torch.tensor([[*size, 0.0, 0.0, *size]]).repeat(count, 1),
        }

    def residuals(rows, t):
        if control is None:
            return {}
        down, middle = pipe.controlnet(
            rows, t, controlnet_cond=control.repeat(count, 1, 1, 1), return_dict=False, **conditions
        )
        for residual in (*down, middle):
            if wrong != "control of the reference":
                residual[:: 1 + M] = 0
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    processor = JointAttention(1 + M, mix_branches=wrong == "mixed branches")
    layers = [m for name, m in unet.named_modules() if isinstance(m, Attention) and name.endswith("attn1")]
    kept = [layer.processor for layer in layers]
    for layer in layers:
        layer.set_processor(processor)

    def adain(e, e_R):
        dims = (1, 2, 3) if wrong == "global statistics" else (2, 3)
        var, mu = torch.var_mean(e, dims, keepdim=True)
        var_R, mu_R = torch.var_mean(e_R, dims, keepdim=True)
        return (e - mu) / (var + 1e-5).sqrt() * (var_R + 1e-5).sqrt() + mu_R

    x, steps = x_T, inversion.num_inference_steps
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            k = steps - i - (wrong == "chain off by one")
            gate = t - 1
            processor.mode = "plain" if gate > t_inject else "concat" if gate <= t_align else "replace"
            rows = torch.cat([inversion.latents[k], x])
            rows = torch.cat([rows, rows]) if guided else rows
            extra = residuals(rows, t)
            e = unet(rows, t, **conditions, **extra).sample
            cond = e[-(1 + M) :]
            e_R, e_G = cond[:1], cond[1:]
            if wrong == "alignment before guidance" and t > t_early:
                e_G = adain(e_G, e_R)
            if guided:
                uncond = e[: 1 + M]
                e_G = uncond[1:] + w * (e_G - uncond[1:])
                if wrong == "guided reference noise":
                    e_R = uncond[:1] + w * (e_R - uncond[:1])
                if wrong == "unconditional reference noise":
                    e_R = uncond[:1]
            if t > t_early and wrong != "alignment before guidance":
                e_G = adain(e_G, e_R)
            x = scheduler.step(e_G, t, x).prev_sample
            if keep is not None:
                x = torch.where(keep, inversion.latents[steps - i - 1], x)
    for layer, original in zip(layers, kept, strict=True):
        layer.set_processor(original)
    return x
