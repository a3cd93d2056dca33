"""What a file holds: items, or users, with the fields that their records have beside attributes."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from stream import items, users
from stream.click_fields import ALIASES
from stream.events import BadEvent

ID, TITLE, TAGS, PUBLISHED_AT, AVAILABLE = "id", "title", "tags", "published_at", "available"

_TAGS = ("tags", "tag", "genres", "genre", "categories", "keywords", "labels", "topics")
_NO_ID = frozenset({"title", "url", "session"})  # names of ids of clicks that are something else here


@dataclass(frozen=True)
class Kind:
    """A kind of records.

    Attributes:
        word: what one is.
        names: of each field the names that columns have for it: lower case, without what is no letter; the likeliest
            first.
        own: fields of a record, whose names no attribute has.
        parse: reads a record, as a worker does.
    """

    word: str
    names: Mapping[str, tuple[str, ...]]
    own: Collection[str]
    parse: Callable[..., items.Item | users.User | BadEvent]

    @property
    def one(self) -> str:
        return f"an {self.word}" if self.word[0] in "aeio" else f"a {self.word}"

    @property
    def words(self) -> str:
        return f"{self.word}s"


ITEMS = Kind(
    "item",
    {
        ID: ("itemid", "item", "id", *(name for name in ALIASES["item_id"] if name not in _NO_ID)),
        TITLE: ("title", "name", "itemtitle", "itemname", "producttitle", "productname", "displayname", "headline"),
        TAGS: _TAGS,
        PUBLISHED_AT: (
            *("publishedat", "published", "publishdate", "publicationdate", "releasedat", "releasedate"),
            *("released", "createdat", "created", "dateadded", "firstseen", "launchdate"),
        ),
        AVAILABLE: ("available", "isavailable", "instock", "isactive", "active"),
    },
    items.FIELDS,
    items.parse,
)
USERS = Kind(
    "user",
    {
        ID: ("userid", "user", "id", *(name for name in ALIASES["user_id"] if name not in _NO_ID)),
        TAGS: (*_TAGS, "segments", "segment", "groups", "interests"),
    },
    users.FIELDS,
    users.parse,
)
