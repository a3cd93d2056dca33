"""What tests of the loop share: the messages of a topic, the steps of a turn, and what a run has learned."""

import pytest

from online.worker import checkpoint as checkpoint_module

POLL = 32
CLICKS = 160  # five full polls
BAD = {3: b"no json", 40: b"[]", 41: b"", 100: None, 159: b'{"user_id": "", "item_id": "i", "timestamp": 1}'}


@pytest.fixture
def values(town_clicks):
    """What the topic holds: clicks, with something that is none at the places in BAD."""
    return [BAD.get(place, click) for place, click in enumerate(town_clicks[:CLICKS])]


def owner_of(loop, step):
    part, name = step.split(".")
    return {"loop": loop, "lists": loop.writer.lists}.get(part) or getattr(loop, part), name


def recorded(loop, *steps):
    """The names of the steps in the order in which they were finished."""
    calls = []

    def recording(step):
        owner, name = owner_of(loop, step)
        method = getattr(owner, name)

        def call(*args, **kwargs):
            result = method(*args, **kwargs)
            calls.append(step)
            return result

        setattr(owner, name, call)

    for step in steps:
        recording(step)
    return calls


def what_was_learned(harness, loop):
    """Everything but the lists, and what is counted and scored of them."""
    found = harness.everything(loop)
    found |= {"learner": dict(found["learner"]), "progress": dict(found["progress"])}
    del found["lists"], found["popular"], found["history.served"], found["notices"]
    del found["learner"]["scores"], found["progress"]["refreshes"]
    return found


@pytest.fixture
def increments(monkeypatch):
    """Small checkpoints are increments too."""
    monkeypatch.setattr(checkpoint_module, "FULL_BYTES_MIN", 0)


@pytest.fixture(params=["full", "increments"])
def either_kind(request):
    """Once with full checkpoints, as small ones are, and once with increments."""
    if request.param == "increments":
        request.getfixturevalue("increments")
