"""What lists are ranked by: a formula over what is predicted of each kept candidate.

Letters: `N` queries, `K` candidates kept of each, `T` named event types.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online.config.event_weights import names_of
from online.config.formula import P_CLICK, VALUE, WORTH, Apply, Formula, Name, Node
from online.config.settings import Settings
from online.learner.scoring import ScoredCandidates

#: The value of a candidate of which a formula gives no finite one, so that it ranks last; means of it stay finite.
NOT_FINITE = -1e30

Doubles = NDArray[np.float64]
Figures = Mapping[str, Doubles]
_UNARY: dict[str, Callable[[Doubles], Doubles]] = {
    "neg": np.negative, "log": np.log, "exp": np.exp, "sqrt": np.sqrt,
}  # fmt: skip
_BINARY: dict[str, Callable[[Doubles, Doubles], Doubles]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "**": np.power, "min": np.minimum,
    "max": np.maximum,
}  # fmt: skip


def compiled(root: Node) -> Callable[[Figures], Doubles]:
    """Returns a function that evaluates a formula on arrays of the same shape, by name."""
    if isinstance(root, Name):
        name = root.name
        return lambda figures: figures[name]
    if not isinstance(root, Apply):
        constant = np.array(root, np.float64)
        return lambda _: constant
    parts = [compiled(part) for part in root.parts]
    if len(parts) == 1:
        of_one = _UNARY[root.sign]
        return lambda figures: of_one(parts[0](figures))
    of_two = _BINARY[root.sign]

    def fold(figures: Figures) -> Doubles:
        found = parts[0](figures)
        for part in parts[1:]:
            found = of_two(found, part(figures))
        return found

    return fold


class Objective:
    """The objective of the settings, and others by request."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        by_type = settings.weights_by_type
        self.names = list(names_of(by_type).values())
        self.weights = np.array(list(by_type.values()), np.float64)  # (T,)
        self.not_finite = 0  # candidates that a formula gave no finite value, since the start of this process
        self.formula = lru_cache(maxsize=64)(settings.formula)

    def describe(self) -> dict[str, Any]:
        """Returns the part of the status that is about it."""
        return {"formula": self.settings.objective, "not_finite": self.not_finite}

    def figures(self, scored: ScoredCandidates) -> Figures:
        """Returns what formulas can refer to, each (N, K) and 0 where there are no more candidates.

        `p_click` is the candidate's share of the softmax, calibrated, less what the user and others have given back of
        it: the chance that it is next, and wanted.
        """
        if scored.heads is None or scored.lost is None or scored.chances is None:
            return {P_CLICK: scored.shares().double().cpu().numpy()}
        shares = scored.chances.double().cpu().numpy()
        heads = scored.heads.double().cpu().numpy()
        chances = heads[..., :-1]  # (N, K, T)
        others = np.maximum(0.0, 1 - chances.sum(-1))  # types that are not named weigh 1
        figures = {P_CLICK: shares * np.exp(scored.lost), VALUE: heads[..., -1]}
        figures |= {name: chances[..., at] for at, name in enumerate(self.names)}
        return figures | {WORTH: chances @ self.weights + others}

    def order(self, scored: ScoredCandidates, formula: Formula | None = None) -> NDArray[np.float32]:
        """Returns the values (N, K) by which candidates are ranked; −inf where there are no more of them.

        Args:
            scored: candidates of N queries.
            formula: of a request; None: that of the settings.
        """
        formula = self.formula() if formula is None else formula
        with np.errstate(all="ignore"):
            values = _evaluator(formula)(self.figures(scored))
            values = np.broadcast_to(values, scored.kept.shape).astype(np.float32)
        there = scored.kept >= 0
        wrong = there & ~np.isfinite(values)
        self.not_finite += int(wrong.sum())
        return np.where(there, np.where(wrong, np.float32(NOT_FINITE), values), -np.inf).astype(np.float32)


@lru_cache(maxsize=64)
def _evaluator(formula: Formula) -> Callable[[Figures], Doubles]:
    return compiled(formula.root)


def as_shares(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns values (n,) of an objective as shares that add up to 1, for what draws by shares or varies by them: they
    are moved up where any is below 0; equal ones have equal shares; those without a finite value have none."""
    finite = values > np.float32(NOT_FINITE)
    least = min(0.0, float(values[finite].min(initial=0.0)))
    shares = np.where(finite, values - least, 0.0)
    shares = shares if shares.any() else finite.astype(np.float64)
    return (shares / max(float(shares.sum()), 1e-30)).astype(np.float32)
