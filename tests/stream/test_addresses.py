"""Addresses as they are written: a right one is understood, a wrong one refused with a line that holds none of it."""

import re
import socket
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream.addresses import (
    _INSTEAD,
    ALLOWED,
    CLUSTER,
    SENTINEL,
    SINGLE,
    AddressError,
    host_and_port,
    kafka_servers,
    redis_address,
)

SECRET = "pl4nted"  # stands in every wrong address, where a password may end up


@pytest.fixture(autouse=True)
def _nothing_is_looked_up(monkeypatch):
    def looked_up(*_, **__):
        raise AssertionError("a host was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)


@pytest.mark.parametrize(
    ("url", "given"),
    [
        ("redis://h", {"host": "h", "port": 6379, "db": 0, "protocol": 2}),
        ("redis://h:7/", {"host": "h", "port": 7, "db": 0, "protocol": 2}),
        ("REDIS://h/3", {"host": "h", "port": 6379, "db": 3, "protocol": 2}),
        ("rediss://my-redis.example.:7/0?db=0", {"host": "my-redis.example.", "port": 7, "db": 0, "protocol": 2}),
        ("redis://10.0.0.1?db=15&protocol=3", {"host": "10.0.0.1", "port": 6379, "db": 15, "protocol": 3}),
        ("redis://[::1]:6379/0", {"host": "::1", "port": 6379, "db": 0, "protocol": 2}),
        ("redis://[fe80::1%25eth0]", {"host": "fe80::1%eth0", "port": 6379, "db": 0, "protocol": 2}),
        ("redis://h?client_name=shop-1", {"host": "h", "port": 6379, "db": 0, "protocol": 2, "client_name": "shop-1"}),
        ("redis://:p%40%2f@h", {"host": "h", "port": 6379, "db": 0, "protocol": 2, "password": "p@/"}),
        ("redis://u:p@h", {"host": "h", "port": 6379, "db": 0, "protocol": 2, "username": "u", "password": "p"}),
        ("unix:///run/r@1.sock?db=2", {"unix_socket_path": "/run/r@1.sock", "db": 2, "protocol": 2}),
        ("unix://u:p@/r%20s", {"unix_socket_path": "/r s", "db": 0, "protocol": 2, "username": "u", "password": "p"}),
    ],
)
def test_a_right_redis_url_is_understood(url, given):
    address = redis_address(url)
    assert address.options() == given
    assert address.tls == url.startswith("rediss")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"{SECRET}:6379", "does not begin with redis://"),
        (f"http://{SECRET}", "does not begin with redis://"),
        (f" redis://{SECRET}", "does not begin with redis://"),
        (f"redis://:{SECRET}@", "no host"),
        (f"redis:///{SECRET}", "no host"),
        (f"redis://[{SECRET}]:1", "no host"),
        (f"redis://[::1{SECRET}", "no host"),
        ("redis://::1:6379/0", "no host"),
        (f"redis://{SECRET}:P/prod", "no port"),
        (f"redis://h:{SECRET}", "no port"),
        (f"redis://:{SECRET}@h:0", "no port"),
        (f"redis://:{SECRET}@h:65536", "no port"),
        (f"redis://:{SECRET}@h:", "no port"),
        (f"redis://{SECRET},h:1", "no host"),
        (f"redis://h/{SECRET}", "no number of a database"),
        (f"redis://:{SECRET}@h/-1", "no number of a database"),
        (f"redis://:{SECRET}@h/0/1", "no number of a database"),
        (f"redis://:{SECRET}@h/٣", "no number of a database"),
        (f"redis://h?db={SECRET}", "option db of its query is no number"),
        (f"redis://:{SECRET}@h/1?db=2", "two databases"),
        (f"redis://:{SECRET}@h?db=2&db=2", "db twice"),
        (f"redis://:{SECRET}@h?db=", "db of its query is empty"),
        (f"redis://h?protocol={SECRET}", "protocol of its query has to be 2 or 3"),
        (f"redis://h?client_name=a%20{SECRET}", "client_name of its query"),
        (f"redis://h?{SECRET}=1", "does not know .number 1"),
        (f"redis://h?db=1&x{SECRET}", "does not know .number 2"),
        (f"redis://{SECRET}@h", "a user and no password"),
        (f"redis://h#{SECRET}", "a space, a line break, a #"),
        (f"redis://h {SECRET}", "a space, a line break, a #"),
        (f"redis://:{SECRET}@h\n", "percent-encode"),
        (f"unix://{SECRET}/r.sock", "three slashes"),
        (f"redis+cluster://:{SECRET}@a:1,b:2/1", "only the database 0"),
        (f"redis+cluster://:{SECRET}@a:1?db=1", "only the database 0"),
        (f"redis+cluster://:{SECRET}@a:1,,b:2", "no host"),
        (f"redis+cluster://:{SECRET}@a:1,b:x", "no port"),
        (f"redis+cluster://:{SECRET}@a/lists", "no number of a database"),
        (f"redis+sentinel://:{SECRET}@a:1,b:2", "service"),
        (f"redis+sentinel://:{SECRET}@a:1/", "service"),
        (f"redis+sentinel://:{SECRET}@a:1/s p", "percent-encode"),
        (f"redis+sentinel://:{SECRET}@a:1/s%20p", "service"),
        (f"redis+sentinel://a:1/s/{SECRET}", "no number of a database"),
        (f"redis+sentinel://a:1/s?sentinel_password={SECRET}", "does not know .number 1"),
        (f"redis+other://{SECRET}", "does not begin with redis://"),
        (f"unix://:{SECRET}@/", "three slashes"),
        *((f"redis://:{SECRET}{raw}{SECRET}@h:6379/0", "percent-encode") for raw in "@/#?%:[] \n"),
        *((f"redis://u{raw}{SECRET}:{SECRET}@h:6379/0", "percent-encode") for raw in "@/#?%[] "),
        *((f"unix://:{SECRET}{raw}{SECRET}@/r.sock", "percent-encode") for raw in "@/#?%: "),
        (f"redis://:a@b/{SECRET}@h", "percent-encode"),
        (f"redis://:%ff{SECRET}@h", "percent-encode"),
    ],
)
def test_a_wrong_redis_url_is_refused_without_a_part_of_it(url, says):
    with pytest.raises(AddressError, match=says) as error:
        redis_address(url)
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "given", "shown"),
    [
        ("redis+cluster://a:1,b:2", (CLUSTER, (("a", 1), ("b", 2)), None, 0), "redis+cluster://a:1,b:2"),
        ("rediss+cluster://u:p@a,[::1]/0", (CLUSTER, (("a", 6379), ("::1", 6379)), None, 0), None),
        ("redis+sentinel://a,b:2/lists", (SENTINEL, (("a", 26379), ("b", 2)), "lists", 0), None),
        ("redis+sentinel://:p@a/my-lists.1/3", (SENTINEL, (("a", 26379),), "my-lists.1", 3), None),
        ("rediss+sentinel://a/s?db=2", (SENTINEL, (("a", 26379),), "s", 2), "rediss+sentinel://a:26379/s/2"),
        ("redis://u:p@a/3", (SINGLE, (("a", 6379),), None, 3), "redis://a:6379/3"),
    ],
)
def test_a_cluster_and_sentinels_are_named_by_some_of_their_servers(url, given, shown):
    address = redis_address(url)
    assert (address.mode, address.nodes, address.service, address.db) == given
    assert address.tls == url.startswith("rediss")
    assert address.password == ("p" if ":p@" in url else None)
    assert "p@" not in address.shown
    if shown:
        assert address.shown == shown
    assert redis_address(address.shown)[:5] == address[:5]


@pytest.mark.parametrize("name", sorted(_INSTEAD))
def test_an_option_that_is_not_listed_is_refused_by_its_name_with_what_to_do_instead(name):
    for url in (f"redis://h/0?{name}=none", f"rediss://h?db=1&{name}={SECRET}", f"unix:///r?{name}=1"):
        with pytest.raises(AddressError, match=rf"option {name}: ") as error:
            redis_address(url)
        assert SECRET not in str(error.value)
        assert re.search(r"NEXTCLICK_REDIS_\w+|take it out|rediss://", str(error.value))


def test_redis_py_takes_every_option_that_is_allowed():
    """What a URL may hold reaches the client under the same name."""
    assert (
        {"db", "protocol", "client_name"} == set(ALLOWED) <= redis_address("redis://h?client_name=n").options().keys()
    )


@given(st.text(min_size=1, max_size=12), st.text(min_size=1, max_size=12))
@example("ünï", "%41")
def test_a_percent_encoded_user_and_password_come_out_as_they_went_in(username, password):
    try:
        url = f"redis://{quote(username, safe='')}:{quote(password, safe='')}@host.example:7/1"
    except UnicodeEncodeError:
        return
    address = redis_address(url)
    assert (address.username, address.password, address.host, address.port) == (username, password, "host.example", 7)


@given(st.text(st.sampled_from("aé%4@/#?:[]&= ;\\\t"), min_size=1, max_size=9))
def test_a_raw_password_is_taken_as_it_is_meant_or_refused(password):
    """Never is a part of it taken for something else."""
    try:
        address = redis_address(f"redis://:{password}@host.example:7/1")
    except AddressError:
        return
    assert (address.host, address.port, address.db, address.username) == ("host.example", 7, 1, None)
    assert address.password == unquote(password)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("a:1", "a:1"),
        (" a:1 , b-2.example:2,", "a:1,b-2.example:2"),
        ("[::1]:9092,10.0.0.1:9", "[::1]:9092,10.0.0.1:9"),
    ],
)
def test_right_kafka_servers_are_taken_without_spaces_around(text, taken):
    assert kafka_servers(text) == taken


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{SECRET}", "server 1 of 1 has no port"),
        (f"a:1,{SECRET}", "server 2 of 2 has no port"),
        (f"{SECRET}:0", "no port from 1"),
        (f"{SECRET}:x", "no port from 1"),
        (f"a:{SECRET}", "no port from 1"),
        (f"kafka://{SECRET}:1", "like a URL"),
        (f"user:{SECRET}@a:1", "NEXTCLICK_KAFKA_SASL_PASSWORD"),
        (f"user:b,{SECRET}@a:1", "NEXTCLICK_KAFKA_SASL_PASSWORD"),
        (f"{SECRET}:1 b:2", "commas"),
        (f"{SECRET}:1;b:2", "commas"),
        ("::1:9092", "IPv6"),
        ("[::1]", "IPv6"),
        (f"[{SECRET}]:1", "names no host"),
        (":9092", "names no host"),
        (f"/{SECRET}:1", "names no host"),
        (" , ", "names no server"),
    ],
)
def test_wrong_kafka_servers_are_refused_without_a_part_of_them(text, says):
    with pytest.raises(AddressError, match=says) as error:
        kafka_servers(text)
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)


def test_an_ipv6_address_is_shown_in_brackets():
    assert (host_and_port("::1", 7), host_and_port("h", 7)) == ("[::1]:7", "h:7")
