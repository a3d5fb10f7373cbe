"""Figures for Prometheus."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterator

from prometheus_client import Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from dawn.apps.serving.records import STATES, Job, Store

SECONDS = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 900, 3600)
"""Upper bounds of the histograms' classes."""


class Metrics:
    """One registry a service; ``text`` is what ``/metrics`` answers. Memory and processor time are of the whole process."""

    def __init__(self, store: Store) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Jobs(store))
        ProcessCollector(registry=self._registry)
        self._ended = Counter("dawn_jobs_ended", "Jobs that came to an end.", ["state"], registry=self._registry)
        self._stages = Counter("dawn_stage_seconds", "Seconds spent in each stage.", ["stage"], registry=self._registry)
        self.loaded = Gauge("dawn_model_loaded", "1 when the model is in memory.", registry=self._registry)
        self._queued, self._first_byte, self._first_picture, self._total = (
            Histogram(
                f"dawn_{name}_seconds",
                f"From the end of the upload to {what}.",
                registry=self._registry,
                buckets=SECONDS,
            )
            for name, what in (
                ("queued", "the start of the work"),
                ("first_byte", "the first byte of the film"),
                ("first_picture", "the first fragment with pictures"),
                ("job", "the end"),
            )
        )

    def ended(self, job: Job) -> None:
        """Count a job that has come to its end."""
        self._ended.labels(job.state).inc()
        for stage, seconds in job.stages.items():
            self._stages.labels(stage).inc(seconds)
        times = (job.started, job.first_byte, job.first_picture, job.finished if job.state == "done" else None)
        for histogram, moment in zip(
            (self._queued, self._first_byte, self._first_picture, self._total), times, strict=True
        ):
            if moment is not None:
                histogram.observe(max(0.0, moment - job.received))

    def text(self) -> bytes:
        """Write all counters in the text format of Prometheus."""
        return generate_latest(self._registry)


class _Jobs(Collector):
    """Counted when they are asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[GaugeMetricFamily]:
        states = Count(job.state for job in self._store.all())
        jobs = GaugeMetricFamily("dawn_jobs", "Jobs on record by state.", labels=["state"])
        for state in STATES:
            jobs.add_metric([state], states[state])
        yield jobs
        yield GaugeMetricFamily("dawn_queue_length", "Jobs that wait.", value=states["queued"])
