# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The model card of a learnt direction."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import alignext
from alignext import hub
from alignext.training.cards import result_name

from .module import InterchangeModel


class CDASCard:
    """Gives a trainer with `args` its card. Mixed into [`CDASTrainer`]."""

    args: Any
    is_world_process_zero: Callable[[], bool]
    _tag_names: list[str]
    _name: str
    _paper: dict[str, str]

    @property
    def interchange(self) -> InterchangeModel:
        """The language model with the vector."""
        raise NotImplementedError

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        dataset_name: str | None = None,
    ) -> None:
        """Write `README.md`: how to steer with the result. `tasks`, `dataset`, `dataset_args`, `finetuned_from` are
        not on this card."""
        if self.is_world_process_zero():
            extra = [tags] if isinstance(tags, str) else list(tags or [])
            found = {"language": language, "license": license, "datasets": dataset_tags or dataset_name}
            metadata = {key: value for key, value in found.items() if value is not None}
            hub._write(Path(self.args.output_dir, "README.md"), self._card(model_name, extra, metadata))

    def _card(
        self, model_name: str | None = None, tags: list[str] | None = None, metadata: dict[str, Any] | None = None
    ) -> str:
        name = result_name(self.args, model_name)
        base = hub._base_metadata(getattr(self.interchange.lm.config, "_name_or_path", None))
        of = base.get("base_model", "a language model")
        text = f"""
A direction at layer {self.interchange.layer} of {of}, learnt with {self._name}.

```python
from alignext import SteeringVector

vector = SteeringVector.from_hub("{name}")
with vector.apply(model):  # alpha=-1 suppresses the concept
    model.generate(...)
```

Saved by alignext {alignext.__version__}.
"""
        return str(
            hub.model_card(
                f"{model_name or os.path.basename(name)}: {self._name}",
                text,
                tags=[*self._tag_names, *(tag for tag in tags or [] if tag not in self._tag_names)],
                paper=self._paper,
                library_name="alignext",
                **base,
                **{key: value for key, value in (metadata or {}).items() if key not in base},
            )
        )
