"""What the clients of Kafka and Redis are told so that they are safe: TLS, certificates, users and passwords."""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from online.config.settings import Settings, SettingsError
from stream.addresses import redis_address


class _Hidden(str):
    """A password as the clients take it, which is not shown where they log the options they were given."""

    def __repr__(self) -> str:
        return "'**********'"


_NO_PASSWORD = ""  # an encrypted key without one is an error then; None would ask at the terminal


def kafka_options(settings: Settings) -> Mapping[str, Any]:
    """Options of kafka-python's clients. Raises SettingsError where a certificate or key cannot be used."""
    options: dict[str, Any] = {"security_protocol": settings.kafka_security_protocol}
    if settings.kafka_security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_sasl_username
        options["sasl_plain_password"] = _revealed(settings.kafka_sasl_password)
    if settings.kafka_security_protocol.endswith("SSL"):
        options["ssl_context"] = tls_context(
            "KAFKA",
            settings.kafka_ssl_cafile,
            settings.kafka_ssl_certfile,
            settings.kafka_ssl_keyfile,
            settings.kafka_ssl_password,
        )
    return options


def redis_options(settings: Settings) -> Mapping[str, Any]:
    """Options of redis-py's client beside the URL. Raises SettingsError as above."""
    options: dict[str, Any] = {}
    if settings.redis_username is not None:
        options["username"] = settings.redis_username
    if settings.redis_password is not None:
        options["password"] = _revealed(settings.redis_password)
    if settings.redis_sentinel_username is not None:
        options["sentinel_username"] = settings.redis_sentinel_username
    if settings.redis_sentinel_password is not None:
        options["sentinel_password"] = _revealed(settings.redis_sentinel_password)
    if settings.redis_url is not None and redis_address(settings.redis_url.get_secret_value()).tls:
        files = settings.redis_ssl_cafile, settings.redis_ssl_certfile, settings.redis_ssl_keyfile
        tls_context("REDIS", *files, settings.redis_ssl_password)  # redis-py makes its own, and says less
        names = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
        options |= {name: str(path) for name, path in zip(names, files, strict=True) if path is not None}
        options |= {"ssl_password": _revealed(settings.redis_ssl_password), "ssl_check_hostname": True}
        options["ssl_min_version"] = ssl.TLSVersion.TLSv1_2
    return options


def tls_context(
    where: str, cafile: Path | None, certfile: Path | None, keyfile: Path | None, password: SecretStr | None
) -> ssl.SSLContext:
    """TLS from 1.2 on that checks certificates and host names. Raises SettingsError, with the variable's name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which checks both
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if cafile is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(cafile)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"NEXTCLICK_{where}_SSL_CAFILE: {cafile} holds no certificates in PEM ({_why(error)})"
        ) from None
    if certfile is not None:
        try:
            context.load_cert_chain(certfile, keyfile, _revealed(password) or _NO_PASSWORD)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"NEXTCLICK_{where}_SSL_CERTFILE, _KEYFILE and _PASSWORD: {certfile} and {keyfile or 'the key in it'} "
                f"cannot be used together ({_why(error)})"
            ) from None
    return context


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else _Hidden(secret.get_secret_value())


def _why(error: Exception) -> str:
    return (isinstance(error, ssl.SSLError) and error.reason) or getattr(error, "strerror", None) or str(error)
