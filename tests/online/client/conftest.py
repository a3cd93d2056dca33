"""Fixtures: a stub of the API, and a maker of clients, once of each kind."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.online.client.stub_api import KINDS, PATIENT, Stub, running_stub


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running_stub() as started:
        yield started


@pytest.fixture(params=list(KINDS))
def make_client(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes clients whose methods return results, whichever kind they are of."""
    made = []

    def make(*arguments: Any, **options: Any) -> Any:
        made.append(KINDS[request.param](*arguments, **{"limits": PATIENT, **options}))
        return made[-1]

    yield make
    for client in made:
        client.close()
