"""All checks of one run: what is asked of broker, Redis and disk, side by side, each within a bound of time."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from online.config.settings import Settings, SettingsError
from online.doctor.checkpoint_checks import CheckpointView, check_checkpoint, read_checkpoint
from online.doctor.click_checks import SAMPLE_RECORDS, check_clicks
from online.doctor.clock_checks import check_record_times, check_redis_clock
from online.doctor.folder_checks import check_folder
from online.doctor.redis_checks import check_nodes
from online.doctor.settings_checks import check_settings
from online.doctor.topic_checks import check_partitions, check_replicas, check_retention, check_topics
from online.doctor.verdict import State, Verdict
from online.worker.connections import broker_of, named_broker, needed_topics, open_lists
from online.worker.start import redis_place
from stream.inspection import TOPICS, BrokerView
from stream.lists import ListsError
from stream.redis_inspection import RedisInspection, RedisNode
from stream.source import SourceError

PART_S_MAX = 30.0  # of the broker, of Redis, of the newest checkpoint; they are asked at once


@dataclass
class Answer:
    """What became of a question: `value`, or the line that says why there is none."""

    value: object = None
    problem: str = ""
    in_time: bool = True


@dataclass(frozen=True)
class RedisView:
    """Redis at one moment. `workers`: that report; None: not known."""

    nodes: list[RedisNode]
    workers: int | None


def examine(settings: Settings, *, part_s_max: float = PART_S_MAX) -> list[Verdict]:
    """Returns the verdicts of all checks. Nothing is written anywhere; it takes `part_s_max` seconds at most."""
    parts = (_look_at_broker, _look_at_redis, read_checkpoint)
    broker, redis, newest = side_by_side(part_s_max, *(partial(part, settings) for part in parts))
    view = broker.value if isinstance(broker.value, BrokerView) else None
    servers = redis.value if isinstance(redis.value, RedisView) else None
    checkpoint = newest.value if isinstance(newest.value, CheckpointView) else CheckpointView(unknown=newest.problem)
    return [
        *check_settings(settings),
        *_broker(settings, view, broker, servers),
        *_redis(settings, servers, redis),
        *_clock(settings, view, servers),
        *check_folder(settings.data_dir, checkpoint.size_bytes),
        *check_checkpoint(settings, checkpoint, view),
    ]


def side_by_side(within_s: float, *questions: Callable[[], object]) -> list[Answer]:
    """Asks several questions at once. One without an answer within the time is left to itself: its thread ends with
    the process."""
    answers: list[Answer] = [
        Answer(problem=f"there was no answer within {within_s:g} s", in_time=False) for _ in questions
    ]

    def ask(at: int, question: Callable[[], object]) -> None:
        try:
            answers[at] = Answer(question())
        except (SourceError, ListsError, SettingsError) as error:
            answers[at] = Answer(problem=str(error))
        except Exception as error:  # a bug of ours in one check must not hide the others
            answers[at] = Answer(problem=f"the check itself failed: {type(error).__name__}", in_time=False)

    threads = [threading.Thread(target=ask, args=one, daemon=True) for one in enumerate(questions)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + within_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(answers)


def _look_at_broker(settings: Settings) -> BrokerView:
    topics = [topic.name for topic in needed_topics(settings)]
    return broker_of(settings).inspect(topics, settings.consumer_group, settings.clicks_topic, SAMPLE_RECORDS)


def _look_at_redis(settings: Settings) -> RedisView:
    with closing(open_lists(settings, there=False).client) as client:
        nodes = RedisInspection(client).nodes()
        lists = open_lists(settings, there=False)
        names = lists.read_statuses()
        return RedisView(nodes, len(names) or int(lists.status() is not None))


def _broker(settings: Settings, view: BrokerView | None, asked: Answer, servers: RedisView | None) -> Iterator[Verdict]:
    broker = named_broker(settings)
    if view is None:
        state: State = "wrong" if asked.in_time else "not checked"
        way_out = "Mend that first: topics and offsets are not checked before."
        yield Verdict("broker", "reachable", state, asked.problem, way_out)
        return
    if broker.log_path is not None and not broker.log_path.exists():
        text = f"there is no click log {broker.log_path} yet"
        yield Verdict("broker", "reachable", "ok", text, "Start `nextclick worker`, or set NEXTCLICK_DATA_DIR.")
        return
    about = f"{broker.name}, {broker.log_path}" if broker.log_path else f"{broker.name}, {view.brokers} brokers"
    yield Verdict("broker", "reachable", "ok", about)
    if problem := view.errors.get(TOPICS):
        way_out = "Allow this user Describe on the topics."
        yield Verdict("broker", "topics", "not checked", problem, way_out)
        return
    yield from check_topics(settings, view)
    yield from check_retention(settings, view)
    yield from check_replicas(settings, view)
    yield from check_partitions(settings, view, None if servers is None else servers.workers)
    yield from check_clicks(settings, view)


def _redis(settings: Settings, servers: RedisView | None, asked: Answer) -> Iterator[Verdict]:
    place = redis_place(settings)
    if servers is None and settings.redis_url is None:
        text = f"{place} does not answer: a worker serves it, and none runs here"
        yield Verdict(
            "redis", "reachable", "not checked", text, "Start `nextclick worker`, or set NEXTCLICK_REDIS_URL."
        )
    elif servers is None:
        state: State = "wrong" if asked.in_time else "not checked"
        way_out = "Mend that first: version, memory and policy are not checked before."
        yield Verdict("redis", "reachable", state, asked.problem, way_out)
    else:
        yield Verdict("redis", "reachable", "ok", place)
        if settings.redis_url is not None:  # the embedded one has no limits of its own
            yield from check_nodes(servers.nodes)


def _clock(settings: Settings, view: BrokerView | None, servers: RedisView | None) -> Iterator[Verdict]:
    yield check_redis_clock([] if servers is None else servers.nodes)
    topic = None if view is None else view.topics.get(settings.clicks_topic)
    by_broker = topic is not None and topic.settings.get("message.timestamp.type") == "LogAppendTime"
    yield check_record_times([] if view is None else view.latest, time.time(), by_broker=by_broker)
