"""Messages that cannot be decoded: one letter, one notice, and everything else goes on as if they had not been."""

import pytest

from online.commands.redrive import reader_of, redrive
from stream.dead_letters import UNDECODABLE_BATCH, dead_letter, letters_in
from stream.events import Limits
from stream.items import Item, encode
from stream.source import Partition, Record, Undecodable

WHY = Undecodable(13, 20, 8, "its codec has the number 5, which is not known")
TEXT = "offsets 13 to 20, 8 messages: its codec has the number 5, which is not known"


def with_batch(harness, topic, at):
    """Puts a batch that cannot be decoded on the topic, in the place of the record that stands there."""
    held = harness.broker.topics[Partition(topic, 0)]
    held[at] = Record(topic, 0, at, held[at].timestamp_ms, None, None, (), WHY)


def letters(harness):
    return [(one.topic, one.partition, one.offset, one.reason, one.detail) for one in map(dead_letter, harness.dead())]


def test_an_undecodable_batch_is_reported_and_put_aside_and_later_clicks_learned(harness, town_clicks):
    harness.publish(town_clicks[:60])
    with_batch(harness, "clicks", 20)
    loop = harness.run()
    assert loop.progress.learned == 59
    assert loop.progress.dead_letters == {UNDECODABLE_BATCH: 1}
    assert letters(harness) == [("clicks", 0, 20, UNDECODABLE_BATCH, TEXT)]
    (notice,) = [one for one in loop.notices.latest if one.kind == "undecodable"]
    assert notice.text == f"clicks partition 0: {TEXT}; put aside, reading goes on behind"
    assert notice.figures == {"topic": "clicks", "partition": 0, "offset": 20, "messages": 8}


@pytest.mark.parametrize("call", [1, 2, 3])
def test_after_a_crash_it_stands_there_once(harness, town_clicks, call):
    harness.publish(town_clicks[:60])
    with_batch(harness, "clicks", 20)
    loop = harness.loop()
    harness.crash(loop.checkpoints, "save", call=call)
    if call == 3:
        harness.drain(harness.begin(loop))
    else:
        harness.crashes(loop)
    loop = harness.run()
    assert loop.progress.learned == 59
    assert loop.progress.dead_letters == {UNDECODABLE_BATCH: 1}
    assert len(letters(harness)) == 1


def test_items_behind_it_are_taken_in(harness, town_clicks):
    for number in range(8):
        harness.publish_item(f"x{number}", encode(Item(item_id=f"x{number}", available=False)))
    with_batch(harness, "items", 5)
    harness.publish(town_clicks[:20])
    loop = harness.run()
    assert loop.learner.unavailable == {f"x{number}" for number in range(8) if number != 5}
    assert letters(harness) == [("items", 0, 5, UNDECODABLE_BATCH, TEXT)]
    assert [one.kind for one in loop.notices.latest].count("undecodable") == 1


def test_it_is_not_sent_round_again_unless_it_was_repaired(harness, town_clicks):
    harness.publish(town_clicks[:30])
    with_batch(harness, "clicks", 20)
    harness.run()
    found, marked = letters_in(harness.dead())
    check = reader_of("clicks", "items", Limits())
    sent = []
    producer = type("P", (), {"send": lambda _, *a, **k: sent.append((a, k)), "flush": lambda _: None})()
    done = redrive(found, marked, producer, "clicks.dead", check=check)
    assert (done.as_dict(), sent) == ({"sent": 0, "stay": {"stands for a batch that cannot be decoded": 1}}, [])
    repaired = {("clicks", 0, 20): b'{"user_id": "u", "item_id": "i", "timestamp": 1730600000}'}
    done = redrive(found, marked, producer, "clicks.dead", check=check, repaired=repaired)
    assert done.sent == 1


def test_a_letter_that_cannot_be_decoded_itself_is_shown_as_one_and_is_nobodys():
    letter = dead_letter(Record("clicks.dead", 0, 20, -1, None, None, (), WHY))
    assert (letter.reason, letter.detail, letter.offset, letter.is_mark) == (UNDECODABLE_BATCH, TEXT, -1, False)


def test_positions_that_pass_what_no_message_comes_of_are_saved_and_committed(harness, town_clicks):
    """As Kafka's do at the marks of transactions, and where messages were aborted."""
    harness.publish(town_clicks[:40])
    loop = harness.begin(harness.loop())
    while loop.turn():
        pass
    loop.source.at[harness.partition()] += 3
    loop.turn()
    loop.finish()
    assert loop.source.commits[-1] == {harness.partition(): 43}
    again = harness.begin(harness.loop())
    assert again.progress.next_offsets[harness.partition()] == 43
    assert again.source.began_at[-1] == {harness.partition(): 43}
