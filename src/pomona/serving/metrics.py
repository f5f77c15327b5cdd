"""Prometheus' metrics of one server: counters of replies here, everything else read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from pomona.runtime.ticket import Completion

if TYPE_CHECKING:
    from pomona.runtime.model import Model

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
TOKEN_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
NO_ADAPTER = "base"


class Metrics:
    """Labels are bounded: routes and adapters that exist, never what a client wrote."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        shared: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "pomona_http_requests", "HTTP requests by route and status.", ("route", "status"), **shared
        )
        self.refused = Counter("pomona_refused", "Requests refused at the gate.", ("reason",), **shared)
        self.answers = Counter(
            "pomona_answers", "Answers by adapter and how they ended.", ("adapter", "finish_reason"), **shared
        )
        by_adapter: dict[str, Any] = {"labelnames": ("adapter",), **shared}
        self._queue = Histogram(
            "pomona_queue_seconds", "From submission until the prefill began.", buckets=SECONDS, **by_adapter
        )
        self._first = Histogram(
            "pomona_first_token_seconds", "From submission to the first token.", buckets=SECONDS, **by_adapter
        )
        self._token = Histogram(
            "pomona_token_seconds",
            "Seconds per token after the first, the mean of each answer.",
            buckets=TOKEN_SECONDS,
            **by_adapter,
        )
        self._whole = Histogram(
            "pomona_answer_seconds", "From submission to the last token.", buckets=SECONDS, **by_adapter
        )

    def answered(self, adapter: str | None, completion: Completion, finish_reason: str) -> None:
        name = adapter or NO_ADAPTER
        self.answers.labels(name, finish_reason).inc()
        first = completion.queue_seconds + completion.prefill_seconds
        self._queue.labels(name).observe(completion.queue_seconds)
        self._first.labels(name).observe(first)
        self._whole.labels(name).observe(first + completion.decode_seconds)
        if (count := len(completion.token_ids)) > 1:
            self._token.labels(name).observe(completion.decode_seconds / (count - 1))

    def watch(self, model: Model) -> None:
        """Reads the scheduler and the adapter cache of `model` at every scrape."""
        self.registry.register(_Runtime(model))


class _Runtime(Collector):
    def __init__(self, model: Model) -> None:
        self._model = model

    def collect(self) -> Iterator[Any]:
        stats = self._model.scheduler.stats()
        native, adapters = self._model.engine.native, self._model.adapters
        kv_bytes = native.kv_tokens * native.kv_bytes_per_token
        for name, help_text, value in (
            ("pomona_waiting_requests", "Requests in the queue.", stats.waiting),
            ("pomona_running_requests", "Requests in the batch.", stats.running),
            ("pomona_kv_free_tokens", "Room in the key/value cache.", stats.free_tokens),
            ("pomona_kv_tokens", "Size of the key/value cache.", native.kv_tokens),
            ("pomona_kv_bytes", "Bytes of the key/value cache.", kv_bytes),
            ("pomona_adapter_bytes", "Memory of all loaded adapter versions.", adapters.alive_bytes),
            ("pomona_adapter_budget_bytes", "Memory that adapters may take.", adapters.budget_bytes),
        ):
            yield GaugeMetricFamily(name, help_text, value)
        for name, help_text, count in (
            ("pomona_steps", "Steps of the engine.", stats.steps),
            ("pomona_failed_steps", "Steps that failed.", stats.failed_steps),
            ("pomona_step_seconds", "Time in steps.", stats.step_seconds),
            ("pomona_rows", "Tokens that steps took; by the number of steps: the mean batch.", stats.rows),
            ("pomona_queue_refusals", "Requests refused because the queue was full.", stats.refused),
            ("pomona_preemptions", "Requests that gave up their place for a while.", stats.preemptions),
        ):
            yield CounterMetricFamily(name, help_text, count)
        yield from self._lanes(stats)
        yield from self._adapters()

    def _lanes(self, stats: Any) -> Iterator[Any]:
        counters = [
            CounterMetricFamily(name, help_text, labels=("adapter",))
            for name, help_text in (
                ("pomona_prompt_tokens", "Tokens of prompts."),
                ("pomona_reused_tokens", "Tokens of prompts that were found in the prefix cache."),
                ("pomona_new_tokens", "Tokens of answers."),
            )
        ]
        for adapter, lane in stats.lanes.items():
            for counter, value in zip(
                counters, (lane.prompt_tokens, lane.reused_tokens, lane.new_tokens), strict=True
            ):
                counter.add_metric((adapter or NO_ADAPTER,), value)
        yield from counters

    def _adapters(self) -> Iterator[Any]:
        hits = CounterMetricFamily(
            "pomona_adapter_hits", "Uses of an adapter in memory.", labels=("adapter",)
        )
        misses = CounterMetricFamily("pomona_adapter_misses", "Loads of an adapter.", labels=("adapter",))
        resident = GaugeMetricFamily("pomona_adapter_resident", "1: it is in memory.", labels=("adapter",))
        for status in self._model.adapters.status():
            hits.add_metric((status.name,), status.hits)
            misses.add_metric((status.name,), status.loads)
            resident.add_metric((status.name,), float(status.resident))
        yield from (hits, misses, resident)
