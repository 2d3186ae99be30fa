"""Fixture: records of checked files go to the folder of the test, not to the user's cache."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _memory_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
