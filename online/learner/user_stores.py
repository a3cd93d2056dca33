"""The registry of stores that hold data of users: forgetting, its proof and checkpoints all walk it.

So a store that is registered cannot be left out of one of them by mistake; and a test searches a learner for users'
ids and hashes in whatever is not registered.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from online.learner.arrays import below
from stream.user_ids import digest_of, hash_of_digest


class UserKey(NamedTuple):
    """A user who is named by the digest of the id: what stores may know the user by."""

    user_ids: frozenset[str]  # ids with that digest, of all that stores know
    user_hash: int  # what arrays carry instead of an id


class UserStore(Protocol):
    """What holds data of users. Counts are by kind of data; a store gives the same kinds each time."""

    def user_ids(self) -> Iterable[str]:
        """Ids of the users that it knows; none where it knows users by their hashes alone."""

    def count_user(self, user: UserKey) -> dict[str, int]:
        """How much there is of a user, by kind."""

    def forget_user(self, user: UserKey) -> dict[str, int]:
        """Nothing is left of a user -> how much there was, by kind: what `count_user` said."""

    def usage(self) -> tuple[int, int]:
        """Entries that are held, and the limit on them."""

    def to_state(self) -> tuple[dict[str, NDArray[Any]], Any]:
        """Arrays by name, and what JSON can hold."""

    def load_state(self, arrays: dict[str, NDArray[Any]], state: Any) -> None:
        """Takes back what `to_state` gave."""


class UserStores:
    """Stores by the name of their part of a checkpoint, in the order in which they forget and load."""

    def __init__(self) -> None:
        self.by_name: dict[str, UserStore] = {}

    def add(self, name: str, store: UserStore) -> None:
        """Registers a store."""
        if name in self.by_name:
            raise ValueError(f"there is a store {name} already")
        self.by_name[name] = store

    def named(self, digest: str) -> frozenset[str]:
        """The id with that digest, where any store knows it."""
        users = {user for store in self.by_name.values() for user in store.user_ids()}
        return frozenset(user for user in users if digest_of(user) == digest)

    def forget(self, digest: str) -> dict[str, int]:
        """Nothing of a user is left in any store -> how much there was, by kind."""
        user = self._key(digest)
        found: dict[str, int] = {}
        for store in self.by_name.values():
            found |= store.forget_user(user)
        return found

    def holds(self, digest: str) -> dict[str, int]:
        """How much there is of a user, by kind."""
        user = self._key(digest)
        found: dict[str, int] = {}
        for store in self.by_name.values():
            found |= store.count_user(user)
        return found

    def to_state(self) -> tuple[dict[str, dict[str, NDArray[Any]]], dict[str, Any]]:
        """Arrays and what JSON can hold, by the stores' names."""
        arrays: dict[str, dict[str, NDArray[Any]]] = {}
        state: dict[str, Any] = {}
        for name, store in self.by_name.items():
            arrays[name], state[name] = store.to_state()
        return arrays, state

    def load_state(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> set[str]:
        """Takes back what `to_state` gave -> names of stores that a checkpoint does not know, which stay empty."""
        for name, store in self.by_name.items():
            if name in state:
                store.load_state(below(arrays, name), state[name])
        return {*self.by_name} - {*state}

    def _key(self, digest: str) -> UserKey:
        return UserKey(self.named(digest), hash_of_digest(digest))
