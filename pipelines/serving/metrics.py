"""What the server counts, for Prometheus; no label holds text of a prompt."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from pipelines.serving.loading import GateReading, Served

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        self._requests = Counter("grun_requests", "Requests by what became of them.", ["endpoint", "outcome"], registry=own)
        self._seconds = Histogram(
            "grun_request_seconds", "From request to end of answer.", ["endpoint"], registry=own, buckets=_SECONDS
        )
        self._first = Histogram("grun_first_token_seconds", "From request to first text.", registry=own, buckets=_SECONDS)
        self._tokens = Counter("grun_tokens", "Tokens read and generated.", ["part"], registry=own)
        self._waiting = Gauge("grun_rows_waiting", "Answers that wait for a place in the batch.", registry=own)
        self._decoding = Gauge("grun_rows_decoding", "Answers that are being generated.", registry=own)
        self._batch = Histogram("grun_batch_rows", "Answers in one decoding step.", registry=own, buckets=_ROWS)
        self._prompts = Counter("grun_prompts_read", "Prompts that gates have seen.", registry=own)
        self._opened = Counter("grun_gate_open", "Prompts that opened a gate of a request.", ["request_id"], registry=own)
        self._swaps = Counter("grun_swaps", "Attempts to change the version that answers.", ["outcome"], registry=own)
        self._champion = Gauge("grun_champion_version", "The version that answers.", ["model", "digest"], registry=own)
        self._reachable = Gauge("grun_registry_reachable", "Whether the registry answered when last asked.", registry=own)

    def request(self, endpoint: str, outcome: str, seconds: float) -> None:
        """A request that ended."""
        self._requests.labels(endpoint, outcome).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def first_text(self, seconds: float) -> None:
        """The first text of an answer."""
        self._first.observe(seconds)

    def tokens(self, prompt: int, completion: int) -> None:
        """The tokens of an answer."""
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("completion").inc(completion)

    def rows(self, *, waiting: int, decoding: int) -> None:
        """The state of the batch."""
        self._waiting.set(waiting)
        self._decoding.set(decoding)

    def stepped(self, rows: int) -> None:
        """A step of the batch."""
        self._batch.observe(rows)

    def read(self, prompts: int, readings: Sequence[tuple[GateReading, ...]]) -> None:
        """Prompts that were read, with what the gates said about each."""
        self._prompts.inc(prompts)
        for row in readings:
            for request_id in {reading.request_id for reading in row if reading.open}:
                self._opened.labels(request_id).inc()

    def swapped(self, served: Served) -> None:
        """A version that answers from now on."""
        self._swaps.labels("done").inc()
        self._champion.clear()
        self._champion.labels(served.name, served.digest).set(served.version)
        for request_id in served.request_ids:
            self._opened.labels(request_id)  # a request that nobody asked about shows as 0

    def swap_failed(self) -> None:
        """A version that could not be served."""
        self._swaps.labels("failed").inc()

    def registry(self, *, reachable: bool) -> None:
        """What came of asking the registry."""
        self._reachable.set(reachable)

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
