"""Changes and bases as bytes: 8 bytes of magic and length, a JSON header, and tensors in safetensors' format.

Nothing is unpickled. Everything that is read is checked; what is wrong is a RoundsError.
"""

import json
import struct
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from online.learner.arrays import below
from online.rounds.base import BaseRecord, Kind, Position
from online.rounds.change import Change, Ranges, Tag
from online.rounds.weights import RoundsError, Shape, Weights

MAGIC = b"NCR1"
NAME_LENGTH_MAX = 256  # of workers, epochs, identities
NUMBER_MAX = 2**63 - 1
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_UNREADABLE = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error)


def encode_change(change: Change) -> bytes:
    """Returns a change as bytes."""
    header = {
        "kind": "change",
        "tag": list(change.tag),
        "base": change.base,
        "clicks": change.clicks,
        "ranges": [[partition, *bounds] for partition, bounds in change.ranges.items()],
    }
    return _packed(header, change.weights)


def encode_base(record: BaseRecord) -> bytes:
    """Returns a leader's record as bytes."""
    position = record.position
    header = {
        "kind": record.kind.value,
        "number": position.number,
        "identity": position.identity,
        "leader_epoch": position.leader_epoch,
        "floor": position.floor,
        "merged": list(position.merged.items()),
        "sequences": [[worker, *latest] for worker, latest in position.sequences.items()],
        "parent": record.parent,
        "leader": record.leader,
        "clicks": record.clicks,
        "taken": [list(tag) for tag in record.taken],
        "dropped": [list(tag) for tag in record.dropped],
        "forgotten": list(record.forgotten),
        "discard": record.discard,
    }
    return _packed(header, record.weights)


def decode(data: bytes, shape: Shape) -> Change | BaseRecord:
    """Reads a record of either kind.

    Args:
        data: a whole record.
        shape: of the reader's weights; others are refused.

    Raises:
        RoundsError: it is not a record, or it says something impossible.
    """
    try:
        header, weights = _unpacked(data)
        weights.check(shape)
        return _change(header, weights) if header["kind"] == "change" else _base(header, weights)
    except RoundsError:
        raise
    except _UNREADABLE as error:
        raise RoundsError(f"not a record about weights: {type(error).__name__}: {error}") from error


def decode_change(data: bytes, shape: Shape) -> Change:
    """Reads a change. Raises RoundsError, also if it is another record."""
    record = decode(data, shape)
    if not isinstance(record, Change):
        raise RoundsError(f"a {record.kind.value} where a change was expected")
    return record


def _change(header: dict[str, Any], weights: Weights) -> Change:
    ranges: Ranges = {}
    for partition, start, stop in header["ranges"]:
        ranges[_number(partition)] = _number(start), _number(stop)
        if start >= stop:
            raise RoundsError(f"partition {partition}: offsets from {start} to {stop}")
    if not ranges or len(ranges) != len(header["ranges"]):
        raise RoundsError("a change without offsets, or with a partition twice")
    clicks = _number(header["clicks"])
    if clicks < 1:
        raise RoundsError("a change without clicks")
    if min(weights.counters.values(), default=0) < 0:
        raise RoundsError("a counter that shrinks")
    return Change(_tag(header["tag"]), _number(header["base"]), clicks, ranges, weights)


def _base(header: dict[str, Any], weights: Weights) -> BaseRecord:
    forgotten = header["forgotten"]
    if not all(isinstance(item, str) for item in forgotten) or not isinstance(header["discard"], bool):
        raise RoundsError("items that are no strings, or `discard` that is neither true nor false")
    position = Position(
        number=_number(header["number"]),
        identity=_name(header["identity"]),
        leader_epoch=_number(header["leader_epoch"]),
        floor=_number(header["floor"]),
        merged={_number(partition): _number(offset) for partition, offset in header["merged"]},
        sequences={_name(worker): (_name(epoch), _number(at)) for worker, epoch, at in header["sequences"]},
    )
    return BaseRecord(
        kind=Kind(header["kind"]),
        position=position,
        parent=_name(header["parent"]),
        leader=_name(header["leader"]),
        clicks=_number(header["clicks"]),
        weights=weights,
        taken=tuple(map(_tag, header["taken"])),
        dropped=tuple(map(_tag, header["dropped"])),
        forgotten=tuple(forgotten),
        discard=header["discard"],
    )


def _tag(fields: Any) -> Tag:
    worker, epoch, sequence = fields
    return Tag(_name(worker), _name(epoch), _number(sequence))


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > NAME_LENGTH_MAX:
        raise RoundsError(f"a name was expected: {str(value)[:50]!r}")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= NUMBER_MAX:
        raise RoundsError(f"a number from 0 to 2^63 - 1 was expected: {str(value)[:50]!r}")
    return value


def _packed(header: dict[str, Any], weights: Weights) -> bytes:
    ids = {item: at for at, item in enumerate(dict.fromkeys(i for items in weights.items.values() for i in items))}
    tensors: dict[str, Tensor] = {}
    for part in ("dense", "rows", "statistics"):
        tensors |= {f"{part}.{name}": tensor.contiguous() for name, tensor in getattr(weights, part).items()}
    for group, items in weights.items.items():
        tensors[f"items.{group}"] = torch.tensor([ids[item] for item in items], dtype=torch.int32)
    head = json.dumps(header | {"items": list(ids), "counters": weights.counters}, ensure_ascii=False).encode()
    return MAGIC + struct.pack("<I", len(head)) + head + save(tensors)


def _unpacked(data: bytes) -> tuple[dict[str, Any], Weights]:
    if data[:4] != MAGIC:
        raise RoundsError("not a record about weights, or one of another version")
    (length,) = struct.unpack("<I", data[4:8])
    if len(data) < 8 + length:
        raise RoundsError(f"{len(data)} bytes, the header alone has {length}")
    header = json.loads(data[8 : 8 + length])
    tensors = load(bytes(data[8 + length :]))
    ids, items = header["items"], {}
    if not all(isinstance(item, str) for item in ids):
        raise RoundsError("an item's id that is no string")
    for group, places in below(tensors, "items").items():
        if places.dtype != torch.int32 or places.dim() != 1 or bool(((places < 0) | (places >= len(ids))).any()):
            raise RoundsError(f"items of {group}: no such places")
        items[group] = tuple(ids[at] for at in places.tolist())
    dense, rows, statistics = (below(tensors, part) for part in ("dense", "rows", "statistics"))
    weights = Weights(dense, items, rows, statistics, header["counters"])
    known = sum(len(part) for part in (dense, items, rows, statistics))
    if known != len(tensors) or any(t.dtype not in _DTYPES for t in (weights.dense | weights.rows).values()):
        raise RoundsError("tensors of an unknown part or type")
    if any(tensor.dtype != torch.float32 for tensor in weights.statistics.values()):
        raise RoundsError("running statistics have to be float32")
    for growth in weights.counters.values():
        _number(growth)
    return header, weights
