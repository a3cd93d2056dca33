"""The heads of one version of the weights: what they read, and how they are kept.

Letters: `N` queries, `K` candidates kept of each, `F` features of the ranker, `T` named event types, `W` columns.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from model.adam import Adam
from model.ranker import DEVIATION_MIN, Ranker
from online.config.settings import Settings
from online.learner.arrays import below
from online.learner.worth.facts import LOST, OF_TYPES, OTHERS

DEVIATIONS_MAX = 5.0  # of a feature, from its mean


def head_starts(F: int, T: int) -> list[list[float]]:
    """Returns initial weights (T + 1, D): the item's odds of a type times how the user's differ from the usual ones,
    and the item's mean value likewise."""
    W = len(OF_TYPES) * T + len(OTHERS[: LOST.start])
    starts = np.zeros((T + 1, F + W), np.float32)
    for t in range(T):
        starts[t, [F + t, F + T + t]] = 1.0
    others = F + len(OF_TYPES) * T
    starts[T, [others + OTHERS.index("item_value"), others + OTHERS.index("user_value")]] = 1.0
    found: list[list[float]] = starts.tolist()
    return found


def head_inputs(ranker: Ranker, features: Tensor, columns: Tensor) -> Tensor:
    """Returns what the heads read (N, K, D): the ranker's features (N, K, F), by their mean and deviation, and columns
    (N, K, W)."""
    scaled = (features - ranker.mean) / (ranker.variance.sqrt() + DEVIATION_MIN)
    return torch.cat([scaled.clamp_(-DEVIATIONS_MAX, DEVIATIONS_MAX), columns], -1)


def situations(ranker: Ranker, features: Tensor, columns: Sequence[int]) -> Tensor:
    """Returns what describes each query, (N, S): features that all its candidates share, by mean and deviation.

    Args:
        ranker: whose means and deviations.
        features: (N, K, F) of the candidates, the first of each query among them.
        columns: S of the features.
    """
    at = list(columns)
    scaled = (features[:, 0, at] - ranker.mean[at]) / (ranker.variance[at].sqrt() + DEVIATION_MIN)
    return scaled.clamp_(-DEVIATIONS_MAX, DEVIATIONS_MAX)


def types_as_bytes(settings: Settings) -> Tensor:
    """Returns the event types that have a head, as bytes: which head is whose, whatever the settings are later."""
    return torch.tensor(list("\n".join(settings.weights_by_type).encode()), dtype=torch.uint8)


def heads_moments(modules: Mapping[str, nn.Module], adam: Adam) -> dict[str, Tensor]:
    """Returns the optimizer's state of some modules by name; nothing before its first step."""
    found: dict[str, Tensor] = {}
    for of, module in modules.items():
        for name, parameter in module.named_parameters():
            found |= {f"{of}.{name}.{moment}": value for moment, value in adam.state.get(parameter, {}).items()}
    return found


@torch.no_grad()
def load_heads(modules: Mapping[str, nn.Module], adam: Adam, saved: Mapping[str, Tensor], settings: Settings) -> None:
    """Loads modules and their optimizer from a checkpoint. Those of other event types, or of before there were any, are
    of no use: then they begin anew."""
    adam.state.clear()
    if "heads_types" not in saved or not torch.equal(saved["heads_types"], types_as_bytes(settings)):
        return
    moments = below(saved, "heads_adam")
    for of, module in modules.items():
        module.load_state_dict(below(saved, of))
        for name, parameter in module.named_parameters():
            if state := below(moments, f"{of}.{name}"):
                adam.state[parameter] = {
                    moment: value if moment == "step" else value.to(parameter.device) for moment, value in state.items()
                }
