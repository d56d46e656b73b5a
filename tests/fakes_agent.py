"""An agent that exists on the wire only: it publishes and answers as the contract says, so that clients can be tried.

Its world: a coloured square moves over a picture, an order names a side, and the `head` turns to it; the policy gets better
with time. Stop, mode, arm, override, promote, rollback, explain and watch do what the real one does, as far as a client
can see. Run it by hand with `python tests/fakes_agent.py mqtt://127.0.0.1:1883`.
"""

from __future__ import annotations

import asyncio
import math
import random
import struct
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import canaries
import orjson
from PIL import Image, ImageDraw

from runtime.config.schema import Config
from runtime.gate.info import describe
from runtime.mqtt import Address, Connection, Message, Will
from runtime.mqtt.topics import Topics, encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

AGENT = "demo"
CHOICES = ("left", "stay", "right")
VERDICTS: tuple[dict[str, Any], ...] = (
    {"type": "policy_promoted", "stamp": 1_750_000_000.0, "data": {"version": "000006-aa10b2c3"}},
    {
        "type": "policy_rejected",
        "stamp": 1_750_000_100.0,
        "data": {
            "version": "000005-77c0d9ee",
            "step": "ope",
            "reason": "inconclusive: 12 decisions",
            "steps": {
                "latency": {"passed": True, "median_ms": 1.2, "limit_ms": 50.0},
                "ope": {"passed": False, "lower": -0.2, "margin": 0.05},
            },
        },
    },
)
"""Verdicts of an earlier run of the daemon."""
DRIFTING = -7.0
"""A reward that makes the camera and the policy drift."""
ORDERS = ("find the cat", "look at the coffee", "where is the rocket", "show me the astronaut")


def config(url: str, **more: Any) -> Config:
    """Settings like the demo's, with one actuator of every kind."""
    return Config.model_validate(
        {
            "agent": AGENT,
            "state_dir": "/nonexistent",
            "mqtt": {"url": url},
            "streams": {
                "front": {
                    "kind": "camera",
                    "source": f"rtsp://user:{canaries.RTSP}@cam/1",
                    "required": True,
                    "encoder": "v",
                },
                "room": {"kind": "microphone", "source": "topic", "encoder": "h"},
                "orders": {"kind": "text", "source": "topic", "max_age_s": 60, "encoder": "l"},
                "joints": {"kind": "telemetry", "source": "topic", "fields": ["angle", "speed", "/imu/yaw"]},
            },
            "encoders": {
                "v": {"model": "bundled:efficientnet-lite0"},
                "h": {"model": "bundled:whisper-tiny.en"},
                "l": {"model": "bundled:minilm-l6"},
            },
            "actuators": {
                "head": {"kind": "choice", "choices": list(CHOICES), "safe": "stay"},
                "arm": {"kind": "continuous", "low": [-1, -1], "high": [1, 1], "safe": "hold"},
            },
            "tasks": {
                "intents": {
                    "kind": "text-classification",
                    "stream": "orders",
                    "model": "bundled:minilm-l6",
                    "labels": ["find", "look", "where", "show"],
                }
            },
            **more,
        }
    )


@dataclass
class FakeAgent:
    """The whole fake, on one connection."""

    url: str
    rate_hz: float = 10.0
    responds: bool = True
    """Whether the gate responds to stops and overrides."""
    gives_orders: bool = True
    topics: Topics = field(default_factory=lambda: Topics(AGENT))
    tick: int = 0
    armed: bool = True
    stopped: bool = False
    mode: str = "autonomous"
    seq: int = 0
    live: str = "000007-1f3a9c0e"
    failed: list[str] = field(default_factory=list)
    override_until_s: float = 0.0
    override_value: Any = None
    watch_until_s: float = 0.0
    drift: dict[str, Any] = field(default_factory=dict)
    """As in `health.drift`; a reward of `DRIFTING` makes stream and policy drift."""
    order: str = ORDERS[0]
    device: dict[str, Any] = field(default_factory=lambda: {"head": "stay", "arm": [0.0, 0.0]})
    history: list[dict[str, Any]] = field(default_factory=lambda: [dict(each) for each in VERDICTS])
    observed: list[tuple[str, Any]] = field(default_factory=list)
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    link: Connection = field(init=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        will = Will(self.topics("status"), encode({"state": "offline", "reasons": ["connection lost"]}))
        self.link = Connection(Address(parts.hostname or "", parts.port or 1883), "reflexd-demo", will, self._hello)
        for name in ("stop", "reward", "label", "preview/subscribe", "override/+", "request/+", "in/orders"):
            self.link.subscribe(self.topics(name), self._take)

    def _hello(self) -> None:
        self._status()
        info = describe(config(self.url), version="0.1.0", policy=self.live)
        self.link.enqueue(self.topics("info"), encode({**info, "mode": self.mode}), qos=1, retain=True)
        for name in self.device:
            self._device(name)
        self._health()

    def _status(self) -> None:
        state = "stopped" if self.stopped else "online"
        reasons = [] if self.armed else ["not armed"]
        self.link.enqueue(self.topics("status"), encode({"state": state, "reasons": reasons}), qos=1, retain=True)

    def event(self, kind: str, **data: Any) -> None:
        """Publish an event; a verdict goes into the history, too."""
        if kind.startswith("policy_"):
            self.history.append({"type": kind, "stamp": time.time(), "data": data})
        self.link.enqueue(self.topics("event"), encode({"type": kind, "stamp": time.time(), "data": data}), qos=1)

    def _device(self, name: str, seq: int | None = None) -> None:
        body = {"value": self.device[name], "seq": seq, "boot": "b1"}
        self.link.enqueue(self.topics.state(name), encode(body), qos=1, retain=True)

    def command(self, name: str, value: Any, policy: str) -> None:
        """What the gate writes, and the device's answer."""
        self.seq += 1
        body = {"value": value, "decision": f"s-{self.tick}", "boot": "b1", "seq": self.seq}
        more = {"stamp": time.time(), "ttl_ms": 300, "policy": policy}
        self.link.enqueue(self.topics.command(name), encode({**body, **more}), qos=1)
        self.device[name] = value
        self._device(name, self.seq)

    def safe(self) -> None:
        """Every device its safe value."""
        self.command("head", "stay", "gate")

    def _take(self, message: Message) -> None:
        kind, _, rest = message.topic.removeprefix(f"{self.topics.base}/").partition("/")
        body = orjson.loads(message.payload)
        self.observed.append((f"{kind}/{rest}".rstrip("/"), body))
        if kind == "preview":
            self.watch_until_s = time.monotonic() + 5
        elif kind == "in":
            self.order = body["text"]
        elif kind == "reward" and body.get("value") == DRIFTING:
            since = {"since_unix_s": time.time(), "words": "darker"}
            self.drift = {"front": since, "policy": {**since, "words": "value higher"}}
            self._health()
        elif kind == "override":
            self._respond(message, self._override(rest, body))
        elif kind == "stop":
            self._stop(engaged=body["engaged"])
            self._respond(message, {"stopped": self.stopped, "armed": self.armed})
        elif kind == "request":
            self.link.reply(message, encode(self._answer(rest, body)), self.topics("response", rest))

    def _respond(self, message: Message, data: dict[str, Any]) -> None:
        if message.response_topic is not None and self.responds:
            self.link.reply(message, encode({"status": "ok", "data": data}), self.topics("response", "other"))

    def _override(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        data = {"actuator": name, "value": body["value"], "hold_s": body["hold_s"]}
        if self.stopped or not self.armed:
            rule, reason = ("stopped", "the software stop is engaged") if self.stopped else ("disarmed", "not armed")
            return {**data, "sent": False, "rule": rule, "reason": reason}
        self.override_value, self.override_until_s = body["value"], time.monotonic() + body["hold_s"]
        self.command(name, body["value"], "override")
        self._hold(name, body["value"], time.time() + body["hold_s"])
        return {**data, "sent": True, "rule": None, "reason": ""}

    def _hold(self, name: str, value: Any, until: float | None) -> None:
        body = {"value": value, "until": until}
        self.link.enqueue(self.topics("hold", name), encode(body), qos=1, retain=True)

    def _end_override(self, name: str) -> dict[str, Any]:
        self.override_until_s = 0.0
        self._hold(name, None, None)
        return {"actuator": name}

    def _record(self, *, on: bool) -> dict[str, Any]:
        self.event("recording_started" if on else "recording_ended", path="state/recordings/a.mcap")
        return {"path": "state/recordings/a.mcap", "written": 12, "dropped": 0}

    def _stop(self, *, engaged: bool) -> None:
        self.stopped, self.armed = engaged, False
        if engaged:
            self.safe()
        self._status()
        self.event("stopped" if engaged else "stop_released")
        self._health()

    def _answer(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        if verb == "arm" and self.stopped:
            return {"status": "error", "error": "the software stop is engaged; release it first"}
        answers: dict[str, Callable[[], dict[str, Any]]] = {
            "arm": lambda: self._arm(on=True),
            "disarm": lambda: self._arm(on=False),
            "mode": lambda: self._mode(body["mode"]),
            "end_override": lambda: self._end_override(body["actuator"]),
            "record": lambda: self._record(on=body.get("on", True)),
            "promote": lambda: self._promote(body["version"]),
            "rollback": self._rollback,
            "checkpoints": self._checkpoints,
            "explain": lambda: self._explanation(body["decision"]),
            "accept_drift": lambda: self._accept_drift(body["stream"]),
        }
        return {"status": "ok", "data": answers[verb]() if verb in answers else {}}

    def _arm(self, *, on: bool) -> dict[str, Any]:
        self.armed = on
        self.event("armed" if on else "disarmed")
        self._status()
        self._health()
        return {"armed": on}

    def _mode(self, mode: str) -> dict[str, Any]:
        self.mode = mode
        self._hello()
        return {"modes": dict.fromkeys(self.device, mode)}

    def _accept_drift(self, stream: str) -> dict[str, Any]:
        del self.drift[stream]
        self._health()
        return {"stream": stream, "state": "accepted"}

    def _promote(self, version: str) -> dict[str, Any]:
        before, self.live = self.live, version
        self.event("policy_promoted", version=version, before=before, effective_samples=412.0)
        return {"version": version, "before": before}

    def _rollback(self) -> dict[str, Any]:
        before, self.live = self.live, "000006-aa10b2c3"
        self.failed.append(before)
        self.event("policy_rolled_back", version=before, to=self.live, by="request")
        return {"version": self.live, "before": before}

    def _checkpoints(self) -> dict[str, Any]:
        names = ["000005-77c0d9ee", "000006-aa10b2c3", "000007-1f3a9c0e", "000008-5be2f410"]
        rows = [{"version": v, "created": time.time() - 300 * (8 - i), "metrics": {}} for i, v in enumerate(names)]
        return {"live": self.live, "failed": self.failed, "checkpoints": rows, "history": self.history}

    def _explanation(self, decision: str) -> dict[str, Any]:
        values = {"orders": 0.61, "front": 0.34, "room": -0.08, "joints": 0.05}
        part = {"score": 1.42, "baseline": 0.5, "streams": values, "score_kind": "q"}
        lineage = [self.live, "000006-aa10b2c3"]
        received = {"decision": decision, "policy": self.live, "lineage": lineage, "parts": {"head": part}}
        return {**received, "by": {"head": "policy"}, "reward": 0.4, "value": 1.4}

    async def run(self) -> None:
        """Connect and tick until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.link.run(), name="fake agent link")
            group.create_task(self._tick_for_ever(), name="fake agent ticks")

    async def _tick_for_ever(self) -> None:
        await self.link.up()
        while True:
            self._one_tick()
            await asyncio.sleep(1 / self.rate_hz)

    @property
    def skill(self) -> float:
        """How good the policy is by now."""
        return 1 - math.exp(-self.tick / 600)

    def _one_tick(self) -> None:
        self.tick += 1
        sharp = 0.34 + 0.6 * self.skill
        best = CHOICES[int(self.tick / 40) % 3]
        probabilities = {c: sharp if c == best else (1 - sharp) / 2 for c in CHOICES}
        choice = self.chance.choices(CHOICES, [probabilities[c] for c in CHOICES])[0]
        arm = [round(math.sin(self.tick / 30), 3), round(math.cos(self.tick / 47), 3)]
        self.link.enqueue(self.topics("decision"), encode(self._decision(choice, probabilities, arm)))
        if self.armed and not self.stopped and self.mode == "autonomous" and time.monotonic() > self.override_until_s:
            self.command("head", choice, self.live)
            self.command("arm", arm, self.live)
        if self.mode == "assist" and self.tick % 10 == 0:
            self.link.enqueue(self.topics("proposal", "head"), encode({"value": choice, "decision": f"s-{self.tick}"}))
        reward = (1.0 if choice == best else -0.2) * self.skill + self.chance.gauss(0, 0.15)
        self.link.enqueue(self.topics("reward"), encode({"value": reward, "decision": f"s-{self.tick}"}), qos=1)
        self._senses()
        if self.tick % 20 == 0:
            self._health()
        if self.tick % 100 == 20:
            self.ask()

    def _decision(self, choice: str, probabilities: dict[str, float], arm: list[float]) -> dict[str, Any]:
        head = {"value": choice, "probability": probabilities[choice], "probabilities": probabilities}
        return {
            "id": f"s-{self.tick}",
            "tick": self.tick,
            "stamp": time.time(),
            "policy": self.live,
            "mode": self.mode,
            "actions": {"head": head, "arm": {"value": arm, "probability": 0.8}},
            "value": 8 * self.skill + self.chance.gauss(0, 0.3),
            "ages_ms": {"front": 40 + 30 * self.chance.random(), "room": 90.0, "orders": 8000.0, "joints": 12.0},
            "missing": [],
            "latency_ms": 21 + 4 * self.chance.random() + (30 if self.chance.random() < 0.01 else 0),
        }

    def ask(self) -> None:
        """A question for a person."""
        text = self.chance.choice(ORDERS)
        self.event(
            "label_requested", id=f"q-{self.tick}", task="intents", text=text, candidates=["find", "look", "show"]
        )

    def _senses(self) -> None:
        t = self.tick
        values = {"angle": math.sin(t / 15), "speed": math.cos(t / 15), "imu": {"yaw": math.sin(t / 60) * 3}}
        self.link.enqueue(self.topics("in", "joints"), encode(values))
        loud = abs(math.sin(t / 9)) * 9_000
        sound = (int(loud * math.sin(i / 6)) for i in range(1_600))
        self.link.enqueue(self.topics("in", "room"), struct.pack("<1600h", *sound))
        if self.gives_orders and t % 150 == 5:
            self.link.enqueue(self.topics("in", "orders"), encode({"text": self.chance.choice(ORDERS)}))
            self.link.enqueue(self.topics("task", "intents"), encode({"label": "find", "probability": 0.93}))
        if t % 3 == 0 and time.monotonic() < self.watch_until_s:
            self.link.enqueue(self.topics("preview", "front"), picture(t))

    def _health(self) -> None:
        drops = {"backlog": self.tick // 200}
        streams = {
            n: {"age_s": 0.05, "stale": False, "drops": drops if n == "front" else {}} for n in config(self.url).streams
        }
        learner = {
            "state": "training",
            "updates": self.tick * 2,
            "updates_per_s": 19.6,
            "loss": 0.9 * math.exp(-self.tick / 500) + 0.05 + 0.02 * self.chance.random(),
            "q": 8 * self.skill,
            "buffer": self.tick,
            "reward_mean": self.skill * 0.8,
        }
        body = {
            "tick": {"p50_ms": 22.4, "p99_ms": 31.0, "overruns": 1, "count": self.tick},
            "streams": streams,
            "memory_mb": 812.5,
            "learner": learner,
            "policy": self.live,
            "mode": self.mode,
            "armed": self.armed,
            "stopped": self.stopped,
            "drift": self.drift,
            "gate": {"refusals": {"rate": self.tick // 90}},
        }
        self.link.enqueue(self.topics("health"), encode(body))


def picture(t: int) -> bytes:
    """A 320 x 180 JPEG: hills, a sun that moves with `t`."""
    image = Image.new("RGB", (320, 180), (126, 176, 220))
    draw = ImageDraw.Draw(image)
    x = 160 + 110 * math.sin(t / 25)
    draw.ellipse((x - 18, 26, x + 18, 62), fill=(255, 214, 92))
    draw.polygon([(0, 130), (80, 70), (170, 140), (240, 90), (320, 140), (320, 180), (0, 180)], fill=(64, 112, 82))
    draw.rectangle((0, 150, 320, 180), fill=(46, 84, 60))
    out = BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()


@asynccontextmanager
async def running(url: str, **more: Any) -> AsyncIterator[FakeAgent]:
    """A fake agent for the time of the context."""
    agent = FakeAgent(url, **more)
    task = asyncio.create_task(agent.run(), name="fake agent")
    try:
        await asyncio.wait_for(agent.link.up(), 60)
        yield agent
    finally:
        task.cancel()
        await asyncio.wait([task])


if __name__ == "__main__":
    asyncio.run(FakeAgent(sys.argv[1]).run())
