"""What the worker holds of a user: `GET /users/{user}`."""

from fastapi import APIRouter
from pydantic import BaseModel

from online.api.asker import Asker, NotAnsweredError
from online.api.errors import NoWorkerError
from online.api.metrics import Requests
from online.api.problems import problem_responses
from online.api.questions import IdText, checked_id
from online.api.versions import V1


class PastClick(BaseModel):
    """A click of a history. `timestamp`: seconds since 1970."""

    item_id: str
    timestamp: float
    event_type: str


class HiddenItem(BaseModel):
    """An item that a user wants to see no more. `until`: seconds since 1970; null: for ever."""

    item_id: str
    until: float | None


class KnownUser(BaseModel):
    """What is held of a user.

    Attributes:
        user_id: the user.
        known: whether there is a history.
        clicks: how many clicks it holds, at most `NEXTCLICK_HISTORY_MAX`.
        history: the latest of them, newest first, at most 50.
        hidden: items that must not be shown to the user.
    """

    user_id: str
    known: bool
    clicks: int
    history: list[PastClick]
    hidden: list[HiddenItem] = []  # workers of an earlier version do not tell them


def users_router(asker: Asker, requests: Requests) -> APIRouter:
    """Returns the route. `asker`: who asks the workers."""
    router = APIRouter(prefix=V1)

    @router.get("/users/{user:text}", responses=problem_responses(422))
    async def user(user: IdText) -> KnownUser:
        """What the worker holds of a user: the latest clicks. 503 where no worker answers in time."""
        try:
            answer = await asker.ask(kind="user", user_id=checked_id("user", user))
        except NotAnsweredError as error:
            requests.asked(error.reason)
            raise NoWorkerError("no worker answered in time: see /status.json, and try again") from None
        requests.asked("asked")
        if answer.user is None:
            raise NoWorkerError("the worker that answered knows no such question: it is of an earlier version")
        return KnownUser(user_id=user, **answer.user)

    return router
