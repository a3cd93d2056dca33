"""Clicks that are learned from again: of each the clicked item's features and its strongest rivals'.

Letters: `R` clicks held, `N` new ones, `K` candidates kept of each, `F` features.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model.zeros import zeros
from online.learner.content.columns import LEARNED
from online.learner.scoring import ScoredCandidates
from online.learner.user_stores import UserKey

SINCE_0_3 = {column.name for column in LEARNED}  # a buffer of before lacks these columns
FIRST = 256  # clicks held before any is replayed (all there is room for, if that is less)


class Replayed(NamedTuple):
    """n clicks, without gradients: of each the clicked item first, and then its rivals."""

    features: Tensor  # (n, K, F)
    present: Tensor  # (n, K) which are there
    content: Tensor | None = None  # (n, K, G) added columns; None: nothing is known
    weights: Tensor | None = None  # (n,) by which each click counts; None: all by 1


class ReplayBuffer:
    """At most R clicks, 2 K F + 8 bytes each; a new one takes a random place, so their ages fall off exponentially.

    Features are kept as they were, in float16: what replay teaches is how to weigh them.
    """

    def __init__(
        self, held: int, candidates: int, width: int, seed: int, device: torch.device, *, added: Sequence[str] = ()
    ) -> None:
        """`added`: names of the columns beside the features; none: as many as the first clicks have."""
        self.held, self.candidates, self.added = held, candidates, [*added]
        self.features = zeros(held, candidates, width, dtype=torch.float16, device=device)
        self.present = torch.zeros(held, candidates, dtype=torch.bool, device=device)
        self.content: Tensor | None = None  # (R, K, G) added columns, once anything is known
        self.weights: Tensor | None = None  # (R,) of the clicks, once they weigh differently
        self.user_hashes = np.zeros(held, np.int64)  # their users, as `stream.user_ids.hash_of_digest` says
        self.filled = 0
        self.random = np.random.default_rng(seed)

    def add(
        self,
        features: Tensor,
        present: Tensor,
        content: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        user_hashes: NDArray[np.int64] | int = 0,
    ) -> None:
        """What `among_rivals` gave of N clicks, and their users' hashes (N,); 0: of no user. `weights`: (N,) of the
        clicks; None: all weigh 1."""
        places = self._places(min(len(features), self.held))
        at = torch.from_numpy(places).to(self.features.device)
        self.features[at], self.present[at] = features[: len(at)].to(torch.float16), present[: len(at)]
        if content is not None and self.content is None:
            self.content = self._no_content(content.shape[2])
        if self.content is not None:
            self.content[at] = 0 if content is None else content[: len(at)].to(torch.float16)
        if weights is not None and self.weights is None:
            self.weights = torch.ones(self.held, device=self.features.device)
        if self.weights is not None:
            self.weights[at] = 1.0 if weights is None else weights[: len(at)]
        self.user_hashes[places] = np.broadcast_to(user_hashes, len(features))[: len(at)]

    def sample(self, count: int, random: np.random.Generator | None = None) -> Replayed | None:
        """`count` random clicks, in float32.

        `random`: what draws them; None: the buffer's own numbers, which a checkpoint keeps.
        """
        if not count or self.filled < max(1, min(FIRST, self.held)):
            return None
        at = torch.from_numpy((random or self.random).integers(0, self.filled, count)).to(self.features.device)
        content = None if self.content is None else self.content[at].float()
        weights = None if self.weights is None else self.weights[at]
        return Replayed(self.features[at].float(), self.present[at], content, weights)

    def forget(self, kept: float) -> None:
        """Leaves a share of the clicks (from 0 to 1), of any age."""
        self._keep(np.arange(int(kept * self.filled)))

    def user_ids(self) -> tuple[str, ...]:
        return ()

    def count_user(self, user: UserKey) -> dict[str, int]:
        return {"replay_clicks": int((self.user_hashes[: self.filled] == user.user_hash).sum())}

    def forget_user(self, user: UserKey) -> dict[str, int]:
        found = self.count_user(user)
        self._keep(np.flatnonzero(self.user_hashes[: self.filled] != user.user_hash))
        return found

    def usage(self) -> tuple[int, int]:
        return self.filled, self.held

    def _keep(self, places: NDArray[np.int64]) -> None:
        """Leaves these, in their order; nothing stays of the others."""
        at = torch.from_numpy(places).to(self.features.device)
        more = [part for part in (self.content, self.weights) if part is not None]
        for part in (self.features, self.present, *more):
            part[: len(at)] = part[at]
            part[len(at) : self.filled] = 0
        self.user_hashes[: len(at)] = self.user_hashes[places]
        self.user_hashes[len(at) : self.filled] = 0
        self.filled = len(at)

    def _no_content(self, columns: int) -> Tensor:
        return zeros(self.held, self.candidates, columns, dtype=torch.float16, device=self.features.device)

    def _places(self, count: int) -> NDArray[np.int64]:
        """Different places for at most R new clicks: free ones first."""
        free = min(count, self.held - self.filled)
        again = self.random.choice(self.filled, count - free, replace=False) if free < count else np.zeros(0, np.int64)
        chosen = np.concatenate([np.arange(self.filled, self.filled + free), again])
        self.filled += free
        return chosen

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        arrays = {"features": self.features[: self.filled], "present": self.present[: self.filled]}
        if self.content is not None:
            arrays["content"] = self.content[: self.filled]
        if self.weights is not None:
            arrays["weights"] = self.weights[: self.filled]
        found = {name: part.cpu().numpy() for name, part in arrays.items()}
        state: dict[str, Any] = {"random": self.random.bit_generator.state}
        if self.content is not None:
            state["added"] = self.added
        return found | {"user_hashes": self.user_hashes[: self.filled].copy()}, state

    def load_state(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> None:
        """Takes back what `to_state` gave; of another shape (settings have changed), nothing."""
        features = torch.from_numpy(arrays["features"].copy())
        if features.shape[1:] != self.features.shape[1:]:
            return
        self.filled = min(len(features), self.held)
        self.features[: self.filled] = features[: self.filled].to(self.features.device)
        self.present[: self.filled] = torch.from_numpy(arrays["present"].copy())[: self.filled].to(self.features.device)
        self.content = None
        if "content" in arrays:
            content = torch.from_numpy(arrays["content"].copy())[: self.filled]
            self.content = self._no_content(len(self.added) or content.shape[2])
            # Settings or a later version may have added columns, or left some out.
            held = state.get("added") or [name for name in self.added if name not in SINCE_0_3]
            both = [name for name in held if name in self.added]
            now, then = ([names.index(name) for name in both] for names in (self.added, held))
            if self.added:
                self.content[: self.filled, :, now] = content[..., then].to(self.features.device)
            else:
                self.content[: self.filled] = content.to(self.features.device)
        self.weights = None
        if "weights" in arrays:
            self.weights = torch.ones(self.held, device=self.features.device)
            self.weights[: self.filled] = torch.from_numpy(arrays["weights"].copy())[: self.filled]
        self.user_hashes[: self.filled] = arrays["user_hashes"][: self.filled]
        self.random.bit_generator.state = state["random"]


def among_rivals(scored: ScoredCandidates, places: Tensor, count: int) -> Replayed:
    """Some clicks, and where their items stand among the K kept candidates, (N,), −1 where they do not -> of those that
    do, n of them, the clicked ones and `count` − 1 of their strongest rivals each."""
    hit = (places >= 0).nonzero()[:, 0]
    features, present = scored.features[hit], scored.present[hit]
    scores = scored.scores[hit].masked_fill(~present, -torch.inf)
    scores.scatter_(1, places[hit, None], torch.inf)  # the clicked one comes first
    best = scores.topk(min(count, scores.shape[1]), 1).indices  # (n, count)
    features = features.gather(1, best[..., None].expand(-1, -1, features.shape[2]))
    content = None if scored.content is None else scored.content[hit]
    present = present.gather(1, best)
    missing = count - best.shape[1]
    if content is not None:
        content = F.pad(content.gather(1, best[..., None].expand(-1, -1, content.shape[2])), (0, 0, 0, missing))
    return Replayed(F.pad(features, (0, 0, 0, missing)), F.pad(present, (0, missing)), content)
