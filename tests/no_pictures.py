"""Runs of the commands without their pictures, whose drawing takes several times as long as the training."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from examples import figures

SAVE, CURVES, LISTS = figures.save, figures.curves, figures.ranked_lists


def set_drawing(patch: pytest.MonkeyPatch, save: Any, curves: Any, lists: Any) -> None:
    """Set what the commands draw with."""
    for module in ("figures", "comparison_figure"):
        patch.setattr(f"examples.{module}.save", save)
    patch.setattr("examples.figures.curves", curves)
    patch.setattr("examples.figures.ranked_lists", lists)


def save_none(figure: Any, *paths: Path, **options: Any) -> list[Path]:
    """Write files that are no pictures, each of its own content."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(path))
    return list(paths)


@contextmanager
def no_pictures() -> Iterator[None]:
    """Meanwhile no command draws."""
    with pytest.MonkeyPatch.context() as patch:
        set_drawing(patch, save_none, lambda *_: None, lambda *_: None)
        yield


@contextmanager
def pictures() -> Iterator[None]:
    """Meanwhile commands draw again."""
    with pytest.MonkeyPatch.context() as patch:
        set_drawing(patch, SAVE, CURVES, LISTS)
        yield
