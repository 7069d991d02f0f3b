# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The parts of the training script that a mistake would hide in."""

import copy
import json
import math
import shutil

import pytest
import torch

from alignext.mini import path, pictures
from alignext.mini.recipe import features, measure, render, train


class Interrupt(Exception):
    pass


def test_an_interrupted_run_ends_where_the_uninterrupted_one_does(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "MINUTES", 0)  # a checkpoint at every step
    config = {"seed": 3, "steps": 8, "lr": 0.1, "warmup": 2, "ema": 0.9}

    def run(folder, stop_at=None):
        torch.manual_seed(0)
        model, result = torch.nn.Linear(3, 1), []

        def loss_fn(step, rng):
            if step == stop_at:
                raise Interrupt
            return (model(torch.randn(4, 3, generator=rng)) - torch.randn(4, 1)).pow(2).mean()

        train.fit(model, loss_fn, config, folder, result.append)
        return torch.cat([p.flatten() for p in [*model.parameters(), *result[-1].parameters()]])

    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupt):
        run(tmp_path / "cut", stop_at=5)
    assert torch.equal(run(tmp_path / "cut"), whole)


def test_augment_at_rest_only_flips_and_white_moves_in():
    images = measure.tensor([p.image for p in pictures("unseen_concept")[:8]])
    rng = torch.Generator().manual_seed(0)
    still = train.augment(images, rng, shift=0, scale=0, angle=0)
    for image, result in zip(images, still, strict=True):
        assert min((result - image).abs().max(), (result - image.flip(2)).abs().max()) < 1e-4
    moved = train.augment(torch.zeros(64, 3, 16, 16), rng, shift=0.5, scale=0)
    assert moved.max() == 1 and moved.min() == 0


def test_standardize_keeps_the_pictures_and_gives_every_latent_channel_the_same_scale():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=3,
        norm_num_groups=4,
    ).eval()
    images = (measure.tensor([p.image for p in pictures("unseen_style")]) * 255).byte()
    before, floats = copy.deepcopy(vae), images[::8].float() / 255
    train.standardize(vae, images)
    torch.testing.assert_close(measure.reconstruct(vae, floats), measure.reconstruct(before, floats))
    with torch.no_grad():
        old, new = (v.encode(floats * 2 - 1).latent_dist for v in (before, vae))
    latents = new.mean * vae.config.scaling_factor
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        new.std / old.std, (new.mean.std((0, 2, 3)) / old.mean.std((0, 2, 3))).view(1, 3, 1, 1).expand_as(old.std)
    )


def test_every_word_of_the_captions_is_one_token():
    captions = [render.caption(render.word(name), style) for (name, style), s in render.grid().items() if s == "train"]
    tokenizer = train.make_tokenizer(captions, 24)
    shipped = type(tokenizer).from_pretrained(path("sd"), subfolder="tokenizer")
    for caption in captions:
        words = [f"{word}</w>" for word in caption.replace(",", " ,").split()]
        for each in (tokenizer, shipped):
            assert each.convert_ids_to_tokens(each(caption).input_ids)[1:-1] == words


def test_configs_and_shipped_models_agree():
    import yaml

    folder = path("sd").parent / "recipe" / "configs"
    sd, vae = (yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("sd", "vae"))
    for part, wanted in (("unet", sd["unet"]), ("vae", vae["model"]), ("text_encoder", sd["text_encoder"])):
        found = json.loads((path("sd") / part / "config.json").read_text())
        assert wanted.items() <= found.items(), part
    flux = yaml.safe_load((folder / "flux.yaml").read_text())
    for part in ("transformer", "text_encoder", "text_encoder_2"):
        assert flux[part].items() <= json.loads((path("flux") / part / "config.json").read_text()).items(), part
    scheduler = json.loads((path("sd") / "scheduler" / "scheduler_config.json").read_text())
    assert sd["scheduler"].items() <= scheduler.items()


def test_t5_pieces_are_words_capitals_mean_the_same_and_the_rest_is_spelled(tmp_path):
    tokenizer = train.make_t5_tokenizer(["a red fox, flat style"])
    assert tokenizer.tokenize("A red fox, flat style") == ["▁A", "▁red", "▁fox", ",", "▁flat", "▁style"]
    assert tokenizer.unk_token_id not in tokenizer("quartz: 7 (seven)!").input_ids
    embedding = torch.nn.Embedding(len(tokenizer), 4)
    before = embedding.weight.detach().clone()
    train.read_capitals(embedding, tokenizer)
    small, large = (embedding(tokenizer(text, return_tensors="pt").input_ids) for text in ("a fox", "A Fox"))
    assert torch.equal(small, large)
    kept = [i for piece, i in tokenizer.get_vocab().items() if piece == piece.lower()]
    assert torch.equal(embedding.weight[kept], before[kept])
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again("a red fox, flat style").input_ids == tokenizer("a red fox, flat style").input_ids


def test_a_canvas_shows_one_drawing_or_two_of_one_style():
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4) * 10
    rows = [{"concept": f"thing {i}", "style": "flat" if i < 3 else "ink"} for i in range(6)]
    canvases, named = train.make_canvases(images, rows, 64, 0.5, seed=0)
    assert canvases.shape == (64, 3, 4, 8)
    shares = []
    for canvas, row in zip(canvases, named, strict=True):
        colours = set(canvas.unique().tolist())
        seen = {i for i in range(6) if 10 * i in colours}
        assert seen == {int(word) for word in row["concept"].split() if word.isdigit()}
        assert {rows[i]["style"] for i in seen} == {row["style"]}
        assert row["caption"].endswith(f"{row['style']} style")
        two = " and " in row["concept"]
        assert (255 in colours) != two
        shares.append(two)
    assert 0.3 < sum(shares) / 64 < 0.7


def test_sampler_pairs_each_drawing_with_its_caption():
    n = 5
    latents = torch.arange(n).float().view(1, n, 1, 1, 1, 1) * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    rows = [{"concept": f"thing {i}", "caption": f"a thing {i}, flat style"} for i in range(n)]
    captions = train.captions_of(rows)
    draw = train.sampler(latents.half(), latents.half(), without_caption=0.25, without_style=0.5)
    z, ids = draw(400, torch.Generator().manual_seed(0))
    assert z.shape == (400, 1, 1, 1) and ids.shape == (400,)
    texts = [captions[i] for i in ids]
    assert sum(not text for text in texts) == 100
    for value, text in zip(z.flatten().int().tolist(), texts, strict=True):
        assert not text or text.startswith(f"a thing {value}")
    assert 100 < sum("style" in text for text in texts) < 200


def test_pairs_are_of_one_style_and_the_caption_is_that_of_the_left_one():
    styles = list("aabbb")
    latents = torch.arange(5.0).view(1, 5, 1, 1, 1, 1) * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    draw = train.pair_sampler(latents.half(), styles, without_caption=0.2, without_style=0.5)
    z, ids = draw(400, torch.Generator().manual_seed(0))
    assert z.shape == (400, 1, 1, 2)
    left, right = z[:, 0, 0].long().unbind(1)
    assert all(styles[a] == styles[b] for a, b in zip(left.tolist(), right.tolist(), strict=True))
    assert {(a, b) for a, b in zip(left.tolist(), right.tolist(), strict=True)} == {
        (a, b) for a in range(5) for b in range(5) if styles[a] == styles[b]
    }
    named = ids < 10
    assert torch.equal(ids[named] % 5, left[named]) and (ids[~named] == 10).all()
    assert 0.7 < named.float().mean() < 0.9 and 0.4 < (ids[named] >= 5).float().mean() < 0.6


def test_a_nudge_moves_whole_pixels_and_softens_nothing():
    images = measure.tensor([p.image for p in pictures("unseen_concept")[:12]])
    moved = train.nudge(images, torch.Generator().manual_seed(0), most=2)
    wide = torch.nn.functional.pad(images, (2,) * 4, value=1.0)
    places = []
    for image, result in zip(wide, moved, strict=True):
        places += [
            [(i, j, flip)
             for i in range(5) for j in range(5) for flip in (False, True)
             if torch.equal(image[:, i : i + 64, j : j + 64], result.flip(2) if flip else result)]
        ]  # fmt: skip
    assert all(places)
    assert len({found[0] for found in places}) > 6


def test_a_run_may_end_before_its_horizon(tmp_path, monkeypatch):
    rates = []
    config = {"seed": 0, "steps": 10, "horizon": 40, "decay": 4, "lr": 1.0, "warmup": 1, "ema": 0.9}
    model = torch.nn.Linear(1, 1)

    class Recorder(torch.optim.SGD):
        def step(self, *args, **kwargs):
            rates.append(self.param_groups[0]["lr"])

    monkeypatch.setattr(
        train, "make_optimizers", lambda model, config: {"optimizer": Recorder(model.parameters(), lr=config["lr"])}
    )
    train.fit(model, lambda step, rng: model(torch.ones(1, 1)).sum(), config, tmp_path, lambda average: None)
    whole = [0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / 40)) for step in range(10)]
    assert rates[:7] == pytest.approx(whole[:7])
    assert rates[7:] == pytest.approx([whole[7] * 3 / 4, whole[8] / 2, whole[9] / 4])


def network() -> dict[str, torch.Tensor]:
    """Random parameters with the names and shapes of EfficientNet-Lite0's first blocks."""
    rng, state = torch.Generator().manual_seed(0), {}

    def convolution(name: str, norm: str, *shape: int) -> None:
        state[f"{name}.weight"] = torch.randn(shape, generator=rng) / math.prod(shape[1:]) ** 0.5
        for part in ("weight", "running_var"):
            state[f"{norm}.{part}"] = 0.5 + torch.rand(shape[0], generator=rng)
        for part in ("bias", "running_mean"):
            state[f"{norm}.{part}"] = torch.randn(shape[0], generator=rng)

    convolution("_conv_stem", "_bn0", 32, 3, 3, 3)
    for i, (inside, wide, outside, kernel) in enumerate(
        [(32, 32, 16, 3), (16, 96, 24, 3), (24, 144, 24, 3), (24, 144, 40, 5), (40, 240, 40, 5)]
    ):
        if i:
            convolution(f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", wide, inside, 1, 1)
        convolution(f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", wide, 1, kernel, kernel)
        convolution(f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", outside, wide, 1, 1)
    return state


def test_folded_convolutions_are_the_convolution_and_its_batch_norm():
    state, x = network(), torch.randn(2, 144, 9, 8)
    name = "_blocks.3._depthwise_conv"
    norm = torch.nn.BatchNorm2d(144, eps=features.EPS).eval()
    with torch.no_grad():
        for part in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, part).copy_(state[f"_blocks.3._bn1.{part}"])
        # a stride of 2 over 9 rows: 1 of the 4 rows of padding less than at a stride of 1, and it is the first one
        padded = torch.nn.functional.pad(x, (1, 2, 1, 2))
        wanted = norm(torch.nn.functional.conv2d(padded, state[f"{name}.weight"], stride=2, groups=144))
        found = features.convolve(x, *features.fold(state, name, "_blocks.3._bn1"), stride=2)
    torch.testing.assert_close(found, wanted)


def test_features_are_nearer_the_more_alike_pictures_are_and_pull_one_side_only():
    see = features.Features(network())
    x = measure.tensor([p.image for p in pictures("unseen_concept")[:4]]) * 2 - 1
    sizes = [(m.shape[1], m.shape[2]) for m in see(x)]
    assert sizes == [(32, 64), (16, 64), (24, 32), (40, 16)]
    soft = [torch.lerp(x, torch.nn.functional.avg_pool2d(x, 3, 1, 1), share).requires_grad_() for share in (0.1, 0.8)]
    near, far = (see.distance(one, x) for one in soft)
    assert see.distance(x, x) == 0 < near < far
    aim = x.clone().requires_grad_()
    see.distance(soft[1], aim).backward()
    assert soft[1].grad.abs().sum() > 0 and aim.grad is None


def test_the_decoder_goes_on_and_the_latents_stay(tmp_path, monkeypatch):
    from diffusers import AutoencoderKL

    monkeypatch.setattr(render, "CACHE", tmp_path)
    monkeypatch.setattr(features, "weights", network)
    monkeypatch.setattr(train, "pictures", some_pictures)
    start = tmp_path / "train" / "vae" / "decoder" / "vae"
    shutil.copytree(path("sd") / "vae", start)
    config = recipe_config("decoder") | {"steps": 1, "batch": 2, "critic_from": 1, "critic_alone": 0}
    config["then"] = [{"steps": 2, "critic_from": 0, "critic_alone": 1, "relief": 1.0}]  # unheard, then heard
    torch.manual_seed(0)
    train.train_decoder(config, tmp_path / "decoder")
    before, after = (AutoencoderKL.from_pretrained(f).state_dict() for f in (start, tmp_path / "decoder" / "vae"))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"decoder", "post_quant_conv"}
    assert all(name in changed for name in after if name.startswith("decoder") and after[name].ndim == 4)
    assert "_name_or_path" not in json.loads((tmp_path / "decoder" / "vae" / "config.json").read_text())


def test_the_dual_encoder_never_sees_one_style_of_each_concept():
    unseen, splits = train.unseen_by_clip(), render.grid()
    assert sorted(name for name, _ in unseen) == sorted(render.TRAINED)
    assert {cell for cell, split in splits.items() if split == "unseen_drawing"} <= unseen
    shares = [sum(style == each for _, style in unseen) for each in render.STYLES]
    assert min(shares) > 20


def test_disturbed_pictures_stay_pictures_and_some_stay_what_they_are():
    images = measure.tensor([p.image for p in pictures("unseen_concept")[:64]])
    disturbed = train.disturb(images, torch.Generator().manual_seed(0))
    assert disturbed.shape == images.shape and disturbed.min() >= 0 and disturbed.max() <= 1
    far = (disturbed - images).abs().mean(dim=(1, 2, 3))
    assert far.min() < 0.01 and 0.03 < far.mean() < 0.08


def test_edges_and_what_is_fine_of_drawings_through_softness():
    """Softness keeps the height of a step, and so its summed gradient; the second difference goes."""
    step = torch.zeros(1, 3, 16, 16)
    step[..., 8:] = 1
    soft = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(step, (2, 2, 0, 0), mode="replicate"), (1, 5), 1)
    assert measure.edges(step).item() == pytest.approx(1 / 15)
    assert measure.edges(soft).item() == pytest.approx(measure.edges(step).item(), rel=1e-4)
    assert measure.fine(step).item() == pytest.approx(2 / 14)
    assert measure.fine(soft).item() == pytest.approx(measure.fine(step).item() / 5, rel=1e-4)


def some_pictures(*splits):
    """Stands for `train.pictures`, which draws from sets that have to be fetched."""
    chosen = [p for p in pictures() if (p.split == "train") == (splits == ("train",))][:20]
    rows = [{"name": p.concept, "concept": p.concept, "style": p.style, "caption": p.caption} for p in chosen]
    return (measure.tensor([p.image for p in chosen]) * 255).byte(), rows


def recipe_config(name: str) -> dict:
    import yaml

    return yaml.safe_load((path("sd").parent / "recipe" / "configs" / f"{name}.yaml").read_text())
