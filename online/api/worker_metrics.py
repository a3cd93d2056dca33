"""The metrics of a worker, made of its status, for the worker's own /metrics and that of `nextclick serve`."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from online.worker.health import ENDED

#: (metric, field of the worker's status, help). Nested fields are in `_nested`.
_GAUGES = (
    ("nextclick_version", "version", "Version of the model that serves"),
    ("nextclick_lag_messages", "lag", "Messages written to the clicks topic that the worker has not read yet"),
    ("nextclick_lag_seconds", "lag_s", "How long the oldest of these has waited"),
    ("nextclick_behind", "behind", "1 if more clicks arrive than can be learned"),
    ("nextclick_shedding", "shedding", "1 if weights are not trained, because the lag is too large"),
    ("nextclick_events_per_second", "events_per_s", "Clicks learned per second, over the last ten seconds"),
    ("nextclick_users", "users", "Users whose history is held"),
    ("nextclick_items", "items", "Items that have a row"),
    ("nextclick_loss", "loss", "Mean next-item loss in the drift detector's window"),
    ("nextclick_waiting", "waiting", "1 while the worker waits for Kafka, Redis, a topic or its dead letters' topic"),
    ("nextclick_lists_behind", "lists_behind", "Lists that are stale because Redis refused them"),
)
_COUNTERS = (
    ("nextclick_learned", "learned", "Clicks learned by the weights that serve"),
    ("nextclick_untrained", "untrained", "Clicks that weights were not trained on, because the lag was too large"),
    ("nextclick_scored", "scored", "Clicks on which the served list was scored"),
    ("nextclick_duplicates", "duplicates", "Clicks left out because their event_id had been learned before"),
    ("nextclick_lost", "lost", "Messages that the broker deleted before they were read"),
    ("nextclick_refreshes", "refreshes", "Lists written again without a click: they had aged, or were stale"),
    ("nextclick_drift_alarms", "alarms", "Times that clicks were predicted less well than before"),
    ("nextclick_drift_improvements", "improvements", "Times that clicks were predicted better than before"),
    (
        "nextclick_click_to_list_unknown",
        "click_to_list_unknown",
        "Lists whose latency is unknown because clocks disagree",
    ),
    ("nextclick_expired", "expired", "Items that lost their rows because they had no clicks for long"),
    ("nextclick_notices_dropped", "notices_dropped", "Notices that could not be published"),
)
#: (family, metric, field of the status that is an object, its label, help)
_LABELLED: tuple[tuple[Callable[..., Any], str, str, str, str], ...] = (
    (CounterMetricFamily, "nextclick_dead_letters", "dead_letters", "reason", "Messages that could not be read"),
    (
        CounterMetricFamily,
        "nextclick_flagged",
        "flagged",
        "reason",
        "Clicks flagged as abuse: not learned, or their counts undone",
    ),
    (CounterMetricFamily, "nextclick_let_through", "let_through", "reason", "Flagged clicks learned from all the same"),
    (CounterMetricFamily, "nextclick_notices", "notice_counts", "kind", "Notices, by kind"),
    (
        GaugeMetricFamily,
        "nextclick_unreadable_share",
        "unreadable_share_of",
        "topic",
        "Of a topic's latest messages",
    ),
)
#: (metric, field of the status by `topic:partition`, help)
_OF_PARTITIONS = (
    ("nextclick_partition_lag_messages", "lag_of", "Messages of the partition that the worker has not read yet"),
    ("nextclick_partition_lag_seconds", "lag_s_of", "How long the oldest of these has waited"),
)
#: (metric, quantile of `click_to_list_ms`, help)
_CLICK_TO_LIST = (
    (
        "nextclick_click_to_list_p50_seconds",
        "p50",
        "Median of the time from a click's arrival on the topic to its list in Redis, over the latest minutes",
    ),
    ("nextclick_click_to_list_p99_seconds", "p99", "The same at the 99th percentile"),
)
#: (metric, name of the timing, help)
_TIMINGS = (
    (
        "nextclick_click_to_list_seconds",
        "click_to_list",
        "From a click's arrival on the topic to its list in Redis, by the clocks of the broker and this machine",
    ),
    ("nextclick_poll_seconds", "poll", "Duration of a poll of clicks; it waits where there are none"),
    ("nextclick_micro_batch_seconds", "micro_batch", "Duration of a micro-batch: learning, ranking, writing lists"),
    ("nextclick_redis_write_seconds", "redis_write", "Duration of a write of lists to Redis, failed ones too"),
    ("nextclick_checkpoint_write_seconds", "checkpoint_write", "Duration of writing a checkpoint to the disk"),
)
WORKER_UP = "1 if a worker reports its status, and has not ended"


def up_metric(status: Mapping[str, Any] | None) -> Metric:
    """Returns whether a worker is there; `status`: what it reports, if it does."""
    return GaugeMetricFamily("nextclick_worker_up", WORKER_UP, value=int(is_up(status)))


def is_up(status: Mapping[str, Any] | None) -> bool:
    """Returns whether a status is one of a worker that has not ended."""
    return status is not None and status.get("state") not in ENDED


def status_metrics(status: Mapping[str, Any]) -> Iterator[Metric]:
    """Yields the metrics of one worker's status."""
    yield from _flat(status)
    yield from _nested(status)
    yield from _of_window(status)
    yield from _histograms(status)


def _flat(status: Mapping[str, Any]) -> Iterator[Metric]:
    status = {**status, "waiting": int(bool(status.get("waits_for")))}
    for name, field, text in _GAUGES:
        if (value := _number(status.get(field))) is not None:
            yield GaugeMetricFamily(name, text, value=value)
    for name, field, text in _COUNTERS:
        if (value := _number(status.get(field))) is not None:
            yield CounterMetricFamily(name, text, value=value)
    if (written_at := _number(status.get("written_at"))) is not None:
        text = "Seconds since the worker last reported"
        yield GaugeMetricFamily("nextclick_status_age_seconds", text, value=max(0.0, time.time() - written_at / 1_000))

    if (megabytes := _number(status.get("memory_mb_max"))) is not None:
        text = "Most resident memory that the worker has held so far"
        yield GaugeMetricFamily("nextclick_worker_memory_max_bytes", text, value=megabytes * 2**20)
    if status.get("checkpoint") is not None or status.get("unsaved_since") is not None:
        since = _number(status.get("unsaved_since"))
        text = "Seconds since when no checkpoint could be written; 0: they can be"
        age = 0.0 if since is None else max(0.0, time.time() - since / 1_000)
        yield GaugeMetricFamily("nextclick_checkpoint_failing_seconds", text, value=age)


def _nested(status: Mapping[str, Any]) -> Iterator[Metric]:
    problems = GaugeMetricFamily("nextclick_problem", "1 for each kind of problem that is open", labels=["kind"])
    for problem in status.get("problems") or ():
        problems.add_metric([str(problem.get("kind"))], 1)
    yield problems
    for make, name, field, label, text in _LABELLED:
        labelled = make(name, text, labels=[label])
        for one, value in _object(status, field).items():
            if (count := _number(value)) is not None:
                labelled.add_metric([one], count)
        yield labelled
    for name, field, text in _OF_PARTITIONS:
        lags = GaugeMetricFamily(name, text, labels=["topic", "partition"])
        for place, value in _object(status, field).items():
            if (lag := _number(value)) is not None:
                topic, _, partition = place.rpartition(":")
                lags.add_metric([topic, partition], lag)
        yield lags
    yield from _gate(_object(status, "gate"))
    memory = _object(status, "redis_memory")
    if (evicted := _number(memory.get("evicted"))) is not None:
        text = "Keys of any client that Redis has evicted since the worker began to look"
        yield CounterMetricFamily("nextclick_redis_evicted_keys", text, value=evicted)
        text = "1 while Redis is too small and evicts lists"
        evicting = int(memory.get("evicting_since") is not None)
        yield GaugeMetricFamily("nextclick_redis_evicting", text, value=evicting)
    yield from _rates(_object(status, "scores"), "", "over all scored clicks")
    if (done := _number(_object(status, "finetune").get("done"))) is not None:
        yield CounterMetricFamily("nextclick_finetunings", "Fine-tunings published", value=done)
    if (number := _number(_object(status, "checkpoint").get("number"))) is not None:
        yield GaugeMetricFamily("nextclick_checkpoint", "Number of the latest checkpoint", value=number)


def _of_window(status: Mapping[str, Any]) -> Iterator[Metric]:
    """Yields figures of now; none where nothing happened in the window, rather than what was long ago."""
    for name, quantile, text in _CLICK_TO_LIST:
        if (value := _number(_object(status, "click_to_list_ms").get(quantile))) is not None:
            yield GaugeMetricFamily(name, text, value=value / 1_000)
    window = _object(status, "window")
    yield from _rates(_object(window, "scores"), "_recent", "over the clicks scored in the latest minutes")


def _rates(scores: Mapping[str, Any], suffix: str, text: str) -> Iterator[Metric]:
    for measure, name in (("hit@10", "hit_rate"), ("ndcg@10", "ndcg")):
        help_text = f"{measure} of the lists as served, and of the counts they are held against, {text}"
        family = GaugeMetricFamily(f"nextclick_{name}_at_10{suffix}", help_text, labels=["method"])
        for method in scores:
            if (value := _number(_object(scores, method).get(measure))) is not None:
                family.add_metric([method], value)
        yield family


def _histograms(status: Mapping[str, Any]) -> Iterator[Metric]:
    timings = _object(status, "timings")
    for name, field, text in _TIMINGS:
        figures = _object(timings, field)
        buckets, total = _object(figures, "buckets"), _number(figures.get("sum"))
        counts = [(bound, count) for bound, value in buckets.items() if (count := _number(value)) is not None]
        if total is not None and counts and counts[-1][0] == "+Inf":
            yield HistogramMetricFamily(name, text, buckets=counts, sum_value=total)


def _gate(figures: Mapping[str, Any]) -> Iterator[Metric]:
    """Of the comparison that runs, if one does."""
    if (clicks := _number(figures.get("clicks"))) is not None:
        yield GaugeMetricFamily(
            "nextclick_gate_clicks", "Clicks on which a candidate was compared so far", value=clicks
        )
    scores = GaugeMetricFamily("nextclick_gate_score", "Mean score of both models on these clicks", labels=["model"])
    for model in ("live", "candidate"):
        if (value := _number(figures.get(model))) is not None:
            scores.add_metric([model], value)
    yield scores
    interval = figures.get("interval")
    if isinstance(interval, list) and len(interval) == 2:
        bounds = GaugeMetricFamily(
            "nextclick_gate_difference", "Candidate minus live: the interval it lies in", labels=["bound"]
        )
        for bound, value in zip(("low", "high"), interval, strict=True):
            bounds.add_metric([bound], value)
        yield bounds


def _object(status: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = status.get(field)
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
