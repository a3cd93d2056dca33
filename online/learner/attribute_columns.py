"""Columns of items' attributes: what each slot holds, by kind of value.

Letters: `S` slots, `W` tags of the item that has most.
"""

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from model.vocabulary import grown
from online.filters.expression import BOOLEAN, NUMBER, TEXT

TAGS_MAX = 32  # of an item; the first ones count
TAG_BYTES_MAX = 256  # longer ones are ignored
NO_SLOTS = np.zeros(0, np.uint32)


class NumberColumn:
    """Numbers as float64."""

    def __init__(self, slots: int) -> None:
        self.values = np.full(slots, np.nan)
        self.held = 0

    def put(self, slot: int, value: float | str | bool | None) -> None:
        self.held += int(value is not None) - int(not np.isnan(self.values[slot]))
        self.values[slot] = np.nan if value is None else value

    def grow(self, slots: int) -> None:
        self.values = _longer(self.values, slots, np.nan)

    def to_arrays(self, slots: int) -> dict[str, NDArray[Any]]:
        return {"values": self.values[:slots].copy()}

    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.values = arrays["values"].astype(np.float64)
        self.held = int((~np.isnan(self.values)).sum())


class BooleanColumn:
    """1: true, 0: false, −1: missing."""

    def __init__(self, slots: int) -> None:
        self.values = np.full(slots, -1, np.int8)
        self.held = 0

    def put(self, slot: int, value: float | str | bool | None) -> None:
        self.held += int(value is not None) - int(self.values[slot] >= 0)
        self.values[slot] = -1 if value is None else int(value)

    def grow(self, slots: int) -> None:
        self.values = _longer(self.values, slots, -1)

    def to_arrays(self, slots: int) -> dict[str, NDArray[Any]]:
        return {"values": self.values[:slots].copy()}

    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.values = arrays["values"].astype(np.int8)
        self.held = int((self.values >= 0).sum())


class Dictionary:
    """Texts and their numbers, from 1. A text that is released as often as it was taken gives its number to another."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._texts: list[str] = [""]  # by number
        self._uses: list[int] = [0]
        self._free: list[int] = []  # a heap: which number is next must not depend on how it became free

    def __len__(self) -> int:
        return len(self._codes)

    def code_of(self, text: str) -> int:
        return self._codes.get(text, -1)

    def text_of(self, code: int) -> str:
        return self._texts[code]

    def take(self, text: str) -> int:
        code = self._codes.get(text)
        if code is None:
            if self._free:
                code = heapq.heappop(self._free)
                self._texts[code] = text
            else:
                code = len(self._texts)
                self._texts.append(text)
                self._uses.append(0)
            self._codes[text] = code
        self._uses[code] += 1
        return code

    def release(self, code: int) -> bool:
        """-> Whether no use is left."""
        self._uses[code] -= 1
        if self._uses[code]:
            return False
        del self._codes[self._texts[code]]
        self._texts[code] = ""
        heapq.heappush(self._free, code)
        return True

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        return {**texts_to_arrays(self._texts)}

    def load(self, arrays: dict[str, NDArray[Any]], codes: NDArray[Any]) -> None:
        """`codes`: those in use, as often as they are used."""
        self._texts = texts_from_arrays(arrays)
        self._uses = np.bincount(codes.astype(np.int64), minlength=len(self._texts)).tolist()
        self._uses[0] = 0
        self._codes = {text: code for code, text in enumerate(self._texts) if self._uses[code]}
        self._free = [code for code, uses in enumerate(self._uses) if not uses and code]


class TextColumn:
    """Texts as numbers of a dictionary, 0 where there is none."""

    def __init__(self, slots: int) -> None:
        self.codes = np.zeros(slots, np.int32)
        self.dictionary = Dictionary()
        self.held = 0

    def code_of(self, text: str) -> int:
        return self.dictionary.code_of(text)

    def text_of(self, code: int) -> str:
        return self.dictionary.text_of(code)

    def put(self, slot: int, value: float | str | bool | None) -> None:
        before = int(self.codes[slot])
        code = 0 if value is None else self.dictionary.take(str(value))
        if before:
            self.dictionary.release(before)
        self.codes[slot] = code
        self.held += int(code > 0) - int(before > 0)

    def grow(self, slots: int) -> None:
        self.codes = _longer(self.codes, slots, 0)

    def to_arrays(self, slots: int) -> dict[str, NDArray[Any]]:
        return {"codes": self.codes[:slots].copy(), **self.dictionary.to_arrays()}

    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.codes = arrays["codes"].astype(np.int32)
        self.dictionary.load(arrays, self.codes)
        self.held = int((self.codes > 0).sum())


class TagColumn:
    """Tags twice: the slots of each tag, as Roaring bitmaps, for filters; and the tags of each slot.

    With 100,000 items and 5,000 tags a mask of all items takes 17 µs by bitmaps, 0.6 to 16 ms by a table of tags, by
    bits of each item, or by compressed rows; the bitmaps have 1 MB.
    """

    def __init__(self, slots: int) -> None:
        self.codes = np.zeros((slots, 1), np.int32)  # (S, W) in the order of the record, 0 beyond an item's tags
        self.counts = np.zeros(slots, np.uint8)  # (S,)
        self.dictionary = Dictionary()
        self._slots: dict[int, BitMap] = {}  # by number of the tag

    def put(self, slot: int, tags: Sequence[str]) -> None:
        kept = [tag for tag in dict.fromkeys(tags) if len(tag.encode()) <= TAG_BYTES_MAX][:TAGS_MAX]
        codes = [self.dictionary.take(tag) for tag in kept]
        for code in self.codes[slot, : self.counts[slot]].tolist():
            self._slots[code].discard(slot)
            if self.dictionary.release(code):
                del self._slots[code]
        for code in codes:
            self._slots.setdefault(code, BitMap()).add(slot)
        if len(codes) > self.codes.shape[1]:
            wider = min(grown(len(codes), self.codes.shape[1]), TAGS_MAX)
            self.codes = np.pad(self.codes, ((0, 0), (0, wider - self.codes.shape[1])))
        self.codes[slot] = 0
        self.codes[slot, : len(codes)] = codes
        self.counts[slot] = len(codes)

    def tagged(self, tag: str) -> NDArray[np.uint32]:
        """The slots of the items with a tag, ascending."""
        found = self._slots.get(self.dictionary.code_of(tag))
        return NO_SLOTS if found is None else np.frombuffer(found.to_array(), np.uint32)

    def tags_of(self, slot: int) -> list[str]:
        return [self.dictionary.text_of(code) for code in self.codes[slot, : self.counts[slot]].tolist()]

    def grow(self, slots: int) -> None:
        self.codes, self.counts = _longer(self.codes, slots, 0), _longer(self.counts, slots, 0)

    def to_arrays(self, slots: int) -> dict[str, NDArray[Any]]:
        codes = self.codes[:slots]
        return {"codes": codes[codes > 0], "counts": self.counts[:slots].copy(), **self.dictionary.to_arrays()}

    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.counts = arrays["counts"].astype(np.uint8)
        flat, width = arrays["codes"].astype(np.int32), max(1, int(self.counts.max(initial=0)))
        self.codes = np.zeros((len(self.counts), width), np.int32)
        self.codes[np.arange(width) < self.counts[:, None]] = flat
        self.dictionary.load(arrays, flat)
        order = np.argsort(flat, kind="stable")
        slots = np.repeat(np.arange(len(self.counts), dtype=np.uint32), self.counts)[order]
        codes, starts = np.unique(flat[order], return_index=True)
        parts = np.split(slots, starts[1:]) if len(codes) else []
        self._slots = {code: BitMap(part) for code, part in zip(codes.tolist(), parts, strict=True)}


MAKERS: dict[str, type[NumberColumn] | type[BooleanColumn] | type[TextColumn]] = {
    NUMBER: NumberColumn,
    BOOLEAN: BooleanColumn,
    TEXT: TextColumn,
}


def texts_to_arrays(texts: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Texts as one row of bytes (UTF-8) and the number of characters of each."""
    blob = np.frombuffer("".join(texts).encode(), np.uint8)
    return {"blob": blob, "lengths": np.fromiter(map(len, texts), np.int32, len(texts))}


def texts_from_arrays(arrays: dict[str, NDArray[Any]]) -> list[str]:
    """What `texts_to_arrays` was given."""
    blob, ends = arrays["blob"].tobytes().decode(), np.cumsum(arrays["lengths"], dtype=np.int64).tolist()
    return [blob[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _longer(values: NDArray[Any], slots: int, fill: float) -> Any:
    more = np.full((slots - len(values), *values.shape[1:]), fill, values.dtype)
    return np.concatenate([values, more]) if len(more) else values
