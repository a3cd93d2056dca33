"""Operators are told when items or users have to make room for others."""

import pytest

from online.worker.loss_notices import SEEN_REPORTED_AGAIN_S, LossNotices
from stream.events import Click


def clicks(users: int, items: int) -> list[Click]:
    return [
        Click(user_id=f"u{n % users}", item_id=f"i{n % items}", timestamp=1.7e9 + n)
        for n in range(3 * max(users, items))
    ]


def told(loop, kind):
    return [notice for notice in loop.notices.latest if notice.kind == kind]


@pytest.mark.parametrize(
    ("kind", "setting", "users", "items"),
    [("items_lost", "NEXTCLICK_ITEMS_HELD", 10, 90), ("users_lost", "NEXTCLICK_USERS_HELD", 90, 10)],
)
def test_what_has_to_make_room_is_reported_once_with_what_to_do(harness, kind, setting, users, items):
    harness.publish(clicks(users, items))
    loop = harness.run(items_held=60, users_held=60)
    (notice,) = told(loop, kind)
    assert f"no more than 60 {'' if kind == 'items_lost' else 'users '}are held ({setting})" in notice.text
    assert notice.figures["held_max"] == 60
    assert 0 < notice.figures["lost"] <= 30
    assert loop.learner.items.lost + loop.learner.histories.users_lost > 30


def test_while_all_fit_nothing_is_reported(harness):
    harness.publish(clicks(60, 60))
    loop = harness.run(items_held=60, users_held=60)
    assert not told(loop, "items_lost")
    assert not told(loop, "users_lost")


class Held:
    """As many as may be held, and how many were lost."""

    users_held = 7
    users_lost = 0


def test_what_is_lost_all_day_is_reported_once_a_day():
    emitted, now, held = [], [1_000.0], Held()
    losses = LossNotices(lambda kind, _, figures: emitted.append((kind, figures["lost"])), lambda: now[0])
    for lost, later in ((0, 1), (3, 1), (4, 100), (9, SEEN_REPORTED_AGAIN_S), (9, SEEN_REPORTED_AGAIN_S)):
        held.users_lost, now[0] = lost, now[0] + later
        losses.users(held)
    assert emitted == [("users_lost", 3), ("users_lost", 6)]
