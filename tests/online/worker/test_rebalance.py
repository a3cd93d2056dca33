"""Partitions are assigned and revoked: who reads them, from where, and who writes the lists of their users."""

from online.worker.progress import Progress
from stream.events import encode

# --- partitions come and go --------------------------------------------------------------------------------------


def test_revoked_partitions_are_in_a_checkpoint_and_committed_before_they_go(world, town_clicks):
    world.publish(town_clicks[:100], partitions=2)
    loop = world.begin(world.loop(checkpoint_interval_s=3_600.0))
    loop.turn()
    assert loop.source.commits == []
    at = dict(loop.source.positions())
    loop.source.revoking = [world.partition(1)]
    loop.turn()
    assert loop.source.commits == [at]  # while it still was ours, and nothing of the poll that followed
    _, _, state = loop.checkpoints.load()
    saved = Progress()
    saved.load_state(state["progress"])
    assert saved.next_offsets == at
    world.drain(loop)
    assert loop.source.commits[-1].keys() == {world.partition(0)}
    assert loop.progress.next_offsets[world.partition(1)] == at[world.partition(1)]


def test_a_partition_that_comes_back_goes_on_where_these_weights_left_it(world, town_clicks):
    world.publish(town_clicks[:100], partitions=2)
    loop = world.begin(world.loop())
    loop.turn()
    at = loop.source.positions()[world.partition(1)]
    loop.source.revoking = [world.partition(1)]
    world.drain(loop)
    world.broker.committed[world.partition(1)] = at + 5  # somebody else's
    loop.source.assign([world.partition(1)])
    assert loop.source.positions()[world.partition(1)] == at
    world.drain(loop)
    assert loop.progress.learned == 100


def test_what_the_broker_has_committed_decides_nothing(world, town_clicks):
    world.publish(town_clicks[:100])
    world.broker.committed[world.partition()] = 77
    assert world.run().progress.learned == 100


def test_a_new_partition_begins_at_its_earliest_record(world, town_clicks):
    world.publish(town_clicks[:50])
    world.run()
    for click in town_clicks[50:60]:
        world.broker.append("clicks", encode(click), partition=1)
    loop = world.run()
    assert loop.source.began_at == [{world.partition(0): 50, world.partition(1): 0}]
    assert loop.progress.learned == 60


def test_a_partition_given_up_before_anything_was_read_needs_no_checkpoint(world):
    world.broker.topics[world.partition()] = []
    loop = world.begin(world.loop())
    loop.source.revoking = [world.partition()]
    loop.turn()
    assert loop.checkpoints.numbers() == []


# --- two workers of a group --------------------------------------------------------------------------------------


def test_a_list_is_written_by_who_has_the_partition_and_anew_by_who_gets_it(world, town_clicks):
    world.publish(town_clicks[:100], partitions=2)
    loop = world.begin(world.loop())
    world.drain(loop)
    people = {
        number: {c.user_id for c in town_clicks[:100] if sum(c.user_id.encode()) % 2 == number} for number in (0, 1)
    }
    loop.source.revoking = [world.partition(1)]
    loop.turn()
    world.lists.held = {}
    loop.writer.renew_all()
    while loop.writer.stale:
        loop.turn()
    assert world.lists.held.keys() == people[0]
    loop.source.assign([world.partition(1)])
    loop.turn()
    while loop.writer.stale:
        loop.turn()
    assert world.lists.held.keys() == people[0] | people[1]


def test_while_no_partition_is_assigned_lists_are_written_as_before(world, town_clicks):
    world.publish(town_clicks[:60])
    loop = world.begin(world.loop())
    world.drain(loop)
    loop.source.revoking = [world.partition()]
    users, world.lists.held = set(world.lists.held), {}
    loop.writer.renew_all()
    for _ in range(3):
        loop.turn()
    assert set(world.lists.held) == users
