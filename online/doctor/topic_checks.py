"""Checks of the topics: whether they exist, keep what they have to keep, and take what is written to them."""

from collections.abc import Iterator

from online.config.settings import Settings
from online.doctor.verdict import Verdict, size, span
from online.worker.connections import needed_topics
from stream.inspection import SETTINGS, BrokerView, TopicView
from stream.source import Record

AREA = "broker"
OUTAGE_S_MAX = 3 * 86_400.0  # a worker that is away for so long must find every click on its topic
WEIGHTS_BYTES_MIN = 1_000_000  # of a message on the topic of weights: its parts are a little smaller
_LETTER_BYTES = 4_096  # of a dead letter beside the message: headers that say where it stood, and why


def check_topics(settings: Settings, view: BrokerView) -> list[Verdict]:
    """Checks every topic that the settings name."""
    found = [*_missing(settings, view), *_leaderless(view), *_single(settings, view)]
    if problem := view.errors.get(SETTINGS):
        way_out = "Allow this user DescribeConfigs on the topics to have retention and cleanup checked."
        found.append(Verdict(AREA, "topics' settings", "not checked", problem, way_out))
        return found
    for name, topic in view.topics.items():
        if topic.settings:
            found += [*_cleanup(settings, name, topic), *_message_size(settings, view, name, topic)]
    return found


def _needed(settings: Settings) -> list[str]:
    return [topic.name for topic in needed_topics(settings)]


def _missing(settings: Settings, view: BrokerView) -> Iterator[Verdict]:
    missing = [name for name in _needed(settings) if name not in view.topics]
    if not missing:
        yield Verdict(AREA, "topics", "ok", f"{len(_needed(settings))} topics are there")
        return
    text = f"there is no topic {', '.join(missing)}"
    if settings.create_topics:
        yield Verdict(AREA, "topics", "warning", text, "Start `nextclick worker`, which creates it.")
    else:
        way_out = "Create it (NEXTCLICK_CREATE_TOPICS is false), or check its name and this user's ACLs."
        yield Verdict(AREA, "topics", "wrong", text, way_out)


def _leaderless(view: BrokerView) -> Iterator[Verdict]:
    for name, topic in view.topics.items():
        if topic.leaderless:
            text = f"{topic.leaderless} partitions of {name} have no leader: they can be neither read nor written"
            yield Verdict(AREA, "topics", "wrong", text, "Start the brokers that hold them.")


def _single(settings: Settings, view: BrokerView) -> Iterator[Verdict]:
    for name in (settings.control_topic, settings.weights_topic):
        topic = view.topics.get(name)
        if settings.workers == "many" and topic is not None and len(topic.extents) > 1:
            text = f"{name} has {len(topic.extents)} partitions and needs exactly one"
            yield Verdict(AREA, "topics", "wrong", text, "Delete it, or name another one.")


def _cleanup(settings: Settings, name: str, topic: TopicView) -> Iterator[Verdict]:
    policies = {policy.strip() for policy in topic.settings.get("cleanup.policy", "delete").split(",")}
    if name in {settings.items_topic, settings.users_topic}:
        what = "items" if name == settings.items_topic else "users' attributes"
        if "compact" not in policies:
            text = f"{name} is not compacted (cleanup.policy={','.join(sorted(policies))}): old {what} will vanish"
            yield Verdict(AREA, "cleanup", "wrong", text, f"Set cleanup.policy=compact on {name}.")
        elif "delete" in policies:
            text = f"{name} is compacted, and deletes {what} that were not published for long"
            yield Verdict(AREA, "cleanup", "warning", text, f"Set cleanup.policy=compact alone on {name}.")
        else:
            yield Verdict(AREA, "cleanup", "ok", f"{name} is compacted")
    elif name in _needed(settings) and "compact" in policies:
        text = f"{name} is compacted (cleanup.policy={','.join(sorted(policies))}): messages of one key replace another"
        yield Verdict(AREA, "cleanup", "wrong", text, f"Set cleanup.policy=delete on {name}.")


def check_retention(settings: Settings, view: BrokerView) -> list[Verdict]:
    """Checks whether clicks are kept longer than an outage, by time and by bytes."""
    topic = view.topics.get(settings.clicks_topic)
    if topic is None or not topic.settings:
        return []
    name, needed = settings.clicks_topic, span(OUTAGE_S_MAX)
    kept_ms, kept_bytes = (_number(topic, key) for key in ("retention.ms", "retention.bytes"))
    found = []
    if kept_ms is not None and 0 <= kept_ms < 1_000 * OUTAGE_S_MAX:
        text = f"{name} keeps clicks for {span(kept_ms / 1_000)}: a worker that is away for {needed} loses some"
        way_out = f"Raise retention.ms of {name} to {OUTAGE_S_MAX * 1_000:.0f} or more."
        found.append(Verdict(AREA, "retention", "wrong", text, way_out))
    if kept_bytes is not None and kept_bytes >= 0:
        found.append(_by_bytes(name, kept_bytes, view.latest))
    if not found:
        how_long = "for ever" if kept_ms is None or kept_ms < 0 else f"for {span(kept_ms / 1_000)}"
        found.append(Verdict(AREA, "retention", "ok", f"{name} keeps clicks {how_long}"))
    return found


def _by_bytes(name: str, kept_bytes: int, latest: list[Record]) -> Verdict:
    """`kept_bytes`: of each partition."""
    way_out = f"Raise retention.bytes of {name}, or set it to -1."
    rate = _bytes_per_second(latest)
    if not rate:
        text = f"{name} keeps {size(kept_bytes)} of each partition; how long that lasts the clicks so far do not tell"
        return Verdict(AREA, "retention", "warning", text, way_out)
    lasts_s = kept_bytes / rate
    text = f"{name} keeps {size(kept_bytes)} of each partition: {span(lasts_s)} of clicks as they come now"
    if lasts_s < OUTAGE_S_MAX:
        text += f", and a worker may be away for {span(OUTAGE_S_MAX)}"
        return Verdict(AREA, "retention", "wrong", text, way_out)
    return Verdict(AREA, "retention", "ok", text)


def _bytes_per_second(latest: list[Record]) -> float:
    """The highest rate of a partition, uncompressed; 0: not known."""
    rates = [0.0]
    for number in {record.partition for record in latest}:
        records = [one for one in latest if one.partition == number and one.timestamp_ms >= 0]
        spent_s = (
            (max(one.timestamp_ms for one in records) - min(one.timestamp_ms for one in records)) / 1_000
            if records
            else 0.0
        )
        if len(records) > 1 and spent_s > 0:
            rates.append(sum(len(one.key or b"") + len(one.value or b"") for one in records) / spent_s)
    return max(rates)


def _number(topic: TopicView, name: str) -> int | None:
    try:
        return int(topic.settings[name])
    except (KeyError, ValueError):
        return None


def _message_size(settings: Settings, view: BrokerView, name: str, topic: TopicView) -> Iterator[Verdict]:
    most = _number(topic, "max.message.bytes")
    if most is None:
        return
    needed, what = 0, ""
    if name == settings.weights_topic and settings.workers == "many":
        needed, what = WEIGHTS_BYTES_MIN, "workers share weights in messages of that size"
    elif name == settings.clicks_topic:
        needed, what = settings.message_bytes_max, "clicks of NEXTCLICK_MESSAGE_BYTES_MAX are refused"
    elif name == settings.dead_letters_topic:
        clicks = view.topics.get(settings.clicks_topic, TopicView())
        needed = (_number(clicks, "max.message.bytes") or settings.message_bytes_max) + _LETTER_BYTES
        what = "a dead letter is the whole bad message, which is cut then"
    if most < needed:
        grave = name == settings.weights_topic
        text = f"{name} takes messages of {most:,} bytes at most, and {needed:,} may be needed: {what}"
        way_out = f"Raise max.message.bytes of {name} to {needed}."
        yield Verdict(AREA, "message size", "wrong" if grave else "warning", text, way_out)


def check_replicas(settings: Settings, view: BrokerView) -> list[Verdict]:
    """Checks how many brokers hold the clicks, and how many have to acknowledge one."""
    topic = view.topics.get(settings.clicks_topic)
    if topic is None or not topic.replicas:
        return []
    name, least = settings.clicks_topic, _number(topic, "min.insync.replicas")
    if topic.replicas == 1:
        way_out = f"Have three brokers, and {name} with replication factor 3 and min.insync.replicas=2."
        text = f"one broker alone holds each click of {name}: its disk is the only copy"
        return [Verdict(AREA, "replication", "warning", text, way_out)]
    if least is not None and least >= topic.replicas:
        text = f"{name} has {topic.replicas} replicas and wants all in sync: one broker that is away stops all clicks"
        way_out = f"Set min.insync.replicas of {name} to {topic.replicas - 1}."
        return [Verdict(AREA, "replication", "warning", text, way_out)]
    if least == 1:
        text = f"a click on {name} may be acknowledged while one broker alone has it (min.insync.replicas=1)"
        return [Verdict(AREA, "replication", "warning", text, f"Set min.insync.replicas of {name} to 2.")]
    return [Verdict(AREA, "replication", "ok", f"{topic.replicas} brokers hold each click of {name}")]


def check_partitions(settings: Settings, view: BrokerView, workers: int | None) -> list[Verdict]:
    """Checks whether there is a partition for each worker. `workers`: that report; None: not known."""
    topic = view.topics.get(settings.clicks_topic)
    if topic is None or settings.workers == "one":
        return []
    partitions = len(topic.extents)
    if workers is None:
        return [Verdict(AREA, "partitions", "not checked", "Redis did not say how many workers there are")]
    if workers > partitions:
        text = (
            f"{workers} workers share {partitions} partitions of {settings.clicks_topic}: some own none, and only wait"
        )
        way_out = f"Add partitions to {settings.clicks_topic}, or stop the workers that are too many."
        return [Verdict(AREA, "partitions", "warning", text, way_out)]
    return [Verdict(AREA, "partitions", "ok", f"{partitions} partitions of {settings.clicks_topic}, {workers} workers")]
