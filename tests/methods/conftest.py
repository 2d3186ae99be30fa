"""Fixture: runs draw no pictures, unless a test asks for them."""

from collections.abc import Iterator

import pytest

import no_pictures


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    with no_pictures.no_pictures():
        yield


@pytest.fixture
def pictures(_no_pictures: None) -> Iterator[None]:
    """Asked for by a test that looks at pictures."""
    with no_pictures.pictures():
        yield
