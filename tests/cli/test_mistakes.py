# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Mistakes of a newcomer: each ends with code 2 and a line that says what to do, in the words of the command."""

import json
import re
import shutil
from pathlib import Path

import pytest

from alignext import cli, mini


pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning"),
]

LM, SD, FLUX = (str(mini.path(name)) for name in ("lm", "sd", "flux"))
RIVAL = "rival drawing.png --prompt fox --out out --steps 1 -n 1"
BCO = "bco --output_dir model --report_to none --dataset_name"
# what is typed, and what the last line says
MISTAKES = {
    # a command, and the words that it takes
    "misspelt command": ("rivel drawing.png", "Did you mean rival?"),
    "no command": ("", "the following arguments are required: COMMAND"),
    "misspelt option": (f"{RIVAL} --stepps 20", "there is no option --stepps. Did you mean --steps?"),
    "abbreviated option": (f"{RIVAL} --guidance 3", "Did you mean --guidance-scale?"),
    "no prompt": ("rival drawing.png --out out", "the following arguments are required: --prompt"),
    "no folder": ("rival drawing.png --prompt fox", "the following arguments are required: --out"),
    "a word too many": ("env rival", "'rival' belongs to no option"),
    # pictures
    "no such picture": ("rival cat.png --prompt cat --out out", "picture cat.png is no file: pass the path of a"),
    "a text for a picture": ("rival notes.txt --prompt cat --out out", "picture notes.txt is no picture"),
    "half a picture": ("rival half.png --prompt cat --out out", "picture half.png is broken: "),
    "a side for a size": (f"{RIVAL} --size 512", "'512' is not WIDTHxHEIGHT, such as 768x512"),
    "inpainting without a mask": (
        f"{RIVAL} --task inpainting",
        "received --task 'inpainting' without a mask. Pass both",
    ),
    "one prompt for a set": ("alignedgen fox --out out", "One prompt makes no set: pass a second one, or a style"),
    "layers by a wrong name": ("alignedgen fox owl --share-blocks some --out out", "--share-blocks must be 'single'"),
    "out is a file": (f"{RIVAL} --out drawing.png", "--out drawing.png is a file. Name a folder"),
    "out is a thesis": (f"{RIVAL} --out thesis", "--out thesis holds files that alignext did not write"),
    "a picture of elsewhere": ("rival --from drawing.png --out out", "does not say how it was made: pass settings"),
    # models
    "a model without owner": (f"{RIVAL} --model sd15", "there is no such folder, and a Hub id is written OWNER/NAME"),
    "offline": (f"{RIVAL} --model some/sd15", "and HF_HUB_OFFLINE is set, so that the Hub is not asked"),
    "a model of another kind": (f"{RIVAL} --model {FLUX}", "is a FluxPipeline; this command takes StableDiffusion"),
    "a language model": (f"{RIVAL} --model {LM}", "is a folder without model_index.json"),
    "a file that is no model": (f"{RIVAL} --model notes.safetensors", "is a file, but no checkpoint in one"),
    "no such LoRA": (f"{RIVAL} --lora style.safetensors:0.8", "--lora style.safetensors: there is no such folder"),
    "no such device": (f"{RIVAL} --device gpu", "--device gpu cannot be used here, --device cpu can"),
    "no such scheduler": ("search fox --reward brightness --out out --scheduler eular", "Did you mean euler?"),
    # rewards
    "no reward": ("search fox --out out", "the following arguments are required: --reward"),
    "misspelt reward": ("search fox --out out --reward asthetic", "Did you mean aesthetic?"),
    "a reward file without function": ("search fox --out out --reward mine.py", "Write mine.py:FUNCTION"),
    "misspelt function": ("search fox --out out --reward mine.py:drak", "has no function 'drak'. Did you mean dark?"),
    "a training without reward": ("f-dpg --prompt Once", "There is no reward. Pass --reward_funcs, such as"),
    # data
    "no dataset": ("bco --output_dir model", "There is no dataset. Pass --dataset_name, a file such as thumbs.jsonl"),
    "no such dataset": (f"{BCO} thumps.jsonl", "--dataset_name thumps.jsonl is no file"),
    "a text for a dataset": (f"{BCO} notes.txt", "--dataset_name notes.txt is none of .json, .jsonl, .csv, .parquet"),
    "half a row": (f"{BCO} half.jsonl", "--dataset_name half.jsonl cannot be read as json: "),
    "other columns": (f"{BCO} pairs.jsonl", "found ['prompt', 'good', 'bad']"),
    "words for thumbs": (f"{BCO} words.jsonl", "must be True or 1 for desirable, False or 0 for undesirable"),
    "nothing to evaluate on": (f"{BCO} thumbs.jsonl --eval_strategy epoch", "hold rows out with --test_split_size"),
    "a picture of a pair is missing": (
        "diffusion-dpo --output_dir model --report_to none --dataset_name pictures.jsonl",
        "cat.png",
    ),
    # settings of a training
    "misspelt setting": (f"{BCO} thumbs.jsonl --learning_rat 1", "There is no option --learning_rat. Did you mean"),
    "misspelt key in YAML": (f"{BCO} thumbs.jsonl --config run.yaml", "There is no option learning_rat in --config"),
    "no such YAML": (f"{BCO} thumbs.jsonl --config nowhere.yaml", "--config nowhere.yaml is no file"),
    "nowhere to go on": (f"{BCO} thumbs.jsonl --resume_from_checkpoint last", "There is no complete checkpoint in"),
    "more processes than GPUs": (f"{BCO} thumbs.jsonl --num_processes 0", "--num_processes must be at least 1"),
    # writing
    "nothing to continue": (f"generate --model {LM}", "There is no prompt. Pass --prompt TEXT, or --prompts FILE"),
    "weights without heads": (f"generate --model {LM} --prompt a --objective-weights b=1", "needs objective heads"),
    "weights without numbers": (f"generate --model {LM} --prompt a --objective-weights b", "'b' is not NAME=WEIGHT"),
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a newcomer."""
    folder = tmp_path_factory.mktemp("desk")
    mini.pictures("unseen_drawing")[0].image.save(folder / "drawing.png")
    (folder / "half.png").write_bytes((folder / "drawing.png").read_bytes()[:-400])
    (folder / "thesis").mkdir()
    row = {"prompt": "One day", "completion": " Tom ran.", "label": True}
    files = {
        "notes.txt": "buy milk",
        "notes.safetensors": "buy milk",
        "thesis/thesis.tex": "precious",
        "mine.py": "def dark(images, prompts):\n    return -images.mean((1, 2, 3))\n",
        "run.yaml": "learning_rat: 1\n",
        "thumbs.jsonl": json.dumps(row),
        "half.jsonl": '{"prompt": "One day", ',
        "pairs.jsonl": json.dumps({"prompt": "One day", "good": " Tom ran.", "bad": " Tom."}),
        "words.jsonl": json.dumps(row | {"label": "good"}),
        "pictures.jsonl": json.dumps({"prompt": "a cat", "chosen": "cat.png", "rejected": "drawing.png"}),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def ends(words: list[str]) -> int:
    """The exit code of the command."""
    try:
        return cli.main(words)
    except SystemExit as stop:  # of argparse
        return stop.code if isinstance(stop.code, int) else 1


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(
    name: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(desk)
    words, said = MISTAKES[name]
    before = sorted(desk.rglob("*.png"))
    assert ends(words.split()) == 2
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert said in last and "error: " in last and "Traceback" not in error
    named = set(re.findall(r"`(\w+)`", last))
    assert named <= {"label", "chosen"}  # columns, but no argument of Python's
    assert sorted(desk.rglob("*.png")) == before  # and no picture was drawn
    shutil.rmtree("out", ignore_errors=True)
