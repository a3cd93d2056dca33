"""The metrics of /metrics: the requests of this process, and the worker's status."""

import os
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from online.api.group_metrics import group_metrics
from online.api.process_metrics import of_this_process
from online.api.worker_metrics import status_metrics, up_metric
from online.worker.overview import Overview, read_overview
from stream.lists import Lists, ListsError

REQUEST_SECONDS, REQUESTS = "nextclick_request_duration_seconds", "nextclick_requests"
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # of several processes; prometheus_client reads it when it is imported


class Requests:
    """Counts and times the requests of one API process. One registry for each app, so that tests stay apart."""

    def __init__(self, lists: Lists) -> None:
        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            REQUEST_SECONDS,
            "Time from a request's arrival to the end of its answer, by route",
            ["route"],
            registry=self._registry,
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0),
        )
        self._requests = Counter(
            REQUESTS, "Requests answered, by route and status", ["route", "status"], registry=self._registry
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
        self._rest = of_this_process(process=METRICS_FOLDER not in os.environ)
        self._rest.register(WorkerStatus(lists))

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
        return generate_latest(self._of_all()) + generate_latest(self._rest)

    def families(self) -> Iterator[Metric]:
        """Yields the metrics of requests, of all processes that answer at this address."""
        yield from self._of_all().collect()

    def _of_all(self) -> CollectorRegistry:
        if METRICS_FOLDER not in os.environ:
            return self._registry
        whole = CollectorRegistry()
        MultiProcessCollector(whole)  # type: ignore[no-untyped-call]
        return whole


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
        yield up_metric(status)
        if status is not None:
            yield from status_metrics(status)
