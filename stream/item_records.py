"""What is known of items, in Redis: what the items topic says of each, for processes that show lists.

| key | value | lifetime |
| --- | --- | --- |
| `nextclick:item:{item_id}` | JSON of `ItemRecord` | `ttl_s`, renewed at a quarter of it |
| `nextclick:items` | how many of them there are; it stands only while all of them do | likewise |

An item that the worker holds nothing of any more expires. Every command has one key, so that a cluster takes it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import redis
from pydantic import BaseModel, ValidationError

from stream.redis_values import VALUE_BYTES_MAX, RedisValues

ITEM_KEY = "nextclick:item:"
COMPLETE_KEY = "nextclick:items"

log = logging.getLogger(__name__)


class ItemRecord(BaseModel, frozen=True):
    """What the items topic says of an item, without its vector. Of an item without a record nothing is known but
    clicks, and it is available."""

    title: str | None = None
    tags: tuple[str, ...] = ()
    attributes: dict[str, bool | float | str] = {}
    available: bool = True


class FoundRecords(NamedTuple):
    """Records that were looked up."""

    records: dict[str, ItemRecord]  # by item, of those that have one
    complete: bool  # whether nothing is known of the other items; else their records may be missing


def item_key(item_id: str) -> str:
    """Returns the key of an item's record."""
    return ITEM_KEY + item_id


class ItemRecords(RedisValues):
    """The records of all items. All methods raise ListsError when Redis does not answer or refuses."""

    def __init__(self, client: redis.Redis, *, ttl_s: int, value_bytes_max: int = VALUE_BYTES_MAX) -> None:
        super().__init__(client, value_bytes_max)
        self.ttl_s = ttl_s

    def write(self, records: Mapping[str, ItemRecord | None]) -> None:
        """Writes records in one round trip; None: nothing is known of the item, and its record is deleted."""
        with self._clear_errors(), self._client.pipeline(transaction=False) as pipeline:
            for item_id, record in records.items():
                if record is None:
                    pipeline.delete(item_key(item_id))
                else:
                    pipeline.set(item_key(item_id), record.model_dump_json(), ex=self.ttl_s)
            pipeline.execute()

    def mark_complete(self, count: int) -> None:
        """Says that the records of all items stand, `count` of them."""
        with self._clear_errors():
            self._client.set(COMPLETE_KEY, count, ex=self.ttl_s)

    def mark_incomplete(self) -> None:
        """Says that records may be missing."""
        with self._clear_errors():
            self._client.delete(COMPLETE_KEY)

    def read(self, item_ids: Sequence[str]) -> FoundRecords:
        """Looks items up in one round trip. A value that is no record counts as absent, with a warning in the log."""
        keys = [COMPLETE_KEY, *map(item_key, item_ids)]
        complete, *values = self._values(keys)
        records: dict[str, ItemRecord] = {}
        for item_id, value in zip(item_ids, values, strict=True):
            if value is not None and (record := _parse(item_id, value)) is not None:
                records[item_id] = record
        return FoundRecords(records, complete is not None)


def _parse(item_id: str, value: bytes | str) -> ItemRecord | None:
    try:
        return ItemRecord.model_validate_json(value)
    except ValidationError:
        log.warning("%s in Redis holds no record of an item; it counts as absent", ascii(item_key(item_id)))
        return None
