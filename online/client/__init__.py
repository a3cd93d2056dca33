"""The Python client of the HTTP API, for sites that show lists: `Client`, and `AsyncClient` for asyncio.

It needs the extra "client", and imports neither torch nor numpy nor a Kafka client; redis is imported only where a
fallback in Redis is named. docs/client.md describes it.
"""

from online.client.answers import (
    ApiUnavailableError,
    ClickReceipt,
    ClientError,
    FeedbackReceipt,
    HiddenItem,
    ImpressionsReceipt,
    Item,
    PastClick,
    RecentClick,
    Recommendations,
    RequestError,
    ShownItem,
    ShownList,
    Titles,
    User,
)
from online.client.asynchronous import AsyncClient
from online.client.limits import Limits
from online.client.synchronous import Client

__all__ = [
    "ApiUnavailableError",
    "AsyncClient",
    "ClickReceipt",
    "Client",
    "ClientError",
    "FeedbackReceipt",
    "HiddenItem",
    "ImpressionsReceipt",
    "Item",
    "Limits",
    "PastClick",
    "RecentClick",
    "Recommendations",
    "RequestError",
    "ShownItem",
    "ShownList",
    "Titles",
    "User",
]
