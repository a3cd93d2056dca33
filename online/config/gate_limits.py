"""When a gate (online/lifecycle/gate.py) decides."""

from dataclasses import dataclass

BLOCKS_MIN = 10  # before the first decision: a standard deviation of fewer is not to be trusted


@dataclass(frozen=True)
class GateLimits:
    """When a gate decides.

    `alpha`: the most that the probability of publishing what is worse than the margin may be, and that of rejecting
    what is not worse. `margin`: share of the live model's score that a candidate may lack and still be published; below
    0 it has to be better by that much. `block_clicks`: clicks averaged into one value. `clicks_max`: clicks after which
    it decides whatever is known.
    """

    alpha: float
    margin: float
    block_clicks: int
    clicks_max: int
