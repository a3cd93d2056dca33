"""The progress comes back from JSON as it was."""

import json

from online.worker.progress import Progress
from stream.source import Partition


def test_it_comes_back_from_json_as_it_was():
    progress = Progress({Partition("clicks", 0): 7, Partition("clicks", 3): 0}, learned=5, duplicates=2, finetunings=1)
    progress.dead_letters["malformed-json"] += 3
    again = Progress()
    again.load_state(json.loads(json.dumps(progress.to_state())))
    assert again == progress
    again.dead_letters["tombstone"] += 1  # still counts what it has not seen
    assert again.dead_letters["tombstone"] == 1


def test_its_state_is_a_copy():
    progress = Progress({Partition("clicks", 0): 7})
    before = progress.to_state()
    progress.next_offsets[Partition("clicks", 0)] = 8
    progress.dead_letters["tombstone"] += 1
    progress.learned += 1
    assert before == Progress({Partition("clicks", 0): 7}).to_state()
    assert before != progress.to_state()


def test_it_starts_partitions_it_has_read_and_leaves_others_to_the_source():
    progress = Progress({Partition("clicks", 0): 7, Partition("clicks", 2): 9})
    assert progress.starts([Partition("clicks", 0), Partition("clicks", 1)]) == {Partition("clicks", 0): 7}


def test_progress_starts_only_partitions_it_has_read():
    progress = Progress({Partition("clicks", 0): 7})
    assert progress.starts([Partition("clicks", 0), Partition("clicks", 1)]) == {Partition("clicks", 0): 7}
