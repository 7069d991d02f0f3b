# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Every family of pipelines trains: the same tests for each row of `tests/diffusion/families.py`."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig

from alignext.diffusion.conditions import Conditions
from alignext.diffusion.layouts import decoded
from alignext.diffusion.recording import record_call
from alignext.diffusion.sizes import Size
from alignext.trainers.diffusion_preference import (
    DiffusionDPOConfig,
    DiffusionDPOTrainer,
    DiffusionKTOConfig,
    DiffusionKTOTrainer,
    InversionDPOConfig,
    InversionDPOTrainer,
    SmPOConfig,
    SmPOTrainer,
)

from ...diffusion import families
from ..contract import SHORT_RUN, assert_same
from ..contract import weights as weights_of


LORA = LoraConfig(r=2, lora_alpha=4)
SIZES = ("height", "width", "num_frames", "video_length")
# text-to-video-sd turns its latents into pictures before it steps; fill does not decode without a step.
REFUSED = {"text-to-video-sd": "cannot be read off", "fill": "does not only decode"}
NAMES = [name for name in families.FAMILIES if name not in REFUSED]
NO_LORA = {"pixart-sigma", "hunyuan-dit", "latte"}  # of diffusers
FAST = ("flux2-klein", "qwen-image-edit", "z-image", "wan-2.1")
family = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
# The same in full, slow for every family.
whole_family = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in NAMES])


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    families.small_pictures(monkeypatch)


def size_of(name: str) -> Size:
    call = families.call(name, 1)
    return Size(call.get("height", 16), call.get("width", 16), call.get("num_frames") or call.get("video_length"))


def noise_picture(seed: int, size: Size) -> Any:
    pixels = torch.rand(size.height, size.width, 3, generator=torch.Generator().manual_seed(seed))
    return (255 * pixels).to(torch.uint8).numpy()


def pairs(name: str, count: int = 4) -> Dataset:
    """Rows of noise, each with its prompt, or what stands for it, and whatever else the family's call takes."""
    size, call = size_of(name), families.call(name, count)
    rows = []
    for i in range(count):
        row: dict[str, Any] = {}
        for side, which in enumerate(("chosen", "rejected")):
            seeds = [100 * i + 50 * side + frame for frame in range(size.frames or 1)]
            frames = [noise_picture(seed, size).tolist() for seed in seeds]
            row |= {f"video_{which}": frames} if size.frames else {}
            row |= {} if size.frames else {f"image_{which}": families.as_picture(frames[0])}
        if "prompt" in call:
            row["prompt"] = f"a fox {i}"
        row |= {k: v[i].numpy() for k, v in call.items() if k != "prompt" and "prompt" in k and len(v) == count}
        if "image" in call:
            row["source"] = call["image"] if isinstance(call["image"], list) else [call["image"]]
        if "mask_image" in call:
            row["mask"] = call["mask_image"]
        rows.append(row)
    return Dataset.from_list(rows)


def start(
    name: str, folder: Path, *, trainer: Any = DiffusionDPOTrainer, config: Any = DiffusionDPOConfig, **given: Any
) -> Any:
    pipe, call, size = families.build(name), families.call(name, 1), size_of(name)
    others = ("generator", "image", "mask_image", "max_area", "_auto_resize", "use_resolution_binning")
    rest = {
        k: v for k, v in call.items() if k not in (*SIZES, *others) and ("prompt" not in k or k == "prompt_template")
    }
    arguments = {name: given.pop(name) for name in ("peft_config", "train_dataset", "eval_dataset") if name in given}
    arguments = {"train_dataset": pairs(name), "peft_config": None if name in NO_LORA else LORA} | arguments
    settings = SHORT_RUN | {"output_dir": str(folder), "resolution": size.height, "call_arguments": rest}
    settings |= {"prompt_dropout": 0.0, "per_device_train_batch_size": 2, "max_steps": 2, "beta": 100.0}
    return trainer(pipe, args=config(**settings | given), **arguments)


@family
def test_a_family_trains(name: str, tmp_path: Path) -> None:
    trainer = start(name, tmp_path)
    before = weights_of(trainer.denoiser)
    trainer.train()
    first, second = (log for log in trainer.state.log_history if "loss" in log)
    assert first["rewards/margins"] == first["rewards/chosen"] == 0 and first["mse/policy"] == first["mse/ref"] > 0
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and first["grad_norm"] > 0
    assert second["rewards/margins"] != 0
    after = weights_of(trainer.denoiser)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and (name in NO_LORA or all("lora_" in name for name in moved))
    assert all(weight.isfinite().all() for weight in after.values())


@family
def test_latents_are_the_mirror_of_the_stock_decoding(name: str) -> None:
    """What is encoded, packed and then decoded by the stock call reaches the VAE as it left it."""
    pipe, size = families.build(name), size_of(name)
    call = {k: v for k, v in families.call(name, 1).items() if k not in ("generator", *SIZES)}
    sample = {k: v[0] if isinstance(v, torch.Tensor) and "prompt" in k else v for k, v in call.items()}
    conditions = Conditions(pipe, size)
    conditions([sample])
    template = conditions.template(size)
    layout, call = template.layout, conditions._arguments(sample, size)
    x = torch.randn(1, *layout.shape, dtype=torch.float64)
    packed = layout.pack(x)
    assert packed.shape[1:] == template.call.shape[1:] and torch.equal(layout.unpack(packed), x)
    reached = decoded(pipe, packed, call).reshape(1, *layout.shape)
    scaled = layout.scaled(pipe.vae, reached if not layout.frames_alone else reached[0])
    torch.testing.assert_close(scaled.reshape(x.shape), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused_at_the_door(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=REFUSED[name]):
        start(name, tmp_path, peft_config=None)


def test_families_without_a_lora_of_diffusers(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match=r"no LoRA for LatteTransformer3DModel\. Train"):
        start("latte", tmp_path, peft_config=LORA)


def said(pipe: Any, name: str) -> torch.Tensor:
    """What the denoiser says to fixed latents, called as the stock loop calls it."""
    recorded = record_call(pipe, **families.call(name, 1))
    latents = torch.randn(recorded.shape, generator=torch.Generator().manual_seed(0))
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    with torch.no_grad():
        return recorded(denoiser.eval(), latents, 500.0)


@whole_family
def test_a_family_resumes_and_the_stock_pipeline_loads_the_result(name: str, tmp_path: Path) -> None:
    trainer = start(name, tmp_path / "whole", save_strategy="steps", save_steps=1, learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    resumed = start(name, tmp_path / "resumed", learning_rate=1e-2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert_same(weights_of(trainer.denoiser), weights_of(resumed.denoiser))
    pipe = families.build(name)
    before = said(pipe, name)
    if name in NO_LORA:
        folder = tmp_path / "whole"
        pipe.register_modules(transformer=type(pipe.transformer).from_pretrained(folder, subfolder="transformer"))
    else:
        pipe.load_lora_weights(tmp_path / "whole")
    after = said(pipe, name)
    assert not torch.allclose(after, before, rtol=1e-3)
    torch.testing.assert_close(after, said(trainer.pipe, name), rtol=1e-4, atol=1e-5)


INVERTING: dict[str, Any] = {"num_inversion_steps": 2, "guidance_scale": 1.0}
LOSSES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "full": (DiffusionDPOTrainer, DiffusionDPOConfig, {"peft_config": None}),
    "inversion": (InversionDPOTrainer, InversionDPOConfig, INVERTING | {"target": "recovered"}),
    "smpo": (SmPOTrainer, SmPOConfig, INVERTING | {"label_sharpness": None}),
    "kto": (DiffusionKTOTrainer, DiffusionKTOConfig, {}),
}


@whole_family
@pytest.mark.parametrize("loss", LOSSES)
def test_a_family_trains_by_every_loss(name: str, loss: str, tmp_path: Path) -> None:
    trainer, config, settings = LOSSES[loss]
    if name == "wan-2.2" and loss in ("inversion", "smpo"):
        with pytest.raises(NotImplementedError, match=r"inverts with one denoiser, and WanPipeline has two"):
            start(name, tmp_path, trainer=trainer, config=config, **settings)
        return
    trained = start(name, tmp_path, trainer=trainer, config=config, max_steps=1, **settings)
    trained.train()
    (log,) = [log for log in trained.state.log_history if "loss" in log]
    assert math.isfinite(log["loss"]) and log["grad_norm"] > 0


@whole_family
def test_what_is_kept_trains_alike_and_so_do_smaller_batches(name: str, tmp_path: Path) -> None:
    settings = {"max_steps": 1, "optim": "sgd", "learning_rate": 1e-2, "prompt_dropout": 0.5}
    settings = settings if "prompt" in families.call(name, 1) else settings | {"prompt_dropout": 0.0}
    fresh = start(name, tmp_path / "fresh", **settings)
    small = start(name, tmp_path / "small", per_device_train_batch_size=1, gradient_accumulation_steps=2, **settings)
    kept = start(name, tmp_path / "kept", precompute_latents=True, precompute_prompts=True, **settings)
    kept.pipe.vae.encode = lambda *args: pytest.fail("the VAE ran")
    if hasattr(kept.pipe, "encode_prompt"):
        kept.pipe.encode_prompt = lambda *args, **kwargs: pytest.fail("a text encoder ran")
    for trainer in (fresh, small, kept):
        trainer.train()
    norms = [trainer.state.log_history[0]["grad_norm"] for trainer in (fresh, small, kept)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-2)
    assert math.isfinite(norms[2]) and norms[2] > 0  # another sample of the posterior


@pytest.mark.parametrize("expert", ["transformer", "transformer_2"])
def test_experts_are_trained_at_their_own_levels(expert: str, tmp_path: Path) -> None:
    trainer = start("wan-2.2", tmp_path, denoiser=expert, max_steps=1)
    seen: list[torch.Tensor] = []
    trainer.denoiser.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs["timestep"]), with_kwargs=True)
    trainer.train()
    assert all((t >= 800).all() if expert == "transformer" else (t < 800).all() for t in seen) and seen
    other = trainer.pipe.transformer if expert == "transformer_2" else trainer.pipe.transformer_2
    assert not any("lora" in key for key, _ in other.named_parameters())
    assert ("load_into_transformer_2" in trainer.usage()) == (expert == "transformer_2")


def test_an_editing_pipeline_without_a_picture_to_edit(tmp_path: Path) -> None:
    data = pairs("qwen-image-edit").remove_columns("source")
    with pytest.raises(
        ValueError, match=r"edits a picture, and the dataset has no column `source` .*image_chosen, image_rejected"
    ):
        start("qwen-image-edit", tmp_path, train_dataset=data)
    with pytest.raises(ValueError, match=r"column `source` .*QwenImagePipeline edits no picture"):
        start("qwen-image", tmp_path, train_dataset=pairs("qwen-image-edit"))


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("qwen-image", "text-to-image"),
        ("wan-2.1", "text-to-video"),
        ("qwen-image-edit", "image-to-image"),
    ],
)
def test_a_card_says_what_goes_in_and_what_comes_out(name: str, task: str, tmp_path: Path) -> None:
    trainer = start(name, tmp_path)
    trainer.create_model_card()
    assert ModelCard.load(tmp_path / "README.md").data.pipeline_tag == task


def test_videos_of_a_pair_have_one_length(tmp_path: Path) -> None:
    rows = pairs("wan-2.1", 2).to_list()
    rows[1]["video_rejected"] = rows[1]["video_rejected"][:4]
    trainer = start("wan-2.1", tmp_path, train_dataset=Dataset.from_list(rows))
    with pytest.raises(ValueError, match=r"`video_rejected` of row 1 has 4 frames, but `video_chosen` has 5"):
        trainer.data_collator(list(trainer.train_dataset))
    with pytest.raises(ValueError, match=r"The dataset has videos, and QwenImagePipeline draws pictures"):
        start("qwen-image", tmp_path, train_dataset=pairs("wan-2.1"))


@pytest.mark.slow
def test_the_table_on_the_page_says_what_is_tested() -> None:
    """`python -m tests.trainers.diffusion_preference.family_table` writes it."""
    from . import family_table

    assert f"\n{family_table.table()}\n" in family_table.PAGE.read_text(encoding="utf-8")
