"""A shop whose truth is known: users look at items one after the other, and buy some that they have just looked at."""

import numpy as np
import pytest

from online.learner.learner import Learner
from stream.events import Click

VIEW, BUY, RETURN = "view", "buy now", "return"
WEIGHTS = "view=1,buy now=5,return=-3"
ITEMS, USERS = 20, 8
PRICES = 10.0 ** (np.arange(ITEMS) % 3)  # 1, 10, 100


def wants(user, item):
    """How likely a look is followed by a purchase."""
    return 0.6 if (item % 2 == 0) and (user % 2 == 0) else 0.05


def shop(count, seed=0, returns=0.0):
    random = np.random.default_rng(seed)
    at = random.integers(0, ITEMS, USERS)
    clicks, now = [], 1_700_000_000.0
    while len(clicks) < count:
        user = int(random.integers(USERS))
        at[user] = (at[user] + random.integers(1, 4)) % ITEMS
        item = int(at[user])
        kinds = [VIEW]
        if random.random() < wants(user, item):
            kinds.append(BUY)
            if random.random() < returns:
                kinds.append(RETURN)
        for kind in kinds:
            now += 60.0
            value = {BUY: PRICES[item], RETURN: -PRICES[item]}.get(kind)
            clicks.append(Click(user_id=str(user), item_id=f"i{item}", timestamp=now, event_type=kind, value=value))
    return clicks[:count]


def learn(learner, clicks, size=16):
    return [learner.learn(clicks[start : start + size]) for start in range(0, len(clicks), size)]


@pytest.fixture
def worthy(small):
    """Makes learners that predict what clicks are worth."""
    return lambda **changed: Learner(small(**{"event_weights": WEIGHTS, "history_max": 40, **changed}))
