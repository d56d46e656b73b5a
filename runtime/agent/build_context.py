"""What every step that builds the agent needs: the settings, the state folder, the clocks and the threads that decode."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from runtime.config.loader import LoadedConfig
from runtime.config.schema import Config
from runtime.mqtt.topics import Topics
from runtime.process.pacing import MonotonicClock


@dataclass(frozen=True, slots=True)
class AgentContext:
    """What every step needs: the settings, where state lies, the clocks, and the threads that decode."""

    loaded: LoadedConfig
    decoders: Executor
    wall: Callable[[], float]
    """Unix seconds."""
    session: str
    clock: MonotonicClock = field(default_factory=MonotonicClock)
    degraded: dict[str, str] = field(default_factory=dict)
    """Reasons for a degraded status, by the component that has them."""

    @property
    def config(self) -> Config:
        """The settings of the agent."""
        return self.loaded.config

    @property
    def state_dir(self) -> Path:
        """The folder of everything that the agent stores."""
        return self.loaded.config.state_dir

    @property
    def topics(self) -> Topics:
        """The topics of this agent."""
        return Topics(self.loaded.config.agent)
