# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`aligned_attention` on a transformer that is called directly, against the slow reference and against itself."""

import itertools

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module, remove_hook_from_submodules
from diffusers import FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler
from diffusers.models.embeddings import apply_rotary_emb
from peft import LoraConfig
from torch._dynamo.testing import CompileCounter

from alignext import StyleReference, aligned_attention
from alignext.pipelines.alignedgen import layers as module
from alignext.pipelines.alignedgen.levers import Levers
from benchmarks.common import PeakBytes
from tests.pipelines import tiny
from tests.pipelines.alignedgen import slow


H, W, TEXT = 4, 6, 5
LAYERS = {"single": {2, 3, 4}, "double": {0, 1}, "all": {0, 1, 2, 3, 4}, (1, 4): {1, 2, 3}}
SHIFTS = {"width": (0, 0, W), "height": (0, H, 0), "none": (0, 0, 0), (1.0, -2.0, 3.0): (1, -2, 3)}
CLOSE = {"rtol": 0, "atol": 1e-5}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build(**config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tiny.flux_transformer(**config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(2)
    return model.requires_grad_(False)


@pytest.fixture
def model():
    return build()


def positions(h, w):
    return torch.tensor([[0, i, j] for i in range(h) for j in range(w)], dtype=torch.float32)


def inputs(rows=3, h=H, w=W, text=TEXT, seed=1, sigma=0.7):
    generator = seeded(seed)
    return {
        "hidden_states": torch.randn(rows, h * w, 16, generator=generator),
        "encoder_hidden_states": torch.randn(rows, text, tiny.TEXT_DIM, generator=generator),
        "pooled_projections": torch.randn(rows, tiny.TEXT_DIM, generator=generator),
        "timestep": torch.full((rows,), sigma),
        "guidance": torch.full((rows,), 3.5),
        "img_ids": positions(h, w),
        "txt_ids": torch.zeros(text, 3),
    }


def rows_of(call, rows):
    return {name: x if name.endswith("ids") else x[rows] for name, x in call.items()}


def run(model, call, **levers):
    with aligned_attention(model, **levers):
        return model(**call, return_dict=False)[0]


def by_hand(model, call, layers, **levers):
    names = {
        "hidden": "hidden_states",
        "text": "encoder_hidden_states",
        "pooled": "pooled_projections",
        "timestep": "timestep",
        "guidance": "guidance",
        "img_ids": "img_ids",
        "txt_ids": "txt_ids",
    }
    return slow.transformer(model, slow.Levers(layers, **levers), **{ours: call[n] for ours, n in names.items()})


# -------------------------------------------------------------------------------------------------- the whole forward


def test_slow_reference_is_the_stock_model_when_nothing_is_shared(model):
    call = inputs()
    torch.testing.assert_close(by_hand(model, call, set()), model(**call).sample, **CLOSE)


# Every choice of layers with one shift and every shift on one choice of layers are fast.
BOTH = [
    pytest.param(shift, blocks, marks=[pytest.mark.slow] * (shift != "width" and blocks != "single"))
    for shift, blocks in itertools.product(SHIFTS, LAYERS)
]


@pytest.mark.parametrize(("shift", "blocks"), BOTH, ids=str)
def test_forward_is_the_slow_reference(model, blocks, shift):
    call = inputs()
    stock = model(**call).sample
    for adain, isolate, anchor, size in itertools.product([True, False], [True, False], [0, 1], [None, 1, 2]):
        given = {"share_blocks": blocks, "shift": shift, "adain": adain, "isolate_anchor": isolate}
        given |= {"anchor_index": anchor, "target_batch_size": size}
        levers = {"shift": SHIFTS[shift], "adain": adain, "isolate": isolate, "anchor": anchor}
        expected = by_hand(model, call, LAYERS[blocks], **levers)
        out = run(model, call, **given)
        torch.testing.assert_close(out, expected, **CLOSE)
        assert (out - stock).abs().max() > 1e-2


@pytest.mark.parametrize("style_lambda", [0.0, 0.5, 1.0, 2.5])
def test_lambda_is_the_slow_reference(model, style_lambda):
    call = inputs()
    expected = by_hand(model, call, LAYERS["all"], style_lambda=style_lambda, shift=(0, 0, W))
    torch.testing.assert_close(run(model, call, share_blocks="all", style_lambda=style_lambda), expected, **CLOSE)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (6, 2), (1, 5)])
def test_other_grids_are_the_slow_reference(model, h, w):
    call = inputs(h=h, w=w)
    out = run(model, call, adain=h * w > 1)
    torch.testing.assert_close(out, by_hand(model, call, LAYERS["single"], shift=(0, 0, w), adain=h * w > 1), **CLOSE)
    assert torch.isfinite(run(model, call)).all()  # a single token has no variance


@pytest.mark.parametrize("config", [{"guidance_embeds": False}, {"num_attention_heads": 3}, {"num_layers": 0}])
def test_other_shapes_are_the_slow_reference(config):
    model, call = build(**config), inputs()
    if "guidance_embeds" in config:
        call["guidance"] = None
    first = config.get("num_layers", 2)
    layers = set(range(first, first + 3))
    torch.testing.assert_close(run(model, call), by_hand(model, call, layers, shift=(0, 0, W)), **CLOSE)


def test_schedules_of_lambda(model):
    call = inputs(sigma=0.6)
    expected = by_hand(model, call, LAYERS["single"], shift=(0, 0, W), style_lambda=0.36)
    torch.testing.assert_close(run(model, call, lambda_schedule="sigma_squared"), expected, **CLOSE)
    torch.testing.assert_close(run(model, call, lambda_schedule=lambda sigma: 0.6 * sigma), expected, **CLOSE)
    expected = by_hand(model, call, LAYERS["single"], shift=(0, 0, W), style_lambda=0.25)
    torch.testing.assert_close(run(model, call, lambda_schedule="sigma_squared", sigma=0.5), expected, **CLOSE)


# ------------------------------------------------------------------------------------------------------------- stock

OFF = [
    {"share_end": 0.0},
    {"share_start": 0.5, "share_end": 0.5, "num_inference_steps": 10},
    {"share_end": 0.5, "num_inference_steps": 10, "step": 5},
    {"share_start": 0.5, "num_inference_steps": 10, "step": 4},
    {"num_inference_steps": 30, "step": 30},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("levers", OFF, ids=str)
def test_off_is_stock_bit_for_bit(model, levers, dtype):
    model = model.to(dtype)
    call = {name: x.to(dtype) for name, x in inputs().items()}
    assert torch.equal(run(model, call, **levers), model(**call).sample)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("anchor", [0, 2])
def test_anchor_is_stock_bit_for_bit(model, dtype, anchor):
    model = model.to(dtype)
    call = {name: x.to(dtype) for name, x in inputs().items()}
    stock, out = model(**call).sample, run(model, call, anchor_index=anchor, share_blocks="all")
    assert torch.equal(out[anchor], stock[anchor])
    assert not torch.equal(out[1], stock[1])


def test_layers_outside_the_range_keep_their_processors(model):
    before = dict(model.attn_processors)
    with aligned_attention(model, share_blocks=(1, 3)):
        changed = [name for name, processor in model.attn_processors.items() if processor is not before[name]]
    assert changed == ["transformer_blocks.1.attn.processor", "single_transformer_blocks.0.attn.processor"]


def test_an_anchor_alone_is_stock(model):
    call = inputs(rows=1)
    assert torch.equal(run(model, call), model(**call).sample)
    for size in (None, 1):  # seeing its own shifted keys, it is not
        out = run(model, call, isolate_anchor=False, target_batch_size=size)
        expected = by_hand(model, call, LAYERS["single"], isolate=False, shift=(0, 0, W))
        torch.testing.assert_close(out, expected, **CLOSE)
        assert (out - model(**call).sample).abs().max() > 1e-3


def test_lambda_zero_is_not_stock(model):
    call = inputs()
    assert (run(model, call, style_lambda=0.0, adain=False) - model(**call).sample)[1:].abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------- who sees what


def test_targets_do_not_see_each_other(model):
    call = inputs()
    together = run(model, call)
    for target in (1, 2):
        pair = run(model, rows_of(call, [0, target]))
        torch.testing.assert_close(pair[1], together[target], **CLOSE)
    swapped = run(model, rows_of(call, [0, 2, 1]))
    torch.testing.assert_close(swapped[[0, 2, 1]], together, **CLOSE)


@pytest.mark.parametrize("block", ["transformer_blocks.1", "single_transformer_blocks.2"])
def test_targets_see_the_image_of_the_anchor_and_not_its_text(model, block):
    """Changes the anchor at the input of the one layer that shares, and looks at the targets behind it."""
    call, layer = inputs(), model.get_submodule(block).attn
    lo = {"transformer_blocks.1": 1, "single_transformer_blocks.2": 4}[block]
    outs = {}

    def change(part):
        def hook(attn, args, kwargs):
            kwargs = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in kwargs.items()}
            if "encoder_hidden_states" in kwargs:
                x = kwargs["encoder_hidden_states" if part == "text" else "hidden_states"]
                x[0] += 1
            else:
                kwargs["hidden_states"][0, slice(TEXT) if part == "text" else slice(TEXT, None)] += 1
            return args, kwargs

        return hook

    def keep(name):
        def hook(attn, args, out):
            outs[name] = torch.cat(out, dim=1) if isinstance(out, tuple) else out

        return hook

    for part in ("text", "image", None):
        handles = [layer.register_forward_hook(keep(part))]
        if part:
            handles.append(layer.register_forward_pre_hook(change(part), with_kwargs=True))
        run(model, call, share_blocks=(lo, lo + 1))
        for handle in handles:
            handle.remove()
    assert torch.equal(outs["text"][1:], outs[None][1:])
    assert not torch.equal(outs["text"][0], outs[None][0])
    assert (outs["image"][1:] - outs[None][1:]).abs().amax((1, 2)).min() > 1e-3


def test_values_and_text_stay_and_queries_and_keys_have_the_statistics_of_the_anchor(model, monkeypatch):
    seen = []

    def spy(query, key, value, shared_key, shared_value, **kwargs):
        seen.append((query, key, value, shared_key, shared_value))
        return original(query, key, value, shared_key, shared_value, **kwargs)

    original = module.shared_attention
    monkeypatch.setattr(module, "shared_attention", spy)
    # Positions all zero: nothing is rotated, and what attention gets can be looked at.
    call = inputs() | {"img_ids": torch.zeros(H * W, 3)}
    levers = {"share_blocks": (0, 1), "shift": "none", "style_lambda": 1.0}
    run(model, call, **levers)
    run(model, call, **levers, adain=False)
    (query, key, value, shared_key, shared_value), plain = seen
    assert torch.equal(value, plain[2]) and torch.equal(shared_value, plain[4])
    assert torch.equal(shared_key, plain[3])
    for x, raw in ((query, plain[0]), (key, plain[1])):
        assert torch.equal(x[:, :TEXT], raw[:, :TEXT])
        assert (x[:, TEXT:] - raw[:, TEXT:]).abs().max() > 1e-2
    mean, std = key[:, TEXT:].mean(1), key[:, TEXT:].std(1)
    torch.testing.assert_close(mean, shared_key.mean(1).expand_as(mean), rtol=0, atol=1e-4)
    torch.testing.assert_close(std, shared_key.std(1).expand_as(std), rtol=0, atol=1e-3)


def test_no_mask_is_made(model, monkeypatch):
    seen = []

    def spy(query, key, value, **kwargs):
        seen.append((query.shape, key.shape, kwargs))
        return original(query, key, value, **kwargs)

    original = module.dispatch_attention_fn
    monkeypatch.setattr(module, "dispatch_attention_fn", spy)
    run(model, inputs(), share_blocks=(2, 3))
    assert [kwargs.get("attn_mask") for *_, kwargs in seen] == [None, None]
    s, n = TEXT + H * W, H * W
    assert [shape[:2] for shape, *_ in seen] == [(1, s), (2, s)]  # the anchor, then the targets
    assert [shape[1] for _, shape, _ in seen] == [s, s + n]


@pytest.mark.parametrize(("levers", "rows"), [({}, 3), ({"target_batch_size": 1}, 1)], ids=str)
def test_memory_on_top_of_stock_is_that_of_the_longer_keys_and_values(model, levers, rows):
    """Of one layer, since layers come one after the other; two passes keep the anchor's of all layers besides."""
    h, w, width, layers = 16, 16, 24, 3
    call, n = inputs(rows=4, h=h, w=w), h * w
    peaks = {}
    with torch.no_grad():
        for name, given in {"stock": {"share_end": 0}, "aligned": {}}.items():
            with PeakBytes() as counted:
                run(model, call, **levers, **given)
            peaks[name] = counted.peak
    longer = 2 * rows * (TEXT + n + n) * width * 4
    kept = 2 * layers * n * width * 4 if levers else 0
    assert peaks["aligned"] - peaks["stock"] <= longer + kept + 4096  # statistics
    dense = 4 * 2 * (TEXT + n) * (TEXT + n + n) * 4
    assert dense > 5 * (longer + kept)


@pytest.mark.parametrize("shift", SHIFTS, ids=str)
def test_shifted_table_is_that_of_hand_made_positions(model, shift):
    tables = []
    original = model.pos_embed.forward
    model.pos_embed.forward = lambda ids: tables.append(ids) or original(ids)
    run(model, inputs(), shift=shift)
    moved = [[a + b for a, b in zip(p, SHIFTS[shift], strict=True)] for p in positions(H, W).tolist()]
    assert tables[0].tolist() == moved


def test_logits_to_the_anchor_depend_on_the_distance_to_its_right(model):
    def table(i, j):
        return model.pos_embed(torch.tensor([[0.0, i, j]]))

    def logit(query_at, key_at):
        return (rotate(q, table(*query_at)) * rotate(k, table(*key_at))).sum().item()

    def rotate(x, rotary):
        return apply_rotary_emb(x, rotary, sequence_dim=1)

    q, k = torch.randn(1, 1, 1, 12, generator=seeded(3)), torch.randn(1, 1, 1, 12, generator=seeded(4))
    near = [logit((i, j), (i - 1, j - 2 + W)) for i, j in ((1, 2), (3, 2), (2, 5))]
    assert max(near) - min(near) < 1e-5
    assert abs(logit((1, 2), (0, W)) - logit((1, 2), (0, 0))) > 1e-3


def test_positions_in_half_precision_stay_apart(model):
    call = inputs(rows=2, h=1, w=200)
    model = model.to(torch.bfloat16)
    call = {name: x.to(torch.bfloat16) for name, x in call.items()}
    with aligned_attention(model) as sharing:
        tables = []
        original = model.pos_embed.forward
        model.pos_embed.forward = lambda ids: tables.append(ids) or original(ids)
        model(**call)
        del model.pos_embed.forward
        assert sharing.shifted[0].dtype == torch.float32
    assert tables[0][:, 2].unique().tolist() == list(range(200, 400))


# ---------------------------------------------------------------------------------------------------- steps and sigmas


def test_window_is_a_fraction_of_the_steps():
    def active(n, **window):
        levers = Levers(**window)
        return [i for i in range(n) if levers.active(i, n)]

    assert active(50) == list(range(50))
    assert active(5, share_end=0.5) == [0, 1, 2]
    assert active(10, share_start=0.3, share_end=0.7) == [3, 4, 5, 6]
    assert active(10, share_end=0.0) == active(10, share_start=1.0) == []


def sharing_steps(model, monkeypatch, steps, set_step, timesteps=None, **levers):
    """Indices of the calls in which something was shared, and the noise levels that lambda was asked for."""
    active, sigmas, current = [], [], None

    def schedule(sigma):
        sigmas.append(sigma)
        return 1.0

    original = module.shared_attention
    monkeypatch.setattr(module, "shared_attention", lambda *a, **k: active.append(current) or original(*a, **k))
    with aligned_attention(model, share_blocks=(2, 3), lambda_schedule=schedule, **levers) as sharing:
        for current in range(steps):
            if set_step:
                sharing.step = current
            sigma = 1 - current / steps if timesteps is None else timesteps[current]
            model(**inputs(sigma=sigma))
    monkeypatch.undo()
    return active, sigmas


def test_steps_are_set_or_counted(model, monkeypatch):
    window = {"share_start": 0.4, "share_end": 0.8, "num_inference_steps": 5}
    assert sharing_steps(model, monkeypatch, 5, True, **window)[0] == [2, 3]
    active, sigmas = sharing_steps(model, monkeypatch, 5, False, **window)
    assert active == [2, 3] and sigmas == pytest.approx([0.6, 0.4])
    # Two calls at one noise level, as under true CFG, are one step.
    twice = [1.0, 1.0, 0.8, 0.8, 0.6, 0.6, 0.4, 0.4, 0.2, 0.2]
    assert sharing_steps(model, monkeypatch, 10, False, timesteps=twice, **window)[0] == [4, 5, 6, 7]
    assert sharing_steps(model, monkeypatch, 3, False)[0] == [0, 1, 2]
    # Noise that rises again is another loop.
    again = [1.0, 0.8, 0.6, 0.4, 0.2] * 2
    assert sharing_steps(model, monkeypatch, 10, False, timesteps=again, **window)[0] == [2, 3, 7, 8]


def test_a_second_loop_without_a_scheduler_is_recorded_alone(model):
    with aligned_attention(model, record=True) as sharing:
        for sigma in (1.0, 0.5, 1.0, 0.5):
            model(**inputs(sigma=sigma))
    assert sharing.recorded().sigmas.tolist() == [1.0, 0.5]


def test_a_window_without_a_number_of_steps_is_refused(model):
    with pytest.raises(ValueError, match="num_inference_steps"):
        run(model, inputs(), share_end=0.5)


def test_scheduler_tells_step_and_exact_noise_level(model):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    model, sigmas, latents = model.to(torch.bfloat16), [], None
    assert scheduler.step_index is None
    with aligned_attention(
        model, scheduler=scheduler, share_start=0.2, share_end=0.6, lambda_schedule=lambda s: sigmas.append(s) or 1.0
    ):
        for t in scheduler.timesteps:
            call = {name: x.to(torch.bfloat16) for name, x in inputs(sigma=float(t) / 1000).items()}
            latents = call["hidden_states"] if latents is None else latents
            velocity = model(**call | {"hidden_states": latents}).sample
            latents = scheduler.step(velocity, t, latents).prev_sample
    # All steps of the window are asked for before the first one runs, so that a schedule that fails does so at once.
    assert sigmas == [scheduler.sigmas[1].item(), scheduler.sigmas[2].item()] * 2
    assert sigmas[0] != torch.tensor(sigmas[0], dtype=torch.bfloat16).item()  # what the model is told


def test_the_first_step_of_a_part_of_a_schedule_is_the_schedulers_begin(model):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(6)
    stock = model(**inputs()).sample
    assert torch.equal(run(model, inputs(), scheduler=scheduler, share_end=0.6), stock)
    assert not torch.equal(run(model, inputs(), scheduler=scheduler, share_start=0.6), stock)


# --------------------------------------------------------------------------------------------- several calls for one


@pytest.mark.parametrize("size", [1, 2, 3, 9])
@pytest.mark.parametrize("anchor", [0, 1, 4])
def test_chunks_change_nothing(model, size, anchor):
    call = inputs(rows=5)
    expected = run(model, call, anchor_index=anchor)
    torch.testing.assert_close(run(model, call, anchor_index=anchor, target_batch_size=size), expected, **CLOSE)


def test_chunks_bound_the_batch_in_every_step(model):
    seen = []
    handle = model.x_embedder.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    window = {"share_end": 0.5, "num_inference_steps": 2}
    for step in (0, 1):
        run(model, inputs(rows=5), target_batch_size=2, step=step, **window)
    handle.remove()
    assert seen == [1, 2, 2, 2, 2, 1]


@pytest.mark.parametrize("size", [None, 1])
def test_answers_as_it_was_asked(model, size):
    call = inputs()
    with aligned_attention(model, target_batch_size=size):
        sample = model(**call).sample
        assert torch.equal(model(**call, return_dict=False)[0], sample)
        assert isinstance(model(**call, return_dict=False), tuple)
        positional = [call[name] for name in list(call)[:4]] + [call["img_ids"], call["txt_ids"], call["guidance"]]
        assert torch.equal(model(*positional).sample, sample)


def test_controlnet_residuals_go_with_their_images(model):
    call = inputs()
    residuals = {
        "controlnet_block_samples": [torch.randn(3, H * W, 24, generator=seeded(s)) for s in (5, 6)],
        "controlnet_single_block_samples": [torch.randn(3, H * W, 24, generator=seeded(7))],
    }
    expected = run(model, call | residuals)
    assert (expected - run(model, call)).abs().max() > 1e-2
    torch.testing.assert_close(run(model, call | residuals, target_batch_size=1), expected, **CLOSE)


def test_deprecated_positions_with_a_batch_axis(model):
    call = inputs()
    expected = run(model, call)
    for size in (None, 1):
        with_batch = call | {name: call[name][None] for name in ("img_ids", "txt_ids")}
        torch.testing.assert_close(run(model, with_batch, target_batch_size=size), expected, **CLOSE)


# ------------------------------------------------------------------------------------------------- external reference


def reference(h=H, w=W, text=TEXT, **kwargs):
    generator = seeded(8)
    return StyleReference(
        prompt_embeds=torch.randn(1, text, tiny.TEXT_DIM, generator=generator),
        pooled_prompt_embeds=torch.randn(1, tiny.TEXT_DIM, generator=generator),
        grid=(h, w),
        **{"x0": torch.randn(1, h * w, 16, generator=generator)} | kwargs,
    )


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("size", [None, 1, 2])
def test_reference_is_the_batch_with_its_row_overwritten(model, size, isolate):
    style, call, sigma = reference(), inputs(), 0.7
    noise = torch.randn(1, H * W, 16, generator=seeded(42))
    first = {
        "hidden_states": sigma * noise + (1 - sigma) * style.x0,
        "encoder_hidden_states": style.prompt_embeds,
        "pooled_projections": style.pooled_prompt_embeds,
    }
    batch = call | {name: torch.cat([x, call[name]]) for name, x in first.items()}
    batch |= {name: call[name][:1].expand(4) for name in ("timestep", "guidance")}
    expected = by_hand(model, batch, LAYERS["single"], shift=(0, 0, W), isolate=isolate)[1:]
    given = {"style_reference": style, "target_batch_size": size, "isolate_anchor": isolate}
    torch.testing.assert_close(run(model, call, **given), expected, **CLOSE)
    torch.testing.assert_close(run(model, batch, isolate_anchor=isolate)[1:], expected, **CLOSE)
    explicit = reference(noise=noise)
    assert torch.equal(run(model, call, **given | {"style_reference": explicit}), run(model, call, **given))


def test_reference_of_another_size_and_text_lies_to_the_right_of_the_targets(model, monkeypatch):
    seen = []
    original = model.pos_embed.forward
    model.pos_embed.forward = lambda ids: seen.append(ids) or original(ids)
    style = reference(h=3, w=2, text=7)
    out = run(model, inputs(), style_reference=style)
    assert torch.isfinite(out).all()
    shifted, own, _ = seen
    assert own[7:].tolist() == positions(3, 2).tolist() and not own[:7].any()
    assert shifted.tolist() == [[a, i, j + W] for a, i, j in positions(3, 2).tolist()]


def test_reference_runs_alone_and_stock(model):
    """What the reference's own pass computes is what the stock model would."""
    outs = []
    handle = model.proj_out.register_forward_hook(lambda m, args, out: outs.append(out))
    style, call = reference(), inputs()
    run(model, call, style_reference=style)
    handle.remove()
    alone = rows_of(call, [0]) | {
        "hidden_states": style.latents(call["timestep"][0], 0),
        "encoder_hidden_states": style.prompt_embeds,
        "pooled_projections": style.pooled_prompt_embeds,
    }
    assert [len(out) for out in outs] == [1, 3]
    assert torch.equal(outs[0], model(**alone).sample)


def test_reference_is_run_once_for_the_two_calls_of_a_step(model):
    style, rows = reference(), []
    handle = model.x_embedder.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    other = inputs(seed=9)
    with aligned_attention(model, style_reference=style):
        cond, uncond = model(**inputs()).sample, model(**other).sample
        model(**inputs(sigma=0.3))
        model(**other | {"timestep": torch.full((3,), 0.3), "guidance": torch.full((3,), 9.0)})
    handle.remove()
    assert rows == [1, 3, 3, 1, 3, 1, 3]
    assert torch.equal(uncond, run(model, other, style_reference=style))
    assert torch.equal(cond, run(model, inputs(), style_reference=style))


def test_reference_outside_the_window_is_not_run(model):
    rows = []
    handle = model.x_embedder.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    out = run(model, inputs(), style_reference=reference(), share_end=0)
    handle.remove()
    assert rows == [3] and torch.equal(out, model(**inputs()).sample)


def test_nothing_is_kept_between_calls_and_afterwards(model):
    call = inputs()
    with aligned_attention(model, target_batch_size=1) as sharing:
        model(**call)
        assert [p.anchor for p in sharing.processors] == [None] * 3
    with aligned_attention(model, style_reference=reference()) as sharing:
        model(**call)
        kept = [p.anchor for p in sharing.processors]
        sizes = {x.untyped_storage().nbytes() for anchor in kept for x in (anchor.key, anchor.value)}
        assert sizes == {H * W * 2 * 12 * 4}  # N tokens and no more, so neither text nor queries hang on
    assert [p.anchor for p in sharing.processors] == [None] * 3 and sharing.shifted is None


# ----------------------------------------------------------------------------------------------------- put back again


class Stop(BaseException):
    """Not an `Exception`, like a keyboard interrupt."""


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize("where", ["norm_out", "single_transformer_blocks.1.attn.to_q", "x_embedder"])
def test_put_back_after_an_exception(model, where, size):
    call, before = inputs(), dict(model.attn_processors)
    stock = model(**call).sample

    def stop(*args):
        raise Stop

    handle = model.get_submodule(where).register_forward_hook(stop)
    with pytest.raises(Stop):
        run(model, call, target_batch_size=size)
    handle.remove()
    assert all(processor is before[name] for name, processor in model.attn_processors.items())
    assert "forward" not in vars(model)
    assert torch.equal(model(**call).sample, stock)


def test_put_back_under_hooks_of_accelerate(model):
    call = inputs()
    expected, stock = run(model, call), model(**call).sample
    cpu_offload(model, execution_device=torch.device("cpu"))
    hooked = vars(model)["forward"]
    assert next(model.parameters()).is_meta
    for size in (None, 1):
        torch.testing.assert_close(run(model, call, target_batch_size=size), expected, **CLOSE)
        assert vars(model)["forward"] is hooked and next(model.parameters()).is_meta
    with pytest.raises(Stop), aligned_attention(model):
        raise Stop
    assert vars(model)["forward"] is hooked
    assert torch.equal(model(**call).sample, stock)
    remove_hook_from_submodules(model)


def test_hooks_that_are_renewed_inside_stay(model):
    """As offloading does at the end of every pipeline call."""
    call = inputs()
    stock = model(**call).sample
    add_hook_to_module(model, ModelHook())
    with aligned_attention(model):
        remove_hook_from_module(model)
        add_hook_to_module(model, ModelHook())
        renewed = vars(model)["forward"]
    assert vars(model)["forward"] is renewed
    assert torch.equal(model(**call).sample, stock)
    with aligned_attention(model):
        add_hook_to_module(model, ModelHook())  # around the wrapper, which then has to do nothing
    assert torch.equal(model(**call).sample, stock)
    remove_hook_from_module(model)
    assert torch.equal(model(**call).sample, stock)


def test_blocks_do_not_nest_and_can_follow_each_other(model):
    before = dict(model.attn_processors)
    with aligned_attention(model), pytest.raises(ValueError, match="one `aligned_attention` block"):
        with aligned_attention(model):
            pass
    assert all(processor is before[name] for name, processor in model.attn_processors.items())
    first = run(model, inputs())
    assert torch.equal(run(model, inputs()), first)


def test_attention_backend_is_taken_over(model):
    model.set_attention_backend("native")
    with aligned_attention(model):
        assert {p._attention_backend for p in model.attn_processors.values()} == {"native"}
        shared = model(**inputs()).sample
    model.reset_attention_backend()
    torch.testing.assert_close(run(model, inputs()), shared, **CLOSE)


# -------------------------------------------------------------------------------------- what users do to their models


def test_fused_projections_change_nothing(model):
    expected = run(model, inputs(), share_blocks="all")
    model.fuse_qkv_projections()
    for size in (None, 1):
        out = run(model, inputs(), share_blocks="all", target_batch_size=size)
        torch.testing.assert_close(out, expected, **CLOSE)


@pytest.mark.parametrize("size", [None, 1])
def test_scale_of_a_lora(model, size, caplog):
    without = run(model, inputs(), target_batch_size=size)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    outs = {}
    for scale in (0.0, 0.5, 1.0):
        call = inputs() | {"joint_attention_kwargs": {"scale": scale}}
        outs[scale] = run(model, call, target_batch_size=size)
        assert call["joint_attention_kwargs"] == {"scale": scale}
    torch.testing.assert_close(outs[0.0], without, **CLOSE)
    assert (outs[0.5] - outs[1.0]).abs().max() > 1e-3
    assert (outs[0.5] - outs[0.0]).abs().max() > 1e-3
    assert "not expected" not in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("size", [None, 1])
def test_compiled_layers_are_compiled_once_for_all_layers_and_noise_levels(size):
    """By a compiler that only counts: what it is given must be the same for all layers and all values of lambda."""
    frames, given = [], {"lambda_schedule": "sigma_squared", "target_batch_size": size}
    for layers in (3, 7):
        model, counter = build(num_single_layers=layers), CompileCounter()
        expected = [run(model, inputs(sigma=sigma), **given) for sigma in (0.9, 0.4)]
        model.compile_repeated_blocks(backend=counter)
        for sigma, sample in zip((0.9, 0.4), expected, strict=True):
            torch.testing.assert_close(run(model, inputs(sigma=sigma), **given), sample, **CLOSE)
            frames.append(counter.frame_count)
        torch.testing.assert_close(model(**inputs()).sample, build(num_single_layers=layers)(**inputs()).sample)
        torch._dynamo.reset()
    assert frames[0] == frames[2]


def test_memory_savers_of_diffusers(model):
    expected = run(model, inputs())
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    out = run(model, inputs())
    assert torch.isfinite(out).all() and (out - expected).abs().max() < 0.5
    assert torch.equal(run(model, inputs(), share_end=0), model(**inputs()).sample)


def test_group_offload(model):
    expected = run(model, inputs())
    model.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    for size in (None, 1):
        torch.testing.assert_close(run(model, inputs(), target_batch_size=size), expected, **CLOSE)


def test_cache_of_the_first_block(model):
    """One call per step, so it may stay; with threshold 0 it never skips anything."""
    expected = run(model, inputs())
    model.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    with aligned_attention(model), model.cache_context("cond"):
        torch.testing.assert_close(model(**inputs()).sample, expected, **CLOSE)


def test_gradients_flow(model):
    call = inputs()
    call["hidden_states"].requires_grad_()
    for size in (None, 1):
        (gradient,) = torch.autograd.grad(run(model, call, target_batch_size=size)[1:].sum(), call["hidden_states"])
        assert gradient[0].abs().max() > 1e-4
