"""An agent that only lets people label: the real handlers of requests, a real store, and a real fine-tune of a tiny model."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
from PIL import Image

from learners.config.learner import ExperienceSettings
from learners.config.tasks import FinetuneSettings
from learners.experience.reader import Reader
from learners.experience.store import Raw, Store
from runtime.config.loader import load
from runtime.config.schema import Config
from runtime.feedback.recent_results import RecentResults
from runtime.gate.info import describe
from runtime.mqtt import Address, Connection, Message
from runtime.mqtt.topics import Topics, encode
from runtime.requests.handlers import Requests
from runtime.requests.labelling import Gallery

TINTS = {"red": (255, 60, 60), "green": (60, 255, 60), "blue": (60, 60, 255)}


def picture(seed: int, tint: str) -> bytes:
    """A smooth picture of its own for each seed, in one colour, as a JPEG."""
    generator = np.random.default_rng(seed)
    grey = generator.integers(60, 256, (6, 8), dtype=np.uint8)
    small = Image.fromarray(grey).resize((64, 48), Image.Resampling.BICUBIC)
    pixels = np.asarray(small, np.float32)[..., None] / 255 * np.array(TINTS[tint], np.float32)
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


@dataclass
class GalleryAgent:
    """On one connection; create it inside a running loop."""

    url: str
    settings: Path
    folder: Path
    model: str
    """Replaces the model of every task."""
    topics: Topics = field(default_factory=lambda: Topics("demo"))
    tasks: dict[str, Any] = field(default_factory=dict)
    link: Connection = field(init=False)
    requests: Requests = field(init=False)

    def __post_init__(self) -> None:
        host, _, port = self.url.rpartition("//")[2].partition(":")
        self.link = Connection(Address(host, int(port)), "reflexd-demo", on_connect=self._hello)
        self.store = Store(self.folder / "experience", ExperienceSettings(raw_retention_s=1e9))
        gallery = Gallery(
            self.folder / "experience", self.folder / "learner" / "tasks", self.tasks, self.store, RecentResults()
        )
        self.requests = Requests(
            *(self.link, self.topics, SimpleNamespace(), SimpleNamespace(), SimpleNamespace(), SimpleNamespace()),
            *(self._event, SimpleNamespace(), SimpleNamespace(), SimpleNamespace(add=self._finetune), gallery),
            history=SimpleNamespace(newest=lambda _count: []),
        )  # type: ignore[arg-type]
        for verb in ("readings", "label_readings", "labels", "correct_labels", "finetune"):
            self.link.subscribe(self.topics("request", verb), self.requests.take)
        self.link.subscribe(self.topics("request", "reload"), self._reload)
        self._training: asyncio.Task[None] | None = None

    def see(self, names: list[str]) -> None:
        """Store a picture of each colour that is named."""
        for number, tint in enumerate(names):
            self.store.add_raw(Raw("front", time.time() - len(names) + number, "jpeg", picture(number, tint)))
        assert self.store.flush()

    def _hello(self) -> None:
        config: Config = load(self.settings).config
        self.tasks.update({name: each.model_copy(update={"model": self.model}) for name, each in config.tasks.items()})
        self.link.enqueue(self.topics("status"), encode({"state": "online", "reasons": []}), qos=1, retain=True)
        info = {**describe(config, version="0.1.0", policy="untrained"), "mode": "shadow"}
        self.link.enqueue(self.topics("info"), encode(info), qos=1, retain=True)

    def _reload(self, message: Message) -> None:
        self._hello()
        self.link.reply(message, encode({"status": "ok", "data": {"changed": ["tasks"]}}), self.topics("response", "x"))

    async def _finetune(self, task: str | None) -> dict[str, Any]:
        self._training = asyncio.create_task(self._train(task or ""))
        return {"task": task, "state": "asked"}

    async def _train(self, task: str) -> None:
        from learners.continual.trainer import ContinualTrainer

        settings = FinetuneSettings(min_labels=1, epochs=20)
        reader = Reader(self.folder / "experience")
        trainer = ContinualTrainer(task, self.tasks[task], settings, self.folder / "learner" / "tasks", reader)
        verdict = await asyncio.to_thread(trainer.run)
        reader.close()
        self._event(verdict.event, {"task": task, **verdict.fields})

    def _event(self, kind: str, data: dict[str, Any]) -> None:
        body = orjson.dumps({"type": kind, "stamp": time.time(), "data": data}, option=orjson.OPT_SERIALIZE_NUMPY)
        self.link.enqueue(self.topics("event"), body, qos=1)


@contextlib.contextmanager
def gallery_agent(url: str, settings: Path, folder: Path, model: str) -> Iterator[GalleryAgent]:
    """The agent in a thread of its own."""
    ready, found = threading.Event(), list[GalleryAgent]()
    loop, ends = asyncio.new_event_loop(), asyncio.Event()

    async def live() -> None:
        agent = GalleryAgent(url, settings, folder, model)
        found.append(agent)
        running = [asyncio.create_task(agent.link.run()), asyncio.create_task(agent.requests.run())]
        ready.set()
        await ends.wait()
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        agent.store.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(live()))
    thread.start()
    assert ready.wait(30)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(ends.set)
        thread.join(30)
        loop.close()
