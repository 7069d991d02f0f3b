# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What our pipelines save loads three ways, has a card whose snippets run, and is pushed whole.

Pushing runs the real Hub client, in a process of its own, against a Hub on 127.0.0.1.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.utils import dynamic_modules_utils
from huggingface_hub import ModelCard

from alignext import RIVALPipeline
from alignext.hub import HubMixin, model_card, pipeline_card, stock_class

from .fake_hub import fake_hub
from .pipelines.tiny import sd_components


class ToyPipeline(HubMixin, StableDiffusionPipeline):
    """A method that changes nothing."""

    _name = "Toy"
    _tag_names = ["alignext", "toy"]
    _paper = {"title": "Toys: a survey", "id": "2401.00001", "citation": "@misc{toy,\n    title = {Toys: a survey}\n}"}


OURS = pytest.mark.parametrize("ours", [ToyPipeline, RIVALPipeline])


@pytest.fixture(autouse=True)
def modules_of_custom_pipelines(tmp_path_factory, monkeypatch):
    """diffusers copies every local `pipeline.py` into the user's cache and runs it in one module for the process."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    sys.modules.pop("diffusers_modules.local.pipeline", None)
    yield
    sys.modules.pop("diffusers_modules.local.pipeline", None)


@pytest.fixture
def toy():
    return quiet(ToyPipeline(**sd_components()))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe):
    """Stock text-to-image, whatever the class."""
    stock = StableDiffusionPipeline if isinstance(pipe, StableDiffusionPipeline) else type(pipe)
    generator = torch.Generator().manual_seed(0)
    return stock.__call__(quiet(pipe), "a fox", num_inference_steps=2, generator=generator, output_type="pt").images


def load_as_stock(folder, ours):
    return DiffusionPipeline.from_pretrained(folder)


def load_by_custom_pipeline(folder, ours):
    return DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)


def load_as_ours(folder, ours):
    return ours.from_pretrained(folder)


WAYS = {"stock": load_as_stock, "custom_pipeline": load_by_custom_pipeline, "ours": load_as_ours}


def files(folder):
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def class_name(folder):
    return json.loads((Path(folder) / "model_index.json").read_text())["_class_name"]


def code_blocks(card):
    return re.findall(r"```python\n(.*?)```", str(card), re.DOTALL)


# ------------------------------------------------------------------------------------------------ saving and loading


@OURS
@pytest.mark.parametrize("way", WAYS)
def test_saved_folder_loads_and_saves_again(ours, way, tmp_path):
    pipe = ours(**sd_components())
    expected = draw(pipe)
    pipe.save_pretrained(tmp_path / "first")
    assert class_name(tmp_path / "first") == "StableDiffusionPipeline"

    loaded = WAYS[way](tmp_path / "first", ours)
    assert type(loaded) is (StableDiffusionPipeline if way == "stock" else ours)
    torch.testing.assert_close(draw(loaded), expected)

    loaded.save_pretrained(tmp_path / "second")
    assert class_name(tmp_path / "second") == "StableDiffusionPipeline"
    again = ours.from_pretrained(tmp_path / "second")
    torch.testing.assert_close(draw(again), expected)
    if way != "stock":
        assert files(tmp_path / "second") == files(tmp_path / "first")
        assert type(load_by_custom_pipeline(tmp_path / "second", ours)) is ours


def test_public_classes_are_imported_by_their_public_name(tmp_path):
    RIVALPipeline(**sd_components()).save_pretrained(tmp_path)
    assert (tmp_path / "pipeline.py").read_text() == "from alignext import RIVALPipeline as Pipeline\n"


def test_two_methods_load_by_custom_pipeline_in_one_process(tmp_path):
    """diffusers runs both files in the same module, where a second name would be a second pipeline class."""
    for ours in (ToyPipeline, RIVALPipeline):
        ours(**sd_components()).save_pretrained(tmp_path / ours.__name__)
    for ours in (ToyPipeline, RIVALPipeline, ToyPipeline):
        assert type(load_by_custom_pipeline(tmp_path / ours.__name__, ours)) is ours


def test_class_loaded_from_the_source_folder_saves_its_public_name(tmp_path):
    """`custom_pipeline=<the folder of the method>` defines the class in a module that only this machine has."""
    RIVALPipeline(**sd_components()).save_pretrained(tmp_path / "first")
    source = Path(sys.modules[RIVALPipeline.__module__].__file__).parent
    copy = DiffusionPipeline.from_pretrained(tmp_path / "first", custom_pipeline=str(source), trust_remote_code=True)
    assert type(copy).__name__ == "RIVALPipeline" and type(copy) is not RIVALPipeline
    copy.save_pretrained(tmp_path / "second")
    sys.modules.pop("diffusers_modules.local.pipeline")  # one process cannot load both kinds of folder
    assert type(load_by_custom_pipeline(tmp_path / "second", RIVALPipeline)) is RIVALPipeline


def test_class_that_cannot_be_imported_saves_without_the_one_line_file(tmp_path):
    class Local(ToyPipeline):
        pass

    class Bare(HubMixin, StableDiffusionPipeline):
        _name, _tag_names, _paper = ToyPipeline._name, ToyPipeline._tag_names, ToyPipeline._paper

    Local(**sd_components()).save_pretrained(tmp_path / "local")
    assert type(load_by_custom_pipeline(tmp_path / "local", None)) is ToyPipeline  # the nearest importable parent
    Bare(**sd_components()).save_pretrained(tmp_path / "bare")
    assert "pipeline.py" not in files(tmp_path / "bare")
    assert type(load_as_stock(tmp_path / "bare", None)) is StableDiffusionPipeline
    assert "custom_pipeline" not in (tmp_path / "bare" / "README.md").read_text()


@pytest.mark.parametrize(
    "arguments",
    [{}, {"variant": "fp16"}, {"safe_serialization": False}, {"max_shard_size": "50KB"}],
    ids=["plain", "variant", "pickle", "sharded"],
)
def test_arguments_of_the_stock_method_pass_through(arguments, tmp_path):
    components = sd_components()
    StableDiffusionPipeline(**components).save_pretrained(tmp_path / "stock", **arguments)
    ToyPipeline(**components).save_pretrained(tmp_path / "ours", **arguments)
    assert files(tmp_path / "ours") == files(tmp_path / "stock") | {"pipeline.py", "README.md"}
    variant = {"variant": arguments["variant"]} if "variant" in arguments else {}
    torch.testing.assert_close(
        draw(ToyPipeline.from_pretrained(tmp_path / "ours", **variant)),
        draw(StableDiffusionPipeline.from_pretrained(tmp_path / "stock", **variant)),
    )


def test_model_index_differs_from_the_stock_one_in_nothing(toy, tmp_path):
    StableDiffusionPipeline(**toy.components, requires_safety_checker=False).save_pretrained(tmp_path / "stock")
    toy.save_pretrained(tmp_path / "ours")
    assert (tmp_path / "ours/model_index.json").read_bytes() == (tmp_path / "stock/model_index.json").read_bytes()


def test_failing_component_leaves_no_model_index(toy, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(toy.unet, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space left"):
        toy.save_pretrained(tmp_path)
    assert "model_index.json" not in files(tmp_path)


@pytest.mark.parametrize("name", ["pipeline.py", "README.md", "model_index.json"])
def test_file_is_never_half_written(name, toy, tmp_path, monkeypatch):
    toy.save_pretrained(tmp_path)
    before = (tmp_path / name).read_bytes()
    write_text = Path.write_text

    def half(path, text, **kwargs):
        if name in path.name:
            write_text(path, text[: len(text) // 2], **kwargs)
            raise OSError("no space left")
        return write_text(path, text, **kwargs)

    if name == "README.md":
        (tmp_path / name).unlink()
    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="no space left"):
        toy.save_pretrained(tmp_path)
    if name == "README.md":
        assert not (tmp_path / name).exists()
    else:
        assert (tmp_path / name).read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_stock_class_is_the_nearest_diffusers_pipeline(toy):
    assert stock_class(toy) is StableDiffusionPipeline


# -------------------------------------------------------------------------------------------------------- the card


@OURS
def test_card_says_what_it_is(ours, tmp_path):
    ours(**sd_components()).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "diffusers"
    assert card.data.tags == ours._tag_names
    assert card.data.get("base_model") is None and card.data.license is None  # made from parts: not known
    for said in (ours._name, ours._paper["title"], ours._paper["id"], ours._paper["citation"], "alignext"):
        assert said in card.text


@OURS
def test_card_snippets_run(ours, tmp_path, monkeypatch):
    ours(**sd_components()).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    snippets = code_blocks(ModelCard.load("model/README.md"))
    assert len(snippets) == 2
    for snippet in snippets:
        names = {}
        exec(snippet, names)
        assert type(names["pipe"]) is ours


@pytest.mark.parametrize(
    "source, base_model",
    [("someone/model", "someone/model"), ("model", None), ("./model", None), ("/somewhere/model", None), (None, None)],
)
def test_base_model_is_what_looks_like_a_hub_id(source, base_model, toy):
    if source is not None:
        toy.register_to_config(_name_or_path=source)
    assert pipeline_card(toy, "a/b").data.get("base_model") == base_model


def test_relative_folder_is_not_taken_for_a_hub_id(toy, tmp_path, monkeypatch):
    (tmp_path / "someone/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    toy.register_to_config(_name_or_path="someone/model")
    assert pipeline_card(toy, "a/b").data.get("base_model") is None


def test_base_model_and_licence_come_from_the_card_of_a_local_base(toy, tmp_path):
    fields = {"base_model": "someone/model", "license": "other", "license_name": "terms", "tags": ["theirs"]}
    StableDiffusionPipeline(**toy.components, requires_safety_checker=False).save_pretrained(tmp_path / "base")
    model_card("Base", "", paper=toy._paper, library_name="diffusers", **fields).save(tmp_path / "base/README.md")
    ToyPipeline.from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "ours")
    data = ModelCard.load(tmp_path / "ours/README.md").data
    assert (data.base_model, data.license, data.license_name) == ("someone/model", "other", "terms")
    assert data.tags == ["alignext", "toy"]


@pytest.mark.parametrize("text", ["no metadata", "---\nkey: [1\n---\n", "---\n- a list\n---\n"])
def test_bad_card_of_the_base_does_not_keep_from_saving(text, toy, tmp_path):
    (tmp_path / "README.md").write_text(text)
    toy.register_to_config(_name_or_path=str(tmp_path))
    assert pipeline_card(toy, "a/b").data.get("base_model") is None


def test_card_that_is_there_stays(toy, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    toy.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


# ------------------------------------------------------------------------------------------------------------- push

CLIENT = """
import json, sys
from pathlib import Path
folder = sys.argv[1]
found = {}

from diffusers import DiffusionPipeline
DiffusionPipeline.from_pretrained(folder)
found["stock loading needs alignext"] = "alignext" in sys.modules

from alignext import RIVALPipeline
pipe = RIVALPipeline.from_pretrained(folder)
commit = pipe.push_to_hub("someone/pushed", private=True, token="hf_secret")
found["url"] = commit.commit_url
pipe.save_pretrained(Path(folder).parent / "named", push_to_hub=True, token="hf_secret", commit_message="Mine")
pipe.save_pretrained(Path(folder).parent / "other", push_to_hub=True, repo_id="team/model", token="hf_secret")
pipe.push_to_hub("someone/kept", token="hf_secret")
pipe.push_to_hub("someone/pushed", "A change", create_pr=True, variant="fp16", token="hf_secret")
pipe.push_to_hub("someone/pushed", subfolder="sub", token="hf_secret")

stock = DiffusionPipeline.from_pretrained("someone/pushed")
custom = DiffusionPipeline.from_pretrained("someone/pushed", custom_pipeline="someone/pushed", trust_remote_code=True)
ours = RIVALPipeline.from_pretrained("someone/pushed")
found["loaded"] = [type(pipe).__name__ for pipe in (stock, custom, ours)]
custom.save_pretrained(Path(folder).parent / "back")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """Everything pushed once by a client process: the Hub afterwards, what the client saw, and its folder."""
    folder = tmp_path_factory.mktemp("push")
    RIVALPipeline(**sd_components()).save_pretrained(folder / "model")
    with fake_hub() as hub:
        hub.repos["someone/kept"] = {"README.md": b"theirs"}
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(folder / "home"),
            "NO_PROXY": "127.0.0.1",
        }
        command = [sys.executable, "-c", CLIENT, str(folder / "model")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return hub, json.loads(done.stdout.splitlines()[-1]), folder


def test_pushed_repository_holds_every_file(pushed):
    hub, found, folder = pushed
    content = hub.repos["someone/pushed"]
    top = {path for path in content if not path.startswith("sub/")}
    assert top == files(folder / "model")
    assert json.loads(content["model_index.json"])["_class_name"] == "StableDiffusionPipeline"
    assert content["pipeline.py"].decode() == "from alignext import RIVALPipeline as Pipeline\n"
    weights = {path for path in top if path.endswith(".safetensors")}
    assert len(weights) == 3
    for path in weights:
        assert content[path] == (folder / "model" / path).read_bytes(), path
    assert found["url"].startswith(f"{hub.url}/someone/pushed/commit/")


def test_pushed_card_names_its_repository(pushed):
    hub, _, _ = pushed
    card = ModelCard(hub.repos["someone/pushed"]["README.md"].decode())
    assert card.data.tags == ["alignext", "rival"] and card.data.library_name == "diffusers"
    assert all('from_pretrained("someone/pushed"' in snippet for snippet in code_blocks(card))


def test_pushed_repository_loads_three_ways(pushed):
    _, found, folder = pushed
    assert found["loaded"] == ["StableDiffusionPipeline", "RIVALPipeline", "RIVALPipeline"]
    assert ModelCard.load(folder / "back/README.md").data.base_model == "someone/pushed"


def test_stock_loading_does_not_import_alignext(pushed):
    assert pushed[1]["stock loading needs alignext"] is False


def test_save_with_push_leaves_the_folder_it_pushed(pushed):
    hub, _, folder = pushed
    for repo, name in (("someone/named", "named"), ("team/model", "other")):
        content = {path: (folder / name / path).read_bytes() for path in files(folder / name)}
        assert hub.repos[repo] == content
        assert f'from_pretrained("{repo}"' in content["README.md"].decode()
    assert next(c for c in hub.commits if c["repo"] == "someone/named")["summary"] == "Mine"


def test_card_on_the_hub_stays(pushed):
    hub, _, _ = pushed
    assert hub.repos["someone/kept"]["README.md"] == b"theirs"
    assert "pipeline.py" in hub.repos["someone/kept"]


def test_push_arguments_pass_through(pushed):
    hub, _, _ = pushed
    assert hub.tokens == {"Bearer hf_secret"}
    request = next(c for c in hub.commits if c["create_pr"])
    assert request["summary"] == "A change" and "unet/diffusion_pytorch_model.fp16.safetensors" in request["paths"]
    assert "sub/model_index.json" in hub.repos["someone/pushed"]
    assert "sub/README.md" not in hub.repos["someone/pushed"]
