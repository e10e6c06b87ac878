"""Fixtures for all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack.segment import NoSegmentError, Segment
from tests.pair import Pair
from tests.xl.stream import StreamSpec, make_stream

# A shell without job control has what it starts in the background ignore SIGINT. What the tests start must not inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def new_pair() -> Iterator[Pair]:
    """Two hosts that have met, for one test alone."""
    with Pair() as made:
        yield made


@pytest.fixture(scope="module")
def lasting() -> Iterator[Pair]:
    """Two hosts for all tests of a file."""
    with Pair() as made:
        yield made


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two MiB."""
    return make_stream(tmp_path_factory.mktemp("stream") / "web1.stream", StreamSpec(2, seed=3))


@pytest.fixture
def pair(lasting: Pair, stream: Path) -> Iterator[Pair]:
    """A file's two hosts without a past, and the domain web1 on the source; afterwards nothing of a session may be left."""
    lasting.reset()
    lasting.source.xen.create_domain("web1", stream)
    yield lasting
    lasting.expect_nothing_left()


@pytest.fixture(scope="module")
def segment() -> Iterator[Segment]:
    """The attack lab's network, with nobody attacking."""
    try:
        with Segment() as made:
            yield made
    except NoSegmentError as error:
        pytest.skip(str(error))
