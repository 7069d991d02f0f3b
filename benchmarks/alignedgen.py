# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""AlignedGen: what sharing costs in time and memory, at FLUX.1's width.

    python benchmarks/alignedgen.py --device meta       # memory of FLUX.1-dev, 19 + 38 layers, counted; seconds
    python benchmarks/alignedgen.py                     # time of one layer, 512 x 512; about 3 minutes on one CPU core
    python benchmarks/alignedgen.py --device cuda       # time and memory of FLUX.1-dev; needs 40 GB

Weights are random: this tells the cost, not the effect. Results go to `results/alignedgen-time*`,
`-memory*` and `-cuda*`, as JSON with a Markdown table beside it.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

from alignext import StyleReference, aligned_attention
from common import PeakBytes, about, clock_of, median, parser, ratios, table, timed, write


WIDTH, HEADS, TEXT = 3072, 24, 512


class DenseMaskProcessor(FluxAttnProcessor):
    """The straightforward way: every image gets the anchor's keys, and a mask hides them from the anchor."""

    def __init__(self, state: dict) -> None:
        super().__init__()
        self.state = state

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        q, k, v = (f(hidden_states).unflatten(-1, (-1, attn.head_dim)) for f in (attn.to_q, attn.to_k, attn.to_v))
        q, k, text = attn.norm_q(q), attn.norm_k(k), self.state["text"]
        for x in (q, k):
            image = x[:, text:]
            mean, std = image.mean(1, keepdim=True), (image.var(1, keepdim=True) + 1e-5).sqrt()
            image.copy_((image - mean) / std * std[:1] + mean[:1])
        extra = apply_rotary_emb(k[:1, text:], self.state["shifted"], sequence_dim=1)
        q, k = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (q, k))
        rows = len(q)
        scale = torch.full((rows, 1, 1, 1), 1.1, dtype=q.dtype, device=q.device)
        k = torch.cat([k, scale * extra.expand(rows, -1, -1, -1)], 1)
        v = torch.cat([v, v[:1, text:].expand(rows, -1, -1, -1)], 1)
        mask = torch.zeros(rows, attn.heads, q.shape[1], k.shape[1], dtype=q.dtype, device=q.device)
        mask[0, :, :, q.shape[1] :] = -torch.inf
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Workload:
    def __init__(self, args: argparse.Namespace) -> None:
        self.rows, self.side = args.images, args.size // 16
        dtype, device = getattr(torch, args.dtype), torch.device(args.device)
        double, single = args.layers
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        with device:
            self.model = FluxTransformer2DModel(num_layers=double, num_single_layers=single, guidance_embeds=True)
        torch.set_default_dtype(torch.float32)
        self.model.requires_grad_(False).eval()

        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)

        n = self.side**2
        where = torch.device("cpu") if args.device == "meta" else device  # positions are read
        ids = torch.zeros(self.side, self.side, 3)
        ids[..., 1], ids[..., 2] = torch.arange(self.side)[:, None], torch.arange(self.side)
        self.call = {
            "hidden_states": randn(self.rows, n, 64),
            "encoder_hidden_states": randn(self.rows, TEXT, 4096),
            "pooled_projections": randn(self.rows, 768),
            "timestep": torch.full((self.rows,), 0.7, device=device, dtype=dtype),
            "guidance": torch.full((self.rows,), 3.5, device=device),
            "img_ids": ids.flatten(0, 1).to(where, dtype),
            "txt_ids": torch.zeros(TEXT, 3, device=where, dtype=dtype),
        }
        self.style = StyleReference(randn(1, TEXT, 4096), randn(1, 768), (self.side, self.side), x0=randn(1, n, 64))

    def stock(self, rows: int | None = None) -> torch.Tensor:
        call = {name: x if name.endswith("ids") else x[:rows] for name, x in self.call.items()}
        return self.model(**call).sample

    def aligned(self, **levers) -> torch.Tensor:
        with aligned_attention(self.model, step=0, sigma=0.7, **levers):
            return self.model(**self.call).sample

    def dense(self) -> torch.Tensor:
        ids = self.call["img_ids"].float() + torch.tensor([0, 0, self.side], device=self.call["img_ids"].device)
        state = {"text": TEXT, "shifted": self.model.pos_embed(ids)}
        layers = [block.attn for block in self.model.single_transformer_blocks]
        kept = [layer.processor for layer in layers]
        for layer in layers:
            layer.set_processor(DenseMaskProcessor(state))
        out = self.model(**self.call).sample
        for layer, processor in zip(layers, kept, strict=True):
            layer.set_processor(processor)
        return out

    def contenders(self) -> dict[str, Callable[[], torch.Tensor]]:
        n, dense = self.side**2, {}
        mask = self.rows * HEADS * (TEXT + n) * (TEXT + 2 * n)
        if mask < 2**30 or self.call["hidden_states"].is_meta:  # 2 GiB in half precision; 1024 x 1024 has 7
            dense = {"dense mask": self.dense}
        return {
            f"stock, {self.rows} images": self.stock,
            f"aligned, {self.rows} images at once": self.aligned,
            "aligned, anchor then targets one by one": lambda: self.aligned(target_batch_size=1),
            f"aligned with a style picture, {self.rows} images": lambda: self.aligned(style_reference=self.style),
            "stock, 1 image": lambda: self.stock(1),
            **dense,
        }


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """The most that is alive at once beyond what was there before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with PeakBytes() as counted:
        run()
    return counted.peak


def flops_ratio(args: argparse.Namespace) -> float:
    """Of all images, the anchor included, from the products of matrices alone."""
    n = (args.size // 16) ** 2
    s, (double, single) = TEXT + n, args.layers
    per_token = 2 * WIDTH**2 * (12 * double + 12 * single)  # of text or image: projections and feed-forward
    attention = 4 * s * s * WIDTH
    stock = s * per_token + (double + single) * attention
    extra = single * 4 * s * n * WIDTH
    return 1 + extra * (args.images - 1) / (args.images * stock)


@torch.no_grad()
def measure(args: argparse.Namespace) -> None:
    work = Workload(args)
    contenders = work.contenders()
    # The CPU tells time, tensors without data tell memory, a GPU both.
    peaks = {name: peak_bytes(run, args.device) for name, run in contenders.items() if args.device != "cpu"}
    times = timed(contenders, args.repeats, args.device) if args.device != "meta" else {}
    base, estimate = next(iter(contenders)), estimates(args)
    rows: list[dict[str, Any]] = []
    for name in contenders:
        row: dict[str, Any] = {"what": name}
        if times:
            of_stock = median(ratios(times[name], times[base]))
            row |= {"seconds": times[name], "median": median(times[name]), "of_stock": of_stock}
        if peaks:
            alike = "stock, 1 image" if "one by one" in name else base
            extra = None if name.startswith("stock") else peaks[name] - peaks[alike]
            row |= {"peak": peaks[name], "extra": extra, "estimate": estimate.get(name)}
        rows.append(row)
    save(args, rows, estimate["dense mask"])


def estimates(args: argparse.Namespace) -> dict[str, int]:
    """Bytes on top of the stock forward of as many images."""
    token = WIDTH * getattr(torch, args.dtype).itemsize
    n = (args.size // 16) ** 2
    longer = 2 * (TEXT + 2 * n) * token  # keys and values of one target in one layer, with the anchor's appended
    kept = 2 * args.layers[1] * n * token  # the anchor's of all layers that share
    return {
        f"aligned, {args.images} images at once": (args.images - 1) * longer,
        "aligned, anchor then targets one by one": longer + kept,
        f"aligned with a style picture, {args.images} images": args.images * longer + kept,
        "dense mask": args.images * HEADS * (TEXT + n) * (TEXT + 2 * n) * token // WIDTH,
    }


def save(args: argparse.Namespace, rows: list[dict[str, Any]], mask: int) -> None:
    predicted = flops_ratio(args)
    heads, lines = ["what runs"], [[row["what"]] for row in rows]
    text = (
        f"One forward of a transformer of FLUX.1's width with {args.layers[0]} double-stream and {args.layers[1]} "
        f"single-stream layers, random weights, {args.images} images of {args.size} x {args.size} pixels, {TEXT} text "
        "tokens. The style picture is an image more.\n\n"
    )
    if "median" in rows[0]:
        text += (
            f"Seconds: {clock_of(args.device)}, the median of {args.repeats} runs taken by turns, and of the ratios "
            f"within a turn. Floating point operations predict {predicted:.3f} of stock for the run at once.\n\n"
        )
        heads += ["median s", "of stock"]
        lines = [[*line, f"{r['median']:.2f}", f"{r['of_stock']:.2f}"] for line, r in zip(lines, rows, strict=True)]
    if "peak" in rows[0]:
        counted = "the allocator's" if args.device == "cuda" else "all tensors alive, without buffers inside kernels"
        text += (
            f"Memory: the peak of {counted}, without weights. Extra is what comes on top of the stock forward of as "
            "many images, for the run one by one on top of that of one image. The estimate is that of the longer keys "
            "and values in one layer and, where the anchor runs on its own, of its own in all layers that share. A "
            f"dense mask alone is {mask / 2**20:.0f} MiB.\n\n"
        )
        heads += ["peak MiB", "extra MiB", "estimate MiB"]
        mib = [[r[key] for key in ("peak", "extra", "estimate")] for r in rows]
        lines = [
            [*line, *("" if x is None else f"{x / 2**20:.0f}" for x in values)]
            for line, values in zip(lines, mib, strict=True)
        ]
    name = "alignedgen-" + {"cpu": "time", "meta": "memory", "cuda": "cuda"}[args.device]
    document = {"layers": args.layers, "size": args.size, "images": args.images, "flops_of_stock": predicted}
    made = about(args.device, "diffusers", dtype=args.dtype)
    write(name, "AlignedGen: cost", made, document | {"rows": rows}, text + table(heads, lines))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--device", choices=["cpu", "cuda", "meta"], default="cpu")
    options.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    options.add_argument("--images", type=int, default=4, help="B, the anchor included")
    options.add_argument("--size", type=int, help="pixels of a side; 1024, on the CPU 512")
    options.add_argument("--layers", type=int, nargs=2, help="double- and single-stream; 19 38, on the CPU 0 1")
    options.add_argument("--repeats", type=int, default=3)
    args = options.parse_args()
    args.layers = args.layers or ([0, 1] if args.device == "cpu" else [19, 38])
    args.size = args.size or (512 if args.device == "cpu" else 1024)
    if args.device == "meta":  # as a fused kernel, which makes nothing but its output
        F.scaled_dot_product_attention = lambda query, key, value, **kwargs: torch.empty_like(query)
    measure(args)


if __name__ == "__main__":
    main()
