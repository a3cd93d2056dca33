"""What clicks of a micro-batch add for those after them, against counts that were told of every click by itself."""

import math
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from online.counts import NEAR, Counts
from online.ranking import candidates
from online.ranking.ahead import Ahead, Counted
from online.ranking.candidates import Asked, Candidates, Gatherer
from online.ranking.entries import Places
from online.ranking.features import COUNTED

CPU = torch.device("cpu")
ROWS, HELD, HALF_LIVES = 10, 20, (3, 20)  # each row keeps as many others as there are
NAMES = [feature.name for feature in COUNTED] + [f"popularity_{n}" for n in HALF_LIVES]
row = st.integers(0, ROWS - 1)


class Made(NamedTuple):
    """A click: who, on what, when, and whether others learn of it."""

    user: int
    row: int
    time: int
    heard: bool


class Query(NamedTuple):
    """Somebody who is asked about after `came` clicks of the micro-batch, with clicks latest first."""

    came: int
    clicks: list[tuple[int, int]]  # row, time
    now: int
    recalled: int


@st.composite
def streams(draw: Any) -> tuple[list[Made], list[Made], list[Query]]:
    """Clicks that are counted, the micro-batch that follows, and who is asked about; times never fall."""
    clicks = draw(st.lists(st.builds(Made, st.integers(0, 2), row, st.integers(1, 5_000), st.booleans()), max_size=50))
    times = sorted(click.time for click in clicks)
    clicks = [click._replace(time=time) for click, time in zip(clicks, times, strict=True)]
    start = draw(st.integers(max(0, len(clicks) - 20), len(clicks)))
    history = st.lists(st.tuples(row, st.integers(1, 5_000)), max_size=6)
    query = st.builds(Query, st.integers(0, len(clicks) - start), history, st.integers(0, 9_000), row)
    return clicks[:start], clicks[start:], draw(st.lists(query, min_size=1, max_size=5))


def befores(clicks: list[Made]) -> list[list[int]]:
    """What each person had clicked before, latest first; a guarded click precedes nothing."""
    histories: dict[int, list[int]] = {}
    found = []
    for click in clicks:
        mine = histories.setdefault(click.user, [])
        found.append((mine[::-1] + [0] * NEAR)[:NEAR])
        mine.append(click.row if click.heard else 0)
    return found


def counted(clicks: list[Made], half_lives: tuple[int, ...] = HALF_LIVES, size: int = 1) -> Counts:
    """Told of `size` clicks at a time."""
    counts = Counts(HELD, half_lives, CPU)
    counts.grow(ROWS)
    told = [(click, before) for click, before in zip(clicks, befores(clicks), strict=True) if click.heard]
    for start in range(0, len(told), size):
        some, earlier = zip(*told[start : start + size], strict=True)
        times = torch.tensor([click.time for click in some], dtype=torch.float64)
        counts.add(torch.tensor([click.row for click in some]), torch.tensor(earlier), times)
    return counts


def ahead_of(counted: list[Made], batch: list[Made], came: list[int]) -> Ahead:
    earlier = befores(counted + batch)[len(counted) :]
    return Ahead(
        rows=torch.tensor([click.row for click in batch], dtype=torch.int64),
        heard=torch.tensor([click.heard for click in batch], dtype=torch.bool),
        earlier=torch.tensor(earlier, dtype=torch.int64).view(-1, NEAR),
        times=torch.tensor([click.time for click in batch], dtype=torch.float64),
        numbers=torch.arange(1_001, 1_001 + len(batch)),
        came=torch.tensor(came),
    )


def gathered(
    counts: Counts,
    queries: list[Query],
    ahead: Ahead | None = None,
    *,
    blocked: int = 0,
    exclude_seen: bool = False,
) -> Candidates:
    rows, times = torch.zeros(2, len(queries), 6, dtype=torch.float64)
    for at, query in enumerate(queries):
        for age, (clicked, time) in enumerate(query.clicks):
            rows[at, age], times[at, age] = clicked, time
    lengths = torch.tensor([len(query.clicks) for query in queries])
    now = torch.tensor([query.now for query in queries], dtype=torch.float64)
    flags = torch.zeros(len(counts), dtype=torch.bool)
    flags[blocked] = True
    recalled = torch.tensor([[query.recalled] for query in queries])
    asked = Asked(rows.long(), times, lengths, now, now)
    return Gatherer(counts).gather(asked, recalled, flags, exclude_seen=exclude_seen, ahead=ahead)


def of(query: int, found: Candidates) -> dict[int, list[float]]:
    """Features by row."""
    mine = found.owners == query
    return dict(zip(found.rows[mine].tolist(), found.features[mine].tolist(), strict=True))


def named(values: list[float], *, near: bool) -> dict[str, float]:
    values_of = dict(zip(NAMES, values, strict=True))
    return {name: value for name, value in values_of.items() if name.startswith("near") == near}


class TestGathered:
    @given(streams(), row, st.booleans())
    def test_each_query_finds_what_it_would_if_every_click_ahead_had_been_counted(
        self, stream: tuple[list[Made], list[Made], list[Query]], blocked: int, exclude_seen: bool
    ) -> None:
        """Only one popular item is looked at, and none that is near, so that candidates have to come of themselves."""
        before, batch, queries = stream
        ahead, limits = ahead_of(before, batch, [query.came for query in queries]), {"POPULAR_MAX": 1, "NEAR_MAX": 0}
        with mock.patch.multiple(candidates, **limits):
            found = gathered(counted(before), queries, ahead, blocked=blocked, exclude_seen=exclude_seen)
            for at, query in enumerate(queries):
                counts = counted(before + batch[: query.came])
                expected = of(0, gathered(counts, [query], blocked=blocked, exclude_seen=exclude_seen))
                mine = of(at, found)
                assert expected.keys() <= mine.keys()
                for item, values in expected.items():
                    assert named(mine[item], near=False) == pytest.approx(named(values, near=False), rel=1e-5, abs=1e-6)

    @given(streams())
    def test_what_is_near_is_counted_as_it_was_before_the_batch(
        self, stream: tuple[list[Made], list[Made], list[Query]]
    ) -> None:
        before, batch, queries = stream
        counts = counted(before)
        found = gathered(counts, queries, ahead_of(before, batch, [query.came for query in queries]))
        without = gathered(counts, queries)
        for at in range(len(queries)):
            mine, expected = of(at, found), of(at, without)
            assert expected.keys() <= mine.keys()
            assert mine.keys() - expected.keys() <= {click.row for click in batch[: queries[at].came]}
            for item, values in expected.items():
                assert named(mine[item], near=True) == pytest.approx(named(values, near=True), rel=1e-5, abs=1e-6)

    def test_guarded_clicks_and_those_that_come_later_add_nothing(self) -> None:
        before = [Made(0, 1, 10, heard=True), Made(0, 2, 20, heard=True), Made(1, 3, 30, heard=True)]
        batch = [Made(0, 4, 40, heard=False), Made(2, 5, 50, heard=False), Made(1, 6, 60, heard=True)]
        queries = [Query(2, [(2, 20), (1, 10)], 100, 0), Query(3, [(3, 30)], 100, 0)]
        found = gathered(counted(before), queries, ahead_of(before, batch, [2, 3]))
        without = gathered(counted(before), queries)
        assert of(0, found) == of(0, without)
        assert of(1, found).keys() - of(1, without).keys() == {6}

    def test_of_clicks_that_come_late_the_earliest_is_the_first_and_the_latest_the_last(self) -> None:
        before = [Made(0, 1, 500, heard=True)]
        batch = [Made(0, 1, 900, heard=True), *(Made(1, 2, time, heard=True) for time in (300, 100, 400, 200))]
        query = Query(5, [], 1_000, 0)
        found = of(0, gathered(counted(before), [query], ahead_of(before, batch, [5])))
        for item, first, last in ((1, 500, 900), (2, 100, 400)):
            values = named(found[item], near=False)
            assert values["elapsed"] == pytest.approx(math.log1p(1_000 - last) / 4)
            assert values["lifetime"] == pytest.approx(math.log1p(1_000 - first) / 4)
        at_once = of(0, gathered(counted(before + batch, size=6), [query]))
        assert named(found[2], near=False) == pytest.approx(named(at_once[2], near=False), rel=1e-5)


class TestAhead:
    @given(streams(), st.lists(row, min_size=5, max_size=5))
    def test_the_moments_ahead_are_those_that_had_the_same_item_before_them(
        self, stream: tuple[list[Made], list[Made], list[Query]], last: list[int]
    ) -> None:
        before, batch, queries = stream
        ahead = ahead_of(before, batch, [query.came for query in queries])
        found = ahead.moments(torch.tensor(last[: len(queries)]))
        expected = [
            [
                number if at < query.came and click.heard and click.row and item and item == earlier[0] else 0
                for at, (click, earlier, number) in enumerate(
                    zip(batch, ahead.earlier.tolist(), ahead.numbers.tolist(), strict=True)
                )
            ]
            for query, item in zip(queries, last, strict=False)
        ]
        assert found.tolist() == expected


def test_popularity_fades_with_each_click_heard_to_float32_precision() -> None:
    """32 clicks after 5,000 others, by half-lives from shorter than the batch to far longer than the stream."""
    half_lives = (3, 30, 3_000, 300_000)
    before = [Made(0, 1 + 7 * at % 9, at, heard=True) for at in range(5_000)]
    batch = [Made(1, 1 + at * at % 9, 5_000 + at, heard=at % 5 != 2) for at in range(32)]
    came = [0, 1, 17, 32]
    counts = counted(before, half_lives, size=50)
    ahead, owners = ahead_of(before, batch, came), torch.arange(4).repeat_interleave(ROWS)
    every = Places(CPU)
    every.room(4 * ROWS)
    every.set(torch.arange(4 * ROWS))  # each row is a candidate of each query
    added = Counted(ahead, torch.zeros(4, NEAR, dtype=torch.int64), torch.arange(4)[:, None] * ROWS)
    added.find(every)
    found = added.popularity(counts.popularity(torch.arange(ROWS)).repeat(4, 1), owners, half_lives)
    for query, so_many in enumerate(came):
        stream = [click for click in before + batch[:so_many] if click.heard]
        for column, half_life in enumerate(half_lives):
            expected = [0.0] * ROWS
            for at, click in enumerate(stream):
                expected[click.row] += 2 ** (-(len(stream) - at) / half_life)
            mine = found[query * ROWS : (query + 1) * ROWS, column].tolist()
            assert mine == pytest.approx(expected, rel=1e-6, abs=1e-12)
