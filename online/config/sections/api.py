"""The HTTP API: where it listens, who may use it, and its limits."""

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode

from online.config.sections.fields import Port, fixed, setting

_API_KEY = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})")
_HERE = ("127.0.0.1", "::1", "localhost")


class ApiSettings(BaseSettings):
    """The HTTP API."""

    api_host: str = setting("127.0.0.1", "Address that the API listens on.", "0.0.0.0 opens it to other machines.")
    api_port: Port = setting(8000, "Port that the API listens on.")
    api_workers: Annotated[int, Field(gt=0, le=64)] = setting(
        1, "Processes that answer, all at the same address.", "One for each core that the API may use."
    )
    api_keys: Annotated[tuple[str, ...], NoDecode] = setting(
        (),
        "Keys that the API accepts, as NAME:SHA-256, comma-separated. Empty: no key is needed.",
        "`nextclick api-key NAME` makes one.",
    )
    api_read_only: bool = setting(
        True,
        "Whether the API only reads. If false, it also accepts clicks, impressions and feedback (POST /click, "
        "/impressions, /hide, /unhide, /dislike), and logs explored lists.",
        "false needs API keys.",
    )
    api_requests_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = setting(
        None,
        "Requests per second that are answered in the long run, of each key or of each address without one. "
        "Unset: any number.",
        "Set it where people reach the API without your site between.",
    )
    api_requests_at_once: Annotated[int, Field(gt=0)] = setting(
        2_000, "Requests that are answered at once, of each key or of each address without one."
    )
    api_addresses_held: Annotated[int, Field(gt=0)] = fixed(10_000, "Addresses whose requests are counted.")
    api_connections_max: Annotated[int, Field(gt=0)] = setting(
        1_000,
        "Open connections. Beyond it the connection that has been silent longest is closed. If none is silent, a new "
        "connection gets 503.",
    )
    api_request_s_max: Annotated[float, Field(gt=0, allow_inf_nan=False)] = setting(
        10.0, "Time within which a whole request must arrive, and its answer must be read."
    )
    api_header_bytes_max: Annotated[int, Field(ge=1_024)] = setting(
        16_384, "Longest first line and headers of a request. A longer request is refused."
    )
    api_trusted_proxies: str | None = setting(
        None,
        "Addresses of proxies whose X-Forwarded-For is trusted, comma-separated. Unset: none.",
        "Set it behind a proxy, so that limits count each client by itself.",
    )

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        return tuple(re.split(r"[\s,]+", value.strip(" \n\t,"))) if isinstance(value, str) else value

    @field_validator("api_keys")
    @classmethod
    def _keys_are_hashed(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        names = []
        for place, key in enumerate(keys, 1):
            found = _API_KEY.fullmatch(key)
            if found is None:  # which is not shown: it may be the key itself
                raise ValueError(
                    f"entry {place} is not NAME:SHA-256 in hexadecimal; `nextclick api-key NAME` makes one"
                )
            names.append(found[1])
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{min(twice)} is there twice: give each key a name of its own")
        return keys

    def _api_problems(self) -> Iterator[str]:
        """What does not fit together, by the variables' names."""
        if not self.api_read_only and not self.api_keys and not is_here(self.api_host):
            yield (
                f"NEXTCLICK_API_READ_ONLY=false needs NEXTCLICK_API_KEYS where others reach the API "
                f"(NEXTCLICK_API_HOST={self.api_host})"
            )


def is_here(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    return host in _HERE
