"""Checks of the settings by themselves: those that cannot be used, contradict each other, or are unusual."""

from collections.abc import Iterator

from online.config.settings import Settings, SettingsError
from online.doctor.verdict import Verdict
from online.worker.connections import named_broker
from online.worker.start import old_folder

AREA = "settings"
CHECKPOINT_S_USUAL_MAX = 600.0  # a crash costs as much again
LIST_TTL_S_USUAL_MIN = 3_600
_ITEM_BYTES_MAX = 256 + 32  # of a list's JSON: the longest id, and its score


def unusable(error: SettingsError) -> list[Verdict]:
    """Settings that no command can start with, a verdict each."""
    lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
    way_out = "Correct the variable; docs/settings.md lists them all."
    return [Verdict(AREA, "values", "wrong", line, way_out) for line in lines]


def check_settings(settings: Settings) -> list[Verdict]:
    """Checks settings that are valid each."""
    found = [*_contradictions(settings), *_unusual(settings)]
    return found or [Verdict(AREA, "values", "ok", "they are valid and fit together")]


def _contradictions(settings: Settings) -> Iterator[Verdict]:
    def wrong(check: str, text: str, way_out: str) -> Verdict:
        return Verdict(AREA, check, "wrong", text, way_out)

    embedded = named_broker(settings).log_path is not None
    if settings.workers == "many" and embedded:
        yield wrong(
            "workers",
            "NEXTCLICK_WORKERS=many, and the embedded log has a single worker",
            "Set NEXTCLICK_KAFKA_BOOTSTRAP_SERVERS, or NEXTCLICK_WORKERS=one.",
        )
    if settings.workers == "many" and settings.redis_url is None:
        yield wrong(
            "workers",
            "NEXTCLICK_WORKERS=many, and each worker would serve an embedded Redis of its own",
            "Set NEXTCLICK_REDIS_URL on all of them.",
        )
    if settings.static_membership and settings.worker_name is None:
        yield wrong(
            "workers",
            "NEXTCLICK_STATIC_MEMBERSHIP is set without a NEXTCLICK_WORKER_NAME",
            "Give each worker a name of its own.",
        )
    names = [name for name in type(settings).model_fields if name.endswith("_topic")]
    topics = [str(getattr(settings, name)) for name in names]
    for topic in sorted({topic for topic in topics if topics.count(topic) > 1}):
        using = [f"NEXTCLICK_{name.upper()}" for name in names if getattr(settings, name) == topic]
        yield wrong("topics", f"{' and '.join(using)} name the same topic, {topic}", "Give each a topic of its own.")
    if settings.list_size * _ITEM_BYTES_MAX > settings.redis_value_bytes_max:
        yield wrong(
            "lists",
            f"a list of {settings.list_size} long ids may be larger than what is read from Redis "
            f"({settings.redis_value_bytes_max:,} bytes)",
            "Raise NEXTCLICK_REDIS_VALUE_BYTES_MAX, or lower NEXTCLICK_LIST_SIZE.",
        )


def _unusual(settings: Settings) -> Iterator[Verdict]:
    def warning(check: str, text: str, way_out: str) -> Verdict:
        return Verdict(AREA, check, "warning", text, way_out)

    if (old := old_folder(settings)) is not None:
        yield warning(
            "data folder",
            f"the data folder is {settings.data_dir}, and {old} holds state too, which is not used",
            f"Set NEXTCLICK_DATA_DIR={old} to use it, or move it away.",
        )
    if (settings.redis_url is None) != (named_broker(settings).log_path is not None):
        which = "Redis" if settings.redis_url is None else "the click log"
        yield warning(
            "embedded parts",
            f"{which} is embedded, and the other part is a server",
            "Set both NEXTCLICK_KAFKA_BOOTSTRAP_SERVERS and NEXTCLICK_REDIS_URL in production.",
        )
    if not settings.gate:
        yield warning(
            "gate", "every fine-tuned model is published, also a worse one", "Leave NEXTCLICK_GATE on in production."
        )
    if settings.checkpoint_interval_s > CHECKPOINT_S_USUAL_MAX:
        yield warning(
            "checkpoints",
            f"{settings.checkpoint_interval_s:,.0f} s lie between two checkpoints, and a crash costs as much again",
            "Lower NEXTCLICK_CHECKPOINT_INTERVAL_S.",
        )
    if settings.list_ttl_s < LIST_TTL_S_USUAL_MIN:
        yield warning(
            "lists",
            f"a user who does not click for {settings.list_ttl_s:,} s loses the list, and gets the popular one",
            "Raise NEXTCLICK_LIST_TTL_S.",
        )
    if settings.shared_checkpoints is not None and settings.workers == "one":
        yield warning(
            "checkpoints",
            "NEXTCLICK_SHARED_CHECKPOINTS is set, and only workers of a group use it",
            "Set NEXTCLICK_WORKERS=many, or unset it.",
        )
