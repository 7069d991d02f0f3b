# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The parts of the training script that a mistake would hide in."""

import json
import math

import pytest
import torch

from alignext.mini import path, pictures
from alignext.mini.recipe import drawings, dual_encoder, fitting, flux, latents, render, scores, sd, video, words


class Interrupt(Exception):
    pass


def test_an_interrupted_run_ends_where_the_uninterrupted_one_does(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fitting, "MINUTES", 0)  # a checkpoint at every step
    config = {"seed": 3, "steps": 8, "lr": 0.1, "warmup": 2, "ema": 0.9}

    def run(folder, stop_at=None):
        torch.manual_seed(0)
        model, result = torch.nn.Linear(3, 1), []

        def loss_fn(step, rng):
            if step == stop_at:
                raise Interrupt
            return (model(torch.randn(4, 3, generator=rng)) - torch.randn(4, 1)).pow(2).mean()

        fitting.fit(model, loss_fn, config, folder, result.append)
        return torch.cat([p.flatten() for p in [*model.parameters(), *result[-1].parameters()]])

    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupt):
        run(tmp_path / "cut", stop_at=5)
    assert torch.equal(run(tmp_path / "cut"), whole)


def test_a_loss_that_is_not_finite_ends_the_run_before_a_weight_moves(tmp_path):
    torch.manual_seed(0)
    model, exported = torch.nn.Linear(3, 1), []
    before = model.weight.clone()
    config = {"seed": 3, "steps": 2, "lr": 0.1, "warmup": 1, "ema": 0.9}
    with pytest.raises(FloatingPointError, match="step 1 is nan; nothing was written"):
        fitting.fit(
            model, lambda step, rng: model(torch.full((1, 3), math.nan)).sum(), config, tmp_path, exported.append
        )
    assert torch.equal(model.weight, before) and not exported and not list(tmp_path.iterdir())


def test_augment_at_rest_only_flips_and_white_moves_in():
    images = scores.tensor([p.image for p in pictures("unseen_concept")[:8]])
    rng = torch.Generator().manual_seed(0)
    still = drawings.augment(images, rng, shift=0, scale=0, angle=0)
    for image, result in zip(images, still, strict=True):
        assert min((result - image).abs().max(), (result - image.flip(2)).abs().max()) < 1e-4
    moved = drawings.augment(torch.zeros(64, 3, 16, 16), rng, shift=0.5, scale=0)
    assert moved.max() == 1 and moved.min() == 0


def test_every_word_of_the_captions_is_one_token():
    captions = [render.caption(render.word(name), style) for (name, style), s in render.grid().items() if s == "train"]
    tokenizer = words.make_tokenizer(captions, 24)
    shipped = type(tokenizer).from_pretrained(path("sd"), subfolder="tokenizer")
    for caption in captions:
        wanted = [f"{word}</w>" for word in caption.replace(",", " ,").split()]
        for each in (tokenizer, shipped):
            assert each.convert_ids_to_tokens(each(caption).input_ids)[1:-1] == wanted


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
    tokenizer = words.make_t5_tokenizer(["a red fox, flat style"])
    assert tokenizer.tokenize("A red fox, flat style") == ["▁A", "▁red", "▁fox", ",", "▁flat", "▁style"]
    assert tokenizer.unk_token_id not in tokenizer("quartz: 7 (seven)!").input_ids
    embedding = torch.nn.Embedding(len(tokenizer), 4)
    before = embedding.weight.detach().clone()
    words.read_capitals(embedding, tokenizer)
    small, large = (embedding(tokenizer(text, return_tensors="pt").input_ids) for text in ("a fox", "A Fox"))
    assert torch.equal(small, large)
    kept = [i for piece, i in tokenizer.get_vocab().items() if piece == piece.lower()]
    assert torch.equal(embedding.weight[kept], before[kept])
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again("a red fox, flat style").input_ids == tokenizer("a red fox, flat style").input_ids


def test_a_tokenizer_whose_file_has_no_spaces_is_the_same(tmp_path):
    tokenizer = words.make_tokenizer(["a red fox, flat style"], 24)
    tokenizer.save_pretrained(tmp_path)
    before = (tmp_path / "tokenizer.json").stat().st_size
    fitting.compact(tmp_path)
    assert (tmp_path / "tokenizer.json").stat().st_size < 0.6 * before
    again = type(tokenizer).from_pretrained(tmp_path)
    for text in ("a red fox, flat style", "naïve ☕"):
        assert again(text).input_ids == tokenizer(text).input_ids


def test_a_canvas_shows_one_drawing_or_two_of_one_style():
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4) * 10
    rows = [{"concept": f"thing {i}", "style": "flat" if i < 3 else "ink"} for i in range(6)]
    canvases, named = latents.make_canvases(images, rows, 64, 0.5, seed=0)
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
    drawn = torch.arange(n).float().view(1, n, 1, 1, 1, 1) * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    rows = [{"concept": f"thing {i}", "caption": f"a thing {i}, flat style"} for i in range(n)]
    captions = words.captions_of(rows)
    draw = latents.sampler(drawn.half(), drawn.half(), without_caption=0.25, without_style=0.5)
    z, ids = draw(400, torch.Generator().manual_seed(0))
    assert z.shape == (400, 1, 1, 1) and ids.shape == (400,)
    texts = [captions[i] for i in ids]
    assert sum(not text for text in texts) == 100
    for value, text in zip(z.flatten().int().tolist(), texts, strict=True):
        assert not text or text.startswith(f"a thing {value}")
    assert 100 < sum("style" in text for text in texts) < 200


def test_pairs_are_of_one_style_and_the_caption_is_that_of_the_left_one():
    styles = list("aabbb")
    drawn = torch.arange(5.0).view(1, 5, 1, 1, 1, 1) * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    draw = latents.pair_sampler(drawn.half(), styles, without_caption=0.2, without_style=0.5)
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


def test_a_run_may_end_before_its_horizon(tmp_path, monkeypatch):
    rates = []
    config = {"seed": 0, "steps": 10, "horizon": 40, "decay": 4, "lr": 1.0, "warmup": 1, "ema": 0.9}
    model = torch.nn.Linear(1, 1)

    class Recorder(torch.optim.SGD):
        def step(self, *args, **kwargs):
            rates.append(self.param_groups[0]["lr"])

    monkeypatch.setattr(
        fitting, "make_optimizers", lambda model, config: {"optimizer": Recorder(model.parameters(), lr=config["lr"])}
    )
    fitting.fit(model, lambda step, rng: model(torch.ones(1, 1)).sum(), config, tmp_path, lambda average: None)
    whole = [0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / 40)) for step in range(10)]
    assert rates[:7] == pytest.approx(whole[:7])
    assert rates[7:] == pytest.approx([whole[7] * 3 / 4, whole[8] / 2, whole[9] / 4])


def test_the_dual_encoder_never_sees_one_style_of_each_concept():
    unseen, splits = dual_encoder.unseen_by_clip(), render.grid()
    assert sorted(name for name, _ in unseen) == sorted(render.TRAINED)
    assert {cell for cell, split in splits.items() if split == "unseen_drawing"} <= unseen
    shares = [sum(style == each for _, style in unseen) for each in render.STYLES]
    assert min(shares) > 20


def test_disturbed_pictures_stay_pictures_and_some_stay_what_they_are():
    images = scores.tensor([p.image for p in pictures("unseen_concept")[:64]])
    disturbed = drawings.disturb(images, torch.Generator().manual_seed(0))
    assert disturbed.shape == images.shape and disturbed.min() >= 0 and disturbed.max() <= 1
    far = (disturbed - images).abs().mean(dim=(1, 2, 3))
    assert far.min() < 0.01 and 0.03 < far.mean() < 0.08


def test_cached_latents_are_those_of_the_very_weights():
    layer = torch.nn.Linear(3, 2)
    before = fitting.fingerprint(layer)
    assert before == fitting.fingerprint(layer) != fitting.fingerprint(layer, layer)
    with torch.no_grad():
        layer.weight[0, 0] += 1e-3
    assert fitting.fingerprint(layer) != before
    assert fitting.fingerprint(layer.bfloat16())  # dtypes that numpy does not have, too


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of Flux's norms under autocast
@pytest.mark.parametrize(
    "module, kind, denoiser",
    [
        (sd, "StableDiffusionPipeline", "unet"),
        (video, "LattePipeline", "transformer"),
        (flux, "FluxPipeline", "transformer"),
    ],
    ids=["sd", "video", "flux"],
)
def test_a_denoiser_goes_on_from_what_is_shipped(tmp_path, monkeypatch, module, kind, denoiser):
    """Its weights and those of its text encoder move a little; autoencoder and tokenizer stay."""
    import diffusers
    import yaml

    monkeypatch.setattr(render, "CACHE", tmp_path)
    images = (scores.tensor([p.image for p in pictures("unseen_concept")[:4]]) * 255).byte()
    cells = [(name, style) for name in render.MOVED[:2] for style in render.MOVED_STYLES]
    rows = [
        {"name": n, "concept": render.word(n), "style": s, "caption": render.caption(render.word(n), s)}
        for n, s in cells
    ]
    monkeypatch.setattr(module, "pictures", lambda *splits: (images, rows))
    name = module.__name__.rpartition(".")[2]
    config = yaml.safe_load((path("sd").parent / "recipe" / "configs" / f"{name}-longer.yaml").read_text())
    config |= {"steps": 2, "batch": 8 if name == "sd" else 2, "versions": 1, "export_at": [], "warmup": 1}
    if name == "flux":
        config |= {"canvases": 4, "tokens": 256}
    torch.manual_seed(0)
    getattr(module, f"train_{name}")(config, tmp_path / "run")
    made, shipped = (getattr(diffusers, kind).from_pretrained(f) for f in (tmp_path / "run" / name, path(name)))
    assert made.tokenizer.get_vocab() == shipped.tokenizer.get_vocab()
    for part in ("vae", denoiser, "text_encoder", *(["text_encoder_2"] if name == "flux" else [])):
        a, b = (getattr(p, part).state_dict() for p in (made, shipped))
        far = max(float((a[k].float() - b[k].float()).abs().max()) for k in a)
        assert far < 0.1 and (far > 0) == (part != "vae"), part
