# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext hub build`: repositories of code that diffusers and transformers load with stock calls alone."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, FluxPipeline, ModularPipeline, StableDiffusionPipeline
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.utils import dynamic_modules_utils
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

import alignext
from alignext import AlignedGenBlocks, RIVALPipeline, cli, hub_code, mini

from .fake_hub import fake_hub, metadata_errors
from .pipelines import presets
from .pipelines.tiny import flux_components, sd_components


@pytest.fixture(autouse=True)
def modules_of_repositories(tmp_path_factory, monkeypatch):
    """diffusers copies the code of folders into the user's cache."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    names = [f"diffusers_modules.local.{name}" for name in ("pipeline", "block")]
    for name in names:
        sys.modules.pop(name, None)
    yield
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def flux(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("flux")
    FluxPipeline(**flux_components()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    StableDiffusionPipeline(**sd_components()).save_pretrained(folder)
    return folder


def build(*words: object) -> None:
    assert cli.main(["hub", "build", *map(str, words)]) == 0


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


EXPECTED = {
    "rival": ({"block.py", "modular_config.json"}, {"modular-diffusers", "custom-block", "rival"}),
    "alignedgen": ({"block.py", "modular_config.json"}, {"modular-diffusers", "custom-block", "alignedgen"}),
    "search": ({"block.py", "modular_config.json"}, {"modular-diffusers", "custom-block", "latent-search"}),
    "rival --kind pipeline": ({"pipeline.py", "requirements.txt"}, {"custom-pipeline", "rival"}),
    "search --kind pipeline --class WanSearchPipeline": ({"pipeline.py", "requirements.txt"}, {"latent-search"}),
    "qalign --reward someone/reward --set beta=0.5": (
        {"custom_generate/generate.py", "custom_generate/requirements.txt"}, {"custom_generate", "qalign"},
    ),
    "svdecode --set strength=2": (
        {"custom_generate/generate.py", "custom_generate/requirements.txt"}, {"custom_generate"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", EXPECTED)
def test_a_repository_has_code_requirements_and_a_card_that_the_hub_takes(words, tmp_path):
    held, tags = EXPECTED[words]
    base = [] if "block.py" in held else ["--model", "someone/base"]  # blocks read where its components are
    build(*words.split(), "--out", tmp_path / "repository", *base)
    assert files(tmp_path / "repository") == held | {"README.md"}
    text = (tmp_path / "repository" / "README.md").read_text()
    data = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])
    assert metadata_errors(data) == []
    assert tags | {"alignext"} <= set(data["tags"]) and data["license"] == "apache-2.0"
    assert data.get("base_model") == (base[-1] if base else None) and str(tmp_path / "repository") in text
    requirements = [path for path in held if path.endswith("requirements.txt")]
    for path in requirements:
        assert (tmp_path / "repository" / path).read_text() == "alignext\n"
    if not requirements:
        config = json.loads((tmp_path / "repository" / "modular_config.json").read_text())
        assert config["requirements"] == {"alignext": f">={alignext.__version__}"}
        assert config["auto_map"] == {"ModularPipelineBlocks": "block.Blocks"}


def test_blocks_with_a_base_model_are_a_whole_modular_pipeline(flux, tmp_path):
    build("alignedgen", "--out", tmp_path / "blocks", "--model", flux)
    pipe = ModularPipeline.from_pretrained(str(tmp_path / "blocks"), trust_remote_code=True)
    pipe.load_components()
    assert isinstance(pipe.blocks, AlignedGenBlocks) and pipe.transformer is not None
    call = presets.call("flux")
    ours = presets.pipeline(AlignedGenBlocks(presets.preset("flux")), flux_components())
    expected = ours(**call, output="images")
    found = pipe(**call | {"generator": torch.Generator().manual_seed(0)}, output="images")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_custom_pipeline_goes_with_any_base(sd, tmp_path):
    build("rival", "--kind", "pipeline", "--out", tmp_path / "ours", "--model", sd)
    pipe = DiffusionPipeline.from_pretrained(sd, custom_pipeline=str(tmp_path / "ours"), trust_remote_code=True)
    assert isinstance(pipe, RIVALPipeline)


# ------------------------------------------------------------------------------------------------------- versions


def rewritten(folder: Path, **changes: str) -> Path:
    """The repository as another alignext would have written it."""
    now = {"format": "format=1", "version": f'version="{alignext.__version__}"', "name": '"AlignedGenBlocks"'}
    file = folder / "block.py"
    for key, new in changes.items():
        assert now[key] in file.read_text()
        file.write_text(file.read_text().replace(now[key], new))
    return folder


def test_a_repository_of_an_older_alignext_loads(tmp_path):
    build("alignedgen", "--out", tmp_path / "blocks")
    folder = rewritten(tmp_path / "blocks", version='version="0.0.1"')
    loaded = ModularPipelineBlocks.from_pretrained(str(folder), trust_remote_code=True)
    assert isinstance(loaded, AlignedGenBlocks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "format=2", "version": 'version="9.1"'}, r"written by alignext 9\.1 in format 2; .* up to 1\. "),
        ({"name": '"GoneBlocks"', "version": 'version="0.0.1"'}, r"written by alignext 0\.0\.1 and asks for `GoneBl"),
    ],
)
def test_one_that_does_not_load_says_why(changes, message, tmp_path):
    build("alignedgen", "--out", tmp_path / "blocks")
    folder = rewritten(tmp_path / "blocks", **changes)
    with pytest.raises(ImportError, match=message):
        ModularPipelineBlocks.from_pretrained(str(folder), trust_remote_code=True)


def test_code_of_before_there_were_formats_still_loads(sd, tmp_path):
    """What `save_pretrained` of our pipelines writes, and has always written."""
    (tmp_path / "pipeline.py").write_text("from alignext import RIVALPipeline as Pipeline\n")
    pipe = DiffusionPipeline.from_pretrained(sd, custom_pipeline=str(tmp_path), trust_remote_code=True)
    assert isinstance(pipe, RIVALPipeline)
    assert hub_code.FORMAT == 1  # a new one needs a test here that the files above are still read


# -------------------------------------------------------------------------------------------------------- the door


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("qalign --kind blocks --reward x", r"--kind blocks is not there for qalign, which can be custom_generate"),
        ("rival --class RIVALXLPipeline", r"--class belongs to --kind pipeline, received --kind blocks"),
        ("rival --kind pipeline --class AlignedGenPipeline", r"--class AlignedGenPipeline is no pipeline of rival"),
        ("search --preset FluxPipeline", r"--preset FluxPipeline is no preset of diffusers"),
        ("alignedgen --preset WanBlocks", r"AlignedGenBlocks is not defined for blocks of the model 'wan'"),
        ("qalign", r"qalign needs --reward MODEL, received none"),
        ("qalign --reward x --set betta=1", r"--set betta=1 must be NAME=VALUE with one of .*beta, "),
        ("svdecode", r"svdecode needs --set strength=VALUE"),
        ("alignedgen --model nowhere", r"--model nowhere: there is no such folder"),
        ("rival --set beta=1", r"--set belongs to --kind custom_generate"),
    ],
)
def test_bad_input_is_said_before_anything_is_written(words, message, tmp_path, capsys):
    assert cli.main(["hub", "build", *words.split(), "--out", str(tmp_path / "new")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "new").exists()


def test_files_that_are_there_are_not_written_over(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert cli.main(["hub", "build", "rival", "--out", str(tmp_path)]) == 2
    assert "holds files" in capsys.readouterr().err and files(tmp_path) == {"mine.txt"}


# ------------------------------------------------------------------------------------------------- a fresh process

STOCK = """
import json, sys
import torch
from diffusers import DiffusionPipeline, ModularPipeline
from transformers import AutoModelForCausalLM, AutoTokenizer

base, sd, lm, blocks, pipeline, decoding = sys.argv[1:]
assert "alignext" not in sys.modules
found = ModularPipeline.from_pretrained(blocks, trust_remote_code=True)
found.load_components()
call = {"prompt": ["a fox", "an owl"], "height": 16, "width": 16, "num_inference_steps": 2, "max_sequence_length": 16}
images = found(**call, style_lambda=1.2, generator=torch.Generator().manual_seed(0), output_type="pt", output="images")
ours = DiffusionPipeline.from_pretrained(sd, custom_pipeline=pipeline, trust_remote_code=True)
ours.set_progress_bar_config(disable=True)
picture = images[0].clamp(0, 1)
varied = ours("a fox", reference_image=picture, num_inference_steps=2, height=16, width=16, output_type="pt").images
model, tokenizer = AutoModelForCausalLM.from_pretrained(lm), AutoTokenizer.from_pretrained(lm)
inputs = tokenizer(["Once"], return_tensors="pt")
inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
tokens = model.generate(
    **inputs, custom_generate=decoding, trust_remote_code=True, do_sample=True, max_new_tokens=4, tokenizer=tokenizer
)
print(json.dumps([type(ours).__name__, list(images.shape), list(varied.shape), tokens.sequences.shape[1]]))
"""


PUSH = """
from diffusers import WanBlocks
from alignext import LatentSearchBlocks

for name in ("pushed", "kept"):
    LatentSearchBlocks(WanBlocks()).push_to_hub(f"someone/{name}", commit_message="search")
"""
BLOCKS = {"block.py", "modular_config.json", "README.md"}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_the_three_kinds_load_in_a_fresh_process_with_stock_calls(place, flux, sd, tmp_path):
    lm, reward = mini.path("lm"), tmp_path / "reward"
    config = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_labels=1, pad_token_id=0
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(reward)
    AutoTokenizer.from_pretrained(lm).save_pretrained(reward)
    words = {
        "blocks": ["alignedgen", "--model", str(flux)],
        "pipeline": ["rival", "--kind", "pipeline", "--model", str(sd)],
        "decoding": ["qalign", "--reward", str(reward), "--set", "num_steps=2", "--model", str(lm)],
    }
    with fake_hub() as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
            "NO_PROXY": "127.0.0.1",
        }
        repositories = []
        for name, arguments in words.items():
            push = ["--push", f"someone/{name}"] if place == "hub" else []
            command = [
                sys.executable,
                "-m",
                "alignext",
                "hub",
                "build",
                *arguments,
                "--out",
                str(tmp_path / name),
                *push,
            ]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            repositories.append(f"someone/{name}" if push else str(tmp_path / name))
        if place == "hub":
            hub.repos["someone/kept"] = {"README.md": b"theirs"}
            done = subprocess.run([sys.executable, "-c", PUSH], env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert set(hub.repos["someone/pushed"]) - {".gitattributes"} == BLOCKS
            assert b'from_pretrained("someone/pushed", trust' in hub.repos["someone/pushed"]["README.md"]
            assert hub.repos["someone/kept"]["README.md"] == b"theirs" and "block.py" in hub.repos["someone/kept"]
        command = [sys.executable, "-c", STOCK, str(flux), str(sd), str(lm), *repositories]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])[:3] == ["RIVALPipeline", [2, 3, 16, 16], [1, 3, 16, 16]]
