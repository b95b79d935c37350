"""What a server counts, in Prometheus' form. No label holds anything that a client wrote."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Meter:
    """The counts of one door."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of = self.registry
        self.requests = Counter("uptake_requests", "Requests answered.", ["route", "code"], registry=of)
        self.refused = Counter("uptake_refused", "Requests refused.", ["reason"], registry=of)
        self.cancelled = Counter("uptake_cancelled", "Requests whose client left.", ["stage"], registry=of)
        self.tokens = Counter("uptake_tokens", "Tokens read, written and trained on.", ["kind"], registry=of)
        self.queue = Histogram("uptake_queue_seconds", "Time until a turn.", buckets=SECONDS, registry=of)
        self.search = Histogram("uptake_search_seconds", "Time of a search.", buckets=SECONDS, registry=of)
        self.adapt = Histogram("uptake_adapt_seconds", "Time of adapting.", buckets=SECONDS, registry=of)
        self.first = Histogram(
            "uptake_first_token_seconds", "Time to the first token.", ["cache"], buckets=SECONDS, registry=of
        )
        self.whole = Histogram(
            "uptake_request_seconds", "Time of a whole request.", buckets=SECONDS, registry=of
        )
        self.waiting = Gauge("uptake_waiting", "Requests that wait for a turn.", registry=of)
        self.running = Gauge("uptake_running", "Rows of requests with the engine.", registry=of)
        self.restarts = Gauge(
            "uptake_engine_restarts", "Times that the engine was started again.", registry=of
        )
        self.engine = Gauge("uptake_engine", "What the engine holds.", ["what"], registry=of)
        self.lag = Gauge("uptake_loop_lag_seconds", "How late the door's event loop is.", registry=of)

    def page(self) -> bytes:
        """Return all of it as text."""
        return generate_latest(self.registry)
