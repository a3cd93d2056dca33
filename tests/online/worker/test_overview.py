"""Of several statuses: who leads, who owns what, what is wrong, and what there is of all workers together."""

import time

import fakeredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.worker.overview import Overview, read_overview
from online.worker.problem_kinds import KINDS
from online.worker.totals import total
from stream.lists import Lists, ListsError, RedisUnavailableError
from tests.online.worker.group_statuses import NOW_MS, group_statuses, status_of


@pytest.fixture
def client():
    return fakeredis.FakeRedis()


def lists(client, worker=None):
    return Lists(client, ttl_s=60, worker=worker)


def overview(**changed):
    return Overview(NOW_MS, None, group_statuses() | changed, {})


def kinds(found):
    return [(one["kind"], one["worker"]) for one in found.problems()]


def test_a_worker_alone_is_its_own_overview(client):
    alone = {"state": "running", "learned": 3, "problems": [{"kind": "lagging", "since": 1, "text": "late"}]}
    lists(client).write_status(alone, 60)
    found = read_overview(lists(client))
    assert (found.many, found.leader, found.rows()) == (False, None, [])
    assert found.alone == found.model() == total(found) == alone
    assert found.problems() == alone["problems"]


def test_where_none_reports_there_is_nothing_but_names(client):
    found = read_overview(lists(client))
    assert (found.many, found.model(), total(found), found.problems(), found.gone) == (False, None, None, [], {})
    lists(client, "w-1").write_status({"state": "running"}, 60)
    client.delete("nextclick:worker:w-1")
    found = read_overview(lists(client))
    assert (found.many, found.model()) == (False, None)
    assert found.gone.keys() == {"w-1"}


def test_a_worker_that_stops_reporting_is_gone_and_one_that_signs_off_is_not_missed(client):
    for name in ("w-1", "w-2", "w-3"):
        lists(client, name).write_status(group_statuses()[name], 60)
    client.delete("nextclick:worker:w-2")  # as its time to live does
    lists(client, "w-3").sign_off()
    found = read_overview(lists(client))
    assert list(found.statuses) == ["w-1"]
    assert abs(found.gone["w-2"] - 1_000 * time.time()) < 5_000
    assert [(row["name"], row["state"]) for row in found.rows()] == [("w-1", "running"), ("w-2", "gone")]
    assert ("worker_gone", "w-2") in kinds(found)
    assert "w-3" not in str(found.problems())
    assert lists(client, "w-3").status() is not None  # until it expires


def test_a_user_who_may_not_read_names_sees_a_worker_that_is_alone_and_no_others(client, monkeypatch, caplog):
    here = lists(client)

    def refuse():
        raise ListsError("NOPERM zrange")

    monkeypatch.setattr(here, "read_names", refuse)
    for _ in range(2):
        assert read_overview(here).model() is None
    assert caplog.text.count("NOPERM") == 1
    here.write_status({"learned": 1}, 60)
    assert read_overview(here).model() == {"learned": 1}

    def away():
        raise RedisUnavailableError("no Redis answers")

    client.flushall()
    monkeypatch.setattr(here, "read_names", away)
    with pytest.raises(RedisUnavailableError):
        read_overview(here)


def test_who_leads_and_who_owns_what():
    found = overview()
    assert (found.leader, found.model()["version"]) == ("w-1", 7)
    assert found.owners() == {0: "w-1", 1: "w-1", 2: "w-2", 3: "w-3"}
    assert found.problems() == []
    rows = {row["name"]: row for row in found.rows()}
    assert [row["leads"] for row in rows.values()] == [True, False, False]
    assert (rows["w-1"]["owned"], rows["w-1"]["lag"], rows["w-1"]["lag_s"]) == ([0, 1], 3, 0.5)
    assert (rows["w-2"]["lag"], rows["w-2"]["learned"], rows["w-2"]["learned_from"]) == (3, 400, 100)
    assert rows["w-3"]["round_age_s"] == 3.0  # 2 s when it was written, a second ago
    assert rows["w-1"]["changes_dropped"] == 4


def test_of_two_that_believe_to_lead_the_later_one_does():
    assert overview(**{"w-2": status_of("w-2", [2], leads=True, leader_epoch=9)}).leader == "w-2"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"w-1": status_of("w-1", [0, 1])}, [("no_leader", None)]),
        ({"w-2": status_of("w-2", [])}, [("unowned", None)]),
        ({"w-3": status_of("w-3", [3], problems=[{"kind": "redis", "since": 1, "text": "x"}])}, [("redis", "w-3")]),
        ({"w-3": status_of("w-3", [3], base=20, round_age_s=100.0)}, [("base_stale", "w-3")]),
        ({"w-3": status_of("w-3", [3], base=20, round_age_s=10.0)}, []),
        (
            {
                "w-1": status_of("w-1", [0], leads=False, problems=[{"kind": "outage", "since": 1, "text": "x"}]),
                "w-2": status_of("w-2", [2]),
            },
            [("no_leader", None), ("unowned", None), ("outage", "w-1")],
        ),
    ],
)
def test_what_is_wrong_has_a_line_each_the_gravest_first(changed, expected):
    found = overview(**changed)
    assert kinds(found) == expected
    assert all(one["text"] for one in found.problems())
    assert {kind for kind, _ in kinds(found)} <= set(KINDS)


@pytest.mark.parametrize(("unmerged", "expected"), [(5, [("base_stale", None)]), (0, [])])
def test_a_base_that_does_not_move_is_a_problem_only_where_something_was_learned(unmerged, expected):
    statuses = group_statuses(round_age_s=100.0)
    statuses["w-2"]["group"]["unmerged"] = unmerged
    found = Overview(NOW_MS, None, statuses, {})
    assert kinds(found) == expected
    if expected:
        assert found.problems()[0]["since"] == NOW_MS - 101_000
    slow = group_statuses(round_age_s=100.0, round_s=10.0, unmerged=5)  # 12 rounds have not passed
    assert Overview(NOW_MS, None, slow, {}).problems() == []


def test_a_group_without_any_base_is_judged_by_how_long_it_runs():
    long_ago = group_statuses(round_age_s=None, unmerged=5, started_at=NOW_MS - 200_000)
    assert kinds(Overview(NOW_MS, None, long_ago, {})) == [("base_stale", None)]
    assert kinds(Overview(NOW_MS, None, group_statuses(round_age_s=None, unmerged=5, started_at=NOW_MS), {})) == []


def test_the_total_sums_shares_and_takes_the_model_from_the_leader():
    found = total(overview())
    assert (found["learned"], found["learned_from"], found["scored"]) == (400, 400, 300)
    assert (found["version"], found["alarms"], found["versions"]) == (7, 1, ["those of w-1"])
    assert found["dead_letters"] == {"tombstone": 3}
    assert found["flagged"] == {"rate": 9}  # each judges all clicks
    assert found["recent"]["served"]["hit@10"] == pytest.approx(0.3)
    assert (found["lag"], found["lag_s"]) == (1 + 2 + 3 + 4, 0.5)
    assert found["lag_of"] == {f"clicks:{n}": n + 1 for n in range(4)}
    assert found["group"] == {
        "reporting": 3, "gone": 0, "leader": "w-1", "partitions": 4, "unowned": 0, "base": 42,
    }  # fmt: skip
    assert found["waits_for"] == []


def test_lists_of_partitions_that_none_owns_count_as_lag():
    found = total(overview(**{"w-2": status_of("w-2", [])}))
    assert found["lag_of"]["clicks:2"] == 3
    assert found["group"]["unowned"] == 1


def test_a_group_waits_if_all_of_its_workers_do():
    waiting = {"state": "waiting", "waits_for": ["no Kafka"], "problems": [], "written_at": NOW_MS, "redis": "ok"}
    one = total(overview(**{"w-2": waiting}))
    assert (one["state"], one["waits_for"]) == ("running", [])
    found = total(Overview(NOW_MS, None, {"w-1": waiting, "w-2": waiting}, {}))
    assert (found["state"], found["waits_for"]) == ("waiting", ["w-1: no Kafka", "w-2: no Kafka"])


@given(
    changed=st.dictionaries(
        st.sampled_from([*status_of("w-2", [2]), "group"]),
        st.none() | st.text(max_size=3) | st.lists(st.integers(), max_size=2) | st.integers() | st.just({}),
    )
)
def test_any_status_that_an_older_or_newer_worker_writes_can_be_read(changed):
    found = overview(**{"w-2": {**status_of("w-2", [2]), **changed}})
    assert total(found) is not None
    assert len(found.rows()) == 3
    found.problems()
