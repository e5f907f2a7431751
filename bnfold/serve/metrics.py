"""Prometheus metrics, read from the counters at each scrape; nothing is counted twice, nothing on the reply path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from bnfold import __version__
from bnfold.serve.core import Core
from bnfold.serve.stats import BOUNDS, Stats

CONTENT_TYPE = CONTENT_TYPE_LATEST
_LABELS = ("model", "version")

# Triton's name, its help text, and the value in our counters; times there are in microseconds.
_TRITON: tuple[tuple[str, str, Any], ...] = (
    ("nv_inference_request_success", "Requests answered", lambda s: s.success.count),
    ("nv_inference_request_failure", "Requests refused or failed", lambda s: s.fail.count),
    ("nv_inference_count", "Rows answered", lambda s: s.rows),
    ("nv_inference_exec_count", "Batches run", lambda s: s.executions),
    ("nv_inference_request_duration_us", "Time from arrival to answer", lambda s: s.success.ns / 1e3),
    ("nv_inference_queue_duration_us", "Time in the queue", lambda s: s.queue.ns / 1e3),
    ("nv_inference_compute_input_duration_us", "Time to join inputs", lambda s: s.compute.join.ns / 1e3),
    ("nv_inference_compute_infer_duration_us", "Time in the session", lambda s: s.compute.run.ns / 1e3),
    ("nv_inference_compute_output_duration_us", "Time to split outputs", lambda s: s.compute.split.ns / 1e3),
)


class Families(Collector):
    """Turns a core's counters into metric families."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def collect(self) -> Iterable[Metric]:
        """At each scrape."""
        core = self._core
        rows = [
            ((versions.name, number), stats)
            for versions in core.names.values()
            for number, stats in versions.stats.items()
        ]
        yield from _own(core, rows)
        for name, text, value in _TRITON:
            # Triton's counters do not end in _total, as the client library's always do.
            family = Metric(name, text, "unknown")
            for labels, stats in rows:
                family.add_sample(name, dict(zip(_LABELS, labels, strict=True)), value(stats))
            yield family
        for observer in core.observers:
            yield from observer.metrics()


def registry(core: Core) -> CollectorRegistry:
    """A registry of the core's metrics, the process's and Python's."""
    result = CollectorRegistry()
    result.register(Families(core))
    ProcessCollector(registry=result)
    PlatformCollector(registry=result)
    GCCollector(registry=result)
    return result


def render(found: Collector) -> bytes:
    """The text that Prometheus scrapes."""
    return bytes(generate_latest(found))


def _own(core: Core, rows: list[tuple[tuple[str, str], Stats]]) -> Iterator[Metric]:
    info = GaugeMetricFamily("bnfold_build_info", "Which bnfold this is", labels=("version",))
    info.add_metric((__version__,), 1)
    yield info
    yield GaugeMetricFamily("bnfold_ready", "Whether the server says that it is ready", not core.not_ready())
    yield GaugeMetricFamily("bnfold_pending_requests", "Requests taken and not yet answered", core.pending)
    yield GaugeMetricFamily("bnfold_held_bytes", "Requests and answers, of what --max-pending allows", core.budget.held)
    yield CounterMetricFamily("bnfold_worker_restarts", "How often a worker died and another took over", core.restarts)
    yield CounterMetricFamily("bnfold_observer_errors", "Failures of observers", core.observer_errors)
    latency = HistogramMetricFamily("bnfold_request_seconds", "Time from arrival to answer", labels=_LABELS)
    refused = CounterMetricFamily("bnfold_refused", "Requests refused", labels=(*_LABELS, "reason"))
    cancelled = CounterMetricFamily("bnfold_cancelled", "Requests whose client went away", labels=_LABELS)
    for labels, stats in rows:
        total, buckets = 0, []
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), stats.buckets, strict=True):
            total += count
            buckets.append((bound, total))
        latency.add_metric(labels, buckets, stats.success.ns / 1e9)
        cancelled.add_metric(labels, stats.cancelled)
        for reason, count in stats.refused.items():
            refused.add_metric((*labels, reason), count)
    yield from (latency, refused, cancelled)
    depth = GaugeMetricFamily("bnfold_queue_depth", "Requests that wait", labels=_LABELS)
    busy = GaugeMetricFamily("bnfold_running_batches", "Batches that run", labels=_LABELS)
    current = GaugeMetricFamily("bnfold_current_version", "1 for the version that answers", labels=_LABELS)
    swaps = CounterMetricFamily("bnfold_swaps", "Versions swapped in or rolled back", labels=("model",))
    for versions in core.names.values():
        swaps.add_metric((versions.name,), versions.swaps)
        for serving in versions.loaded:
            labels = (versions.name, serving.model.version)
            depth.add_metric(labels, serving.batcher.depth)
            busy.add_metric(labels, serving.batcher.busy)
            current.add_metric(labels, serving is versions.current)
    yield from (depth, busy, current, swaps)
