"""Checked files are remembered where the tests are, not among the user's caches."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _memory_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
