"""Micro-batches keep the order of clicks and both limits."""

import numpy as np
import pytest

from online.worker.micro_batches import ReceivedClick, micro_batches
from stream.events import Click
from stream.source import Record


def arrived(users):
    return [
        ReceivedClick(Click(user_id=user, item_id="i", timestamp=0), Record("clicks", 0, at, 0, None, b""))
        for at, user in enumerate(users)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_micro_batches_keep_order_and_both_limits(seed):
    random = np.random.default_rng(seed)
    clicks = arrived([f"u{number}" for number in random.integers(0, random.integers(1, 6), 50)])
    size_max, per_user_max = (int(number) for number in random.integers(1, 9, 2))
    batches = list(micro_batches(clicks, size_max, per_user_max))
    assert [one for batch in batches for one in batch] == clicks
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        users = [one.click.user_id for one in batch]
        assert len(batch) <= size_max
        assert all(users.count(user) <= per_user_max for user in users)
        if following is not None:  # no batch ends earlier than it has to
            assert len(batch) == size_max or users.count(following[0].click.user_id) == per_user_max


def test_no_clicks_are_no_batches():
    assert list(micro_batches([], 8, 8)) == []


def test_an_offset_names_the_next_one_to_read():
    (one,) = arrived(["u"])
    assert one.offset == "0:1"
