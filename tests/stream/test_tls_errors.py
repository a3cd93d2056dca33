"""Errors of OpenSSL are explained in a few plain words."""

import pytest

from stream.tls_errors import tls_trouble


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired (_ssl.c:1006)",
            "its certificate is not trusted: certificate has expired",
        ),
        (
            "Error 1 connecting to localhost:1. [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: Hostname "
            "mismatch, certificate is not valid for 'localhost'. (_ssl.c:1006).",
            "its certificate is not trusted: hostname mismatch, certificate is not valid for 'localhost",
        ),
        ("[SSL: SSLV3_ALERT_BAD_CERTIFICATE] …", "it does not take our certificate (bad_certificate)"),
        ("[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] …", "it does not take our certificate (certificate_required)"),
        ("[SSL: TLSV1_ALERT_UNKNOWN_CA] …", "it does not take our certificate (unknown_ca)"),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)", "it does not speak TLS there"),
        ("Handshake failed: [SSL: UNEXPECTED_EOF_WHILE_READING] EOF", "it does not speak TLS there, or ended the …"),
        ("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol", None),
        ("[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC] decryption failed", "TLS fails (decryption_failed_or_bad_…"),
        ("[Errno 111] Connection refused", None),
    ],
)
def test_errors_of_openssl_are_explained_in_a_few_words(text: str, meaning: str | None) -> None:
    trouble = tls_trouble(text)
    assert (trouble or "").startswith((meaning or "").removesuffix("…"))
    assert (trouble is None) == (meaning is None)
