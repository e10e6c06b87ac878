"""A short run of what `make fuzz` runs for longer: Python's parsers here, the engine's in tests/fuzz/run.sh (docs/fuzzing.md)."""

from __future__ import annotations

import pytest

from tests.fuzz import messages

# A key exchange is some milliseconds.
SLOW = {"destination": 60, "source": 60, "wire": 100}


@pytest.mark.parametrize("name", messages.TARGETS)
def test_fuzz_target(name: str) -> None:
    """Whatever comes, a value comes of it or the one kind of error that its caller knows."""
    messages.run(name, examples=SLOW.get(name, 300), number=None)
