"""The settings that say how Kafka and Redis are reached safely, and who may ask the API what."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

from stream.addresses import redis_address

_API_KEY = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})")
_HERE = ("127.0.0.1", "::1", "localhost")


class SecuritySettings(BaseSettings):
    """A part of `Settings`, which holds them to each other by `_security_problems`."""

    # Kafka. Certificates are always checked, and host names against them.
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="SSL: TLS, with certificates of our own mTLS; SASL: with user and password"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="how user and password are shown to Kafka"
    )
    kafka_sasl_username: str | None = Field(None, min_length=1, description="Kafka's user; needed with SASL")
    kafka_sasl_password: SecretStr | None = Field(None, min_length=1, description="Kafka's password, likewise")
    kafka_ssl_cafile: Path | None = Field(
        None, description="certificates (PEM) that Kafka's is trusted by; unset: the system's"
    )
    kafka_ssl_certfile: Path | None = Field(None, description="our certificate (PEM), where Kafka asks for one")
    kafka_ssl_keyfile: Path | None = Field(None, description="its private key (PEM); unset: in the same file")
    kafka_ssl_password: SecretStr | None = Field(None, min_length=1, description="what that key is encrypted with")

    # Redis. TLS is asked for by the URL: rediss://.
    redis_username: str | None = Field(None, min_length=1, description="Redis' ACL user; unset: the default one")
    redis_password: SecretStr | None = Field(None, min_length=1, description="Redis' password")
    redis_ssl_cafile: Path | None = Field(
        None, description="certificates (PEM) that Redis' is trusted by; unset: the system's"
    )
    redis_ssl_certfile: Path | None = Field(None, description="our certificate (PEM), where Redis asks for one")
    redis_ssl_keyfile: Path | None = Field(None, description="its private key (PEM); unset: in the same file")
    redis_ssl_password: SecretStr | None = Field(None, min_length=1, description="what that key is encrypted with")
    redis_connect_s_max: Annotated[float, Field(gt=0, le=60)] = Field(
        1.0, description="longest wait for a connection to Redis"
    )
    redis_answer_s_max: Annotated[float, Field(gt=0, le=60)] = Field(
        2.0, description="longest wait for an answer of Redis"
    )
    redis_value_bytes_max: Annotated[int, Field(gt=0)] = Field(
        4 * 2**20, description="of a list or a report in Redis no more is read; a larger one counts as absent"
    )

    # The API.
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="comma-separated: NAME:SHA-256 of each key that may ask; none: whoever reaches the API may"
    )
    api_read_only: bool = Field(True, description="false: clicks are accepted too, at POST /click")
    api_requests_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        1_000.0, description="requests of a key, or of an address without one, that are answered for long"
    )
    api_requests_at_once: Annotated[int, Field(gt=0)] = Field(2_000, description="the same, at once")
    api_addresses_held: Annotated[int, Field(gt=0)] = Field(10_000, description="addresses whose requests are counted")
    api_connections_max: Annotated[int, Field(gt=0)] = Field(
        1_000, description="with more, the one silent for longest makes room; none silent: the new one is answered 503"
    )
    api_request_s_max: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        10.0, description="time in which a whole request has to come, and an answer to be read"
    )
    api_header_bytes_max: Annotated[int, Field(ge=1_024)] = Field(
        16_384, description="a request whose first line and headers are longer is refused"
    )
    api_trusted_proxies: str | None = Field(
        None, description="comma-separated addresses whose X-Forwarded-For is believed; unset: nobody's"
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

    def _security_problems(self) -> Iterator[str]:
        """What does not fit together, by the variables' names."""
        yield from self._kafka_problems()
        yield from self._redis_problems()
        for name in SecuritySettings.model_fields:
            path = getattr(self, name)
            if isinstance(path, Path) and not path.is_file():
                yield f"NEXTCLICK_{name.upper()}: there is no file {path}"
        host = getattr(self, "api_host")  # noqa: B009 - a field of the whole
        if not self.api_read_only and not self.api_keys and host not in _HERE:
            yield (
                f"NEXTCLICK_API_READ_ONLY=false needs NEXTCLICK_API_KEYS where others reach the API "
                f"(NEXTCLICK_API_HOST={host})"
            )

    def _kafka_problems(self) -> Iterator[str]:
        protocol = self.kafka_security_protocol
        for name in ("kafka_sasl_username", "kafka_sasl_password"):
            given = getattr(self, name) is not None
            if given != protocol.startswith("SASL"):
                what = "needs SASL_SSL or SASL_PLAINTEXT as" if given else f"is needed with {protocol} as"
                yield f"NEXTCLICK_{name.upper()} {what} NEXTCLICK_KAFKA_SECURITY_PROTOCOL"
        if not protocol.endswith("SSL"):
            for name in _given(self, "kafka_ssl_"):
                yield f"NEXTCLICK_{name.upper()} needs SSL or SASL_SSL as NEXTCLICK_KAFKA_SECURITY_PROTOCOL"
        yield from self._key_problems("kafka")

    def _redis_problems(self) -> Iterator[str]:
        secret: SecretStr | None = getattr(self, "redis_url")  # noqa: B009 - a field of the whole
        address = redis_address(secret.get_secret_value()) if secret else None
        if address is not None and address.password and (self.redis_username or self.redis_password):
            yield "NEXTCLICK_REDIS_URL has a user or password beside NEXTCLICK_REDIS_USERNAME or _PASSWORD: use one"
        if self.redis_username and not self.redis_password:
            yield "NEXTCLICK_REDIS_USERNAME needs NEXTCLICK_REDIS_PASSWORD"
        if address is not None and not address.tls:
            for name in _given(self, "redis_ssl_"):
                yield f"NEXTCLICK_{name.upper()} needs a NEXTCLICK_REDIS_URL that begins with rediss://"
        yield from self._key_problems("redis")

    def _key_problems(self, where: str) -> Iterator[str]:
        if getattr(self, f"{where}_ssl_certfile") is None:
            for name in ("keyfile", "password"):
                if getattr(self, f"{where}_ssl_{name}") is not None:
                    whole = f"NEXTCLICK_{where.upper()}_SSL_"
                    yield f"{whole}{name.upper()} needs {whole}CERTFILE, the certificate that it belongs to"


def _given(settings: SecuritySettings, prefix: str) -> list[str]:
    """The fields with that prefix that are set."""
    names = [name for name in SecuritySettings.model_fields if name.startswith(prefix)]
    return [name for name in names if getattr(settings, name) is not None]
