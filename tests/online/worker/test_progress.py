"""The ledger comes back from JSON as it was."""

import json

from online.worker.progress import Ledger
from stream.source import Partition


def test_it_comes_back_from_json_as_it_was():
    ledger = Ledger({Partition("clicks", 0): 7, Partition("clicks", 3): 0}, learned=5, duplicates=2, finetunings=1)
    ledger.dead_letters["malformed-json"] += 3
    again = Ledger()
    again.load_state(json.loads(json.dumps(ledger.to_state())))
    assert again == ledger
    again.dead_letters["tombstone"] += 1  # still counts what it has not seen
    assert again.dead_letters["tombstone"] == 1


def test_its_state_is_a_copy():
    ledger = Ledger({Partition("clicks", 0): 7})
    before = ledger.to_state()
    ledger.next_offsets[Partition("clicks", 0)] = 8
    ledger.dead_letters["tombstone"] += 1
    ledger.learned += 1
    assert before == Ledger({Partition("clicks", 0): 7}).to_state()
    assert before != ledger.to_state()


def test_it_starts_partitions_it_has_read_and_leaves_others_to_the_source():
    ledger = Ledger({Partition("clicks", 0): 7, Partition("clicks", 2): 9})
    assert ledger.starts([Partition("clicks", 0), Partition("clicks", 1)]) == {Partition("clicks", 0): 7}
