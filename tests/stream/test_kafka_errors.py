"""What a broker says before it ends a connection is not lost."""

import socket

import pytest
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

import stream.kafka_errors  # noqa: F401 - mends how kafka-python reads


@pytest.mark.parametrize("kind", [KafkaTCPTransport, KafkaSSLTransport])
def test_an_answer_that_comes_with_the_end_of_the_connection_is_read_first(kind):
    class Transport(kind):  # without the rest of a connection
        def __init__(self, sock):
            self._sock = sock

        def __str__(self):
            return "transport"

    broker, ours = socket.socketpair()
    with broker, ours:
        ours.setblocking(False)
        transport = Transport(ours)
        broker.sendall(b"wrong password")
        broker.close()
        assert transport._sock_recv() == (b"wrong password", None)
        data, error = transport._sock_recv()
        assert data == b""
        assert "socket disconnected" in str(error)
