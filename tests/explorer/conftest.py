from collections.abc import Iterator

import pytest

from tests.explorer.launched import Launched, launched


@pytest.fixture(scope="session")
def explorer() -> Iterator[Launched]:
    with launched() as server:
        yield server
