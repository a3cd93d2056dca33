"""What is known of items, looked up in Redis: `GET /items/{item}`, `GET /titles`, `GET /items/{item}/lists`."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from online.api.errors import NothingKnownError
from online.api.problems import problem_responses
from online.api.questions import IdText, checked_id, checked_ids
from online.api.versions import V1
from stream.item_records import ItemRecord
from stream.lists import Lists

TITLES_MAX = 500  # items of one request
LISTS_LOOKED_AT = 2_000  # of all users, for those that hold an item
HOLDERS_SHOWN = 20


class KnownItem(ItemRecord, frozen=True):
    """What the items topic says of an item. `available` is false of one that was withdrawn, too."""

    item_id: str


class Titles(BaseModel):
    """Titles by item; those without one are left out."""

    titles: dict[str, str]


class Holder(BaseModel):
    """A user whose list holds an item; `rank` counts from 1."""

    user_id: str
    rank: int


class Holders(BaseModel):
    """Lists that hold an item, of those that were looked at: at most LISTS_LOOKED_AT, in no certain order.

    Attributes:
        item_id: the item.
        looked_at: lists that were looked at.
        lists: those of them that hold the item.
        users: whose they are, the best ranks first, at most HOLDERS_SHOWN.
    """

    item_id: str
    looked_at: int
    lists: int
    users: list[Holder]


def items_router(lists: Lists) -> APIRouter:
    """Returns the routes."""
    router = APIRouter(prefix=V1)

    # Before the next one, which would take all of the path for an id.
    @router.get("/items/{item:text}/lists", responses=problem_responses(422))
    def holders(item: IdText) -> Holders:
        """Whose lists hold an item now. It looks at some of the lists, not at all."""
        return _holders(lists, checked_id("item", item))

    @router.get("/items/{item:text}", responses=problem_responses(404, 422))
    def item(item: IdText) -> KnownItem:
        """What the items topic says of an item. 404 where it says nothing. It needs no worker."""
        record = lists.items.read([checked_id("item", item)]).records.get(item)
        if record is None:
            raise NothingKnownError(f"nothing is known of item {item!a}: the items topic has no record of it")
        return KnownItem(item_id=item, **record.model_dump())

    @router.get("/titles", responses=problem_responses(422))
    def titles(
        id: Annotated[list[IdText], Query(description="an item; may be given many times")],
    ) -> Titles:
        """Titles of items, to show a list with. It needs no worker."""
        records = lists.items.read(list(dict.fromkeys(checked_ids("id", id, TITLES_MAX)))).records
        return Titles(titles={one: record.title for one, record in records.items() if record.title is not None})

    return router


def _holders(lists: Lists, item_id: str) -> Holders:
    found = lists.some(LISTS_LOOKED_AT)
    users = [
        Holder(user_id=user, rank=top.items.index(item_id) + 1) for user, top in found.items() if item_id in top.items
    ]
    users.sort(key=lambda one: (one.rank, one.user_id))
    return Holders(item_id=item_id, looked_at=len(found), lists=len(users), users=users[:HOLDERS_SHOWN])
