"""Where in others' messages a click's fields stand: paths such as `payload.after.item`.

A path is a field's name, or the names of nested objects' fields joined by dots. A name may hold dots itself: the
longest name that an object has is taken first.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from stream.redact import is_name

FIELDS = ("user_id", "item_id", "timestamp", "event_type", "event_id", "value")
NEEDED = FIELDS[:3]
SHORT_NAMES = {"user": "user_id", "item": "item_id"}  # so a field may be called on the left of a pair
PATHS_SEEN_MAX = 40  # of one message
_DEPTH_MAX = 5
#: Names that others use, lower case and without what is no letter; the likeliest first.
_NAMES_OF_OTHERS = {
    "user_id": (
        "userid user visitorid customerid memberid accountid profileid personid shopperid uid clientid "
        "anonymousid distinctid fullvisitorid subscriberid viewerid reviewerid visitor customer member usr "
        "userpseudoid sessionid deviceid session account client buyerid playerid listenerid readerid cookieid "
        "cookie authorid userno custid"
    ),
    "item_id": (
        "itemid item productid articleid contentid movieid trackid videoid songid newsid assetid offerid "
        "listingid businessid bookid gameid venueid locationid mediaid objectid targetid parentasin asin sku gtin "
        "isbn iid pid product article track movie song video content game adid goodsid placeid poiid artistid "
        "recipeid showid courseid jobid postid pageid documentid docid stockcode materialid bannerid entityid "
        "hotelid title url"
    ),
    "timestamp": (
        "timestamp ts eventtimestamp eventtime timestampms tsms time occurredat clickedat createdat datetime "
        "clicktime unixtime unixreviewtime epoch date at sentat created reviewtime servertime epochms utctime "
        "localtime eventdate invoicedate orderdate visitstarttime viewedat purchasedat updatedat receivedat "
        "loggedat tstamp checkintime moment"
    ),
}
ALIASES = {field: names.split() for field, names in _NAMES_OF_OTHERS.items()}
_OTHER_BRANCHES = frozenset({"before", "schema", "source"})  # of an envelope as Debezium and Kafka Connect write it
_LETTERS = re.compile(r"[^a-z]")


class ClickFields:
    """Reads a message by others' names. Pure."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        """`paths`: of each of our fields that is called otherwise."""
        self.paths = dict(paths)

    def __bool__(self) -> bool:
        return bool(self.paths)

    def ours(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """The message under our names. One that has none of the paths has our names: so reach us `POST /click`,
        `nextclick replay` and `nextclick forget`, on the same topic."""
        found = {field: at(message, path) for field, path in self.paths.items()}
        if all(value is None for value in found.values()):
            return message
        return {field: found[field] if field in found else message.get(field) for field in FIELDS}


def pairs_in(text: str) -> dict[str, str]:
    """`FIELD=NAME,FIELD=NAME` -> the name of each of our fields that is given one.

    Raises:
        ValueError: one line, for a pair that is none, a field that a click does not have, or one that is given twice.
    """
    found: dict[str, str] = {}
    for pair in text.split(","):
        field, equals, name = (part.strip() for part in pair.partition("="))
        field = SHORT_NAMES.get(field, field)
        if not equals or not field or not name:
            raise ValueError(f"{pair.strip()!r} is no pair of a field and where it stands, as in user_id=user.id")
        if field not in FIELDS:
            raise ValueError(f"a click has no field {field!r}; it has {', '.join(FIELDS)}")
        if field in found:
            raise ValueError(f"{field} is given twice: {found[field]!r} and {name!r}")
        found[field] = name
    return found


def at(message: Mapping[str, Any], path: str) -> Any:
    """What stands at a path; None: nothing does."""
    found = message.get(path)
    end = len(path)
    while found is None and (end := path.rfind(".", 0, end)) > 0:
        inner = message.get(path[:end])
        if isinstance(inner, dict):
            found = at(inner, path[end + 1 :])
    return found


def paths_in(message: Mapping[str, Any]) -> Iterator[str]:
    """The paths of all that is neither null nor an object with fields: `PATHS_SEEN_MAX` at most, shallow ones first."""
    waiting: list[tuple[str, Mapping[str, Any], int]] = [("", message, 1)]
    seen = 0
    while waiting:
        prefix, fields, depth = waiting.pop(0)
        for name, value in fields.items():
            if isinstance(value, dict) and value and depth < _DEPTH_MAX and len(waiting) < PATHS_SEEN_MAX:
                waiting.append((f"{prefix}{name}.", value, depth + 1))
            elif value is not None:
                yield prefix + name
                seen += 1
            if seen == PATHS_SEEN_MAX:
                return


def suggested(paths: Iterable[str], fields: Iterable[str] = NEEDED) -> dict[str, str]:
    """Which of these paths each field most likely stands at; fields that none is likely for are left out."""
    ranks = [(path, _ranks(path)) for path in paths if is_name(path)]
    found = {}
    for field in fields:
        likely = [(rank[field], path.count("."), path) for path, rank in ranks if field in rank]
        if likely:
            found[field] = min(likely, key=lambda one: one[:2])[2]
    return found


@lru_cache(maxsize=1_024)
def _ranks(path: str) -> dict[str, int]:
    """How likely it is that a field stands there, 0 the most, of those it may be. `user.id` is taken as `userid`."""
    names = path.lower().split(".")
    if not _OTHER_BRANCHES.isdisjoint(names):
        return {}
    spelled = {_LETTERS.sub("", names[-1]), _LETTERS.sub("", "".join(names[-2:]))}
    return {
        field: next(rank for rank, alias in enumerate(aliases) if alias in spelled)
        for field, aliases in ALIASES.items()
        if not spelled.isdisjoint(aliases)
    }


def as_setting(paths: Mapping[str, str]) -> str:
    """What to write into the settings."""
    return "NEXTCLICK_CLICK_FIELDS=" + ",".join(f"{field}={path}" for field, path in paths.items())
