"""The same job by hand, for comparison: `handwritten.py CONFIG PORT`. aiomqtt, torch, the same model on the same backend, and no more.

A picture is decoded when it arrives; at every tick of the same rate the newest one is encoded (if it is new), the policy
answers, and a command is published. No gate, no ages, no memory, no second process, nothing when something goes wrong.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import aiomqtt
import cv2
import numpy as np
import orjson
import torch
import yaml
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from learners.config.policy import EncoderSettings  # noqa: E402 - after the path
from learners.ipc.policy_spec import read_policy_spec  # noqa: E402 - after the path
from learners.model.backends.calibration_cache import Calibrations  # noqa: E402 - after the path
from learners.model.backends.fastest_backend import (  # noqa: E402
    BackendSettings,
    build,
)
from learners.model.encoders.preprocess import resize  # noqa: E402 - after the path
from learners.model.encoders.pretrained import load  # noqa: E402 - after the path
from learners.model.policy import Policy  # noqa: E402 - after the path


class Estimate(torch.nn.Module):
    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, present: torch.Tensor, ages: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.policy.estimate([tokens], present, ages)


class Model:
    def __init__(self, settings: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        state_dir = Path(settings["state_dir"])
        spec = read_policy_spec(state_dir)
        assert spec is not None, "the daemon must have started once in this state_dir"
        calibrations = Calibrations(state_dir, BackendSettings())
        encoder = load(
            EncoderSettings.model_validate(settings["encoders"]["vision"]), spec.streams[0].tokens, torch.device("cpu")
        )
        self.encode, self.backend = calibrations.runner(encoder.module, encoder.examples(), encoder.version)  # type: ignore[arg-type]
        self.size = encoder.size  # type: ignore[attr-defined]
        torch.manual_seed(0)
        self.policy = Policy(spec).eval()
        self.present, self.ages = torch.tensor([[True]]), torch.zeros(1, 1)
        tokens = torch.randn(1, spec.streams[0].tokens, spec.streams[0].width)
        # the backend the daemon chose: calibrating again beside a running daemon may end elsewhere, and compare backends
        choice = calibrations.recall(hashlib.sha256(spec.to_json()).hexdigest()[:16], torch.device("cpu"))
        assert choice is not None, "the daemon has not calibrated its policy in this state_dir"
        example = (self.present, self.ages, tokens)
        estimate = Estimate(self.policy).eval()
        self.fuse = build(estimate, [example], choice.backend, choice.precision, 1, "by-hand")
        self.states: deque[torch.Tensor] = deque(maxlen=spec.history)
        self.tokens = tokens
        self.choices = spec.actions.choices[0].choices

    @torch.inference_mode()
    def __call__(self, image: NDArray[Any] | None, tick: int) -> str:
        if image is not None:
            self.tokens = self.encode(resize([image], self.size, torch.device("cpu")))
        self.states.append(self.fuse(self.present, self.ages, self.tokens))
        while len(self.states) < (self.states.maxlen or 1):
            self.states.append(self.states[-1])
        context = self.policy.context(torch.stack(list(self.states), dim=1))
        out = self.policy.heads.act(context, generator=torch.Generator().manual_seed(tick), explore=True)
        return self.choices[int(out.values["head"][0])]


async def main(settings: dict[str, Any], port: int) -> None:
    model, period_s = Model(settings), 1 / settings["tick"]["rate_hz"]
    newest: list[tuple[NDArray[Any] | None, float]] = []
    nodelay = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
    async with aiomqtt.Client("127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5, socket_options=nodelay) as client:
        await client.subscribe("script/front")

        async def listen() -> None:
            async for message in client.messages:
                arrived = time.time()
                decoded = cv2.imdecode(np.frombuffer(message.payload, np.uint8), cv2.IMREAD_COLOR_RGB)
                newest[:] = [(decoded, arrived)]

        async with asyncio.TaskGroup() as group:
            group.create_task(listen())
            start, tick = time.monotonic(), 0
            while True:
                tick = max(tick + 1, int((time.monotonic() - start) / period_s) + 1)
                await asyncio.sleep(start + tick * period_s - time.monotonic())
                stamp, begun = time.time(), time.perf_counter()
                picture, arrived = newest.pop() if newest else (None, 0.0)
                value = model(picture, tick)
                took_ms = 1_000 * (time.perf_counter() - begun)
                body = {"value": value, "tick": tick, "stamp": stamp, "arrived": arrived, "forward_ms": took_ms}
                await client.publish("script/set", orjson.dumps(body), qos=1)


if __name__ == "__main__":
    asyncio.run(main(yaml.safe_load(Path(sys.argv[1]).read_text()), int(sys.argv[2])))
