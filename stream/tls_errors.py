"""What a failed TLS handshake means, out of OpenSSL's words."""

import re

_MEANINGS = (
    # OpenSSL says after the colon what it is: expired, self-signed, another host's name, an issuer not known.
    (r"CERTIFICATE_VERIFY_FAILED\] certificate verify failed: ([^)]*?) *\(", "its certificate is not trusted: {0}"),
    (r"CERTIFICATE_VERIFY_FAILED", "its certificate is not trusted"),
    # Alerts by which the other side refuses what we showed.
    (r"CERTIFICATE_REQUIRED|certificate required", "it wants a certificate of ours"),
    (
        r"ALERT_(UNKNOWN_CA|BAD_CERTIFICATE|CERTIFICATE_\w+|HANDSHAKE_FAILURE)",
        "it does not accept our certificate ({0})",
    ),
    (r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|PACKET_LENGTH", "it does not speak TLS there"),
    (r"\[SSL[:\]].*?\] ?([^(]*)", "TLS fails: {0}"),
)


def tls_trouble(text: str) -> str | None:
    """A few words for people on what an error's text says of TLS; None where it is about something else."""
    for pattern, meaning in _MEANINGS:
        if found := re.search(pattern, text):
            said = found[1].strip().lower() if found.groups() and found[1] else ""
            return meaning.format(said) if said or "{0}" not in meaning else meaning.partition(" (")[0]
    return None
