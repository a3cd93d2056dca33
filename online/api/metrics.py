"""The metrics of /metrics: the requests of this process, and the worker's status."""

from collections.abc import Iterator

from prometheus_client import Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from online.api.group_metrics import group_metrics
from online.api.process_metrics import of_this_process
from online.api.worker_metrics import status_metrics, up_metric
from online.worker.overview import Overview, read_overview
from stream.lists import Lists, ListsError


class Requests:
    """Counts and times the requests of one API process. One registry for each app, so that tests stay apart."""

    def __init__(self, lists: Lists) -> None:
        self._registry = of_this_process()
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
        self._questions = Counter(
            "nextclick_questions",
            "Lists that the worker was asked for: asked (it answered), or why the stored list was returned",
            ["result"],
            registry=self._registry,
        )
        self._registry.register(WorkerStatus(lists))

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._seconds.labels(route).observe(seconds)
        self._requests.labels(route, str(status)).inc()

    def served(self, *, own: bool) -> None:
        self._served.labels("own" if own else "popular").inc()

    def asked(self, result: str) -> None:
        """`result`: asked, or the reason why no worker has answered."""
        self._questions.labels(result).inc()

    def exposition(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


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
