"""The metrics of a group of workers: those of one worker with the label `worker`, and those of the group itself."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from online.api.worker_metrics import WORKER_UP, is_up
from online.worker.overview import Overview, number, of_group, owned_lags

#: Of the worker that leads, without the label `worker`: nothing is reset for them when another one does.
OF_THE_LEADER = frozenset(
    {"nextclick_loss", "nextclick_drift_alarms", "nextclick_drift_improvements", "nextclick_finetunings"}
    | {"nextclick_gate_clicks", "nextclick_gate_score", "nextclick_gate_difference"}
)
#: (family, metric, field of a worker's row, help)
_OF_WORKERS: tuple[tuple[Callable[..., Any], str, str, str], ...] = (
    (GaugeMetricFamily, "nextclick_worker_leads", "leads", "1 for the worker of the group that leads"),
    (GaugeMetricFamily, "nextclick_base", "base", "Number of the latest base that the worker's weights follow"),
    (GaugeMetricFamily, "nextclick_round_age_seconds", "round_age_s", "Seconds since that base came"),
    (CounterMetricFamily, "nextclick_learned_from", "learned_from", "Clicks that this worker's weights learned from"),
    (
        CounterMetricFamily,
        "nextclick_changes_dropped",
        "changes_dropped",
        "Changes of any worker that no base took, as this worker read them: late, or of clicks merged before",
    ),
    (CounterMetricFamily, "nextclick_lists_rejected", "lists_fenced", "Lists not written, as Redis had newer ones"),
)


def group_metrics(
    overview: Overview, status_metrics: Callable[[Mapping[str, Any]], Iterable[Metric]]
) -> Iterator[Metric]:
    """Yields the metrics of a group. `status_metrics`: returns those of one worker's status."""
    up = GaugeMetricFamily("nextclick_worker_up", WORKER_UP, labels=["worker"])
    for row in overview.rows():
        up.add_metric([row["name"]], int(row["state"] != "gone" and is_up(row)))
    yield up
    families: dict[str, Metric] = {}
    for name, status in overview.statuses.items():
        for metric in status_metrics(of_owned(status)):
            if metric.name == "nextclick_problem":
                continue
            leads = metric.name in OF_THE_LEADER
            if leads and name != overview.decider:
                continue
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.add_sample(sample.name, sample.labels | ({} if leads else {"worker": name}), sample.value)
    yield from families.values()
    yield from _problems(overview)
    yield from metrics_of_members(overview)
    owners = overview.owners()
    owned = GaugeMetricFamily(
        "nextclick_partition_owner", "1 for the worker that owns the partition", labels=["partition", "worker"]
    )
    for partition, owner in owners.items():
        if owner is not None:
            owned.add_metric([str(partition), owner], 1)
    yield owned
    counts = GaugeMetricFamily("nextclick_owned_partitions", "Partitions that the worker owns", labels=["worker"])
    for name in overview.statuses:
        counts.add_metric([name], sum(owner == name for owner in owners.values()))
    yield counts
    unowned = sum(owner is None for owner in owners.values())
    text = "Partitions that no worker owns: their users' lists stay as they are"
    yield GaugeMetricFamily("nextclick_unowned_partitions", text, value=unowned)
    text = "1 if a worker of the group leads"
    yield GaugeMetricFamily("nextclick_leader_up", text, value=int(overview.leader is not None))


def metrics_of_members(overview: Overview) -> Iterator[Metric]:
    """Yields what each worker of a group says of its place in it."""
    for make, name, field, text in _OF_WORKERS:
        family = make(name, text, labels=["worker"])
        for row in overview.rows():
            if (value := number(row.get(field))) is not None:
                family.add_metric([row["name"]], value)
        yield family


def of_owned(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a status whose lag is that of the owned partitions, so that a sum over all workers is the group's."""
    if not of_group(status) or not status.get("lag_of"):
        return status
    lags, seconds = owned_lags(status, "lag_of"), owned_lags(status, "lag_s_of")
    lag_s = max(seconds.values(), default=None if lags and sum(lags.values()) else 0.0)
    return {**status, "lag": sum(lags.values()), "lag_s": lag_s, "lag_of": lags, "lag_s_of": seconds}


def _problems(overview: Overview) -> Iterator[Metric]:
    labels = ["kind", "worker"]
    problems = GaugeMetricFamily("nextclick_problem", "1 for each kind of problem that is open", labels=labels)
    for kind, worker in dict.fromkeys((str(one.get("kind")), one.get("worker") or "") for one in overview.problems()):
        problems.add_metric([kind, worker], 1)
    yield problems
