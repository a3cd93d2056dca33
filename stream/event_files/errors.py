"""The one error of files of events."""


class EventFileError(Exception):
    """A file that cannot be read as events. One line that names it and says what is needed."""


def shown(text: object) -> str:
    """A name as it may stand in one line of text: what would move the cursor or break the line is replaced."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(text))
