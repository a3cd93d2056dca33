"""The metrics that every process of nextclick has: of the process itself, and of what it was built from."""

import platform
from collections.abc import Iterator
from importlib import metadata

from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.registry import Collector

disable_created_metrics()  # type: ignore[no-untyped-call]  # they would add a second, useless series for each


def of_this_process(*, process: bool = True) -> CollectorRegistry:
    """Returns a new registry with the versions that this process runs, and its CPU time, memory and open files.

    `process`: false where the next scrape may be answered by another process, whose figures differ.
    """
    registry = CollectorRegistry()
    if process:
        ProcessCollector(registry=registry)
    registry.register(_BuildInfo())
    return registry


class _BuildInfo(Collector):
    """The constant 1, with versions as labels."""

    def __init__(self) -> None:
        versions = {"version": _version("nextclick"), "python": platform.python_version(), "torch": _version("torch")}
        self._family = InfoMetricFamily("nextclick_build", "Versions of nextclick, Python and PyTorch", value=versions)

    def describe(self) -> list[Metric]:
        return [self._family]

    def collect(self) -> Iterator[Metric]:
        yield self._family


def _version(package: str) -> str:
    """The version of an installed package; empty if there is none, as of torch beside the API."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
