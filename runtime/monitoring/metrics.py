"""Hold the Prometheus metrics of the agent, in base units, under the prefix `reflexd_`.

The registry is an argument: two agents in one process, or a test, do not share numbers. Label values come from the
settings (streams, encoders, actuators, rules), never from messages, so that the number of series stays bounded. This
module knows no HTTP and measures nothing: other components call it with their figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from actuators.safety.decisions import MODES

TICK_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
AGE_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
TAKEN = frozenset({"", "clipped", "quarantined"})
"""What follows `reward` or `label` in the counts of feedback that was taken after all."""


class Total:
    """A counter set from the totals of another process, which start at zero again when that process restarts."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._last = 0.0

    def set(self, value: float) -> None:
        """Add the difference to the last total; a smaller total means that the process restarted."""
        self._counter.inc(value - self._last if value >= self._last else value)
        self._last = value


class Metrics:
    """Every metric of one agent, registered in `registry` at construction."""

    def __init__(self, registry: CollectorRegistry, *, agent: str, version: str) -> None:
        self.registry = registry
        self._totals: dict[Counter, Total] = {}
        ProcessCollector(registry=registry)
        Info("reflexd_build", "What is running.", registry=registry).info({"agent": agent, "version": version})
        self._tick(registry)
        self._streams(registry)
        self._gate(registry)
        self._learner(registry)
        self._storage(registry)
        self._link(registry)

    def _tick(self, registry: CollectorRegistry) -> None:
        self.tick_seconds = Histogram(
            "reflexd_tick_seconds",
            "Duration of a tick, from its deadline to the proposal handed to the gate.",
            buckets=TICK_BUCKETS,
            registry=registry,
        )
        self.encoder_seconds = Histogram(
            "reflexd_encoder_seconds",
            "Duration of one encoder pass.",
            ["encoder"],
            buckets=TICK_BUCKETS,
            registry=registry,
        )
        self.overruns = Counter("reflexd_tick_overruns", "Ticks that ran past the next deadline.", registry=registry)
        self.skipped = Counter("reflexd_ticks_skipped", "Ticks skipped because of overruns.", registry=registry)
        self.period_seconds = Gauge("reflexd_tick_period_seconds", "Configured tick period.", registry=registry)

    def _streams(self, registry: CollectorRegistry) -> None:
        self.sensor_to_command_seconds = Histogram(
            "reflexd_sensor_to_command_seconds",
            "From capture of a stream's reading to the command made from it, until the gate had sent it; first use only.",
            ["stream"],
            buckets=AGE_BUCKETS,
            registry=registry,
        )
        self.action_input_age_seconds = Histogram(
            "reflexd_action_input_age_seconds",
            "Age of each stream's reading when a command made from it had been sent.",
            ["stream"],
            buckets=AGE_BUCKETS,
            registry=registry,
        )
        self.stream_age_seconds = Gauge(
            "reflexd_stream_age_seconds", "Age of the newest reading at the last tick.", ["stream"], registry=registry
        )
        self.stream_stale = Gauge(
            "reflexd_stream_stale", "1 while the stream is older than its max_age_s.", ["stream"], registry=registry
        )
        self.drops = Counter(
            "reflexd_stream_drops", "Readings dropped, by cause.", ["stream", "cause"], registry=registry
        )

    def _gate(self, registry: CollectorRegistry) -> None:
        self.refusals = Counter(
            "reflexd_gate_refusals", "Actions that the gate refused, by rule.", ["actuator", "rule"], registry=registry
        )
        self.commands = Counter(
            "reflexd_commands", "Commands sent, by origin of the decision.", ["actuator", "by"], registry=registry
        )
        self.gate_events = Counter(
            "reflexd_gate_events",
            "Events of the gate, by type: agent_lost, disarmed, stopped, broker_lost.",
            ["type"],
            registry=registry,
        )
        self.armed = Gauge("reflexd_armed", "1 while the gate lets the policy act.", registry=registry)
        self.stopped = Gauge("reflexd_stopped", "1 while the software stop is engaged.", registry=registry)
        self.mode = Gauge("reflexd_mode", "1 for the mode in force.", ["mode"], registry=registry)

    def _learner(self, registry: CollectorRegistry) -> None:
        self.learner_up = Gauge("reflexd_learner_up", "1 while the learner reports progress.", registry=registry)
        self.updates = Counter("reflexd_learner_updates", "Gradient updates.", registry=registry)
        self.loss = Gauge("reflexd_learner_loss", "Loss of the last updates.", ["part"], registry=registry)
        self.q = Gauge("reflexd_learner_q", "Mean estimated return of sampled actions.", registry=registry)
        self.buffer = Gauge("reflexd_learner_buffer_transitions", "Transitions in the store.", registry=registry)
        self.reward_mean = Gauge("reflexd_reward_mean", "Mean reward per tick, recent window.", registry=registry)
        self.rewards = Counter("reflexd_rewards", "Rewards credited to a decision.", registry=registry)
        self.promotions = Counter("reflexd_promotions", "Policy versions that were promoted.", registry=registry)
        self.rejections = Counter(
            "reflexd_rejections", "Candidates rejected, by promotion step.", ["step"], registry=registry
        )
        self.experience_refused = Counter(
            "reflexd_experience_refused",
            "Items of experience that were not stored, by cause.",
            ["cause"],
            registry=registry,
        )
        self.rollbacks = Counter("reflexd_rollbacks", "Policies taken back.", registry=registry)
        self.experiment = Gauge("reflexd_experiment", "1 while a challenger is on trial.", registry=registry)
        self.trusted = Gauge("reflexd_policy_trusted", "1 if a version is proved or chosen.", registry=registry)
        self.quarantined = Gauge(
            "reflexd_sources_quarantined", "Number of quarantined feedback sources.", registry=registry
        )

    def _storage(self, registry: CollectorRegistry) -> None:
        self.storage = Gauge("reflexd_storage_bytes", "Bytes of state_dir on disk.", ["part"], registry=registry)
        self.storage_limit = Gauge("reflexd_storage_limit_bytes", "Budget: storage.max_gb.", registry=registry)
        self.storage_full_seconds = Gauge(
            "reflexd_storage_full_seconds",
            "Time until the budget or the disk is full at the present growth; -1 without growth.",
            registry=registry,
        )
        self.storage_failing = Gauge(
            "reflexd_storage_failing", "1 while a folder of state_dir cannot be written.", registry=registry
        )

    def _link(self, registry: CollectorRegistry) -> None:
        self.mqtt_connected = Gauge("reflexd_mqtt_connected", "1 while the broker answers.", registry=registry)
        self.reconnects = Counter("reflexd_mqtt_reconnects", "Connections made after the first.", registry=registry)
        self.refused_messages = Counter(
            "reflexd_messages_refused",
            "Messages refused, by kind of topic and cause.",
            ["kind", "cause"],
            registry=registry,
        )
        self.restarts = Counter("reflexd_child_restarts", "Children started again.", ["child"], registry=registry)
        self.tasks = Gauge("reflexd_tasks", "Tasks in the agent's event loop.", registry=registry)
        self.threads = Gauge("reflexd_threads", "Threads that Python started in the agent.", registry=registry)

    def observe_ages(self, ages_s: Mapping[str, float], stale: frozenset[str]) -> None:
        """Note every stream's age at a tick, and which ones are too old to be used."""
        for stream, age_s in ages_s.items():
            self.stream_age_seconds.labels(stream).set(age_s)
            self.stream_stale.labels(stream).set(stream in stale)
        for stream in stale - ages_s.keys():
            self.stream_stale.labels(stream).set(1)

    def observe_acted(self, ages_s: Mapping[str, float], fresh: frozenset[str], answered_s: float) -> None:
        """Record a tick that sent its decision to a device.

        Args:
            ages_s: ages of the readings of the decision, at the observation, in seconds.
            fresh: the streams with a reading that no earlier decision used.
            answered_s: seconds from the observation until the gate had sent the command.
        """
        for stream, age_s in ages_s.items():
            self.action_input_age_seconds.labels(stream).observe(age_s + answered_s)
            if stream in fresh:
                self.sensor_to_command_seconds.labels(stream).observe(age_s + answered_s)

    def observe_totals(
        self,
        refused: Mapping[str, Mapping[str, int]],
        restarts: Mapping[str, int],
        events: Mapping[str, int] | None = None,
    ) -> None:
        """Note the supervisor's totals: refusals by actuator and rule, restarts of each child, events of the gate by type."""
        for kind, count in (events or {}).items():
            self._total(self.gate_events.labels(kind), count)
        for actuator, rules in refused.items():
            for rule, count in rules.items():
                self._total(self.refusals.labels(actuator, rule), count)
        for child, count in restarts.items():
            self._total(self.restarts.labels(child), count)

    def observe_refused(self, counts: Mapping[str, int]) -> None:
        """Note how many messages of each kind were not taken since the start."""
        for kind, count in counts.items():
            self._total(self.refused_messages.labels(kind, "malformed"), count)

    def observe_gate(self, *, armed: bool, stopped: bool, mode: str) -> None:
        """Note the gate's state."""
        self.armed.set(armed)
        self.stopped.set(stopped)
        for name in MODES:
            self.mode.labels(name).set(name == mode)

    def observe_health(self, health: Mapping[str, Any]) -> None:
        """Note the totals of a `health` message: overruns, skipped deadlines, drops by stream and cause, the learner's part."""
        tick = health.get("tick") or {}
        self._total(self.overruns, tick.get("overruns"))
        self._total(self.skipped, tick.get("skipped"))
        for stream, entry in (health.get("streams") or {}).items():
            for cause, count in (entry.get("drops") or {}).items():
                self._total(self.drops.labels(stream, cause), count)
        for cause, count in ((health.get("experience") or {}).get("drops") or {}).items():
            self._total(self.experience_refused.labels(cause), count)
        feedback = health.get("feedback") or {}
        self._total(self.rewards, feedback.get("reward"))
        for name, count in feedback.items():
            kind, _, cause = name.partition("_")
            if cause not in TAKEN:
                self._total(self.refused_messages.labels(kind, cause), count)
        process = health.get("process") or {}
        _set(self.tasks, process.get("tasks"))
        _set(self.threads, process.get("threads"))
        experiments = health.get("experiments") or {}
        self.experiment.set(bool(experiments.get("experiment")))
        self.trusted.set(bool(experiments.get("trusted")))
        self.quarantined.set(len((health.get("sources") or {}).get("quarantined") or ()))
        self.observe_learner(health.get("learner") or {})
        self.observe_storage(health.get("storage") or {})

    def observe_storage(self, storage: Mapping[str, Any]) -> None:
        """Note use, budget and forecast of the state folder."""
        for part, size in (storage.get("parts") or {}).items():
            self.storage.labels(part).set(size)
        _set(self.storage_limit, storage.get("max_bytes"))
        days = storage.get("days_until_full")
        self.storage_full_seconds.set(-1 if days is None else days * 86_400)
        self.storage_failing.set(bool(storage.get("problem")))

    def observe_event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Note an event that is counted: a policy that went live, was refused or taken back."""
        match kind:
            case "policy_promoted":
                self.promotions.inc()
            case "policy_rolled_back":
                self.rollbacks.inc()
            case "policy_rejected":
                self.rejections.labels(str(data.get("step") or data.get("reason") or "unknown")[:32]).inc()

    def observe_link(self, *, connected: bool, connects: int) -> None:
        """Note the connection to the broker and how often it was made."""
        self.mqtt_connected.set(connected)
        self._total(self.reconnects, max(0, connects - 1))

    def _total(self, counter: Counter, value: object) -> None:
        if isinstance(value, int | float):
            self._totals.setdefault(counter, Total(counter)).set(float(value))

    def observe_learner(self, progress: Mapping[str, Any]) -> None:
        """Note the learner's part of `health`: `updates`, `loss` (a number or one for each part), `q`, `buffer`, `reward_mean`."""
        self.learner_up.set("updates" in progress and progress.get("state") != "dead")
        self._total(self.updates, progress.get("updates"))
        loss = progress.get("loss")
        for part, value in (loss if isinstance(loss, Mapping) else {"total": loss}).items():
            _set(self.loss.labels(str(part)), value)
        _set(self.q, progress.get("q"))
        _set(self.buffer, progress.get("buffer"))
        _set(self.reward_mean, progress.get("reward_mean"))


def _set(gauge: Gauge, value: object) -> None:
    if isinstance(value, int | float):
        gauge.set(value)
