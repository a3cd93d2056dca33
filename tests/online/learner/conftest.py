"""Clicks with a known order, and what a learner gathers, reads and scores: for tests of the learner."""

import json
from itertools import pairwise

import numpy as np
import pytest

from online.learner.learner import Learner
from stream.events import Click

ITEMS = 40


def click(user, item, at, **others):
    return Click(user_id=str(user), item_id=f"i{item}", timestamp=float(at), **others)


def ring(count, seed=0, users=8, items=ITEMS):
    """Item k is always followed by k + 1."""
    random = np.random.default_rng(seed)
    at = random.integers(0, items, users)
    clicks = []
    for number in range(count):
        user = random.integers(users)
        at[user] = (at[user] + 1) % items
        clicks.append(click(user, at[user], number))
    return clicks


def learn(learner, clicks, size=16):
    return [learner.learn(clicks[start : start + size]) for start in range(0, len(clicks), size)]


def scored_lists(learner):
    """What `Scores.add` is given, as it is given it."""
    given = []
    add = learner.scores.add
    learner.scores.add = lambda lists, targets: (given.append((dict(lists), targets.copy())), add(lists, targets))[1]
    return given


def foreseen(learner, clicks):
    """Learns a micro-batch -> of each click its candidates' rows, what was counted of them, their first scores, and the
    scores of those that were kept."""
    found = []
    for step in learner.learn(clicks).steps:
        scored, gathered = step.scored, step.scored.gathered
        for at, (start, stop) in enumerate(pairwise(gathered.starts.tolist())):
            part = slice(start, stop)
            kept = scored.scores[at].numpy().copy()
            found.append((gathered.rows[part].tolist(), gathered.features[part].copy(), scored.first[part], kept))
    return found


def states_read(learner):
    """What `UserStates.read` gives of each micro-batch: states before clicks, user by user."""
    found = []
    read = learner.states.read
    learner.states.read = lambda *given: (found.append(read(*given)), found[-1])[1]
    return found


def queries_of_lists(learner):
    """What facts are asked for lists, each time."""
    asked = []
    ask = learner.store.ask
    learner.store.ask = lambda *given, **others: (asked.append(given[1]), ask(*given, **others))[1]
    return asked


def restarted(learner, settings):
    arrays, state = learner.to_state()
    again = Learner(settings)
    again.load_state({name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(state)))
    return again


@pytest.fixture
def learner(small):
    return Learner(small())
