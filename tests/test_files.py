# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Files are whole or not there, and an output folder that cannot be written to is known before the work."""

import ast
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from errno import ENOSPC
from pathlib import Path

import pytest
import torch

from alignext import cli
from alignext.files import check_output, replacing
from alignext.training.runs import last_checkpoint


ROOT = Path(__file__).parents[1]


# ------------------------------------------------------------------------------------------------- whole or not there


def test_a_file_takes_the_place_of_the_old_one_at_the_end(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with replacing(file) as part:
        part.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_takes_the_place_of_the_old_one_at_the_end(tmp_path):
    folder = tmp_path / "unet"
    folder.mkdir()
    (folder / "shard-2").write_text("old")
    with replacing(folder) as part:
        part.mkdir()
        (part / "shard-1").write_text("new")
        assert os.listdir(folder) == ["shard-2"]
    assert os.listdir(folder) == ["shard-1"]
    assert os.listdir(tmp_path) == ["unet"]


def test_a_folder_that_cannot_be_exchanged_stays(tmp_path, monkeypatch):
    old, exchange = tmp_path / "unet", os.replace
    old.mkdir()
    (old / "weights").write_text("old")

    def fails_for_the_new_one(source, target):
        if str(source).endswith(".part"):
            raise OSError("no")
        exchange(source, target)

    monkeypatch.setattr(os, "replace", fails_for_the_new_one)
    with pytest.raises(OSError, match="no"), replacing(old) as part:
        part.mkdir()
        (part / "weights").write_text("new")
    assert (old / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_text("old")
    with pytest.raises(IsADirectoryError), replacing(folder) as part:
        part.write_text("new")
    assert (folder / "a.png").read_text() == "old"
    assert os.listdir(tmp_path) == ["pictures"]


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_failure_leaves_the_old_one(tmp_path, as_folder):
    old = tmp_path / "a"
    (old if as_folder else tmp_path).mkdir(exist_ok=True)
    kept = old / "x" if as_folder else old
    kept.write_text("old")
    with pytest.raises(OSError, match="full"), replacing(old) as part:
        if as_folder:
            part.mkdir()
            part = part / "x"
        part.write_text("ne")
        raise OSError("full")
    assert kept.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_killed_process_leaves_the_old_one(tmp_path):
    """The kernel ends it in the middle of a write, with nothing cleaned up."""
    file = tmp_path / "a.bin"
    file.write_bytes(b"old")
    program = (
        "import resource, signal, sys\n"
        "from alignext.files import replacing\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "with replacing(sys.argv[1]) as part:\n"
        "    part.write_bytes(bytes(100_000))\n"
    )
    answer = subprocess.run([sys.executable, "-c", program, str(file)], preexec_fn=no_core_dump)
    assert answer.returncode == -signal.SIGXFSZ
    assert file.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 2  # the half that was written, under another name


def no_core_dump() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


WRITERS = {
    "save_file",
    "safetensors.torch.save_model",
    "write_text",
    "write_bytes",
    "savefig",
    "json.dump",
    "torch.save",
}


def writes_in_place(tree: ast.Module) -> list[str]:
    """Calls that write a file, and not under a `with replacing(...)`."""
    found: list[str] = []

    def visit(node: ast.AST, safe: bool) -> None:
        if isinstance(node, ast.With):
            safe = safe or any("replacing(" in ast.unparse(item.context_expr) for item in node.items)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if {name, name.rpartition(".")[2]} & WRITERS and not safe:
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        for child in ast.iter_child_nodes(node):
            visit(child, safe)

    visit(tree, False)
    return found


def test_every_file_of_ours_is_written_whole():
    """But for the recipes of the embedded models, the file by which `check_output` tries a folder out, and charts that
    are drawn into memory."""
    found = {}
    for folder in ("alignext", "pipelines", "trainers"):
        for file in (ROOT / folder).rglob("*.py"):
            if file.name != "files.py" and "recipe" not in file.parts:
                found[str(file.relative_to(ROOT))] = writes_in_place(ast.parse(file.read_text()))
    assert {name for name, calls in found.items() if calls} == {"alignext/demos/charts.py"}, found
    assert "figure.savefig(file, " in (ROOT / "alignext/demos/charts.py").read_text()  # a `StringIO`


# ------------------------------------------------------------------------------------------------ before the work


def full(path: Path, data: bytes) -> int:
    path.touch()
    raise OSError(ENOSPC, os.strerror(ENOSPC), str(path))


def test_a_folder_under_a_file_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"`--out` is '.*file/out', which cannot be written to \(Not a directory\)"):
        check_output(tmp_path / "file" / "out", name="--out")


def test_a_name_that_is_too_long_is_told_with_the_argument(tmp_path):
    """Where not even the file that was tried can be looked for."""
    with pytest.raises(OSError, match=r"`--out` is '.*', which cannot be written to \(File name too long\)"):
        check_output(tmp_path / ("x" * 300), name="--out")


def test_a_full_disk_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"cannot be written to \(No space left on device\)") as caught:
        check_output(tmp_path)
    assert caught.value.errno == ENOSPC
    assert os.listdir(tmp_path) == []


def test_too_little_room_is_known_beforehand(tmp_path, monkeypatch):
    weights = [torch.zeros(1000, 1000), torch.zeros(10, dtype=torch.bfloat16)]
    check_output(tmp_path, weights=weights)
    Usage = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(3_000_000))
    with pytest.raises(OSError, match="3 MB are free, and the weights alone take 4 MB"):
        check_output(tmp_path, weights=weights)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        ["rival", "PICTURE", "--prompt", "a fox", "--out", "BAD"],
        ["alignedgen", "a fox", "a cat", "--out", "BAD"],
        ["alignedgen", "a fox", "a cat", "--out", "GOOD", "--save-style", "BAD/style.safetensors"],
        ["search", "a fox", "--reward", "brightness", "--out", "BAD"],
        ["demo", "--out", "BAD"],
        ["generate", "--model", "none", "--merge-to", "BAD/merged"],
    ],
    ids=lambda words: " ".join(words),
)
def test_commands_say_so_before_they_load_a_model(tmp_path, capsys, monkeypatch, words):
    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    for name in ("diffusers.DiffusionPipeline.from_pretrained", "transformers.AutoConfig.from_pretrained"):
        monkeypatch.setattr(name, load)
    (tmp_path / "file").touch()
    places = {
        "BAD": tmp_path / "file",
        "GOOD": tmp_path / "out",
        "PICTURE": ROOT / "alignext/mini/pictures/ant-fx.png",
    }
    words = [word.replace("BAD", str(places["BAD"] / "out")) for word in words]
    assert cli.main([str(places.get(word, word)) for word in words]) == 2
    error = capsys.readouterr().err
    assert "cannot be written to (Not a directory)" in error and len(error.splitlines()) == 1


_PAIR = {"prompt": "an ant", "chosen": "ant.png", "rejected": "ant.png"}
ROWS = {
    "bco": {"prompt": "One day", "completion": " Tom ran.", "label": True},
    "mah-dpo": {"prompt": "One day", "chosen": " Tom ran.", "rejected": " Tom.", "objective": "long"},
    "process-reward": {"prompt": "One day", "steps": ["Tom ran."], "labels": [1.0]},
    "f-dpg": {"prompt": "One day"},
    "diffusion-kto": {"prompt": "an ant", "image": "ant.png", "label": True},
    **dict.fromkeys(("diffusion-dpo", "inversion-dpo", "smpo"), _PAIR),
}


# TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "bco")) for n in ROWS])
def test_commands_that_train_say_so_before_they_train(tmp_path, capsys, name):
    shutil.copy(ROOT / "alignext/mini/pictures/ant-fx.png", tmp_path / "ant.png")
    (tmp_path / "rewards.py").write_text("def one(completions, **kwargs):\n    return [1.0] * len(completions)\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[name]) + "\n")
    words = ["--dataset_name", str(tmp_path / "rows.jsonl"), "--output_dir", str(tmp_path / "rows.jsonl" / "out")]
    words += ["--use_cpu", "--bf16", "false", "--report_to", "none"]
    if name == "f-dpg":
        words += ["--reward_funcs", f"{tmp_path}/rewards.py:one"]
    assert cli.main([name, *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"alignext {name}: error: " in error and "cannot be written to (Not a directory)" in error


# --------------------------------------------------------------------------------------------------- going on


def test_half_a_checkpoint_is_passed_over(tmp_path):
    for step, state in ((2, "{}"), (10, "{}"), (12, '{"epoch": '), (14, "")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-16").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-best" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_no_checkpoint_is_an_error(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        last_checkpoint(tmp_path / folder)
