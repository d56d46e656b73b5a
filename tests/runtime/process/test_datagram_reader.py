"""Reading the datagrams of the agent and of the stop listener."""

import socket

import pytest

from fakes import eventually
from runtime.process.datagram_reader import AT_ONCE, DatagramReader


def pair() -> tuple[socket.socket, socket.socket]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


async def test_datagrams_are_passed_on_until_the_other_end_is_gone() -> None:
    received: list[bytes] = []
    closed: list[int] = []
    reader = DatagramReader(received.append, lambda: closed.append(len(received)), 4)
    ours, theirs = pair()
    reader.attach(ours)
    for data in (b"one", b"longer"):
        theirs.send(data)
    theirs.close()
    await eventually(lambda: bool(closed), "the end of the other side")
    assert received == [b"one", b"long"]
    assert closed == [2]
    assert reader.end is None
    assert ours.fileno() == -1


async def test_one_turn_reads_a_bounded_number_and_a_new_socket_replaces_the_one_before() -> None:
    received: list[bytes] = []
    reader = DatagramReader(received.append, lambda: pytest.fail("nobody left"), 4)
    ours, theirs = pair()
    reader.attach(ours)
    for _ in range(AT_ONCE + 3):
        theirs.send(b"x")
    reader.read()
    assert len(received) == AT_ONCE
    other, their_other = pair()
    reader.attach(other)
    assert ours.fileno() == -1
    their_other.send(b"y")
    reader.read()
    assert received[AT_ONCE:] == [b"y"]
    reader.detach()
    reader.read()
    theirs.close()
    their_other.close()


async def test_a_socket_that_its_receiver_detaches_is_read_no_further() -> None:
    received: list[bytes] = []

    def receive(data: bytes) -> None:
        received.append(data)
        reader.detach()

    reader = DatagramReader(receive, lambda: pytest.fail("nobody left"), 4)
    ours, theirs = pair()
    reader.attach(ours)
    theirs.send(b"1")
    theirs.send(b"2")
    reader.read()
    assert received == [b"1"]
    theirs.close()
