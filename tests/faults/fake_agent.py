"""A small agent that speaks the link: proposes at a steady rate, and can be made to freeze in a C call or to propose nonsense.

`fake_agent.py --gate-fd N --agreement DIGEST [--rate HZ] [--values a,b] [--not-ready N] [--exit-after N]`. SIGUSR1 holds the interpreter lock for
3 s; SIGUSR2 takes a stream of `--unplug` away, or brings it back. Verdicts are printed as JSON lines when `--verdicts FILE` is given.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import orjson

from actuators.safety.decisions import Proposal
from runtime.gate import ipc

HELD_S = 3.0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gate-fd", type=int, required=True)
    parser.add_argument("--agreement", required=True, help="`Config.agreement` of the daemon")
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--values", default="left,right")
    parser.add_argument("--verdicts", type=Path)
    parser.add_argument("--exit-after", type=int, default=0)
    parser.add_argument("--stale", default="")
    parser.add_argument("--unplug", default="joints")
    given = parser.parse_args()
    end = socket.socket(fileno=given.gate_fd)
    os.set_inheritable(end.fileno(), False)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    libc = ctypes.PyDLL(None)  # PyDLL keeps the interpreter lock during the call
    signal.signal(signal.SIGUSR1, lambda *_: libc.usleep(int(HELD_S * 1e6)))
    signal.signal(signal.SIGUSR2, lambda *_: setattr(given, "stale", "" if given.stale else given.unplug))
    ticker = threading.Thread(target=tick, args=(end, given, stop), daemon=True)
    ticker.start()
    while not stop.wait(0.01) and ticker.is_alive():
        pass
    return 0 if stop.is_set() else 7


def tick(end: socket.socket, given: argparse.Namespace, stop: threading.Event) -> None:
    values = given.values.split(",")
    end.settimeout(1.0)
    out = given.verdicts.open("ab") if given.verdicts else None
    begun_s, number = time.monotonic(), 0
    while not stop.is_set():
        stale = tuple(given.stale.split(",")) if given.stale else ()
        actions: dict[str, object] = {"head": values[number % len(values)]}
        proposal = Proposal(
            number,
            f"{os.getpid()}-{number}",
            "fake-1",
            time.monotonic(),
            actions,  # type: ignore[arg-type]
            stale,
            agreement=given.agreement,
        )
        try:
            end.send(ipc.pack(proposal))
            verdict = ipc.unpack(end.recv(ipc.MAX_MESSAGE))
        except OSError:
            return
        if out is not None:
            out.write(orjson.dumps(asdict(verdict)) + b"\n")
            out.flush()
        number += 1
        if given.exit_after and number >= given.exit_after:
            os._exit(3)
        stop.wait(max(0.0, begun_s + number / given.rate - time.monotonic()))


if __name__ == "__main__":
    sys.exit(main())
