# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Saving and pushing so that stock libraries load it back, and the model card that goes with it."""

import os
import sys
from json import dumps, loads
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import (
    CommitInfo,
    ModelCard,
    create_repo,
    file_exists,
    upload_folder,
)
from huggingface_hub.utils import HFValidationError, validate_repo_id
from yaml import YAMLError

import alignext
from alignext.files import replacing
from alignext.hub_files import FileHubMixin
from alignext.logs import pipeline_logger
from alignext.model_cards import model_card


__all__ = ["FileHubMixin", "HubMixin", "model_card", "pipeline_card", "stock_class"]

logger = pipeline_logger(__name__)


# A mixin for pipelines: type checkers see what it is put before, `pipeline.py` files keep one pipeline class.
_Pipeline = DiffusionPipeline if TYPE_CHECKING else object


class HubMixin(_Pipeline):
    """
    Put before a stock pipeline class, makes `save_pretrained` write a folder that loads in three ways: as the stock
    class with `DiffusionPipeline.from_pretrained(folder)`, as ours with `custom_pipeline=folder,
    trust_remote_code=True`, and as ours with `from_pretrained` of our class. All else is inherited.

    Beside the stock files the folder gets a one-line `pipeline.py`, rewritten at every save, and a model card
    `README.md`. A card that is already there stays as it is, in the folder as on the Hub; `pipeline_card(pipe,
    repo_id).push_to_hub(repo_id)` replaces one.

    Class attributes to define, as TRL's trainers do: `_name` (`str`), the method; `_tag_names` (`list[str]`), the
    card's tags; `_paper` (`dict[str, str]`), the `title`, arXiv `id` and BibTeX `citation`.
    """

    _name: str
    _tag_names: list[str]
    _paper: dict[str, str]

    @property
    def config(self) -> dict[str, Any]:
        """The stock configuration."""
        _tell_auto_pipelines(type(self))  # they read it first, and then look for the class by its name
        return super().config

    def to_json_string(self) -> str:
        """The stock JSON of the configuration, naming the stock class, so that `model_index.json` does."""
        return dumps(loads(super().to_json_string()) | {"_class_name": stock_class(self).__name__}, indent=2) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        _write(Path(json_file_path), self.to_json_string())

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs,
    ) -> CommitInfo | None:
        """
        As the stock method, whose arguments it takes, plus `pipeline.py` and `README.md`; `model_index.json` comes
        last. With `push_to_hub=True` the repository is created first, and the commit is returned.
        """
        folder, token = Path(save_directory), kwargs.pop("token", None)
        repo_id, private = kwargs.pop("repo_id", folder.resolve().name), kwargs.pop("private", None)
        commit_message, create_pr = kwargs.pop("commit_message", None), kwargs.pop("create_pr", False)
        subfolder = kwargs.pop("subfolder", None)
        if push_to_hub:
            repo_id = create_repo(repo_id, exist_ok=True, private=private, token=token).repo_id

        folder.mkdir(parents=True, exist_ok=True)
        module, name = _import_of(self)
        if module == "diffusers":
            logger.warning(f"{type(self).__name__} cannot be imported from a module: {folder} gets no `pipeline.py`.")
        else:
            # Always the same name: diffusers runs every local `pipeline.py` in one module and wants one class there.
            _write(folder / "pipeline.py", f"from {module} import {name} as Pipeline\n")
        if not (folder / "README.md").exists():
            _write(folder / "README.md", str(pipeline_card(self, repo_id)))
        super().save_pretrained(
            folder, safe_serialization, variant, max_shard_size, use_flashpack=use_flashpack, **kwargs
        )

        if push_to_hub:
            keep_card = subfolder is not None or file_exists(repo_id, "README.md", token=token)
            return upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                path_in_repo=subfolder,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                token=token,
                create_pr=create_pr,
                ignore_patterns=["README.md"] if keep_card else None,
            )

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> CommitInfo:
        """As the stock method, whose arguments it takes: pushes what [`~HubMixin.save_pretrained`] writes."""
        with TemporaryDirectory() as folder:
            commit = self.save_pretrained(
                folder,
                safe_serialization=safe_serialization,
                variant=variant,
                push_to_hub=True,
                repo_id=repo_id,
                commit_message=commit_message,
                private=private,
                token=token,
                create_pr=create_pr,
                subfolder=subfolder,
            )
        return cast(CommitInfo, commit)


def stock_class(pipe: HubMixin) -> type[DiffusionPipeline]:
    """The diffusers pipeline class that `pipe` is a subclass of, the nearest one."""
    return _stock(type(pipe))


def _stock(cls: type) -> type[DiffusionPipeline]:
    return next(c for c in cls.__mro__ if issubclass(c, DiffusionPipeline) and _package(c) == "diffusers")


def _tell_auto_pipelines(cls: type) -> None:
    """Let `AutoPipelineFor...from_pipe` take `cls` for its stock class. Its module is large: only if it is loaded."""
    auto = sys.modules.get("diffusers.pipelines.auto_pipeline")
    if auto is None or auto._get_model(cls.__name__) is not None:
        return
    if (model := auto._get_model(_stock(cls).__name__)) is not None:
        auto.SUPPORTED_TASKS_MAPPINGS.append({model: cls})


def pipeline_card(pipe: HubMixin, repo_id: str) -> ModelCard:
    """The card of a pipeline with [`HubMixin`] that is, or will be, at `repo_id` (a Hub id or a folder)."""
    module, name = _import_of(pipe)
    text = f"""
`{stock_class(pipe).__name__}` weights, saved from `{type(pipe).__name__}` of alignext {alignext.__version__}, which
adds {pipe._name} to it.

```python
from {module} import {name}

pipe = {name}.from_pretrained("{repo_id}")
```
"""
    if module != "diffusers":
        text += f"""
The same through diffusers, which runs the one line of `pipeline.py` (needs alignext installed):

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{repo_id}", custom_pipeline="{repo_id}", trust_remote_code=True)
```

Without `custom_pipeline` it loads as the stock `{stock_class(pipe).__name__}`, without alignext.
"""
    task = "text-to-video" if hasattr(pipe, "video_processor") else "text-to-image"  # what the weights do, as stock
    metadata = {"library_name": "diffusers", "pipeline_tag": task, **_base_metadata(pipe.name_or_path)}
    return model_card(pipe._name, text, tags=pipe._tag_names, paper=pipe._paper, **metadata)


def _base_metadata(source: str | os.PathLike | None) -> dict[str, object]:
    """Base model and licence, as far as the place a pipeline was loaded from tells: by its card, or as a Hub id."""
    if source is None:
        return {}
    card = Path(source, "README.md")
    if card.is_file():
        try:
            data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
        except (ValueError, YAMLError):  # somebody's bad card is no reason not to save
            return {}
        bases = data.get("base_model") or []
        if not all(map(_is_repo_id, [bases] if isinstance(bases, str) else bases)):
            data.pop("base_model")  # PEFT writes folders there, and the Hub takes no card with one
        return {key: data[key] for key in ("base_model", "license", "license_name", "license_link") if key in data}
    is_hub_id = "/" in str(source) and _is_repo_id(str(source)) and not Path(source).exists()
    return {"base_model": str(source)} if is_hub_id else {}


def _is_repo_id(text: object) -> bool:
    try:
        validate_repo_id(str(text))
    except HFValidationError:
        return False
    return True


def _import_of(pipe: HubMixin) -> tuple[str, str]:
    """Module and name to import the class of `pipe` from, or the nearest parent that another process can import."""
    for cls in type(pipe).__mro__:
        # diffusers copies the files of `custom_pipeline` to modules of its own, which exist on this machine only.
        if _package(cls) in ("alignext", "diffusers_modules") and cls.__name__ in alignext.__all__:
            return "alignext", cls.__name__
        if issubclass(cls, DiffusionPipeline) and _package(cls) == "diffusers":
            return "diffusers", cls.__name__
        if issubclass(cls, DiffusionPipeline) and getattr(sys.modules[cls.__module__], cls.__name__, None) is cls:
            if _package(cls) not in ("__main__", "diffusers_modules"):
                return cls.__module__, cls.__name__
    raise TypeError(f"{type(pipe).__name__} must be a subclass of a diffusers pipeline.")


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _write(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
