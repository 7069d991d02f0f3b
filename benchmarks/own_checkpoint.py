# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What to expect of a checkpoint of one's own: memory and operations of one job of each family, counted.

    python benchmarks/own_checkpoint.py            # counted on the meta device; about a minute
    python benchmarks/own_checkpoint.py --measure  # and one pass of two of them, timed on one CPU thread

Shapes are those of Stable Diffusion 1.5, FLUX.1-dev and Qwen2.5-0.5B; there are no weights. "Memory" is that of the
weights in 16 bits, the text encoders and the VAE among them, and the peak of what is alive in one call of the
denoiser, or in one update, without buffers inside kernels. "Operations" are floating-point operations of
matrix products and convolutions in the denoiser or language model. Results go to `results/own-checkpoint.json` and
`.md`.
"""

import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from diffusers import FluxTransformer2DModel, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2 import modeling_qwen2

from alignext import LatentSearch, SearchConfig, aligned_attention, mini
from alignext.rewards import brightness
from common import PeakBytes, about, parser, table, write
from shapes import SD15


GIB = 2**30
# Parameters of what stands beside the denoiser, from the published configurations.
CLIP_L, T5_XXL, VAE = 123_060_480, 4_762_310_656, 83_653_863
QWEN = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151_936, "tie_word_embeddings": True,
}  # fmt: skip


def flash(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Attention as a GPU runs it, which keeps no matrix of weights; on the meta device torch would."""
    assert attn_mask is None
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    operator = torch.ops.aten._scaled_dot_product_flash_attention
    return operator(query, key, value, dropout_p, is_causal, scale=scale)[0]


def counted(run: Callable[[], object]) -> tuple[int, int]:
    """Operations, and the peak of bytes alive beyond what was there before."""
    with (
        patch.object(torch.nn.functional, "scaled_dot_product_attention", flash),
        patch.object(
            modeling_qwen2, "create_causal_mask", lambda **_: None
        ),  # causal without one; it reads its values
    ):
        with FlopCounterMode(display=False) as flops:
            run()
        with PeakBytes() as peak:
            run()
    return flops.get_total_flops(), peak.peak


def parameters(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def sd15(device: str, dtype: torch.dtype) -> torch.nn.Module:
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = UNet2DConditionModel(**SD15)
    torch.set_default_dtype(torch.float32)
    return model.requires_grad_(False).eval()


def sd15_call(model: torch.nn.Module, rows: int) -> Callable[[], object]:
    weight = next(model.parameters())
    x = torch.zeros(rows, 4, 64, 64, dtype=weight.dtype, device=weight.device)
    text = torch.zeros(rows, 77, 768, dtype=weight.dtype, device=weight.device)
    return lambda: model(x, torch.zeros(rows, device=weight.device), text).sample


def qwen(device: str, dtype: torch.dtype) -> torch.nn.Module:
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = Qwen2ForCausalLM(Qwen2Config(**QWEN))
    torch.set_default_dtype(torch.float32)
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"]))


def qwen_update(model: Any, rows: int, tokens: int) -> Callable[[], object]:
    """A pass of the reference, one of the policy, and backward, with log-probabilities in float32."""
    ids = torch.zeros(rows, tokens, dtype=torch.long, device=next(model.parameters()).device)

    def update() -> None:
        with torch.no_grad(), model.disable_adapter():
            model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1).mean().backward()
        model.zero_grad()

    return update


def search_evaluations() -> int:
    """Of the denoiser, as the search counts them; they depend on its settings alone."""
    pipe = StableDiffusionPipeline.from_pretrained(mini.path("sd"))
    pipe.set_progress_bar_config(disable=True)
    config = SearchConfig(num_beams=4, num_candidates=2, lookahead_steps=1)
    return LatentSearch(pipe, brightness, config)("a fox", num_inference_steps=50).nfe


def flux_step() -> tuple[int, int, int]:
    """Parameters, operations and peak of one step of AlignedGen on four images of 1024 x 1024, one by one."""
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True).requires_grad_(False).eval()
    torch.set_default_dtype(torch.float32)
    zeros = lambda *shape: torch.zeros(*shape, dtype=torch.bfloat16, device="meta")  # noqa: E731
    ids = torch.zeros(64, 64, 3)
    ids[..., 1], ids[..., 2] = torch.arange(64)[:, None], torch.arange(64)
    call = {
        "hidden_states": zeros(4, 4096, 64), "encoder_hidden_states": zeros(4, 512, 4096),
        "pooled_projections": zeros(4, 768), "timestep": zeros(4), "guidance": zeros(4),
        "img_ids": ids.flatten(0, 1).to(torch.bfloat16), "txt_ids": torch.zeros(512, 3, dtype=torch.bfloat16),
    }  # fmt: skip

    def step() -> None:
        with aligned_attention(model, step=0, sigma=0.7, target_batch_size=1):
            model(**call)

    return parameters(model), *counted(step)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--measure", action="store_true", help="also time one pass of each on the CPU")
    args = arguments.parse_args()
    torch.set_num_threads(1)
    rows = []

    def row(job: str, weights: int, peak: int, flops: int, what: str) -> None:
        rows.append(
            {"job": job, "weights_gib": round(2 * weights / GIB, 1), "call_gib": round(peak / GIB, 1)}
            | {"tera_operations": round(flops / 1e12), "of": what}
        )
        print(rows[-1], flush=True)

    with torch.no_grad():
        unet = sd15("meta", torch.float16)
        beside = CLIP_L + VAE
        one, _ = counted(sd15_call(unet, 1))
        _, peak = counted(sd15_call(unet, 10))
        row("RIVAL, SD 1.5: 4 variations, 512 x 512, 50 steps", parameters(unet) + beside, peak, one * 550, "550 rows")
        weights, flops, peak = flux_step()
        weights += CLIP_L + T5_XXL + VAE
        row("AlignedGen, FLUX.1-dev: 4 images, 1024 x 1024, 28 steps", weights, peak, 28 * flops, "28 steps")
        evaluations = search_evaluations()
        _, peak = counted(sd15_call(unet, 16))
        what = f"{evaluations} evaluations with guidance"
        row(
            "Search, SD 1.5: 4 beams of 2, lookahead 1, 50 steps",
            parameters(unet) + beside,
            peak,
            2 * one * evaluations,
            what,
        )
    model = qwen("meta", torch.bfloat16)
    flops, peak = counted(qwen_update(model, 8, 256))
    row(
        "BCO, 0.5B model, LoRA: 100 updates of 8 rows of 256 tokens",
        parameters(model),
        peak,
        100 * flops,
        "100 updates",
    )

    measured = {}
    if args.measure:
        with torch.no_grad():
            call = sd15_call(sd15("cpu", torch.float32), 1)
            call()
            begun = time.process_time()
            call()
            measured["sd15, one row, float32"] = [round(time.process_time() - begun, 1), round(one / 1e12, 2)]
        call = qwen_update(qwen("cpu", torch.float32), 1, 256)
        begun = time.process_time()
        call()
        measured["0.5B, one row of 256 tokens, float32"] = [
            round(time.process_time() - begun, 1),
            round(flops / 8e12, 2),
        ]
        print(measured)
    text = table(
        ("job", "weights, GiB", "one call, GiB", "tera-operations", "of"),
        [tuple(r.values()) for r in rows],
    )
    if measured:
        text += "\n\n" + table(
            ("timed on one CPU thread", "seconds", "tera-operations"), [(name, *v) for name, v in measured.items()]
        )
    title = "One job of each family on a checkpoint of its usual size, counted without weights"
    write(
        "own-checkpoint",
        title,
        about("cpu" if measured else "meta", "diffusers", "transformers"),
        {"rows": rows, "measured": measured},
        text,
    )


if __name__ == "__main__":
    main()
