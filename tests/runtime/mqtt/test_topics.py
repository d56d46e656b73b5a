"""The wire contract refuses what is not strict JSON of the declared shape, and says why."""

from __future__ import annotations

import pytest

from runtime.mqtt.topics import MAX_JSON_BYTES, Refused, Reward, decode, parse


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b'{"value":NaN}', "value is nan"),
        (b'{"value":1e999}', "value is inf"),
        (b'{"value":1,"value":-1}', "the key 'value' appears twice"),
        (b'{"value":1,"more":' + b"[" * 17 + b"]" * 17 + b"}", "deeper than 16"),
        (b" " * (MAX_JSON_BYTES + 1), f"the limit is {MAX_JSON_BYTES} bytes"),
        (b'{"value":"1"}', "^value: "),
        (b"[]", "^payload: "),
    ],
)
def test_bad_reward_is_refused_with_its_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        decode(Reward, payload)


def test_good_payload_is_parsed() -> None:
    assert parse(b'{"a":[1,{"a":2}]}') == {"a": [1, {"a": 2}]}
    assert decode(Reward, b'{"value":1,"unknown":true}').value == 1.0
