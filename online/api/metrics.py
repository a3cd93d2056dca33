"""The metrics of /metrics: the requests of this process, and the worker's status."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from online.api.group_metrics import WORKER_UP, group_metrics
from online.worker.overview import Overview, read_overview
from stream.lists import Lists, ListsError

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
    (GaugeMetricFamily, "nextclick_partition_lag_messages", "lag_of", "partition", "The lag of each partition"),
    (GaugeMetricFamily, "nextclick_partition_lag_seconds", "lag_s_of", "partition", "The same in seconds"),
)
_QUANTILES = {"p50": "0.5", "p99": "0.99"}


METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # of several processes; prometheus_client reads it when it is imported

disable_created_metrics()  # type: ignore[no-untyped-call]  # they would add a second, useless series for each


class Requests:
    """Counts and times the requests of one API process. One registry for each app, so that tests stay apart."""

    def __init__(self, lists: Lists) -> None:
        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            "nextclick_request_duration_seconds",
            "Time from a request's arrival to the end of its answer, by route",
            ["route"],
            registry=self._registry,
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0),
        )
        self._requests = Counter(
            "nextclick_requests", "Requests answered, by route and status", ["route", "status"], registry=self._registry
        )
        self._served = Counter(
            "nextclick_lists_served",
            "Lists returned: the user's own, or the popular one for users without a list",
            ["list"],
            registry=self._registry,
        )
        self._own, self._popular = self._served.labels("own"), self._served.labels("popular")
        self._known: dict[tuple[str, int], tuple[Histogram, Counter]] = {}
        self._questions = Counter(
            "nextclick_questions",
            "Lists that the worker was asked for: asked (it answered), or why the stored list was returned",
            ["result"],
            registry=self._registry,
        )
        self._impressions = Counter(
            "nextclick_impressions",
            "Lists that were shown: accepted from sites, logged here, or dropped because the broker was away",
            ["result"],
            registry=self._registry,
        )
        self._of_worker = CollectorRegistry()
        self._of_worker.register(WorkerStatus(lists))

    def answered(self, route: str, status: int, seconds: float) -> None:
        found = self._known.get((route, status))
        if found is None:  # looking labels up takes longer than counting
            found = self._known[route, status] = (
                self._seconds.labels(route),
                self._requests.labels(route, str(status)),
            )
        found[0].observe(seconds)
        found[1].inc()

    def served(self, *, own: bool) -> None:
        (self._own if own else self._popular).inc()

    def asked(self, result: str) -> None:
        """`result`: asked, or the reason why no worker has answered."""
        self._questions.labels(result).inc()

    def impressions(self, result: str, number: int) -> None:
        """`result`: accepted, logged, or dropped."""
        self._impressions.labels(result).inc(number)

    def exposition(self) -> bytes:
        """Returns all metrics in Prometheus' text format, of all processes that answer at this address."""
        if METRICS_FOLDER not in os.environ:
            return generate_latest(self._registry) + generate_latest(self._of_worker)
        whole = CollectorRegistry()
        MultiProcessCollector(whole)  # type: ignore[no-untyped-call]
        return generate_latest(whole) + generate_latest(self._of_worker)


class WorkerStatus(Collector):
    """Reads the worker's status from Redis at each scrape."""

    def __init__(self, lists: Lists) -> None:
        self._lists = lists

    def describe(self) -> list[Metric]:
        """Returns nothing, because registering must not query Redis."""
        return []

    def collect(self) -> Iterator[Metric]:
        try:
            overview, redis_up = read_overview(self._lists), 1
        except ListsError:
            overview, redis_up = Overview(0), 0
        yield GaugeMetricFamily("nextclick_redis_up", "1 if Redis answers this API", value=redis_up)
        if overview.many or (overview.gone and overview.alone is None):
            yield from group_metrics(overview, status_metrics)
            return
        status = overview.alone
        yield GaugeMetricFamily("nextclick_worker_up", WORKER_UP, value=int(status is not None))
        if status is not None:
            yield from status_metrics(status)


def status_metrics(status: Mapping[str, Any]) -> Iterator[Metric]:
    """Yields the metrics of one worker's status."""
    yield from _flat(status)
    yield from _nested(status)


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
        for one, count in _object(status, field).items():
            labelled.add_metric([one], count)
        yield labelled
    yield from _gate(_object(status, "gate"))
    memory = _object(status, "redis_memory")
    if (evicted := _number(memory.get("evicted"))) is not None:
        text = "Keys of any client that Redis has evicted since the worker began to look"
        yield CounterMetricFamily("nextclick_redis_evicted_keys", text, value=evicted)
        text = "1 while Redis is too small and evicts lists"
        evicting = int(memory.get("evicting_since") is not None)
        yield GaugeMetricFamily("nextclick_redis_evicting", text, value=evicting)
    quantiles = GaugeMetricFamily(
        "nextclick_click_to_list_seconds",
        "From a click's arrival on the topic to its list in Redis, latest 10,000",
        labels=["quantile"],
    )
    for name, quantile in _QUANTILES.items():
        if (value := _number(_object(status, "click_to_list_ms").get(name))) is not None:
            quantiles.add_metric([quantile], value / 1_000)
    yield quantiles
    for field, metric, text in (
        ("scores", "", "over all scored clicks"),
        ("recent", "_recent", "over the latest 1,000 scored clicks"),
    ):
        for measure, name in (("hit@10", "hit_rate"), ("ndcg@10", "ndcg")):
            help_text = f"{measure} of the lists as served, and of the counts they are held against, {text}"
            family = GaugeMetricFamily(f"nextclick_{name}_at_10{metric}", help_text, labels=["method"])
            for method, scores in _object(status, field).items():
                if (value := _number(scores.get(measure))) is not None:
                    family.add_metric([method], value)
            yield family
    if (done := _number(_object(status, "finetune").get("done"))) is not None:
        yield CounterMetricFamily("nextclick_finetunings", "Fine-tunings published", value=done)
    if (number := _number(_object(status, "checkpoint").get("number"))) is not None:
        yield GaugeMetricFamily("nextclick_checkpoint", "Number of the latest checkpoint", value=number)


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
