"""Records as bytes: they come back as they were, and nothing that is wrong is taken."""

import json
import struct
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from online.rounds.base import BaseRecord
from online.rounds.change import Change
from online.rounds.encoding import MAGIC, decode, decode_change, encode_base, encode_change
from online.rounds.parts import PART_BYTES_MAX, Joiner, split
from online.rounds.weights import MEAN, VARIANCE, RoundsError
from tests.online.rounds.small import Worker

SHAPE = Worker("a").base.shape


def some_change() -> Change:
    worker = Worker("a")
    worker.train(0, 0, 10, ["x", "día ☀", ""])
    worker.train(3, 7, 9, ["y"])
    return worker.replica.change()


def some_base() -> BaseRecord:
    worker = Worker("a")
    worker.merger.add(some_change())
    worker.take(worker.merger.next_base(1))
    return worker.merger.snapshot()


def some_step() -> BaseRecord:
    worker = Worker("leader")
    worker.merger.add(some_change())
    return replace(worker.merger.next_base(1), forgotten=("gone",))


RECORDS = (encode_change(some_change()), encode_base(some_base()), encode_base(some_step()))


def same_tensors(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) and tensor.dtype == other[name].dtype for name, tensor in one.items()
    )


@pytest.mark.parametrize("make", [some_change, some_base, some_step])
def test_a_record_comes_back_as_it_was(make) -> None:
    record = make()
    again = decode((encode_change if isinstance(record, Change) else encode_base)(record), SHAPE)
    nothing = {"weights": None}
    assert vars(again) | nothing == vars(record) | nothing
    for part in ("dense", "rows", "statistics"):
        assert same_tensors(getattr(again.weights, part), getattr(record.weights, part))
    assert (again.weights.items, again.weights.counters) == (record.weights.items, record.weights.counters)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_record_or_an_error(data, with_magic) -> None:
    with pytest.raises(RoundsError):
        decode(MAGIC + data if with_magic else data, SHAPE)


@given(st.sampled_from(RECORDS), st.data())
def test_a_record_cut_short_is_an_error(record, data) -> None:
    with pytest.raises(RoundsError):
        decode(record[: data.draw(st.integers(0, len(record) - 1))], SHAPE)


@given(st.sampled_from(RECORDS), st.data())
def test_a_damaged_record_is_read_or_is_an_error(record, data) -> None:
    damaged = bytearray(record)
    for at in data.draw(st.lists(st.integers(0, len(record) - 1), min_size=1, max_size=4)):
        damaged[at] = data.draw(st.integers(0, 255))
    with suppress(RoundsError):
        decode(bytes(damaged), SHAPE).weights.check(SHAPE)


def tampered(record, header=None, tensors=None):
    """A record with other fields in its header, or other tensors."""
    (length,) = struct.unpack("<I", record[4:8])
    head = json.dumps(json.loads(record[8 : 8 + length]) | (header or {})).encode()
    body = record[8 + length :] if tensors is None else save(load(record[8 + length :]) | tensors)
    return MAGIC + struct.pack("<I", len(head)) + head + body


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    *("kind", "tag", "base", "clicks", "ranges", "number", "identity", "leader_epoch", "floor", "merged", "sequences"),
    *("parent", "leader", "taken", "dropped", "forgotten", "items", "counters", "discard"),
)


@given(st.sampled_from(RECORDS), st.sampled_from(FIELDS), anything)
def test_a_header_with_anything_in_it_is_read_or_is_an_error(record, field, value) -> None:
    with suppress(RoundsError):
        decode(tampered(record, {field: value}), SHAPE).weights.check(SHAPE)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"ranges": []}, "without offsets"),
        ({"ranges": [[0, 5, 5]]}, "offsets from 5 to 5"),
        ({"ranges": [[0, 1, 2], [0, 2, 3]]}, "twice"),
        ({"ranges": [[0, -1, 2]]}, "number"),
        ({"clicks": 0}, "without clicks"),
        ({"clicks": True}, "number"),
        ({"base": 2**63}, "number"),
        ({"tag": ["a", "1"]}, "not a record"),
        ({"tag": ["a" * 300, "1", 1]}, "name"),
        ({"counters": {"other": 1}}, "unknown"),
        ({"counters": {"ranker.batches": -1}}, "number"),
        ({"items": ["x"]}, "no such places"),
        ({"items": ["x", "x", "x", "x"]}, "twice"),
        ({"kind": "other"}, "not a record"),
    ],
)
def test_a_change_that_says_something_impossible_is_refused(header, words) -> None:
    with pytest.raises(RoundsError, match=words):
        decode(tampered(RECORDS[0], header), SHAPE)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"dense.network.up": torch.zeros(3, 2).half()}, "shape"),
        ({"dense.other": torch.zeros(3).half()}, "shape"),
        ({"dense.network.up": torch.full((2, 3), torch.inf).half()}, "finite"),
        ({"dense.network.up": torch.zeros(2, 3, dtype=torch.int32)}, "type"),
        ({"dense.network.up": torch.zeros(2, 3, dtype=torch.float64)}, "type"),
        ({"rows.network.items.vectors": torch.zeros(3, 4).half()}, "shape"),
        ({"rows.network.items.vectors": torch.full((4, 4), torch.nan).half()}, "finite"),
        ({"rows.other.vectors": torch.zeros(4, 4).half()}, "shape"),
        ({"items.network.items": torch.tensor([0, 1, 2, 9], dtype=torch.int32)}, "no such places"),
        ({"items.network.items": torch.tensor([0, 1, 2, 3])}, "no such places"),
        ({"items.other": torch.tensor([0], dtype=torch.int32)}, "unknown table"),
        ({"other": torch.zeros(1)}, "unknown part"),
        ({f"statistics.{MEAN}": torch.zeros(3).half()}, "float32"),
        ({f"statistics.{VARIANCE}": -torch.ones(3)}, "below 0"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors, words) -> None:
    with pytest.raises(RoundsError, match=words):
        decode(tampered(RECORDS[0], tensors=tensors), SHAPE)


def test_a_base_is_no_change() -> None:
    with pytest.raises(RoundsError, match="snapshot"):
        decode_change(RECORDS[1], SHAPE)


# Parts


@given(
    st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=4), st.integers(34, 120), st.randoms()
)  # fmt: skip
def test_parts_of_several_senders_in_any_order_make_their_records(records, part_bytes_max, random) -> None:
    records = list(dict.fromkeys(records))
    parts = [part for record in records for part in split(record, part_bytes_max)]
    assert max(map(len, parts)) <= part_bytes_max
    random.shuffle(parts)
    joiner = Joiner()
    joined = [record for part in parts if (record := joiner.add(part)) is not None]
    assert sorted(joined) == sorted(records)
    assert len(joiner) == joiner.bytes == 0


def test_a_part_that_comes_twice_counts_once() -> None:
    joiner, parts = Joiner(), split(b"x" * 100, 60)
    assert [joiner.add(part) for part in (parts[0], parts[0], parts[1], parts[0], parts[2])][-2:] == [None, None]
    assert joiner.add(parts[3]) == b"x" * 100
    assert joiner.counts == {"repeated": 2, "joined": 1}


def test_unfinished_records_are_bounded_and_the_oldest_is_given_up() -> None:
    joiner = Joiner(bytes_max=5_000)
    sent = [split(bytes([n]) * 1_500, 1_032) for n in range(20)]
    for parts in sent:
        joiner.add(parts[0])
    assert joiner.bytes <= 5_000
    assert joiner.counts["given_up"] == 15
    assert joiner.add(sent[0][1]) is None
    assert joiner.add(sent[-1][1]) == bytes([19]) * 1_500


@given(st.binary(max_size=80))
def test_bytes_that_are_no_part_are_an_error(data) -> None:
    with pytest.raises(RoundsError):
        Joiner().add(data)


def test_a_damaged_part_is_an_error_once_all_are_there() -> None:
    parts = split(b"x" * 100, 80)
    joiner = Joiner()
    joiner.add(parts[0])
    joiner.add(parts[1][:-1] + b"y")
    with pytest.raises(RoundsError, match="what was sent"):
        joiner.add(parts[2])
    assert len(joiner) == joiner.bytes == 0


def test_a_part_fits_into_a_message_of_kafkas_usual_size() -> None:
    assert PART_BYTES_MAX < 1_000_000
    assert max(map(len, split(bytes(2_000_001)))) <= PART_BYTES_MAX
    for bad in (b"", b"x"):
        with pytest.raises(RoundsError):
            split(bad, 20)
