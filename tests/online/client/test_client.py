"""What both clients do, whatever the API does: it answers, is slow, refuses, dies in the middle of an answer."""

import socket
from dataclasses import replace
from typing import Any

import pytest

from online.client import ApiUnavailableError, Limits, RecentClick, RequestError
from tests.online.client.stub_api import HASTY, PATIENT, a_list, answer, cut, drip, hang, hang_up

CALLS = {
    "recommend": lambda client: client.recommend("u1"),
    "rank": lambda client: client.rank("u1"),
    "similar": lambda client: client.similar("i1"),
    "popular": lambda client: client.popular(),
    "trending": lambda client: client.trending(),
    "latest": lambda client: client.latest(),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_list_comes_from_the_api(stub, make_client, name) -> None:
    stub.will(a_list("i4", "i9", user_id="u1", known=True, widened=False, dropped={"seen": 2}, age_ms=7))
    found = CALLS[name](make_client(stub.url))
    assert (found.items, found.scores, found.source, found.version) == (("i4", "i9"), (0.5, 0.5), "asked", 3)
    assert (found.known, found.widened, found.dropped, found.age_ms) == (True, False, {"seen": 2}, 7)
    assert (found.error, found.is_fallback) == (None, False)


def test_what_is_asked_for_is_sent(stub, make_client) -> None:
    stub.will(a_list())
    client = make_client(stub.url + "/shop/", api_key="nck_1")
    client.recommend(
        "a/b ?é",
        3,
        fresh=True,
        where='price <= 20 and brand in ("x")',
        exclude=["i1", "i,2"],
        diversity=0.5,
        objective="p_click * value",
    )
    client.similar("ü&", 4, by="content", where="tags any (a)")
    client.trending(5, where="available")
    client.rank(
        "u1", 6, recent=["i1", RecentClick("i2", 17.5)], candidates=iter(["a", "b"]), at=18.0, exclude={"b"},
        where="x", diversity=0.1, max_per_tag=2, explain=True, explore=0.0, request_id="r", objective="p_click",
    )  # fmt: skip
    client.rank()
    assert [(one.method, one.target, one.body) for one in stub.seen] == [
        (
            "GET",
            "/shop/v1/recommend/a%2Fb%20%3F%C3%A9?k=3&exclude=i1&exclude=i%2C2&fresh=true"
            "&where=price+%3C%3D+20+and+brand+in+%28%22x%22%29&diversity=0.5&objective=p_click+%2A+value",
            None,
        ),
        ("GET", "/shop/v1/similar/%C3%BC%26?k=4&by=content&where=tags+any+%28a%29", None),
        ("GET", "/shop/v1/trending?k=5&where=available", None),
        (
            "POST",
            "/shop/v1/rank",
            {
                "user_id": "u1", "k": 6, "recent": ["i1", {"item_id": "i2", "timestamp": 17.5}],
                "candidates": ["a", "b"], "at": 18.0, "exclude": ["b"], "where": "x", "diversity": 0.1,
                "objective": "p_click", "max_per_tag": 2, "explain": True, "explore": 0.0, "request_id": "r",
            },
        ),
        ("POST", "/shop/v1/rank", {"k": 10}),
    ]  # fmt: skip
    assert {one.headers["authorization"] for one in stub.seen} == {"Bearer nck_1"}
    assert stub.seen[3].headers["content-type"] == "application/json"


def test_connections_are_reused(stub, make_client) -> None:
    stub.will(a_list("i1"))
    client = make_client(stub.url)
    for _ in range(5):
        client.recommend("u1")
    assert {one.connection for one in stub.seen} == {1}


def test_an_answer_of_a_later_version_is_understood(stub, make_client) -> None:
    stub.will(answer(200, {"items": ["i1"], "source": "oracle", "colour": {"of": "magic"}, "dropped": None}))
    found = make_client(stub.url).rank("u1")
    assert (found.items, found.scores, found.source, found.dropped) == (("i1",), (), "oracle", None)


@pytest.mark.parametrize("said", [b"<html>", b"[]", b"{}", b'{"items": 3}', b"\xff", b"[" * 100_000, b""])
def test_what_is_no_list_is_no_answer(stub, make_client, said) -> None:
    stub.will(answer(200, said))
    found = make_client(stub.url, default=["d1"]).recommend("u1")
    assert (found.items, found.source) == (("d1",), "default")
    assert found.error
    assert len(stub.seen) == 1  # another attempt would bring the same


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_an_api_that_cannot_now_is_asked_again(stub, make_client, status) -> None:
    stub.will(answer(status, {"detail": "not now"}), answer(status, {"detail": "not now"}), a_list("i1"))
    found = make_client(stub.url).recommend("u1")
    assert (found.items, found.source, len(stub.seen)) == (("i1",), "asked", 3)


@pytest.mark.parametrize("fault", [hang_up, cut], ids=["hang_up", "cut"])
def test_a_broken_connection_is_asked_again(stub, make_client, fault) -> None:
    stub.will(fault, a_list("i1"))
    assert make_client(stub.url).recommend("u1").source == "asked"
    assert len(stub.seen) == 2


@pytest.mark.parametrize("fault", [hang, drip], ids=["hang", "drip"])
def test_an_api_that_is_too_slow_is_given_up(stub, make_client, fault) -> None:
    stub.will(fault)
    found = make_client(stub.url, limits=HASTY, default=["d1"]).recommend("u1")  # it returns at all
    assert (found.items, found.source) == (("d1",), "default")
    assert "did not answer within 0." in found.error
    receipt = make_client(stub.url, limits=HASTY).click("u1", "i1")
    assert not receipt.accepted
    assert len(stub.seen) <= 6


def test_an_api_that_was_slow_once_is_asked_again(stub, make_client) -> None:
    stub.will(hang, a_list("i1"))
    limits = replace(PATIENT, attempt_s=0.2)
    assert make_client(stub.url, limits=limits).recommend("u1").items == ("i1",)


@pytest.mark.parametrize("status", [401, 403, 404, 405, 500, 501, 302])
def test_a_refusal_that_is_not_the_calls_fault_falls_back_at_once(stub, make_client, status) -> None:
    stub.will(answer(status, {"detail": "no entry"}))
    found = make_client(stub.url, default=["d1"]).recommend("u1")
    assert (found.source, len(stub.seen)) == ("default", 1)
    assert found.error == f"the API at {stub.url} answers {status}: no entry"


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_wrong_call_is_an_error_and_not_repeated(stub, make_client, status) -> None:
    stub.will(answer(status, {"detail": "where: column 3: expected a value"}))
    for call in (lambda client: client.rank("u1", where="x <"), lambda client: client.click("u1", "i1")):
        with pytest.raises(RequestError, match=r"^where: column 3: expected a value$") as raised:
            call(make_client(stub.url, default=["d1"]))
        assert raised.value.status == status
    assert len(stub.seen) == 2


def test_a_wait_that_the_api_asks_for_and_there_is_no_time_for_ends_the_call(stub, make_client) -> None:
    stub.will(answer(429, {"detail": "too many"}, Retry_After="30"))
    found = make_client(stub.url, default=["d1"]).recommend("u1")
    assert (found.source, len(stub.seen)) == ("default", 1)
    assert "answers 429: too many" in found.error


@pytest.mark.parametrize("status", [401, 429, 503])
def test_unavailable_is_raised_where_that_is_asked_for(stub, make_client, status) -> None:
    stub.will(answer(status, {"detail": "no"}, Retry_After="60"))
    client = make_client(stub.url, raise_unavailable=True, default=["d1"])
    with pytest.raises(ApiUnavailableError, match=f"answers {status}: no"):
        client.recommend("u1")
    with pytest.raises(ApiUnavailableError, match=f"answers {status}: no"):
        client.click("u1", "i1")


def test_retries_end_when_their_budget_does(stub, make_client) -> None:
    stub.will(answer(503, {"detail": "not now"}))
    client = make_client(stub.url, limits=replace(PATIENT, budget_ratio=0.1, budget_reserve=4))
    for _ in range(30):
        assert client.recommend("u1").source == "default"
    assert 30 + 4 <= len(stub.seen) <= 30 + 4 + 3


def test_an_api_that_is_away_is_left_alone_and_noticed_when_it_is_back(stub, make_client) -> None:
    stub.will(hang_up)
    client = make_client(stub.url, limits=replace(PATIENT, failures_max=3, retries_max=0, open_s=3_600.0))
    problems = [client.recommend("u1").error for _ in range(10)]
    assert len(stub.seen) == 3
    assert "has not answered for a while" in problems[-1]
    stub.will(answer(202, {"status": "accepted"}))
    assert client.click("u1", "i1").accepted  # lists are one thing, clicks another

    client = make_client(stub.url, limits=replace(PATIENT, failures_max=3, retries_max=0, open_s=1e-9))
    stub.will(hang_up, hang_up, hang_up, hang_up, a_list("i1"))
    assert [client.recommend("u1").source for _ in range(6)] == ["default"] * 4 + ["asked"] * 2


def test_answers_that_refuse_do_not_open_the_circuit(stub, make_client) -> None:
    stub.will(*[answer(503, {"detail": "nothing has been learned yet"}, Retry_After="60")] * 20, a_list("i1"))
    client = make_client(stub.url, limits=replace(PATIENT, failures_max=2))
    assert [client.recommend("u1").source for _ in range(21)] == ["default"] * 20 + ["asked"]


def test_an_answer_without_end_is_not_read_to_its_end(stub, make_client) -> None:
    stub.will(answer(200, b" " * 5_000))
    found = make_client(stub.url, limits=replace(PATIENT, answer_bytes_max=4_096, retries_max=0)).recommend("u1")
    assert found.source == "default"
    assert "its answer has more than 4096 bytes" in found.error


def test_a_click_says_when_and_has_an_id_of_its_own(stub, make_client) -> None:
    stub.will(hang_up, answer(202, {"status": "accepted"}))
    client = make_client(stub.url)
    first = client.click("u1", "i9")
    second = client.click("u1", "i9", timestamp=17, event_id="a-7", event_type="buy", value=4.5)
    assert (first.accepted, first.error, second.accepted, second.event_id) == (True, None, True, "a-7")
    sent = [one.body for one in stub.seen]
    assert sent[0] == sent[1]  # the retry is the same click
    assert sent[0].keys() == {"user_id", "item_id", "timestamp", "event_id"}
    assert sent[0]["event_id"] == first.event_id != ""
    assert sent[0]["timestamp"] > 1e9
    expected = {"user_id": "u1", "item_id": "i9", "timestamp": 17, "event_id": "a-7", "event_type": "buy", "value": 4.5}
    assert sent[2] == expected


def test_a_click_that_is_not_taken_says_so(make_client, free_port) -> None:
    receipt = make_client(f"http://127.0.0.1:{free_port}").click("u1", "i9")
    assert not receipt.accepted
    assert receipt.error.startswith(f"the API at http://127.0.0.1:{free_port} does not answer POST /click: ")
    assert receipt.event_id


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.recommend(".."),
        lambda client: client.recommend("\ud800"),
        lambda client: client.recommend("u1", where="\ud800"),
        lambda client: client.rank("u1", at=float("nan")),
        lambda client: client.click("u1", object()),
    ],
)
def test_what_cannot_be_sent_is_an_error_of_one_line(stub, make_client, call) -> None:
    with pytest.raises(RequestError) as raised:
        call(make_client(stub.url))
    assert (len(stub.seen), len(str(raised.value).splitlines())) == (0, 1)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("shop", {}), ("ftp://shop", {}), ("http://", {}), ("http://u:p@shop", {}), ("http://shop?k=1", {}),
        ("http://shop", {"api_key": "two words"}), ("http://shop", {"api_key": "a\nb"}),
        ("http://shop", {"api_key": ""}), ("http://shop", {"redis_url": "http://redis"}),
    ],
)  # fmt: skip
def test_a_client_that_cannot_work_is_not_made(make_client, url, options) -> None:
    with pytest.raises(ValueError, match=r"^(url|api_key|redis_url): "):
        make_client(url, **options)


@pytest.mark.parametrize("field", ["deadline_s", "attempt_s", "failures_max", "answer_bytes_max", "open_s"])
def test_limits_are_checked(field) -> None:
    with pytest.raises(ValueError, match=f"^{field} is "):
        Limits(**{field: 0})


def test_the_key_is_in_no_text(make_client, free_port, caplog) -> None:
    client: Any = make_client(f"http://127.0.0.1:{free_port}", api_key="nck_secret")
    with caplog.at_level("DEBUG"):
        texts = [client.recommend("ada-7").error for _ in range(6)]
    assert "nck_secret" not in "".join((*texts, caplog.text, repr(client), repr(client._core)))
    assert "left alone" in caplog.text
    assert "ada-7" not in "".join(record.getMessage() for record in caplog.records if record.name == "online.client")


def test_a_host_that_takes_no_connections_is_given_up(make_client) -> None:
    with socket.socket() as listener:  # bound, and its queue is full: connections hang
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        found = make_client(f"http://127.0.0.1:{address[1]}", limits=HASTY, default=["d1"]).recommend("u1")
        for one in waiting:
            one.close()
    assert found.source == "default"


def test_an_api_of_before_versions_is_asked_without_them_and_its_errors_are_read(stub, make_client) -> None:
    missing = answer(404, {"error": "there is nothing at this path: /openapi.json lists what there is"})
    stub.will(missing, a_list("i1"), answer(422, {"error": "k: too large"}))
    client = make_client(stub.url)
    assert client.recommend("u1").items == ("i1",)
    with pytest.raises(RequestError, match=r"^k: too large$"):
        client.recommend("u1", 5)
    paths = ["/v1/recommend/u1?k=10", "/recommend/u1?k=10", "/recommend/u1?k=5"]
    assert [one.target for one in stub.seen] == paths


def test_a_path_that_no_version_has_is_asked_for_twice_and_no_more(stub, make_client) -> None:
    stub.will(answer(404, {"detail": "there is nothing at this path: /openapi.json lists what there is"}))
    client = make_client(stub.url, default=["d1"])
    assert (client.recommend("u1").source, len(stub.seen)) == ("default", 2)
    assert (client.recommend("u1").source, len(stub.seen)) == ("default", 3)
