"""Partitions are assigned and revoked: who reads them, from where, and who writes the lists of their users."""

from online.worker.progress import Progress
from stream.events import encode

# --- partitions come and go --------------------------------------------------------------------------------------


def test_revoked_partitions_are_in_a_checkpoint_and_committed_before_they_go(harness, town_clicks):
    harness.publish(town_clicks[:100], partitions=2)
    loop = harness.begin(harness.loop(checkpoint_interval_s=3_600.0))
    loop.turn()
    assert loop.source.commits == []
    at = dict(loop.source.positions())
    loop.source.revoking = [harness.partition(1)]
    loop.turn()
    assert loop.source.commits == [at]  # while it still was ours, and nothing of the poll that followed
    _, _, state = loop.checkpoints.load()
    saved = Progress()
    saved.load_state(state["progress"])
    assert saved.next_offsets == at
    harness.drain(loop)
    assert loop.source.commits[-1].keys() == {harness.partition(0)}
    assert loop.progress.next_offsets[harness.partition(1)] == at[harness.partition(1)]


def test_a_partition_that_comes_back_goes_on_where_these_weights_left_it(harness, town_clicks):
    harness.publish(town_clicks[:100], partitions=2)
    loop = harness.begin(harness.loop())
    loop.turn()
    at = loop.source.positions()[harness.partition(1)]
    loop.source.revoking = [harness.partition(1)]
    harness.drain(loop)
    harness.broker.committed[harness.partition(1)] = at + 5  # another worker's
    loop.source.assign([harness.partition(1)])
    assert loop.source.positions()[harness.partition(1)] == at
    harness.drain(loop)
    assert loop.progress.learned == 100


def test_what_the_broker_has_committed_decides_nothing(harness, town_clicks):
    harness.publish(town_clicks[:100])
    harness.broker.committed[harness.partition()] = 77
    assert harness.run().progress.learned == 100


def test_a_new_partition_begins_at_its_earliest_record(harness, town_clicks):
    harness.publish(town_clicks[:50])
    harness.run()
    for click in town_clicks[50:60]:
        harness.broker.append("clicks", encode(click), partition=1)
    loop = harness.run()
    assert loop.source.began_at == [{harness.partition(0): 50, harness.partition(1): 0}]
    assert loop.progress.learned == 60


def test_a_partition_given_up_before_anything_was_read_needs_no_checkpoint(harness):
    harness.broker.topics[harness.partition()] = []
    loop = harness.begin(harness.loop())
    loop.source.revoking = [harness.partition()]
    loop.turn()
    assert loop.checkpoints.numbers() == []


# --- two workers of a group --------------------------------------------------------------------------------------


def test_a_list_is_written_by_who_has_the_partition_and_anew_by_who_gets_it(harness, town_clicks):
    harness.publish(town_clicks[:100], partitions=2)
    loop = harness.begin(harness.loop())
    harness.drain(loop)
    users_of = {
        number: {c.user_id for c in town_clicks[:100] if sum(c.user_id.encode()) % 2 == number} for number in (0, 1)
    }
    loop.source.revoking = [harness.partition(1)]
    loop.turn()
    harness.lists.held = {}
    loop.writer.renew_all()
    while loop.writer.stale:
        loop.turn()
    assert harness.lists.held.keys() == users_of[0]
    loop.source.assign([harness.partition(1)])
    loop.turn()
    while loop.writer.stale:
        loop.turn()
    assert harness.lists.held.keys() == users_of[0] | users_of[1]


def test_while_no_partition_is_assigned_lists_are_written_as_before(harness, town_clicks):
    harness.publish(town_clicks[:60])
    loop = harness.begin(harness.loop())
    harness.drain(loop)
    loop.source.revoking = [harness.partition()]
    users, harness.lists.held = set(harness.lists.held), {}
    loop.writer.renew_all()
    for _ in range(3):
        loop.turn()
    assert set(harness.lists.held) == users
