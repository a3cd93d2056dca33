"""Whatever holds data of users is in the registry, which forgetting, its proof and checkpoints walk."""

import json
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from online.learner.learner import Learner
from online.learner.user_stores import UserKey, UserStores
from stream.user_ids import digest_of, hash_of_digest
from tests.online.learner.test_learner_batches import some_clicks

PLAIN = int | float | bool | bytes | complex | np.generic | None


def traces(root: Any, user: str, *, without: tuple[Any, ...] = (), path: str = "learner") -> Iterator[str]:
    """Paths at which an object's memory holds a user's id or hash, but for what is reached through `without`."""
    user_hash = hash_of_digest(digest_of(user))
    waiting, seen = [(path, root)], {id(one) for one in without}
    keep = []  # or an id could be used again
    while waiting:
        at, one = waiting.pop()
        if isinstance(one, str):
            if one == user:
                yield at
        elif isinstance(one, PLAIN):
            if isinstance(one, int | np.integer) and int(one) == user_hash:
                yield at
        elif id(one) not in seen:
            seen.add(id(one))
            keep.append(one)
            if isinstance(one, torch.Tensor):
                one = one.detach().view(torch.int16).numpy() if one.dtype == torch.bfloat16 else one.detach().numpy()
            if isinstance(one, np.ndarray):
                if one.dtype == np.int64 and (one == user_hash).any():
                    yield at
            elif isinstance(one, dict):
                waiting += [(f"{at}.keys", name) for name in one] + [(f"{at}[{k!r}]", v) for k, v in one.items()]
            elif isinstance(one, list | tuple | set | frozenset | deque | array):
                waiting += [(f"{at}[]", part) for part in one]
            elif hasattr(one, "__dict__"):
                waiting += [(f"{at}.{name}", value) for name, value in vars(one).items()]


def taught(small: Any, users: int = 8, **changed: Any) -> tuple[Learner, str]:
    """A learner that has seen some clicks, and the user who made most of them."""
    clicks = some_clicks(320, users=users)
    learner = Learner(small(**changed))
    for start in range(0, len(clicks), 16):
        learner.learn(clicks[start : start + 16])
    made_by = [click.user_id for click in clicks]
    for user in sorted(set(made_by)):
        learner.hidden.hide(user, clicks[0].item_id)
    return learner, max(sorted(set(made_by)), key=made_by.count)


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_every_store_that_holds_a_user_is_in_the_registry(small: Any, exclude_seen: bool) -> None:
    learner, user = taught(small, exclude_seen=exclude_seen)
    stores = tuple(learner.user_stores.by_name.values())
    assert list(traces(learner, user, without=stores)) == []
    shared = (learner.settings, learner.weights, learner.histories)
    for name, store in learner.user_stores.by_name.items():
        assert list(traces(store, user, without=tuple(one for one in shared if one is not store))), name


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_nothing_of_who_was_forgotten_is_left_anywhere_in_memory(small: Any, exclude_seen: bool) -> None:
    learner, user = taught(small, exclude_seen=exclude_seen)
    held = learner.holds(digest_of(user))
    assert all(held.values()), held
    assert learner.forget(digest_of(user)) == held
    assert not any(learner.holds(digest_of(user)).values())
    assert learner.named(digest_of(user)) == frozenset()
    assert list(traces(learner, user)) == []


def test_every_store_keeps_its_limit(small: Any) -> None:
    limits = {"users_held": 16, "memory_users_held": 16, "recall_users_held": 16, "moments_held": 64}
    limits |= {
        "replay_held": 50,
        "finetune_reservoir_held": 20,
        "seen_pairs_max": 16,
        "abuse_keys_held": 16,
        "hidden_users_max": 16,
    }
    learner, _ = taught(small, users=60, exclude_seen=True, **limits)
    for name, store in learner.user_stores.by_name.items():
        held, held_max = store.usage()
        assert 0 < held <= held_max, name


class MadeUpStore:
    """A store of last items by user, as a later version may bring one."""

    def __init__(self) -> None:
        self.last: OrderedDict[str, int] = OrderedDict()

    def user_ids(self) -> list[str]:
        return list(self.last)

    def count_user(self, user: UserKey) -> dict[str, int]:
        return {"made_up": sum(name in self.last for name in user.user_ids)}

    def forget_user(self, user: UserKey) -> dict[str, int]:
        return {"made_up": sum(self.last.pop(name, None) is not None for name in user.user_ids)}

    def usage(self) -> tuple[int, int]:
        return len(self.last), 10

    def to_state(self) -> tuple[dict[str, NDArray[Any]], list[str]]:
        return {"items": np.array(list(self.last.values()))}, list(self.last)

    def load_state(self, arrays: dict[str, NDArray[Any]], state: list[str]) -> None:
        self.last = OrderedDict(zip(state, arrays["items"].tolist(), strict=True))


def test_a_store_that_is_added_is_forgotten_proven_and_checkpointed(small: Any) -> None:
    def learner() -> tuple[Learner, MadeUpStore]:
        one, store = Learner(small()), MadeUpStore()
        one.user_stores.add("made_up", store)
        return one, store

    one, store = learner()
    store.last.update({"ada": 3, "bob": 4})
    ada = digest_of("ada")
    assert one.named(ada) == {"ada"}
    assert one.holds(ada)["made_up"] == 1
    arrays, state = one.to_state()
    other, others_store = learner()
    other.load_state({name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(state)))
    assert others_store.last == store.last
    assert other.forget(ada)["made_up"] == 1
    assert other.holds(ada)["made_up"] == 0
    assert others_store.last == {"bob": 4}


def test_a_name_is_given_once() -> None:
    stores = UserStores()
    stores.add("made_up", MadeUpStore())
    with pytest.raises(ValueError, match="made_up"):
        stores.add("made_up", MadeUpStore())


def test_a_checkpoint_that_lacks_a_store_is_refused(small: Any) -> None:
    learner, _ = taught(small)
    arrays, state = learner.to_state()
    del state["replay"]
    with pytest.raises(KeyError, match="replay"):
        Learner(small()).load_state(arrays, state)
