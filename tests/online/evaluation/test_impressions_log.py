"""Clicks become rewards of the lists that they followed, and what tells nothing is left out and said."""

from online.evaluation.impressions_log import join
from stream.events import Click
from stream.impressions import Impression, ShownItem


def shown(request_id, *items, user="u", at=1_000.0, explored=True, propensity=0.5, reward=None):
    listed = tuple(
        ShownItem(item_id=item, position=place, propensity=propensity, reward=reward)
        for place, item in enumerate(items, start=1)
    )
    return Impression(
        request_id=request_id, user_id=user, timestamp=at, policy="p", version=1, explored=explored, items=listed
    )


def click(item, at, user="u"):
    return Click(user_id=user, item_id=item, timestamp=at)


def rewards(joined):
    return {row["request_id"]: [item["reward"] for item in row["items"]] for row in joined.rows}


LATE = click("z", 1e6, "other")  # so that each window is over


def test_a_click_counts_for_its_user_and_item_within_the_window():
    lists = [shown("r1", "a", "b", "c"), shown("r2", "a", user="v"), shown("r3", "a", at=1_100.0)]
    clicks = [click("b", 1_060.0), click("c", 1_061.0), click("a", 999.0), click("a", 1_160.0), LATE]
    joined = join(lists, clicks, attribution_s=60)
    assert rewards(joined) == {"r1": [0.0, 1.0, 0.0], "r2": [0.0], "r3": [1.0]}
    assert joined.remarks == ["2 items of 3 lists were clicked within 1 minutes: reward 1"]
    both = join(lists, [click("a", 1_100.0), LATE], attribution_s=600)
    assert rewards(both) == {"r1": [1.0, 0.0, 0.0], "r2": [0.0], "r3": [1.0]}


def test_rewards_that_a_record_has_are_kept():
    joined = join([shown("r1", "a", "b", user=None, reward=2.5)], [], attribution_s=60)
    assert (rewards(joined), joined.remarks) == ({"r1": [2.5, 2.5]}, [])


def test_what_tells_nothing_is_left_out_and_said():
    lists = [
        shown("r1", "a", propensity=None), shown("r2", "a", propensity=None), shown("r3", "a", user=None),
        shown("r4", "a", explored=False, propensity=1.0), shown("r5", "a"), shown("r5", "b"),
    ]  # fmt: skip
    joined = join(lists, [LATE], attribution_s=60)
    assert list(rewards(joined)) == ["r5"]
    assert joined.remarks[:4] == [
        "2 of 6 lists have no propensities: left out",
        "1 of 6 lists have neither rewards nor a user whose clicks could be joined: left out",
        "1 of 6 lists could show nothing else (not explored, each propensity is 1): left out",
        "1 of 6 lists repeat a request_id: left out",
    ]


def test_lists_whose_clicks_may_still_come_are_said():
    joined = join([shown("r1", "a"), shown("r2", "a", at=2_000.0)], [click("b", 2_010.0)], attribution_s=60)
    assert any(line.startswith("1 lists are so recent") for line in joined.remarks)
