"""Messages on `stop` that the broker stores: acknowledged in their order, and the newest one never too early."""

from __future__ import annotations

from dataclasses import replace

import aiomqtt
from hypothesis import given
from hypothesis import strategies as st

from runtime.gate.stop.unacknowledged import MOST, Unacknowledged
from runtime.mqtt import Message
from runtime.mqtt.aiomqtt_client import Newest


@given(st.lists(st.tuples(st.sampled_from(["message", "message", "saved"]), st.integers(0, 1), st.integers(0, 3))))
def test_acknowledgements_follow_the_order_of_arrival_and_what_is_not_on_the_disk_waits(
    steps: list[tuple[str, int, int]],
) -> None:
    waiting, arrived, done = Unacknowledged(), [0], list[int]()
    saved = 0
    for what, qos, back in steps:
        if what == "saved":
            saved = max(saved, waiting.newest - back)
            waiting.acknowledge(waiting.newest - back)
        else:
            number = waiting.newest + 1
            message = Message("stop", b"", qos, retain=False)
            assert waiting.add(replace(message, acknowledge=lambda number=number: done.append(number))) == number
            arrived += [number] if qos else []
        owed = [number for number in arrived[1:] if number > saved]
        assert done == arrived[1 : len(done) + 1]
        assert len(arrived) - 1 - len(done) == min(MOST, len(owed))
        assert not owed or owed[-1] not in done


def test_a_flood_of_qos_0_drops_nothing_that_the_broker_counts_as_under_way() -> None:
    queue = Newest(4)
    queue.session = object()  # type: ignore[assignment]  # any client
    qos_of = [0, 1, 0, 1, 0, 0, 1, 0, 1]
    for number, qos in enumerate(qos_of):
        queue.put_nowait(aiomqtt.Message("stop", bytes([number]), qos, False, number, None))
    left = [queue.get_nowait().payload for _ in range(queue.qsize())]
    assert left == [bytes([number]) for number, qos in enumerate(qos_of) if qos]
    assert queue.dropped == len(qos_of) - len(left)
