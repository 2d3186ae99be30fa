"""Fixture: a tiny trained model and its set, made once for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from captures import for_any_size
from examples import exported
from examples.train import train
from no_pictures import no_pictures
from sets import tiny, write_set


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    with no_pictures():
        yield


@pytest.fixture(scope="module", autouse=True)
def _quick_captures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exported, "program_of", for_any_size()(exported.program_of))
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled set with masks and captions, in RGB and NI."""
    return write_set(tmp_path_factory.mktemp("use") / "set")


@pytest.fixture(scope="session")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """STMI trained on it for an epoch."""
    out = tmp_path_factory.mktemp("use") / "run"
    with no_pictures():
        train(tiny(data, epochs=1, warmup_epochs=0.5), out)
    return out / "checkpoint.pt"


@pytest.fixture(scope="session")
def other_checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """STMI without captions from another seed."""
    out = tmp_path_factory.mktemp("use") / "other"
    with no_pictures():
        train(tiny(data, epochs=1, warmup_epochs=0.5, captions="off", seed=5), out)
    return out / "checkpoint.pt"
