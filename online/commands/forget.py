"""`nextclick forget`: asked for on the topic of clicks, waited for, and proved by a search of every store."""

import json
import mmap
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from online.config.settings import Settings
from online.worker.ask import RequestError, ask_worker, ask_workers
from online.worker.connections import (
    named_broker,
    open_lists,
    open_producer,
    open_reader,
    prepare_topics,
    topic_retention_ms,
)
from online.worker.quoted import quoted_in
from stream.dead_letters import dead_letter
from stream.events import BadEvent, Forget, encode_forget, id_problem
from stream.impressions import parse
from stream.lists import Lists
from stream.log_file import Log
from stream.source import Partition, Record
from stream.user_ids import digest_of, user_ids_in

_ASK_EACH_S = 0.5
_SEARCH_S_MAX = 30.0  # before anything is asked for
REMAINS = (
    "what the shared model has learned from the clicks: weights, and sums such as how often an item was clicked or "
    "followed another. Nothing there names a user, and no user's part can be taken out of it again",
    "ids of events, as 64-bit digests that name no user, so that a redelivered click is not learned",
    "the request itself on the topics of clicks and of feedback: the SHA-256 of the id, so that reading a topic again "
    "forgets again",
)


class ForgetError(Exception):
    """It cannot be asked for; one line that says why."""


@dataclass
class Proof:
    """How often the user is found, store by store (None: it could not be searched), what is still to be done, and
    what stays."""

    found: dict[str, int | None] = field(default_factory=dict)
    waits_for: list[str] = field(default_factory=list)
    clicks: str = ""  # of the topic itself, where that is not ours to change
    feedback: str = ""  # likewise
    impressions: str = ""  # of their topic, likewise
    users: str = ""  # likewise
    known: bool | None = None  # whether a store named the user before; None: not all could be searched

    @property
    def complete(self) -> bool:
        return not self.waits_for and all(count == 0 for count in self.found.values())

    def as_dict(self) -> dict[str, Any]:
        remains = [*filter(None, (self.clicks, self.feedback, self.impressions, self.users)), *REMAINS]
        done = {"forgotten": self.complete, "known_before": self.known}
        return done | {"found": self.found, "waits_for": self.waits_for, "remains": remains}


def forget(
    settings: Settings,
    user_id: str,
    *,
    timeout_s: float,
    count_clicks: bool = True,
    on_wait: Callable[[str], None] = lambda _: None,
) -> Proof:
    """Forgets a user, and proves it. Without a worker it is only asked for, which is among what the proof waits for.

    Args:
        settings: that name the stores.
        user_id: whom to forget.
        timeout_s: longest wait for the workers, in seconds.
        count_clicks: whether to read through the topics of clicks and feedback in Kafka, to say how many of theirs are
            there.
        on_wait: called with a line on what is waited for, each time that changes.

    Raises:
        ForgetError: no user can have this id.
        SourceError, ListsError: a store does not answer, or refuses.
    """
    if (problem := id_problem(user_id)) is not None:
        raise ForgetError(f"no user can have this id: {problem}")
    lists = open_lists(settings)
    prepare_topics(settings)
    known = _known_before(settings, lists, user_id, timeout_s)
    topics = settings.clicks_topic, settings.feedback_topic
    digest = digest_of(user_id)
    requested = encode_forget(Forget(user_sha256=digest, timestamp=time.time()))
    after: dict[Partition, int] = {}
    if settings.users_topic is not None:  # first: a worker that reads a record of the user later forgets it, too
        after |= _publish(settings, settings.users_topic, user_id.encode(), None)
    for topic in topics:
        after |= _publish(settings, topic, digest.encode(), requested)
    request = {"forget": digest, "after": [[*partition, offset] for partition, offset in after.items()]}
    proof = Proof(known=known)
    _wait(lists, request, timeout_s, proof, on_wait)
    embedded = named_broker(settings).log_path is not None
    if embedded:
        _erase_records(settings, user_id, after)
    _ask(lists, request | {"search": True}, timeout_s, proof)
    proof.found["Redis: keys and what they hold"] = lists.keys_naming(user_id)
    proof.found |= _found_on_topics(settings, user_id)
    if embedded:
        proof.found |= found_in_log(settings, user_id)
    else:
        proof.clicks, proof.feedback = (
            _records_elsewhere(settings, topic, user_id, count=count_clicks) for topic in topics
        )
        proof.impressions = _impressions_elsewhere(settings)
        if settings.users_topic is not None:
            proof.users = (
                f"the user's records on the topic {settings.users_topic} in Kafka until it compacts them, and the "
                "tombstone that deletes them, which has the id as its key, for delete.retention.ms"
            )
        there = bool(proof.clicks or proof.feedback)
        proof.known = proof.known or (there or proof.known if count_clicks else None)
    return proof


def _known_before(settings: Settings, lists: Lists, user_id: str, timeout_s: float) -> bool | None:
    """Whether a store names the user, the clicks in Kafka apart; None: not all could be searched, and no other does."""
    before = Proof()
    _ask(lists, {"forget": digest_of(user_id), "after": [], "search": True}, min(timeout_s, _SEARCH_S_MAX), before)
    counts: list[int | None] = [*before.found.values(), lists.keys_naming(user_id)]
    counts += _found_on_topics(settings, user_id).values()
    if named_broker(settings).log_path is not None:
        counts += found_in_log(settings, user_id).values()
    return True if any(counts) else None if None in counts else False


def _publish(settings: Settings, topic: str, key: bytes, value: bytes | None) -> dict[Partition, int]:
    """The request, or a tombstone, in every partition of a topic -> the next offset after it in each.

    The producer chooses the partition of a click; in each partition the request comes after the user's records.
    """
    after = {}
    with closing(open_reader(settings, topic)) as reader:
        before = reader.ends()
        with closing(open_producer(settings)) as producer:
            for partition in before:
                producer.send(topic, key=key, value=value, partition=partition.partition)
        for record in reader.read(before):
            if record.key == key and record.value == value:
                after[Partition(record.topic, record.partition)] = record.offset + 1
    return after


def _wait(
    lists: Lists, request: Mapping[str, Any], timeout_s: float, proof: Proof, on_wait: Callable[[str], None]
) -> None:
    """Until the worker has done it, or the time is up."""
    deadline, said = time.monotonic() + timeout_s, ""
    while (left_s := deadline - time.monotonic()) > 0:
        _ask(lists, request, left_s, proof)
        if not proof.waits_for:
            return
        waits = re.sub(r" within \d+ s$", "", "; ".join(proof.waits_for))  # which would change each second
        if waits != said:
            said = waits
            on_wait(f"waits, for {timeout_s:g} s at most (--timeout): {waits}")
        time.sleep(min(_ASK_EACH_S, max(0.0, left_s)))


def _ask(lists: Lists, request: Mapping[str, Any], timeout_s: float, proof: Proof) -> None:
    """What the workers say. Where none runs, nothing is known of its memory and its disk."""
    if names := list(lists.read_statuses()):
        _ask_all(lists, names, request, timeout_s, proof)
        return
    try:
        if lists.status() is None:
            raise RequestError("no worker runs: the request stands on the topic, and is done when one starts")
        answer = ask_worker(lists, request, max(1.0, timeout_s), "nextclick status")
    except RequestError as error:
        proof.waits_for = [str(error)]
        if "search" in request:
            proof.found["the worker's memory and checkpoints"] = None
        return
    proof.waits_for = list(answer["waits_for"])
    proof.found |= _found_by(answer)


def _ask_all(lists: Lists, names: Collection[str], request: Mapping[str, Any], timeout_s: float, proof: Proof) -> None:
    """What each of several workers says: all of them count all clicks, and each has checkpoints of its own."""
    done = ask_workers(lists, request, max(1.0, timeout_s), "nextclick status", names)
    waits = [f"{name}: {text}" for name, answer in sorted(done.answers.items()) for text in answer["waits_for"]]
    proof.waits_for = waits + [
        line if name in line else f"{name}: {line}" for name, line in sorted(done.errors.items())
    ]
    for name, answer in sorted(done.answers.items()):
        proof.found |= {f"{name}: {where}": count for where, count in _found_by(answer).items()}
    if "search" in request:
        proof.found |= {f"{name}: the worker's memory and checkpoints": None for name in sorted(done.errors)}


def _found_by(answer: Mapping[str, Any]) -> dict[str, int | None]:
    """How often a worker found the user in its memory and its checkpoints."""
    memory = {f"memory: {kind}": count for kind, count in answer.get("memory", {}).items()}
    return memory | {f"checkpoint {number}": count for number, count in answer.get("checkpoints", {}).items()}


def _found_on_topics(settings: Settings, user_id: str) -> dict[str, int]:
    found = {}
    letters, events = settings.dead_letters_topic, settings.events_topic
    with closing(open_reader(settings, letters)) as reader:
        found[f"topic {letters}"] = sum(_names(record, user_id, settings) for record in reader.read())
    with closing(open_reader(settings, events)) as reader:
        found[f"topic {events}"] = sum(_quotes(record.value or b"", user_id) for record in reader.read())
    return found


def _quotes(value: bytes, user_id: str) -> bool:
    """Whether a notice quotes the id."""
    try:
        return user_id in quoted_in(str(json.loads(value)["text"]))
    except (ValueError, TypeError, KeyError):
        return user_id in user_ids_in(None, value)


def _names(record: Record, user_id: str, settings: Settings) -> bool:
    """Whether it is about the user; of broken items the key is an item."""
    return user_id in _named_in(record, dead_letter(record).topic, settings)


def _named_in(record: Record, topic: str, settings: Settings) -> set[str]:
    """Users that a record of a topic may name: of items' the key is an item, of users' the value holds attributes."""
    key = None if topic == settings.items_topic else record.key
    value = None if topic == settings.users_topic else record.value
    return user_ids_in(key, value, _user_path(settings, topic))


def _user_path(settings: Settings, topic: str) -> str | None:
    """Where users stand in the producers' messages; None: under our own name."""
    return settings.click_names.paths.get("user_id") if topic == settings.clicks_topic else None


# --- the records themselves ------------------------------------------------------------------------------------


def _erase_records(settings: Settings, user_id: str, after: Mapping[Partition, int]) -> None:
    """The embedded log is ours: the user's records before the request go, what was shown to them, and the bytes of all
    of them."""
    with closing(Log(settings.log_path)) as file:
        for partition in file.extents([settings.impressions_topic]):
            file.erase(partition, [one.offset for one in _impressions_of(file, partition, user_id)])
        for partition, offset in after.items():
            mine = [one.offset for one in _records_of(file, partition, user_id, settings) if one.offset < offset]
            file.erase(partition, mine)
        file.scrub()


def _records_of(file: Log, partition: Partition, user_id: str, settings: Settings) -> Iterator[Record]:
    for record in file.mentions(partition, _words(user_id)):
        if user_id in _named_in(record, partition.topic, settings):
            yield record


def _impressions_of(file: Log, partition: Partition, user_id: str) -> Iterator[Record]:
    """Lists that were shown to the user. Their other values are no ids of users, as positions are."""
    for record in file.mentions(partition, _words(user_id)):
        impression = parse(record.value)
        named = user_ids_in(None, record.value) if isinstance(impression, BadEvent) else {impression.user_id}
        if user_id in named or record.key == user_id.encode():
            yield record


def found_in_log(settings: Settings, user_id: str) -> dict[str, int]:
    """Records that are there, and bytes that look like the user's records, in the file and in its journal."""
    path, found = settings.log_path, {}
    with closing(Log(path)) as file:
        for topic in filter(None, (settings.clicks_topic, settings.feedback_topic, settings.users_topic)):
            mine = (_records_of(file, partition, user_id, settings) for partition in file.extents([topic]))
            found[f"topic {topic}"] = sum(1 for records in mine for _ in records)
        shown = settings.impressions_topic
        lists = (_impressions_of(file, partition, user_id) for partition in file.extents([shown]))
        found[f"topic {shown}"] = sum(1 for records in lists for _ in records)
    pattern = _pattern(user_id, _user_path(settings, settings.clicks_topic))
    for part in (path, path.with_name(path.name + "-wal")):
        if part.exists():
            found[f"bytes of {part.name}"] = _count(part, pattern)
    return found


def _spellings(user_id: str) -> list[bytes]:
    """How an id may be written in a message."""
    texts = {user_id, json.dumps(user_id)[1:-1], json.dumps(user_id, ensure_ascii=False)[1:-1]}
    return [text.encode() for text in sorted(texts)]


def _words(user_id: str) -> list[bytes]:
    """Bytes one of which stands in each message about the user: an id as it is, or what JSON may write it with, which
    is an escape in any text, and an exponent in a number."""
    exponents = [f"{digit}{e}".encode() for digit in range(10) for e in "eE"] if _is_integer(user_id) else []
    return [*_spellings(user_id), b"\\", *exponents]


def _is_integer(user_id: str) -> bool:
    return user_id.removeprefix("-").isascii() and user_id.removeprefix("-").isdigit()


def _pattern(user_id: str, user_path: str | None = None) -> re.Pattern[bytes]:
    """A record of the user as it stands in a file: with its quotes, so that no longer id is taken for it."""
    values = [b'"' + re.escape(text) + b'"' for text in _spellings(user_id)]
    if _is_integer(user_id):
        values.append(user_id.encode() + rb"(?:\.0+)?(?![0-9.eE])")
    parts = (user_path or "user_id").split(".")
    fields = {"user_id", *(".".join(parts[at:]) for at in range(len(parts)))}  # a field's name may hold dots
    names = b"|".join(re.escape(field.encode()) for field in sorted(fields))
    return re.compile(rb'"(?:' + names + rb')"\s*:\s*(?:' + b"|".join(values) + b")")


def _count(path: Path, pattern: re.Pattern[bytes]) -> int:
    if not path.stat().st_size:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        return sum(1 for _ in pattern.finditer(held))


def _records_elsewhere(settings: Settings, topic: str, user_id: str, *, count: bool) -> str:
    """What stays of the user in a topic that belongs to its producers, and until when."""
    kept_ms = topic_retention_ms(settings, topic)
    words, user_path, number, latest_ms = _words(user_id), _user_path(settings, topic), 0, 0
    if count:
        with closing(open_reader(settings, topic)) as reader:
            for record in reader.read():
                text = (record.key or b"") + b"\n" + (record.value or b"")
                if any(word in text for word in words) and user_id in user_ids_in(record.key, record.value, user_path):
                    number, latest_ms = number + 1, max(latest_ms, record.timestamp_ms)
    said = f"{number:,} messages" if count else "messages that were not counted"
    if count and not number:
        return ""
    until = "until they are deleted there (retention.ms says no time)"
    if kept_ms is not None:
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime((latest_ms + kept_ms) / 1_000)) if count else ""
        until = f"until {day} at the latest (retention.ms is {kept_ms:,})" if count else f"for {kept_ms:,} ms each"
    return (
        f"{said} about the user on the topic {topic} in Kafka, which belongs to its producers: {until}. "
        "Read again, the user is forgotten again"
    )


def _impressions_elsewhere(settings: Settings) -> str:
    """What may stay in Kafka of the lists that were shown to the user, and until when."""
    topic = settings.impressions_topic
    kept_ms = topic_retention_ms(settings, topic)
    until = "until they are deleted there (retention.ms says no time)"
    if kept_ms is not None:
        until = f"for {kept_ms:,} ms each (retention.ms)"
    return f"lists shown to the user that were logged on the topic {topic} in Kafka: {until}"
