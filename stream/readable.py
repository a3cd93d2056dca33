"""Text and bytes that come from outside, as a terminal or a page may show them."""

_VALUE_CHARACTERS_MAX = 60


def plain(text: str) -> str:
    """`text` with everything unprintable as an escape: ids come from outside, and a terminal obeys some characters."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def first_bytes(value: bytes | None) -> str:
    """How a message begins, readable whatever it is."""
    if value is None:
        return "(no value)"
    text = value[: 2 * _VALUE_CHARACTERS_MAX].decode("utf-8", "backslashreplace")
    return plain(text[:_VALUE_CHARACTERS_MAX]) + ("…" if len(value) > _VALUE_CHARACTERS_MAX else "")
