"""An item's title, tags and attributes as a bag of hashed features.

Each kind of feature has a part of the table of its own, so that its number says its kind.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

ROWS = 2**15  # numbers of features; several features may share one
GRAMS_FROM, WORDS_FROM, TAGS_FROM, FIELDS_FROM = 0, 2**14, 2**14 + 2**13, 2**14 + 2**13 + 2**12
BAG_MAX = 128  # features of an item: first tags, then attributes, words, and parts of words
GRAM_LENGTHS = (3, 4, 5)
WORDS_MAX = 40  # of a title
BINS_PER_FACTOR = 3.0  # of a number's logarithm: prices that differ by a third share a bin, or are neighbours
TIME_FIELD = "published_at"  # is no feature: ages are read from it
_WORD = re.compile(r"\w+")
_PARTS = (GRAMS_FROM, WORDS_FROM, TAGS_FROM, FIELDS_FROM, ROWS)
#: (ROWS,) What parts of words, words, tags and attributes count in cosines, beside how rare each is.
KIND_WEIGHTS = np.repeat((0.3, 1.0, 1.0, 0.7), np.diff(_PARTS))


def bag_of(
    title: str | None, tags: Sequence[str], attributes: Mapping[str, float | str | bool]
) -> tuple[NDArray[np.uint16], int]:
    """Returns the features of an item, each once, and how many of them are no parts of words; those come first."""
    heads = dict.fromkeys(_hashed(f"{tag}", TAGS_FROM) for tag in map(normalised, tags))
    heads |= dict.fromkeys(
        _hashed(f"{name}={value_text(attributes[name])}", FIELDS_FROM)
        for name in sorted(attributes)
        if name != TIME_FIELD
    )
    words = _WORD.findall(normalised(title or ""))[:WORDS_MAX]
    heads |= dict.fromkeys(_hashed(word, WORDS_FROM) for word in words)
    whole = list(heads)[:BAG_MAX]
    grams: dict[int, None] = {}
    for gram in _grams(words):
        if len(whole) + len(grams) >= BAG_MAX:
            break
        grams[_hashed(gram, GRAMS_FROM)] = None
    return np.array([*whole, *grams], np.uint16), len(whole)


def normalised(text: str) -> str:
    """Returns a text without differences of form and case (NFKC, casefold)."""
    return unicodedata.normalize("NFKC", text).casefold()


def _grams(words: Sequence[str]) -> Iterator[str]:
    """Yields the parts of words, whose ends are marked."""
    for length in GRAM_LENGTHS:
        for word in words:
            marked = f"<{word}>"
            for at in range(len(marked) - length + 1):
                yield marked[at : at + length]


def value_text(value: float | str | bool) -> str:
    """Returns an attribute's value as text; a number's, as the bin of its logarithm."""
    if isinstance(value, bool | str):
        return normalised(str(value))
    sign = "-" if value < 0 else ""
    return f"{sign}{math.floor(BINS_PER_FACTOR * math.log1p(abs(value)))}"


def _hashed(text: str, start: int) -> int:
    end = _PARTS[_PARTS.index(start) + 1]
    return start + crc32(text.encode("utf-8", "surrogatepass")) % (end - start)
