# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What every pipeline of ours owes its user: all that the stock class does, the stock result when the method is off,
and the shared components as they were. One suite, over the rows of `contract.py`."""

import functools
import inspect

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks
from diffusers.utils import dynamic_modules_utils

from . import tiny
from .contract import (
    CLOSE,
    COMPILED,
    ROWS,
    changes,
    check_compiled,
    check_lora,
    check_offload,
    footprint,
    images,
    load_lora,
    run,
    seeded,
)


pytestmark = pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS], scope="module")

BOTH = pytest.mark.parametrize("mode", ["neutral", "active"])
# With its neutral setting a pipeline gives the stock result, bit for bit: what holds of the one holds of the other.
ACTIVE = pytest.mark.parametrize("mode", [pytest.param("neutral", marks=pytest.mark.slow), "active"])


def slow_unless(fast, values):
    """The values as parameters, slow but for those that stand for the others."""
    return [value if value in fast else pytest.param(*value, marks=pytest.mark.slow) for value in values]


@pytest.fixture(autouse=True)
def skip_where_exempt(row, request):
    for beginning, reason in row.exempt.items():
        if request.node.name.startswith(beginning):
            pytest.skip(reason)


@functools.lru_cache(maxsize=1)
def used(row):
    """Components of a row that have run once, as some text encoders install hooks of their own at the first call, and
    their footprint."""
    components = row.components()
    pipe = row.build(components=components)
    run(pipe, row, "stock", num_inference_steps=1)
    return components, footprint(pipe)


@pytest.fixture
def pipe(row):
    """A pipeline on the components of the last test, or on new ones if that test has changed them."""
    components, before = used(row)
    yield row.build(components=components)
    if changes(before, footprint(row.build(components=components))):
        used.cache_clear()


def latents_of(pipe, row, n, seed=3, size=tiny.SIZE):
    side = size // pipe.vae_scale_factor
    return row.latents(pipe, torch.randn(n, 4, side, side, generator=seeded(seed)))


def cutoff(row, step):
    if row.cutoff is None:
        pytest.skip("diffusers has no callback for this class")
    return row.cutoff(cutoff_step_ratio=None, cutoff_step_index=step)


def other_scheduler(row, pipe, i):
    if i >= len(row.schedulers):
        pytest.skip("the row has no other scheduler")
    return row.schedulers[i](pipe.scheduler)


def embeds_of(pipe, row, prompts):
    given = row.inputs() | {"num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    known = inspect.signature(pipe.encode_prompt).parameters
    encoded = pipe.encode_prompt(prompts, device="cpu", **{k: v for k, v in given.items() if k in known})
    return {"prompt": None} | dict(zip(row.embeds, encoded, strict=False))


# ---------------------------------------------------------------------------------------------------- the class itself


def test_adds_to_the_stock_class_and_takes_nothing_away(row):
    assert issubclass(row.ours, row.stock)
    assert row.ours.__init__ is row.stock.__init__
    assert row.ours.model_cpu_offload_seq == row.stock.model_cpu_offload_seq
    assert set(row.stock._optional_components) <= set(row.ours._optional_components)
    ours, stock = (set(getattr(cls, "_callback_tensor_inputs", ())) for cls in (row.ours, row.stock))
    assert stock <= ours


def test_signature_begins_with_the_stock_arguments(row):
    ours, stock = (inspect.signature(cls.__call__).parameters for cls in (row.ours, row.stock))
    expected = [p for p in stock.values() if p.kind is not p.VAR_KEYWORD]
    assert [(p.name, p.kind) for p in ours.values()][: len(expected)] == [(p.name, p.kind) for p in expected]
    added = list(ours.values())[len(expected) :]
    assert added and all(p.kind is p.KEYWORD_ONLY or p.kind is p.VAR_KEYWORD for p in added)
    assert all(p.default is not p.empty for p in added if p.kind is p.KEYWORD_ONLY)


def test_has_an_example_and_names_its_paper(row):
    assert "```py" in row.ours.__call__.__doc__
    assert row.ours._name and "alignext" in row.ours._tag_names
    assert set(row.ours._paper) == {"title", "id", "citation"}


# --------------------------------------------------------------------------------------------- neutral setting = stock

SETTINGS = {
    "plain": lambda pipe, row: {},
    "given latents": lambda pipe, row: {"latents": latents_of(pipe, row, 1)},
    "several images": lambda pipe, row: {"num_images_per_prompt": 3},
    "several prompts": lambda pipe, row: {"prompt": ["a fox", "a dog"], "num_images_per_prompt": 2},
    "negative prompt": lambda pipe, row: {"negative_prompt": "ugly"},
    "list of generators": lambda pipe, row: {"num_images_per_prompt": 2, "generator": [seeded(1), seeded(2)]},
    "no guidance": lambda pipe, row: {"guidance_scale": 1.0},
    "rescaled guidance": lambda pipe, row: {"guidance_rescale": 0.7},
    "stochastic steps": lambda pipe, row: {"eta": 0.8},
    "embeddings": lambda pipe, row: embeds_of(pipe, row, ["a fox"]),
    "another size": lambda pipe, row: {"height": 24, "width": 16},
    "latent output": lambda pipe, row: {"output_type": "latent"},
    "guidance cut off": lambda pipe, row: {"callback_on_step_end": cutoff(row, 1)},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_neutral_setting_is_the_stock_result_bit_for_bit(row, pipe, setting):
    arguments = SETTINGS[setting](pipe, row)
    if not arguments.keys() <= inspect.signature(row.stock.__call__).parameters.keys():
        pytest.skip("not an argument of the stock class")
    stock = run(row.build(ours=False, components=pipe.components), row, "stock", **arguments)
    arguments = SETTINGS[setting](pipe, row)  # again, since generators have state
    assert torch.equal(run(pipe, row, "neutral", **arguments), stock)


def test_active_setting_does_something(row, pipe):
    latents = {"latents": latents_of(pipe, row, 1)} if row.latents else {}
    difference = run(pipe, row, "active", **latents) - run(pipe, row, "stock", **latents)
    assert difference.abs().max() > 1e-3


@BOTH
def test_calls_leave_no_trace_in_later_calls(row, pipe, mode):
    run(pipe, row, "active", num_inference_steps=7, guidance_scale=1.0, num_images_per_prompt=2)
    assert torch.equal(run(pipe, row, mode), images(row, mode))


# ---------------------------------------------------------------------------------- shared components stay as they are


class Stop(BaseException):
    """Not an `Exception`, like a keyboard interrupt."""


def failure_in(part, calls):
    """Makes a module raise after so many calls; returns what undoes it."""

    def install(pipe, row):
        name, _, path = part.format(denoiser=row.denoiser, attention=row.attention).partition(".")
        count = iter(range(calls, -1, -1))

        def hook(*args):
            if next(count) == 0:
                raise Stop

        return getattr(pipe, name).get_submodule(path).register_forward_hook(hook).remove

    return install


def failing_step(pipe, row):
    """A scheduler whose own `step` fails: put on the class, where a wrapper on the object must leave it."""
    original = type(pipe.scheduler)

    def step(self, *args, **kwargs):
        raise Stop

    pipe.scheduler.__class__ = type(original.__name__, (original,), {"step": step})
    return lambda: setattr(pipe.scheduler, "__class__", original)


FAILURES = {
    "text encoder": failure_in("text_encoder", 0),
    "first denoiser call": failure_in("{denoiser}", 0),
    "later denoiser call": failure_in("{denoiser}", 3),
    "inside an attention layer": failure_in("{denoiser}.{attention}.to_q", 3),
    "scheduler": failing_step,
    "decoder": failure_in("vae.decoder", 0),
}


CALLS = [(scheduler, mode) for scheduler in (None, 0, 1) for mode in ("neutral", "active")]


@pytest.mark.parametrize("scheduler, mode", slow_unless([(None, "neutral"), (None, "active"), (0, "active")], CALLS))
def test_components_are_untouched_after_a_call(row, pipe, scheduler, mode):
    if scheduler is not None:
        pipe.scheduler = other_scheduler(row, pipe, scheduler)
    before = footprint(pipe)
    run(pipe, row, mode, **{row.several: 2})
    assert changes(before, footprint(pipe)) == []


# The failing scheduler is the row's own: the method may replace another one for the call.
CASES = [(where, None) for where in FAILURES]
CASES += [(where, 0) for where in FAILURES if where != "scheduler"]


FAST = [*((where, None) for where in FAILURES), ("later denoiser call", 0)]


@pytest.mark.parametrize("where, scheduler", slow_unless(FAST, CASES))
def test_components_are_untouched_after_an_exception(row, pipe, where, scheduler):
    original = pipe.scheduler
    if scheduler is not None:
        pipe.scheduler = other_scheduler(row, pipe, scheduler)
    before = footprint(pipe)
    undo = FAILURES[where](pipe, row)
    with pytest.raises(Stop):
        run(pipe, row, "active")
    undo()
    assert changes(before, footprint(pipe)) == []
    pipe.scheduler = original
    assert torch.equal(run(pipe, row, "stock"), images(row, "stock"))


def test_components_are_untouched_after_a_failing_callback(row, pipe):
    def fail(owner, i, t, tensors):
        if i == 1:
            raise Stop
        return tensors

    before = footprint(pipe)
    with pytest.raises(Stop):
        run(pipe, row, "active", callback_on_step_end=fail)
    assert changes(before, footprint(pipe)) == []


@pytest.mark.parametrize(
    "bad",
    [{"prompt": None}, {"prompt_embeds": torch.zeros(1, 16, 16)}, {"callback_on_step_end_tensor_inputs": ["none"]}],
)
def test_what_stock_refuses_is_refused_and_leaves_no_trace(row, pipe, bad):
    with pytest.raises(ValueError):
        run(pipe, row, "stock", **bad)
    before = footprint(pipe)
    with pytest.raises(ValueError):
        run(pipe, row, "active", **bad)
    assert changes(before, footprint(pipe)) == []


def test_footprint_notices_each_kind_of_change(row, pipe):
    """The watch itself can fail: one change of each kind is seen."""
    denoiser = getattr(pipe, row.denoiser)
    layer = denoiser.get_submodule(row.attention)
    for change in (
        lambda: layer.set_processor(type(layer.processor)()),
        lambda: denoiser.register_forward_pre_hook(lambda *args: None),
        lambda: setattr(pipe.scheduler, "step", pipe.scheduler.step),
        lambda: layer.train(),
        lambda: layer.requires_grad_(False),
        lambda: layer.to(torch.bfloat16),
        lambda: layer.to_q.weight.data.add_(1),
        lambda: setattr(pipe, "scheduler", tiny.scheduler()),
    ):
        before = footprint(pipe)
        change()
        assert changes(before, footprint(pipe))


def test_hooks_of_the_user_stay_and_fire(row, pipe):
    fired = []
    denoiser = getattr(pipe, row.denoiser)
    handle = denoiser.register_forward_pre_hook(lambda *args: fired.append(1))
    run(pipe, row, "active")
    assert len(fired) >= 4 and handle.id in denoiser._forward_pre_hooks


# ----------------------------------------------------------------------------------------- from one class to the other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_components_are_shared_without_a_cast(row, dtype):
    stock = row.build(ours=False).to(dtype)
    stock.vae.to(torch.float32)  # mixed precision, as users have it
    latents = run(stock, row, "stock", output_type="latent")
    before = footprint(stock)
    ours = row.ours(**stock.components)
    ours.set_progress_bar_config(disable=True)
    assert changes(before, footprint(ours)) == []
    assert torch.equal(run(ours, row, "neutral", output_type="latent"), latents)
    run(ours, row, "active", output_type="latent")
    assert changes(before, footprint(stock)) == []
    assert torch.equal(run(stock, row, "stock", output_type="latent"), latents)


def test_from_pipe_shares_and_casts_to_float32_unless_told(row):
    """What diffusers does with any class, and why our pages show `Ours(**pipe.components)`."""
    stock = row.build(ours=False).to(torch.bfloat16)
    kept = row.ours.from_pipe(stock, dtype=torch.bfloat16)
    assert type(kept) is row.ours and getattr(kept, row.denoiser) is getattr(stock, row.denoiser)
    assert kept.dtype == stock.dtype == torch.bfloat16
    cast = row.ours.from_pipe(stock)
    assert cast.dtype == stock.dtype == torch.float32
    back = row.stock.from_pipe(cast)
    assert type(back) is row.stock and getattr(back, row.denoiser) is getattr(stock, row.denoiser)


@pytest.mark.parametrize("way", ["stock", "custom_pipeline", "ours"])
def test_saved_pipeline_gives_the_same_result_loaded_each_way(row, pipe, way, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = str(tmp_path / "model")
    pipe.save_pretrained(folder)
    # Without such a component diffusers opens no folder, unless it is told that there is none.
    absent = {k: v for k, v in pipe.components.items() if v is None and k not in row.stock._optional_components}
    loaded = {
        "stock": lambda: DiffusionPipeline.from_pretrained(folder, **absent),
        "custom_pipeline": lambda: DiffusionPipeline.from_pretrained(
            folder, custom_pipeline=folder, trust_remote_code=True, **absent
        ),
        "ours": lambda: row.ours.from_pretrained(folder, **absent),
    }[way]()
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is (row.stock if way == "stock" else row.ours)
    mode = "stock" if way == "stock" else "active"
    # Not bit for bit: weights mapped from a file sit at other addresses, where kernels may sum in another order.
    torch.testing.assert_close(run(loaded, row, mode), images(row, mode), **CLOSE)
    assert (
        changes({k: type(v) for k, v in pipe.components.items()}, {k: type(v) for k, v in loaded.components.items()})
        == []
    )


# ----------------------------------------------------------------------------------------------------------- callbacks


@BOTH
def test_callback_is_called_at_every_step_and_reads_every_tensor(row, pipe, mode):
    seen = []

    def callback(owner, i, t, tensors):
        assert owner is pipe and owner.num_timesteps == 4
        seen.append((i, int(t), sorted(tensors)))
        parts = [part for value in tensors.values() for part in (value if isinstance(value, list) else [value])]
        assert all(isinstance(part, torch.Tensor) for part in parts)  # Z-Image has a list of them, of unequal length
        return tensors

    names = sorted(pipe._callback_tensor_inputs)
    found = run(pipe, row, mode, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    assert [i for i, _, _ in seen] == [0, 1, 2, 3]
    assert [t for _, t, _ in seen] == sorted((t for _, t, _ in seen), reverse=True)
    assert all(read == names for _, _, read in seen)
    assert torch.equal(found, images(row, mode))


@ACTIVE
def test_callback_writes(row, pipe, mode):
    def zero_at_the_end(owner, i, t, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if i == owner.num_timesteps - 1 else {}

    assert not run(pipe, row, mode, callback_on_step_end=zero_at_the_end, output_type="latent").any()


@BOTH
def test_interrupt_ends_the_work(row, pipe, mode):
    steps = []

    def interrupt(owner, i, t, tensors):
        steps.append((i, tensors["latents"].clone()))
        owner._interrupt = True
        return tensors

    latents = run(pipe, row, mode, callback_on_step_end=interrupt, output_type="latent")
    assert len(steps) == 1 and torch.equal(latents, steps[0][1])
    assert torch.isfinite(run(pipe, row, mode)).all() and not pipe.interrupt  # the next call runs


def test_pipeline_callbacks_are_accepted(row, pipe):
    cut = cutoff(row, 2)
    once = run(pipe, row, "active", callback_on_step_end=cut)
    assert torch.equal(once, run(pipe, row, "active", callback_on_step_end=MultiPipelineCallbacks([cut])))
    assert (once - images(row, "active")).abs().max() > 1e-5


# ---------------------------------------------------------------------------------------------- batches and generators


@ACTIVE
def test_same_seed_same_images_and_another_seed_others(row, pipe, mode):
    assert torch.equal(run(pipe, row, mode), images(row, mode))
    assert not torch.equal(run(pipe, row, mode, generator=seeded(2)), images(row, mode))


@ACTIVE
def test_global_seed_decides_without_a_generator(row, pipe, mode):
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(run(pipe, row, mode, generator=None))
    assert torch.equal(*drawn)


@ACTIVE
def test_batch_equals_single_calls(row, pipe, mode):
    """Two prompts, two images each, a generator per image: prompt-major, and each image what it is alone."""
    prompts = ["a red fox", "two dogs"]
    drawn = run(pipe, row, mode, prompt=prompts, num_images_per_prompt=2, generator=[seeded(s) for s in range(4)])
    assert len(drawn) == 4
    for k, image in enumerate(drawn):
        single = run(pipe, row, mode, prompt=prompts[k // 2], generator=seeded(k))
        torch.testing.assert_close(image, single[0], **CLOSE)


@ACTIVE
def test_list_with_one_prompt_equals_the_prompt(row, pipe, mode):
    assert torch.equal(run(pipe, row, mode, prompt=["a red fox"]), images(row, mode))


def test_generators_that_do_not_fit_are_refused(row, pipe):
    with pytest.raises(ValueError, match="generator"):
        run(pipe, row, "active", generator=[seeded(0), seeded(1), seeded(2)], num_images_per_prompt=2)


@ACTIVE
def test_negative_prompts_are_one_per_prompt(row, pipe, mode):
    prompts, negatives = ["a fox", "a dog"], ["ugly", "grey"]
    generators = [seeded(0), seeded(1)]
    drawn = run(pipe, row, mode, prompt=prompts, negative_prompt=negatives, generator=generators)
    for k, image in enumerate(drawn):
        single = run(pipe, row, mode, prompt=prompts[k], negative_prompt=negatives[k], generator=seeded(k))
        torch.testing.assert_close(image, single[0], **CLOSE)


@ACTIVE
def test_embeddings_stand_in_for_prompts(row, pipe, mode):
    prompts = ["a fox", "a dog"]
    expected = run(pipe, row, mode, prompt=prompts)
    torch.testing.assert_close(run(pipe, row, mode, **embeds_of(pipe, row, prompts)), expected, **CLOSE)


def test_embeddings_run_without_text_encoders(row, pipe):
    arguments = embeds_of(pipe, row, ["a red fox"]) | row.prepared(pipe, 4)
    for name in pipe.components:
        if name.startswith(("text_encoder", "tokenizer")):
            setattr(pipe, name, None)
    torch.testing.assert_close(run(pipe, row, "active", **arguments), images(row, "active"), **CLOSE)


# -------------------------------------------------------------------------------------------------------------- output


@ACTIVE
def test_output_types_agree(row, pipe, mode):
    tensor = images(row, mode)
    assert tensor.shape == (1, 3, tiny.SIZE, tiny.SIZE) and 0 <= tensor.min() and tensor.max() <= 1
    array = run(pipe, row, mode, output_type="np")
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    (picture,) = run(pipe, row, mode, output_type="pil")
    assert isinstance(picture, PIL.Image.Image) and picture.size == (tiny.SIZE, tiny.SIZE)
    np.testing.assert_array_equal(np.asarray(picture), (array[0] * 255).round().astype(np.uint8))
    latent = run(pipe, row, mode, output_type="latent")
    decoded = pipe.vae.decode(row.unpacked(pipe, latent)).sample
    torch.testing.assert_close(pipe.image_processor.postprocess(decoded.detach(), output_type="pt"), tensor)
    assert not tensor.requires_grad and not latent.requires_grad


@ACTIVE
def test_return_dict_off_gives_a_tuple(row, pipe, mode):
    arguments = {"prompt": "a fox", "num_inference_steps": 2, "output_type": "pt", **row.inputs()}
    arguments |= getattr(row, mode)(arguments)
    plain = pipe(**arguments, generator=seeded(), return_dict=False)
    assert type(plain) is tuple
    assert torch.equal(plain[0], pipe(**arguments, generator=seeded()).images)


@ACTIVE
def test_positional_arguments_are_the_stock_ones(row, pipe, mode):
    given = row.inputs() | {"prompt": "a fox", "height": 24, "width": 16, "num_inference_steps": 2}
    arguments = {"output_type": "pt", **getattr(row, mode)(given)}
    named = pipe(**given, generator=seeded(), **arguments).images
    order = list(inspect.signature(row.stock.__call__).parameters.values())[1:]
    order = order[: [p.name for p in order].index("num_inference_steps") + 1]
    values = [given.pop(p.name, p.default) for p in order]
    assert torch.equal(pipe(*values, generator=seeded(), **given, **arguments).images, named)


@ACTIVE
def test_progress_bars_can_be_silenced(row, pipe, mode, capfd):
    run(pipe, row, mode)
    assert capfd.readouterr() == ("", "")
    pipe.set_progress_bar_config(disable=False)
    run(pipe, row, mode)
    assert "it/s" in capfd.readouterr().err


# ------------------------------------------------------------------------------------ what users do to their pipelines


def treat(name, pipe, row):
    if name not in TREATMENTS_OF_UNETS or row.denoiser == "unet":
        (CHANGES_NOTHING | CHANGES_RESULT)[name](pipe, row)
    else:
        pytest.skip("for U-Nets")


def slice_attention(pipe, row):
    pipe.enable_attention_slicing(1)


def fuse_projections(pipe, row):
    (pipe if hasattr(pipe, "fuse_qkv_projections") else getattr(pipe, row.denoiser)).fuse_qkv_projections()


def channels_last(pipe, row):
    getattr(pipe, row.denoiser).to(memory_format=torch.channels_last)


def free_u(pipe, row):
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


CHANGES_NOTHING = {"attention slicing": slice_attention, "fused": fuse_projections, "channels last": channels_last}
CHANGES_RESULT = {"FreeU": free_u}
TREATMENTS_OF_UNETS = {"FreeU"}


@pytest.mark.parametrize("treatment", CHANGES_NOTHING)
def test_treatment_changes_nothing(row, pipe, treatment):
    treat(treatment, pipe, row)
    before = footprint(pipe)
    torch.testing.assert_close(run(pipe, row, "active"), images(row, "active"), **CLOSE)
    assert changes(before, footprint(pipe)) == []


@pytest.mark.parametrize("treatment", CHANGES_NOTHING | CHANGES_RESULT)
def test_neutral_setting_is_stock_under_a_treatment(row, pipe, treatment):
    treat(treatment, pipe, row)
    assert torch.equal(run(pipe, row, "neutral"), run(pipe, row, "stock"))
    assert torch.isfinite(run(pipe, row, "active")).all()


@ACTIVE
def test_offloaded_pipeline_gives_the_same_result(row, pipe, mode):
    check_offload(pipe, lambda: run(pipe, row, mode, **{row.several: 2}), row.denoiser)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("way", COMPILED)
def test_compiled_pipeline_gives_the_same_result(row, pipe, way):
    check_compiled(pipe, lambda: run(pipe, row, "active", **{row.several: 2}), row.denoiser, way)


def test_lora_is_used(row, pipe, tmp_path):
    check_lora(pipe, lambda: run(pipe, row, "active"), row.denoiser, tmp_path)

    load_lora(pipe, tmp_path, row.denoiser)
    before = footprint(pipe)
    assert torch.equal(run(pipe, row, "neutral"), run(pipe, row, "stock"))
    for mode in ("neutral", "active"):
        without = images(row, mode)
        assert (run(pipe, row, mode) - without).abs().max() > 1e-3
        scaled_off = run(pipe, row, mode, **{row.attention_kwargs: {"scale": 0.0}})
        torch.testing.assert_close(scaled_off, without, **CLOSE)
    assert changes(before, footprint(pipe)) == []


HALVES = [(dtype, mode) for dtype in (torch.float16, torch.bfloat16) for mode in ("neutral", "active")]


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")  # called by stock Stable Diffusion XL
@pytest.mark.parametrize(
    "dtype, mode",
    slow_unless([(torch.float16, "neutral"), (torch.bfloat16, "active")], HALVES),
    ids=["dtype0-neutral", "dtype0-active", "dtype1-neutral", "dtype1-active"],
)
def test_half_precision_runs_and_stays(row, pipe, dtype, mode):
    pipe.to(dtype)
    before = footprint(pipe)
    latent = run(pipe, row, mode, output_type="latent")
    assert latent.dtype == run(pipe, row, "stock", output_type="latent").dtype == dtype
    assert torch.isfinite(latent).all() and torch.isfinite(run(pipe, row, mode)).all()
    assert changes(before, footprint(pipe)) == []
    if mode == "neutral":
        assert torch.equal(latent, run(pipe, row, "stock", output_type="latent"))


@ACTIVE
def test_runs_in_inference_mode(row, pipe, mode):
    with torch.inference_mode():
        drawn = run(pipe, row, mode).clone()
    assert torch.equal(drawn, images(row, mode))


def test_textual_inversion_is_used(row, pipe):
    for suffix in ("", "_2"):
        if hasattr(pipe, f"tokenizer{suffix}"):
            parts = {"tokenizer": f"tokenizer{suffix}", "text_encoder": f"text_encoder{suffix}"}
            parts = {name: getattr(pipe, part) for name, part in parts.items()}
            pipe.load_textual_inversion(torch.ones(tiny.TEXT_DIM) * 0.3, token="<toy>", **parts)
    toy, letters = (run(pipe, row, "active", prompt=f"a {word}") for word in ("<toy>", "toy"))
    assert (toy - letters).abs().max() > 1e-4
