# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The Hub takes the card of everything that we save: its metadata keeps the Hub's rules.

The cards of trainers are made in their contract suites and held against the same rules there; the Hub of the tests
enforces them at every push as well.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from transformers import AutoModelForCausalLM, LlamaConfig

import alignext
from alignext import AutoModelForCausalLMWithObjectiveHeads, RIVALInversion, StyleReference, mini
from alignext.hub import model_card, pipeline_card

from .fake_hub import FakeHub, fake_hub, metadata_errors
from .pipelines.contract import ROWS


def style() -> StyleReference:
    return StyleReference(torch.ones(1, 2, 4), None, (1, 2), x0=torch.arange(6.0).view(1, 2, 3), scaling=(0.1, 0.4))


def inversion() -> RIVALInversion:
    embeds = torch.ones(1, 2, 4)
    latents = torch.ones(3, 1, 4, 2, 2)
    return RIVALInversion(latents, torch.tensor([1, 2]), embeds, embeds, None, None, {}, torch.ones(3))


def of_pipeline(row) -> ModelCard:
    pipe = row.build()
    pipe.register_to_config(_name_or_path="someone/base")
    return pipeline_card(pipe, "someone/model")


CARDS: dict[str, Callable[[], ModelCard]] = {
    **{row.name: lambda row=row: of_pipeline(row) for row in ROWS},
    "style": lambda: style()._card("someone/style", "other.safetensors"),
    "inversion": lambda: inversion()._card("someone/picture", "inversion.safetensors"),
    **{f"mini-{name}": lambda name=name: ModelCard.load(mini.path(name) / "README.md") for name in mini.NAMES},
}


@pytest.mark.parametrize("artifact", CARDS)
def test_hub_takes_the_metadata(artifact: str) -> None:
    card = ModelCard(str(CARDS[artifact]()))  # as it is read back
    assert metadata_errors(card.data.to_dict()) == []
    assert "alignext" in (card.data.tags or []) or artifact == "mini-pictures"
    assert artifact.startswith("mini-") or f"alignext {alignext.__version__}" in card.text
    if not artifact.startswith(("mini-", "style", "inversion")):
        data = card.data
        assert (data.library_name, data.pipeline_tag, data.base_model) == (
            "diffusers",
            "text-to-image",
            "someone/base",
        )


def test_pipelines_of_clips_say_so() -> None:
    pipe = ROWS[0].build()
    pipe.video_processor = None  # what the video pipelines of diffusers have
    assert pipeline_card(pipe, "someone/model").data.pipeline_tag == "text-to-video"


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"base_model": "/home/me/model"}, "base_model"),
        ({"datasets": ["data/my file.json"]}, "datasets"),
        ({"license": "my own"}, "license"),
        ({"license": "other"}, "license_name"),
        ({"tags": ["a", 1]}, "tags"),
        ({"pipeline_tag": "to-dream"}, "pipeline_tag"),
        ({"language": "English"}, "language"),
        ({"library_name": ["diffusers"]}, "library_name"),
        ({"language": None}, "language"),
        ("text", "mapping"),
    ],
)
def test_rules_can_fail(metadata: object, named: str) -> None:
    (error,) = metadata_errors(metadata)
    assert named in error


def test_folder_in_the_card_of_the_base_is_not_taken_over(tmp_path: Path) -> None:
    """PEFT names the folder that an adapter was trained on, and the Hub refuses such a card."""
    model_card("Base", "", paper={"title": "", "id": "", "citation": ""}, tags=[], library_name="peft").save(
        tmp_path / "README.md"
    )
    text = (tmp_path / "README.md").read_text().replace("library_name: peft", "base_model: /home/me/lm\nlicense: mit")
    (tmp_path / "README.md").write_text(text)
    pipe = ROWS[0].build()
    pipe.register_to_config(_name_or_path=str(tmp_path))
    data = pipeline_card(pipe, "someone/model").data
    assert data.base_model is None and data.license == "mit"


@contextmanager
def hub_of_this_process(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeHub]:
    """The test's Hub, as the one that the client pushes to and loads from, though it read its address at import."""
    with fake_hub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the test's Hub does not speak that protocol
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
        monkeypatch.setattr("transformers.utils.hub._hf_api", HfApi(endpoint=hub.url))
        yield hub


# The Hub's own client, when it does not speak that protocol, passes bytes the way its HTTP library has deprecated.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize("make", [style, inversion], ids=["style", "inversion"])
def test_files_get_one_card(make: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The snippet of the card loads what was pushed; a card that is there stays."""
    with hub_of_this_process(monkeypatch, tmp_path) as hub:
        thing = make()
        thing.push_to_hub("someone/thing", token="secret")
        card = ModelCard(hub.repos["someone/thing"]["README.md"].decode())
        (snippet,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
        found = {}
        exec(snippet, found)
        assert type(found["found"]) is type(thing)
        assert torch.equal(found["found"].prompt_embeds, thing.prompt_embeds)
        hub.repos["someone/thing"]["README.md"] = b"mine"
        thing.push_to_hub("someone/thing", token="secret", filename="sub/other.safetensors", commit_message="Another")
        assert hub.repos["someone/thing"]["README.md"] == b"mine"
        assert hub.commits[-1]["summary"] == "Another" and hub.commits[-1]["paths"] == ["sub/other.safetensors"]


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_heads_are_pushed_and_loaded_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    size = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(**size, num_attention_heads=1, tie_word_embeddings=False)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLMWithObjectiveHeads.from_pretrained(
        tmp_path / "base", ["kind", "short"], head_init_std=1
    )
    with hub_of_this_process(monkeypatch, tmp_path) as hub:
        model.push_to_hub("someone/heads", token="secret")
        card = ModelCard(hub.repos["someone/heads"]["README.md"].decode())
        assert {"alignext", "objective-heads"} <= set(card.data.tags)
        back = AutoModelForCausalLMWithObjectiveHeads.from_pretrained("someone/heads")
    assert back.objectives == ["kind", "short"] and not back.fresh_heads
    for name, weight in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name
