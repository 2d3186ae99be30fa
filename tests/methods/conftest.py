"""Runs of the commands without their pictures, whose drawing takes several times as long as the training."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def pictures() -> None:
    """Asked for by a test that looks at pictures."""


@pytest.fixture(autouse=True)
def _without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pictures" in request.fixturenames:
        return

    def touch(figure: Any, *paths: Path, **options: Any) -> list[Path]:
        for path in paths:
            path.touch()
        return list(paths)

    monkeypatch.setattr("examples.figures.save", touch)
    for name in ("curves", "ranked_lists"):
        monkeypatch.setattr(f"examples.figures.{name}", lambda *arguments: None)
