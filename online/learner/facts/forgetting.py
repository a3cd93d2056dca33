"""How items that lost their rows leave what remembers clicks.

Letters: `S` users, `H` places of each, `V` rows of items.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from online.learner.facts.jit import kernel


def marked(rows: Sequence[int]) -> NDArray[np.bool_]:
    """Returns a mask (V,) of these rows, as long as the last of them asks for; row 0, which is no item's, is not in
    it."""
    gone = np.zeros(1 + max(rows, default=0), np.bool_)
    gone[list(rows)] = True
    gone[0] = False
    return gone


@kernel
def clear_places(rows: NDArray[np.int32], lengths: NDArray[np.int64], gone: NDArray[np.bool_]) -> None:
    """Writes row 0 in place of rows that `gone` (V,) marks. One pass over what is in use.

    Args:
        rows: (S, H) of items.
        lengths: (S,) places in use, from the left; what is more than H counts as H.
        gone: (V,) rows beyond it are not marked.
    """
    for user in range(len(rows)):
        for place in range(min(lengths[user], rows.shape[1])):
            row = rows[user, place]
            if row < len(gone) and gone[row]:
                rows[user, place] = 0
