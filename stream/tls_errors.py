"""What a failed TLS handshake means, out of OpenSSL's words."""

import re

_MEANINGS = (
    # OpenSSL says after the colon what it is: expired, self-signed, another host's name, an issuer not known.
    (r"\[SSL: CERTIFICATE_VERIFY_FAILED\][^:]*: ([^(]*\w)", "its certificate is not trusted: {}"),
    # Alerts by which the other side refuses what we showed, or that we showed nothing.
    (r"ALERT_(UNKNOWN_CA|\w*CERTIFICATE\w*|HANDSHAKE_FAILURE)\]", "it does not take our certificate ({})"),
    (r"\[SSL: (WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE)\]", "it does not speak TLS there"),
    (r"Handshake failed: \[SSL: UNEXPECTED_EOF\w*\]", "it does not speak TLS there, or ended the connection"),
    # Elsewhere an end without a farewell is what a server that was killed leaves, and no matter of trust.
    (r"\[SSL: (?!UNEXPECTED_EOF)(\w+)\]", "TLS fails ({})"),
)


def tls_trouble(text: str) -> str | None:
    """A few words on what an error's text says of TLS; None where it is about something else."""
    for pattern, meaning in _MEANINGS:
        if found := re.search(pattern, text):
            return meaning.format(*(group.lower() for group in found.groups()))
    return None
