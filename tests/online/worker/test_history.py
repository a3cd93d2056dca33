"""The course of a worker's figures: a row for each minute, bounded, found again after a start."""

from typing import Any

import fakeredis
import pytest

from online.worker import history as history_module
from online.worker.history import FIELDS, History, rows_of
from stream.lists import Lists, ListsError


def status(learned: int, **changed: Any) -> dict[str, Any]:
    hits = {name: {"hit@10": share} for name, share in (("served", 0.61234), ("followed", 0.5), ("popular", 0.1))}
    return {
        "learned": learned, "lag": 3, "click_to_list_ms": {"p50": 20.5, "p99": None}, "recent": hits, "loss": 3.21987,
        "dead_letters": {"malformed-json": learned // 100}, "problems": [{"kind": "lagging"}],
    } | changed  # fmt: skip


def lists() -> Lists:
    return Lists(fakeredis.FakeRedis(), ttl_s=60)


def noted(link: Lists, seconds: list[float]) -> History:
    """A history with a report at each of these times; ten clicks are learned per second."""
    history = History(link, lambda: now)
    for now in seconds:
        history.note(status(int(10 * now)))
    return history


def test_a_row_has_the_minute_s_rates_and_the_figures_at_its_end() -> None:
    link = lists()
    noted(link, [1_000, 1_030, 1_059, 1_060, 1_090])
    rows = [dict(zip(FIELDS, row, strict=True)) for row in rows_of(link.history())]
    assert rows == [
        {
            "at": 1_060_000, "clicks_per_s": 10.0, "lag": 3, "p50": 20.5, "p99": None, "served": 0.6123,
            "followed": 0.5, "popular": 0.1, "loss": 3.22, "dead_letters": 6, "problems": 1,
        }
    ]  # fmt: skip
    assert 86_000 < link.client.ttl("nextclick:history") <= 86_400


def test_a_status_without_figures_has_a_row_of_nothing() -> None:
    link, times = lists(), iter((0.0, 60.0))
    history = History(link, lambda: next(times))
    for _ in range(2):
        history.note({"state": "waiting"})
    assert rows_of(link.history()) == [(60_000, 0.0, *[None] * 7, 0, None)]


def test_a_worker_that_starts_goes_on_with_the_rows_of_before() -> None:
    link = lists()
    noted(link, [0, 60, 120])
    noted(link, [1_000, 1_060])
    assert [row[0] for row in rows_of(link.history())] == [60_000, 120_000, 1_060_000]


def test_it_is_bounded_and_a_clock_that_is_set_back_does_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "MINUTES_MAX", 50)
    link = lists()
    noted(link, [60.0 * n for n in range(60)])
    rows = rows_of(link.history())
    assert (len(rows), rows[0][0], rows[-1][0]) == (50, 600_000, 3_540_000)
    noted(link, [1_000_000, 500, 560])
    assert rows_of(link.history())[-1][0] == 560_000


def test_rows_are_kept_while_redis_is_away() -> None:
    server = fakeredis.FakeServer()
    link, now = Lists(fakeredis.FakeRedis(server=server), ttl_s=60), 0.0
    history = History(link, lambda: now)
    history.note(status(0))
    server.connected = False
    now = 60.0
    with pytest.raises(ListsError):
        history.note(status(600))
    server.connected, now = True, 120.0
    history.note(status(1_200))
    assert [row[0] for row in rows_of(link.history())] == [60_000, 120_000]


def test_each_worker_of_a_group_has_its_own() -> None:
    client = fakeredis.FakeRedis()
    noted(Lists(client, ttl_s=60, worker="a"), [0, 60])
    assert rows_of(Lists(client, ttl_s=60).history()) == []
    assert len(rows_of(Lists(client, ttl_s=60).history("a"))) == 1


@pytest.mark.parametrize(
    "value", [None, {}, {"at": 3}, {name: [1] for name in FIELDS[:-1]}, dict.fromkeys(FIELDS, "x")]
)
def test_a_value_of_another_shape_is_none(value: Any) -> None:
    assert rows_of(value) == []


def test_columns_of_different_lengths_are_none_and_what_is_no_number_is_unknown() -> None:
    assert rows_of({name: [1] * n for n, name in enumerate(FIELDS)}) == []
    assert rows_of({name: [1.0] for name in FIELDS} | {"lag": ["many"]})[0][2] is None
