# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Which tests of the contract are slow."""

import pytest

from .contract import OF_EVERY_ROW, Row


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        row = item.callspec.params.get("row") if hasattr(item, "callspec") else None
        if isinstance(row, Row) and row.slow and not item.name.startswith(OF_EVERY_ROW):
            item.add_marker(pytest.mark.slow)
