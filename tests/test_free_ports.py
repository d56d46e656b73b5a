"""Ports for the servers that tests start."""

import socket
import subprocess
import sys
from pathlib import Path

from free_ports import HIGHEST, LOWEST, free_port

PROGRAM = "from free_ports import free_port\nprint(*(free_port() for _ in range(200)), flush=True)\ninput()"


def test_no_port_is_given_twice_nor_to_an_outgoing_connection() -> None:
    first_of_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert first_of_outgoing >= HIGHEST
    others = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM], cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    given = [free_port() for _ in range(200)]
    for other in others:
        assert other.stdout is not None
        given += map(int, other.stdout.readline().split())
    for other in others:
        other.communicate(b"\n")
    assert len(set(given)) == 800
    assert all(LOWEST <= port < HIGHEST for port in given)
    with socket.socket() as server:
        server.bind(("127.0.0.1", given[0]))
