# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext diffusion-dpo`, `diffusion-kto`, `inversion-dpo` and `smpo`: files and folders, and what comes out."""

import json
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from alignext import cli, mini
from alignext.training.pair_folders import pairs_from_folder


pytestmark = [
    # TRL's `ScriptArguments` and transformers' own checks read `gradient_checkpointing`, which has been renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning"),
]
COMMANDS = ["diffusion-dpo", "diffusion-kto", "inversion-dpo", "smpo"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pairs: pictures beside `pairs.jsonl`, whose paths are relative to it."""
    (tmp_path / "pictures").mkdir()
    rows = []
    for i, picture in enumerate(mini.pictures("unseen_style")[:8]):
        picture.image.save(tmp_path / "pictures" / f"{i}.png")
        if i % 2:
            names = {name: f"pictures/{i - j}.png" for j, name in enumerate(("chosen", "rejected"))}
            rows.append({"prompt": picture.caption, **names, "preference_prob": 0.8})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def words(command: str, folder: Path, *more: str) -> list[str]:
    settings = (
        "--use_cpu --max_steps 1 --per_device_train_batch_size 2 --report_to none --disable_tqdm true "
        "--save_strategy no --activation_checkpointing false --learning_rate 1e-3"
    ).split()
    if command in ("inversion-dpo", "smpo"):
        settings += ["--num_inversion_steps", "2"]
    data = ["--dataset_name", str(folder / "pairs.jsonl"), "--output_dir", str(folder / "out")]
    return [command, *data, *settings, *more]


@pytest.mark.parametrize(
    "command", [COMMANDS[0], *(pytest.param(command, marks=pytest.mark.slow) for command in COMMANDS[1:])]
)
def test_trains_a_lora_and_says_how_to_load_it(
    command: str, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")  # paths are relative to the file, not to where one stands
    assert cli.main(words(command, folder, "--use_peft", "--lora_r", "4")) == 0, capsys.readouterr().err
    out = str(folder / "out")
    assert f'pipe.load_lora_weights("{out}")' in capsys.readouterr().out
    pipe = StableDiffusionPipeline.from_pretrained(mini.path("sd"))
    pipe.load_lora_weights(out)
    config = pipe.unet.peft_config["default_0"]
    assert (config.r, config.lora_alpha) == (4, 4)


@pytest.mark.slow
def test_full_training_from_a_yaml_file_with_sheets(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "run.yaml").write_text("beta: 500.0\nsample_prompts: [a red fox, a crown]\nsample_guidance: 1.0\n")
    assert cli.main(words("diffusion-dpo", folder, "--config", str(folder / "run.yaml"))) == 0
    out = folder / "out"
    line = f'UNet2DConditionModel.from_pretrained("{out}", subfolder="unet")'
    assert line in capsys.readouterr().out
    assert UNet2DConditionModel.from_pretrained(out, subfolder="unet").config.in_channels == 16
    assert [path.name for path in sorted((out / "samples").iterdir())] == ["step-000000.png", "step-000001.png"]


def test_a_folder_of_pictures(folder: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    lines = [
        json.dumps(
            {
                "prompt": row["prompt"],
                **{f"{name}_file_name": Path(row[name]).name for name in ("chosen", "rejected")},
            }
        )
        for row in rows
    ]
    (folder / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    more = ["--dataset_name", str(folder / "pictures"), "--use_peft"]
    assert cli.main(words("diffusion-dpo", folder, *more)) == 0, capsys.readouterr().err


def test_folders_of_winners_losers_and_sources(folder: Path) -> None:
    for i, side in enumerate(("winner", "loser", "source")):
        (folder / side).mkdir()
        (folder / "pictures" / f"{i}.png").rename(folder / side / f"fox{'_1' * (side == 'source')}.png")
    with pytest.raises(ValueError, match=r"`winner/fox.png` needs `winner/fox.txt` beside it"):
        pairs_from_folder(folder)
    (folder / "winner" / "fox.txt").write_text("a red fox\n")
    (row,) = pairs_from_folder(folder).to_list()
    files = {name: Path(row[name]).relative_to(folder).as_posix() for name in ("image_chosen", "image_rejected")}
    assert files == {"image_chosen": "winner/fox.png", "image_rejected": "loser/fox.png"}
    assert row["prompt"] == "a red fox" and row["source"] == [str(folder / "source" / "fox_1.png")]
    (folder / "loser" / "fox.png").unlink()
    with pytest.raises(ValueError, match=r"needs `loser/fox.png` beside it"):
        pairs_from_folder(folder)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_fields(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    answer = capsys.readouterr().out
    for name in (f"alignext {command}", "--beta", "--dataset_name", "--use_peft", "--sample_prompts", "--config"):
        assert name in answer
    assert ("--num_inversion_steps" in answer) == (command in ("inversion-dpo", "smpo"))


def test_arguments_are_left_alone_until_it_runs() -> None:
    args = cli.make_parser().parse_args(["smpo", "--debug", "--beta", "200", "--config", "x.yaml"])
    assert args.words == ["--beta", "200", "--config", "x.yaml"]
    assert args.debug and args.command == "smpo"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--dataset_name", "nowhere.jsonl"], "nowhere.jsonl is no file"),
        (["--dataset_train_split", "half"], "no split 'half', only train"),
        (["--beta", "0"], "--beta is 0.0"),
        (
            ["--model_name_or_path", "no/such/model"],
            "--model_name_or_path no/such/model: there is no such folder, and a Hub id",
        ),
    ],
    ids=["file", "split", "beta", "model"],
)
def test_wrong_input_is_named(folder: Path, capsys: pytest.CaptureFixture, more: list[str], named: str) -> None:
    assert cli.main(words("diffusion-dpo", folder, *more)) == 2
    assert named in capsys.readouterr().err


def test_a_missing_picture_is_named(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "pictures" / "1.png").unlink()
    assert cli.main(words("diffusion-dpo", folder, "--precompute_latents", "--use_peft")) == 2
    assert "`chosen` of row 0: The picture" in capsys.readouterr().err
