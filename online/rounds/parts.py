"""Records in parts that fit into one message each, and joined again.

A part carries the digest of the whole record: so parts of several senders may come in any order and more than once,
and what was joined is what was sent.
"""

import hashlib
import struct
from collections import Counter, OrderedDict

from online.rounds.weights import RoundsError

PART_BYTES_MAX = 900_000  # Kafka takes 1 MB by default, its own header included
UNFINISHED_BYTES_MAX = 256 * 2**20
RECORD_BYTES_MAX = 2**30
PARTS_BETWEEN_MAX = 4_096  # messages between the first and the last part of a record
_HEAD = struct.Struct("<4s16sIII")  # magic, digest, number of the part, how many there are, bytes of the whole
_MAGIC = b"NCP1"


def split(record: bytes, part_bytes_max: int = PART_BYTES_MAX) -> list[bytes]:
    """Cuts a record into parts of at most `part_bytes_max` bytes, at least one. Raises RoundsError if it is empty or
    larger than RECORD_BYTES_MAX."""
    room = part_bytes_max - _HEAD.size
    if room < 1 or not 0 < len(record) <= RECORD_BYTES_MAX:
        raise RoundsError(f"{len(record)} bytes cannot be sent in parts of {part_bytes_max}")
    digest = hashlib.blake2b(record, digest_size=16).digest()
    pieces = [record[at : at + room] for at in range(0, len(record), room)]
    return [_HEAD.pack(_MAGIC, digest, n, len(pieces), len(record)) + piece for n, piece in enumerate(pieces)]


class Joiner:
    """Records whose parts have not all come yet; beyond a limit, the one begun longest ago is given up."""

    def __init__(self, bytes_max: int = UNFINISHED_BYTES_MAX) -> None:
        """`bytes_max`: of all unfinished records together."""
        self.bytes_max = bytes_max
        self.bytes = 0
        self.counts: Counter[str] = Counter()  # joined, repeated, given_up
        self._at: dict[tuple[bytes, int, int], int] = {}  # offset of the first part of each
        self._begun: OrderedDict[tuple[bytes, int, int], dict[int, bytes]] = OrderedDict()

    def __len__(self) -> int:
        """Unfinished records."""
        return len(self._begun)

    @property
    def oldest(self) -> int | None:
        """The smallest offset of a part of an unfinished record; None: there is none."""
        return min((self._at[key] for key in self._begun), default=None)

    def add(self, part: bytes, offset: int = 0) -> bytes | None:
        """Takes a part -> the record that it completes. Records whose first part stands PARTS_BETWEEN_MAX or more
        before this one's `offset` are given up: their sender is gone.

        Raises:
            RoundsError: it is no part, or what was joined is not what was sent.
        """
        if len(part) <= _HEAD.size:
            raise RoundsError(f"{len(part)} bytes are no part of a record")
        magic, digest, number, count, size = _HEAD.unpack_from(part)
        piece = part[_HEAD.size :]
        if magic != _MAGIC or number >= count or not len(piece) <= size <= RECORD_BYTES_MAX or count > size:
            raise RoundsError("not a part of a record")
        key = digest, count, size
        for old in [key for key, at in self._at.items() if at <= offset - PARTS_BETWEEN_MAX]:
            self._remove(old)
            self.counts["given_up"] += 1
        pieces = self._begun.setdefault(key, {})
        self._at.setdefault(key, offset)
        if number in pieces:
            self.counts["repeated"] += 1
            return None
        pieces[number] = piece
        self.bytes += len(piece)
        if len(pieces) == count:
            self._remove(key)
            record = b"".join(pieces[n] for n in range(count))
            if len(record) != size or hashlib.blake2b(record, digest_size=16).digest() != digest:
                raise RoundsError("the parts of a record do not make what was sent")
            self.counts["joined"] += 1
            return record
        while self.bytes > self.bytes_max:
            self._remove(next(iter(self._begun)))
            self.counts["given_up"] += 1
        return None

    def _remove(self, key: tuple[bytes, int, int]) -> None:
        del self._at[key]
        self.bytes -= sum(map(len, self._begun.pop(key).values()))
