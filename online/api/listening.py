"""The socket that the API listens on."""

import socket


class ServeError(Exception):
    """The API cannot listen; one line that says where and what to do."""


def listen(host: str, port: int) -> socket.socket:
    """Opens it. Raises ServeError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1_024)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ServeError(
            f"the API cannot listen on {host} port {port} ({error.strerror or error}):"
            " stop what listens there, or choose another with NEXTCLICK_API_PORT or --port"
        ) from None
    return listener
