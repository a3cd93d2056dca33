"""How Kafka and Redis are reached safely: TLS, certificates, users and passwords."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from online.config.sections.fields import setting
from stream.addresses import SENTINEL, redis_address


class SecuritySettings(BaseSettings):
    """TLS, users and passwords of Kafka and Redis. Certificates and host names are always checked."""

    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = setting(
        "PLAINTEXT",
        "How Kafka is reached. SSL: TLS, with a client certificate if one is set (mTLS). SASL: user and password.",
        "SASL_SSL where the network is not trusted.",
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = setting(
        "SCRAM-SHA-512", "How user and password are sent to Kafka."
    )
    kafka_sasl_username: str | None = setting(None, "Kafka user. Needed with SASL.", min_length=1)
    kafka_sasl_password: SecretStr | None = setting(None, "Kafka password. Needed with SASL.", min_length=1)
    kafka_ssl_cafile: Path | None = setting(
        None, "Certificates (PEM) of the authorities that Kafka's certificate may be signed by. Unset: the system's."
    )
    kafka_ssl_certfile: Path | None = setting(None, "Client certificate (PEM), where Kafka asks for one.")
    kafka_ssl_keyfile: Path | None = setting(
        None, "Private key (PEM) of the client certificate. Unset: it is in the same file."
    )
    kafka_ssl_password: SecretStr | None = setting(None, "Password of that private key.", min_length=1)
    redis_username: str | None = setting(None, "Redis ACL user. Unset: the default user.", min_length=1)
    redis_password: SecretStr | None = setting(None, "Redis password.", min_length=1)
    redis_sentinel_username: str | None = setting(
        None, "ACL user of the sentinels themselves. Unset: the default user.", min_length=1
    )
    redis_sentinel_password: SecretStr | None = setting(None, "Password of the sentinels themselves.", min_length=1)
    redis_ssl_cafile: Path | None = setting(
        None, "Certificates (PEM) of the authorities that Redis's certificate may be signed by. Unset: the system's."
    )
    redis_ssl_certfile: Path | None = setting(None, "Client certificate (PEM), where Redis asks for one.")
    redis_ssl_keyfile: Path | None = setting(
        None, "Private key (PEM) of the client certificate. Unset: it is in the same file."
    )
    redis_ssl_password: SecretStr | None = setting(None, "Password of that private key.", min_length=1)
    redis_connect_s_max: Annotated[float, Field(gt=0, le=60)] = setting(1.0, "Longest wait for a connection to Redis.")
    redis_answer_s_max: Annotated[float, Field(gt=0, le=60)] = setting(2.0, "Longest wait for an answer of Redis.")
    redis_value_bytes_max: Annotated[int, Field(gt=0)] = setting(
        4 * 2**20, "Largest list or report that is read from Redis. A larger one counts as missing."
    )

    def _security_problems(self) -> Iterator[str]:
        """What does not fit together, by the variables' names."""
        yield from self._kafka_problems()
        yield from self._redis_problems()
        for name in SecuritySettings.model_fields:
            path = getattr(self, name)
            if isinstance(path, Path) and not path.is_file():
                yield f"NEXTCLICK_{name.upper()}: there is no file {path}"

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
        if self.redis_sentinel_username and not self.redis_sentinel_password:
            yield "NEXTCLICK_REDIS_SENTINEL_USERNAME needs NEXTCLICK_REDIS_SENTINEL_PASSWORD"
        if address is not None and address.mode != SENTINEL:
            for name in _given(self, "redis_sentinel_"):
                yield f"NEXTCLICK_{name.upper()} needs a NEXTCLICK_REDIS_URL that begins with redis+sentinel://"
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
