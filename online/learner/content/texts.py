"""Vectors of items' texts, for items whose records have none: made by an encoder, and kept by the text's hash.

The thread that reads items asks for their vectors first, so that they are there when the loop takes the items in.

Letters: `n` texts, `D` width of their vectors.
"""

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online.learner.content.encoders import Encoder, load_encoder
from stream.items import Item

TEXT_CHARACTERS_MAX = 1_000  # of an item's text that are encoded
BATCH = 32  # texts that are encoded at once
FAILURES_LOGGED_MAX = 10  # texts that cannot be encoded, which the log names
LOCK_S_MAX = 5.0  # for which a thread holds the lock at most; it encodes nothing meanwhile
_HASH_BYTES = 16

log = logging.getLogger(__name__)


def text_of(item: Item) -> str:
    """Returns an item's title and tags in one line, without words of any language around them."""
    return ", ".join(part for part in (item.title, *item.tags) if part and part.strip())[:TEXT_CHARACTERS_MAX]


class TextVectors:
    """Vectors of the latest texts, float16. Threads may share it."""

    def __init__(self, name: str, held: int) -> None:
        """`name`: of the encoder, which is loaded when it is needed first; `held`: vectors that are kept."""
        self.name, self.held = name, held
        self.identity = ""  # of the encoder whose vectors these are; "": of none
        self._vectors: OrderedDict[bytes, bytes] = OrderedDict()  # by hash, longest unused first; b"": there is none
        self._lock = threading.Lock()
        self._failed = 0

    def __len__(self) -> int:
        return len(self._vectors)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder; vectors of another one are dropped. Raises SettingsError."""
        encoder = load_encoder(self.name)
        if encoder.identity != self.identity:
            self._vectors.clear()
            self.identity = encoder.identity
        return encoder

    def of(self, items: Iterable[Item]) -> dict[str, NDArray[np.float16]]:
        """Returns vectors (D,) by text, of items without a vector of their own; texts that cannot be encoded lack.

        Raises:
            SettingsError: the encoder cannot be loaded.
        """
        encoder = self.encoder
        texts = dict.fromkeys(text for item in items if item.vector is None and (text := text_of(item)))
        hashes = {text: _hash(text) for text in texts}
        with self._lock:
            found = {text: self._vectors[key] for text, key in hashes.items() if key in self._vectors}
            for text in found:
                self._vectors.move_to_end(hashes[text])
        missing = [text for text in texts if text not in found]
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            vectors = self._encode(encoder, part)  # without the lock: the loop need not wait
            found |= vectors
            with self._lock:
                self._vectors.update({hashes[text]: vector for text, vector in vectors.items()})
                while len(self._vectors) > self.held:
                    self._vectors.popitem(last=False)
        return {text: np.frombuffer(vector, np.float16) for text, vector in found.items() if vector}

    def _encode(self, encoder: Encoder, texts: Sequence[str]) -> dict[str, bytes]:
        """Returns vectors by text, of length 1, as bytes; empty where there is none."""
        try:
            vectors = np.asarray(encoder.encode(list(texts)), np.float64)
        except Exception as error:  # whatever an encoder raises, items and clicks go on
            if len(texts) == 1:
                self._tell(texts[0], error)
                return {texts[0]: b""}
            return {text: vector for one in texts for text, vector in self._encode(encoder, [one]).items()}
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        usable = np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)
        units = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float16)
        return {text: unit.tobytes() if ok else b"" for text, unit, ok in zip(texts, units, usable, strict=True)}

    def _tell(self, text: str, error: Exception) -> None:
        self._failed += 1
        if self._failed <= FAILURES_LOGGED_MAX:
            last = "; further ones are not named" if self._failed == FAILURES_LOGGED_MAX else ""
            log.warning(
                "NEXTCLICK_TEXT_ENCODER: %.80r cannot be encoded (%s: %s); its item goes on without a vector%s",
                text, type(error).__name__, error, last,
            )  # fmt: skip

    # A checkpoint

    def to_state(self) -> dict[str, NDArray[Any]]:
        """Returns arrays by name; none where nothing is held. Texts without a vector are left out, and tried again."""
        # In a copy of the process (online/worker/process_copy.py) the thread that holds it may be missing.
        locked = self._lock.acquire(timeout=LOCK_S_MAX)
        try:
            held = {key: vector for key, vector in self._vectors.items() if vector}
        finally:
            if locked:
                self._lock.release()
        if not held:
            return {}
        return {
            "hashes": np.frombuffer(b"".join(held), np.uint8).reshape(-1, _HASH_BYTES),
            "vectors": np.frombuffer(b"".join(held.values()), np.float16).reshape(len(held), -1),
        }

    def load_state(self, arrays: Mapping[str, NDArray[Any]], identity: str) -> None:
        """Loads what `to_state` returned; `identity`: of the encoder whose vectors these are."""
        latest = slice(-self.held, None)
        pairs = zip(arrays["hashes"][latest], arrays["vectors"][latest], strict=True) if arrays else ()
        with self._lock:
            self._vectors = OrderedDict((key.tobytes(), vector.tobytes()) for key, vector in pairs)
            self.identity = identity


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()
