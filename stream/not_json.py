"""What a message looks like that is no JSON: a hint for its producer, which quotes nothing of it."""

from collections.abc import Callable

_PACKINGS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz", b"\x04\x22\x4d\x18": "lz4"}
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def hint_of(value: bytes, why: str) -> str:
    """One line; empty where it looks like nothing in particular. `why`: what pydantic's parser says of it."""
    text = value.lstrip()
    if text[:1] == b"{":
        return _object(text, why)
    return next((hint for look in _LOOKS if (hint := look(value))), "")


def _object(text: bytes, why: str) -> str:
    """Begins as one."""
    if why.startswith("trailing characters"):  # also JSON lines
        return "more follows after the first JSON object: send each click as a message of its own"
    if text[1:66].lstrip()[:1] == b"'":
        return "names and texts stand in single quotes, as Python prints them: JSON has double quotes"
    return "it looks like UTF-16 or UTF-32: JSON is UTF-8" if text[1:2] == b"\0" else ""


def _empty(value: bytes) -> str:
    return "" if value.strip() else "it is empty"


def _schema_registry(value: bytes) -> str:
    """Confluent's serializers write a zero byte and four of the schema's number before what they serialize."""
    if value[:1] != b"\0" or len(value) < 6 or value[1:2] == b"{":
        return ""
    what = "JSON" if value[5:].lstrip()[:1] == b"{" else "Avro or Protobuf"
    number = int.from_bytes(value[1:5])
    return f"it begins as {what} with the prefix of a schema registry (schema {number}): send JSON without it"


def _utf_16(value: bytes) -> str:
    found = value[:2] in _UTF_16_MARKS or b"\0" in value[:2]
    return "it looks like UTF-16 or UTF-32: JSON is UTF-8" if found else ""


def _packed(value: bytes) -> str:
    packing = next((name for start, name in _PACKINGS.items() if value.startswith(start)), None)
    return "" if packing is None else f"it is packed by {packing}: leave that to compression.type of the producer"


def _csv(value: bytes) -> str:
    text = value.lstrip()
    found = text[:1] not in (b"[", b'"') and max(map(text.count, (b",", b";", b"\t"))) >= 2
    return "it looks like a line of CSV: a click is a JSON object" if found else ""


_LOOKS: tuple[Callable[[bytes], str], ...] = (_empty, _schema_registry, _utf_16, _packed, _csv)
